"""Stochastic gradient descent with momentum, Nesterov's form, weight decay and learning-rate decay."""

from collections.abc import Mapping
from typing import Any

from minidnn.functional.factors import Factors
from minidnn.optim.optimiser import COMMON, Optimiser
from minidnn.optim.update import factored_update, momentum_update
from minidnn.tensor import Tensor


class SGD(Optimiser):
    """d = g + weight_decay w;  v <- momentum v + d;  w <- w - lr v, or w - lr (momentum v + d) for Nesterov

    This is PyTorch's form: the learning rate multiplies the velocity. In AlexNet's (2012 paper, sec. 5) it
    is inside the velocity; the two are equal while the rate is constant. ``nesterov`` needs a momentum.
    """

    defaults = {"lr": None, "momentum": 0.0, "nesterov": False, **COMMON}
    slots = ("velocity",)

    def update(self, parameter: Tensor, g: Any, rate: float, decay: float, options: Mapping) -> None:
        """By the momentum."""
        velocity = self.kept(parameter, "velocity") if options["momentum"] else None
        rule = rate, options["momentum"], options["nesterov"], decay
        if isinstance(g, Factors):
            factored_update(parameter.data, g.x, g.gy, velocity, *rule)
        else:
            momentum_update(parameter.data, g, velocity, *rule)
