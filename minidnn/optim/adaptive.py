"""Optimisers that divide each gradient by the root of a running mean of its square: Adam, AdamW, RMSprop."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from minidnn.factors import Factors
from minidnn.optim.optimiser import Optimiser
from minidnn.optim.schedules import Schedule
from minidnn.optim.update import adaptive_update
from minidnn.tensor import Tensor


class Adam(Optimiser):
    """m <- beta1 m + (1 - beta1) d;  v <- beta2 v + (1 - beta2) d^2;  w <- w - lr m' / (sqrt(v') + eps)

    d = g + weight_decay w;  m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t) at the parameter's t-th update
    (Kingma and Ba 2015, algorithm 1). Other parameters are those of `Optimiser`.
    """

    slots = ("updates", "mean", "square")
    decoupled = False

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Mapping[str, Any]],
        lr: float | None = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay: float = 0.0,
        schedule: Schedule | Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(params, lr, weight_decay, decay, schedule, beta1=beta1, beta2=beta2, eps=eps)

    def check(self, where: str, group: Mapping[str, Any]) -> None:
        """All betas are in [0, 1), eps is positive."""
        for name, value in group.items():
            if name.startswith("beta") and not 0 <= value < 1:
                raise ValueError(f"{where}: {name} must be in [0, 1), got {value}")
        if not group["eps"] > 0:
            raise ValueError(f"{where}: eps must be positive, got {group['eps']}")

    def update(
        self, parameter: Tensor, g: Any, rate: float, decay: float, options: Mapping[str, Any]
    ) -> None:
        """By the two running means, made larger while they are young."""
        state, betas = self.state_of(parameter), (options["beta1"], options["beta2"])
        state["updates"] = updates = state.get("updates", 0) + 1
        means = self.kept(parameter, "mean"), self.kept(parameter, "square")
        ages = [1 - beta**updates for beta in betas]
        adaptive_update(
            parameter.data, _array(g), *means, rate, decay, self.decoupled, *betas, options["eps"], *ages
        )


class AdamW(Adam):
    """`Adam` whose weight decay passes the means by: w <- w - lr weight_decay w first, and d = g

    Loshchilov and Hutter 2019, algorithm 2, with the decay multiplied by the learning rate.
    """

    decoupled = True

    def __init__(self, *args: Any, weight_decay: float = 0.01, **options: Any) -> None:
        super().__init__(*args, weight_decay=weight_decay, **options)


class RMSprop(Adam):
    """v <- beta v + (1 - beta) d^2;  w <- w - lr d / (sqrt(v) + eps)        d = g + weight_decay w

    Hinton's lecture 6e of 2012. Other parameters are those of `Optimiser`.
    """

    slots = ("square",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Mapping[str, Any]],
        lr: float | None = 1e-2,
        beta: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay: float = 0.0,
        schedule: Schedule | Callable[[int], float] | None = None,
    ) -> None:
        Optimiser.__init__(self, params, lr, weight_decay, decay, schedule, beta=beta, eps=eps)

    def update(
        self, parameter: Tensor, g: Any, rate: float, decay: float, options: Mapping[str, Any]
    ) -> None:
        """By the gradient itself."""
        square, rule = self.kept(parameter, "square"), (0.0, options["beta"], options["eps"])
        adaptive_update(parameter.data, _array(g), None, square, rate, decay, False, *rule, 1.0, 1.0)


def _array(g: Any) -> Any:
    """A gradient as an array: the square of a product is not that of its factors."""
    return g.product() if isinstance(g, Factors) else g
