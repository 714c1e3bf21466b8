"""Stochastic gradient descent with momentum, Nesterov's form, weight decay and learning-rate decay."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from minidnn.factors import Factors
from minidnn.optim.optimiser import Optimiser
from minidnn.optim.schedules import Schedule
from minidnn.optim.update import factored_update, momentum_update
from minidnn.tensor import Tensor


class SGD(Optimiser):
    """d = g + weight_decay w;  v <- momentum v + d;  w <- w - lr v, or w - lr (momentum v + d) for Nesterov

    This is PyTorch's form: the learning rate multiplies the velocity. In AlexNet's (2012 paper, sec. 5) it
    is inside the velocity; the two are equal while the rate is constant. Nesterov's form needs a momentum.
    Other parameters are those of `Optimiser`.
    """

    slots = ("velocity",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Mapping[str, Any]],
        lr: float | None = None,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decay: float = 0.0,
        schedule: Schedule | Callable[[int], float] | None = None,
    ) -> None:
        super().__init__(params, lr, weight_decay, decay, schedule, momentum=momentum, nesterov=nesterov)

    def check(self, where: str, group: Mapping[str, Any]) -> None:
        """The momentum is in [0, 1), and positive for Nesterov's form."""
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"{where}: momentum must be in [0, 1), got {group['momentum']}")
        if group["nesterov"] and not group["momentum"]:
            raise ValueError(f"{where}: Nesterov's form needs a momentum")

    def update(
        self, parameter: Tensor, g: Any, rate: float, decay: float, options: Mapping[str, Any]
    ) -> None:
        """By the momentum."""
        velocity = self.kept(parameter, "velocity") if options["momentum"] else None
        rule = rate, options["momentum"], options["nesterov"], decay
        if isinstance(g, Factors):
            factored_update(parameter.data, g.x, g.gy, velocity, *rule)
        else:
            momentum_update(parameter.data, g, velocity, *rule)
