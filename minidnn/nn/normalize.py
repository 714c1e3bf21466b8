"""Layers that behave differently in training, or that look across channels: normalisation and dropout."""

import itertools
from collections.abc import Callable

import numpy as np

from minidnn import functional as F
from minidnn.backend import array_module
from minidnn.nn.context import Context, current_context
from minidnn.nn.init import ones, zeros
from minidnn.nn.module import Module, Shape
from minidnn.nn.parameter import Buffer, Parameter
from minidnn.random import random_bits
from minidnn.tensor import Tensor

_numbers = itertools.count()  # of the dropout layers made so far: what tells those without a name apart


class LocalResponseNorm(Module):
    """y_c = x_c / (k + alpha sum_j x_j^2)^beta over the ``size`` channels j around c

    Krizhevsky et al. 2012, sec. 3.3. With ``groups`` the neighbours of a channel stay inside its group, as
    where each GPU of the 2012 network normalised the channels it held.
    """

    def __init__(
        self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, groups: int = 1
    ) -> None:
        if size < 1 or groups < 1:
            raise ValueError(
                f"LocalResponseNorm: size and groups must be at least 1, got {size} and {groups}"
            )
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """The normalisation."""
        return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k, self.groups)

    def output_shape(self, shape: Shape) -> Shape:
        """The input's; its channels must divide into the groups."""
        if shape[-1] % self.groups:
            raise ValueError(f"{self.label}: {shape[-1]} channels do not divide into {self.groups} groups")
        return tuple(shape)


class BatchNorm(Module):
    """y = gamma (x - mean) / sqrt(var + eps) + beta over all axes but the last (Ioffe and Szegedy 2015)

    In training, mean and variance are those of the batch, and the running ones move towards them: ``running
    = momentum running + (1 - momentum) batch``, both variances being divided by n, not n - 1. In evaluation
    the running ones are used. Weight decay leaves gamma and beta out, as it does biases.

    Attributes
    ----------
    gamma, beta : Parameter (features,)
    running_mean, running_var : Buffer (features,)
    all_sum : callable or None
        Sums a vector over the ranks that share the batch, so that the statistics are those of the global
        batch.
    """

    def __init__(self, features: int, eps: float = 1e-5, momentum: float = 0.9) -> None:
        if features < 1 or not 0 <= momentum <= 1:
            raise ValueError(
                f"BatchNorm: needs features >= 1 and momentum in [0, 1], got {features} and {momentum}"
            )
        self.features = features
        self.eps = eps
        self.momentum = momentum
        self.all_sum: Callable | None = None
        self.gamma = Parameter((features,), ones, decay=False)
        self.beta = Parameter((features,), zeros, decay=False)
        self.running_mean = Buffer((features,), zeros)
        self.running_var = Buffer((features,), ones)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise with the batch's statistics in training, with the running ones in evaluation."""
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

    def output_shape(self, shape: Shape) -> Shape:
        """The input's."""
        if shape[-1] != self.features:
            raise ValueError(f"{self.label}: input has {shape[-1]} features, expected {self.features}")
        return tuple(shape)


class Dropout(Module):
    """y = x keep / (1 - p) in training, y = x in evaluation        keep (n, ...) of zeros and ones

    The mask of a sample follows from the run's seed, the layer's name, the step and the sample's global
    number, so it does not depend on the rank that computes it. Where no context says which step it is, the layer
    counts its own calls instead.

    Attributes
    ----------
    p : float
        Probability that a feature is dropped.
    features : (start, stop, total) or None
        Where the last axis is a part of the whole: which one.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be in [0, 1), got {p}")
        self.p = p
        self._calls, self._number = 0, next(_numbers)
        self.features: tuple[int, int, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop features of each sample.

        Raises
        ------
        RuntimeError
            A context that says only some of seed, step and samples.
        """
        if not self.is_training or self.p == 0:
            return x
        now, name = current_context(), self.name
        if now.seed is now.step is now.samples is None:
            now = Context(seed=0, step=self._calls, samples=np.arange(x.shape[0]))
            name = name or f"unnamed {self._number}"
            self._calls += 1
        if now.seed is None or now.step is None or now.samples is None:
            raise RuntimeError(
                f"{self.label}: dropout must know the step: call the model inside "
                "`with nn.context(training=True, seed=..., step=..., samples=...)`, with all of them or none"
            )
        samples = np.asarray(now.samples)
        if len(samples) != x.shape[0]:
            raise ValueError(
                f"{self.label}: the context numbers {len(samples)} samples, the batch has {x.shape[0]}"
            )
        start, stop, total = self.features or (0, x.shape[-1], x.shape[-1])
        whole = (*x.shape[1:-1], total)
        bits = random_bits(now.seed, name, now.step, samples, whole, (start, stop), array_module(x.data))
        return F.dropout(x, self.p, bits)
