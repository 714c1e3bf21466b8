"""Optimisers that divide each gradient by the root of a running mean of its square: Adam, AdamW, RMSprop."""

from collections.abc import Mapping
from typing import Any

from minidnn.functional.factors import Factors
from minidnn.optim.optimiser import COMMON, Optimiser
from minidnn.optim.update import adaptive_update
from minidnn.tensor import Tensor


class Adam(Optimiser):
    """m <- beta1 m + (1 - beta1) d;  v <- beta2 v + (1 - beta2) d^2;  w <- w - lr m' / (sqrt(v') + eps)

    d = g + weight_decay w;  m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t) at the parameter's t-th update
    (Kingma and Ba 2015, algorithm 1).
    """

    defaults = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, **COMMON}
    slots = ("updates", "mean", "square")
    decoupled = False

    def update(self, parameter: Tensor, g: Any, rate: float, decay: float, options: Mapping) -> None:
        """By the two running means, made larger while they are young."""
        state, betas = self.state_of(parameter), (options["beta1"], options["beta2"])
        state["updates"] = updates = state.get("updates", 0) + 1
        means = self.kept(parameter, "mean"), self.kept(parameter, "square")
        rule = rate, decay, self.decoupled, *betas, options["eps"], *(1 - beta**updates for beta in betas)
        adaptive_update(parameter.data, _array(g), *means, *rule)


class AdamW(Adam):
    """`Adam` whose weight decay passes the means by: w <- w - lr weight_decay w first, and d = g

    Loshchilov and Hutter 2019, algorithm 2, with the decay multiplied by the learning rate.
    """

    defaults = {**Adam.defaults, "weight_decay": 0.01}
    decoupled = True


class RMSprop(Optimiser):
    """v <- beta v + (1 - beta) d^2;  w <- w - lr d / (sqrt(v) + eps)        d = g + weight_decay w

    Hinton's lecture 6e of 2012.
    """

    defaults = {"lr": 1e-2, "beta": 0.99, "eps": 1e-8, **COMMON}
    slots = ("square",)

    def update(self, parameter: Tensor, g: Any, rate: float, decay: float, options: Mapping) -> None:
        """By the gradient itself."""
        rule = rate, decay, False, 0.0, options["beta"], options["eps"], 1.0, 1.0
        adaptive_update(parameter.data, _array(g), None, self.kept(parameter, "square"), *rule)


def _array(g: Any) -> Any:
    """A gradient as an array: the square of a product is not that of its factors."""
    return g.product() if isinstance(g, Factors) else g
