"""Normalisation: over neighbouring channels, and by the statistics of the batch."""

from collections.abc import Callable

from minidnn import functional as F
from minidnn.nn.dimensions import Part
from minidnn.nn.init import ones, zeros
from minidnn.nn.module import Module, Shape
from minidnn.nn.parameter import Buffer, Parameter
from minidnn.tensor import Tensor


class LocalResponseNorm(Module):
    """y_c = x_c / (k + alpha sum_j x_j^2)^beta over the ``size`` channels j around c

    Krizhevsky et al. 2012, sec. 3.3. With ``groups`` the neighbours of a channel stay inside its group, as
    where each GPU of the 2012 network normalised the channels it held.
    """

    @property
    def dims(self) -> str:
        """With groups, whole groups stay together."""
        return "n h w (g c) -> n h w (g c)" if self.groups > 1 else "n h w c -> n h w c"

    @property
    def windows(self) -> str:
        """Neighbouring channels, unless they are of another group."""
        return "c" if self.groups == 1 else ""

    def __init__(
        self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, groups: int = 1
    ) -> None:
        if size < 1 or groups < 1:
            raise ValueError(f"{self.label}: size and groups must be at least 1, got {size} and {groups}")
        self.size, self.alpha, self.beta, self.k, self.groups = size, alpha, beta, k, groups
        self.own: slice | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = F.local_response_norm(x, self.size, self.alpha, self.beta, self.k, self.groups)
        return y if self.own is None else y[..., self.own]

    def field(self, letter: str, start: int, stop: int, shape: Shape) -> tuple[int, int]:
        """The channels and their neighbours."""
        return max(0, start - self.size // 2), min(shape[-1], stop + (self.size - 1) // 2)

    def localise(self, part: Part) -> None:
        """Own groups, or own channels of those that are read."""
        (start, stop), (low, high) = part.box[-1], part.read[-1]
        self.groups = self.groups * (stop - start) // part.out[-1] if self.groups > 1 else 1
        self.own = slice(start - low, stop - low) if (start, stop) != (low, high) else None

    def output_shape(self, shape: Shape) -> Shape:
        """The input's; its channels must divide into the groups."""
        if shape[-1] % self.groups:
            raise ValueError(f"{self.label}: {shape[-1]} channels do not divide into {self.groups} groups")
        return tuple(shape)


class _Features(Module):
    """Common to what scales and shifts the features, the last axis: gamma and beta, without weight decay."""

    def __init__(self, features: int, eps: float) -> None:
        if features < 1:
            raise ValueError(f"{self.label}: needs features >= 1, got {features}")
        self.features, self.eps = features, eps
        self.gamma = Parameter((features,), ones, decay=False)
        self.beta = Parameter((features,), zeros, decay=False)

    def output_shape(self, shape: Shape) -> Shape:
        if shape[-1] != self.features:
            raise ValueError(f"{self.label}: input has {shape[-1]} features, expected {self.features}")
        return tuple(shape)


class BatchNorm(_Features):
    """y = gamma (x - mean) / sqrt(var + eps) + beta over all axes but the last (Ioffe and Szegedy 2015)

    In training, mean and variance are those of the batch, and the running ones move towards them: ``running
    = momentum running + (1 - momentum) batch``, both variances being divided by n, not n - 1. In evaluation
    the running ones are used. Weight decay leaves gamma and beta (features,) out, as it does biases.

    ``all_sum``, if set, sums a vector over the ranks that share the batch, so that the statistics are those of the
    global batch.
    """

    dims = "n ... c, c, c, c, c -> n ... c"
    statistics = "n h w t"

    def __init__(self, features: int, eps: float = 1e-5, momentum: float = 0.9) -> None:
        if not 0 <= momentum <= 1:
            raise ValueError(f"{self.label}: needs a momentum in [0, 1], got {momentum}")
        super().__init__(features, eps)
        self.momentum = momentum
        self.all_sum: Callable | None = None
        self.running_mean = Buffer((features,), zeros)
        self.running_var = Buffer((features,), ones)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_training:
            y, mean, var = F.batch_norm(x, self.gamma, self.beta, self.eps, self.all_sum)
            for running, batch in ((self.running_mean, mean), (self.running_var, var)):
                if batch is None:  # an empty part of a small last batch
                    continue
                running.data *= self.momentum
                running.data += (1 - self.momentum) * batch.astype(running.data.dtype)
            return y
        mean, var = self.running_mean.data, self.running_var.data
        return F.batch_norm_inference(x, self.gamma, self.beta, mean, var, self.eps)


class LayerNorm(_Features):
    """y = gamma (x - mean) / sqrt(var + eps) + beta over the last axis of each row (Ba et al. 2016)

    Weight decay leaves ``gamma`` and ``beta`` (features,) out, as in `BatchNorm`.
    """

    dims = "n ... c, c, c -> n ... c"
    whole = "c"

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        super().__init__(features, eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.gamma, self.beta, self.eps)


class GroupNorm(LayerNorm):
    """As `LayerNorm`, over all pixels and the channels of each of ``groups`` equal groups (Wu and He 2018)"""

    whole = "h w t c"

    def __init__(self, groups: int, features: int, eps: float = 1e-5) -> None:
        super().__init__(features, eps)
        if groups < 1 or features % groups:
            raise ValueError(f"{self.label}: {features} channels do not divide into {groups} groups")
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.gamma, self.beta, self.groups, self.eps)
