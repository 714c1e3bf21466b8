"""Variance, standard deviation, and the logarithm of a sum of exponentials."""

import math
from typing import Any

from minidnn.backend import array_module
from minidnn.functional.shape import Axis, Reduction, _kept
from minidnn.graph import Tensor


class Var(Reduction):
    """y = sum of (x - mean)^2 / (n - ddof) over the n values along `axis`"""

    def __init__(self, axis: Axis, keepdims: bool, ddof: int) -> None:
        super().__init__(axis, keepdims)
        self.ddof = ddof

    def forward(self, x: Any) -> Any:
        self.x = x
        return x.var(axis=self.axis, keepdims=self.keepdims, ddof=self.ddof)

    def backward(self, gy: Any) -> Any:
        x, kept = self.x, _kept(self.x.shape, self.axis)
        scale = gy.reshape(kept) * (2 / (x.size // math.prod(kept) - self.ddof))
        return scale * (x - x.mean(axis=self.axis, keepdims=True))


class Std(Var):
    """y = sqrt(var x), with gradient 0 where it is 0"""

    def forward(self, x: Any) -> Any:
        self.y = array_module(x).sqrt(super().forward(x))
        return self.y

    def backward(self, gy: Any) -> Any:
        where, y = array_module(gy).where, self.y
        one = gy.dtype.type(1)
        return super().backward(where(y == 0, one * 0, gy / where(y == 0, one, 2 * y)))


class LogSumExp(Reduction):
    """y = ln sum of e^x over `axis`"""

    def _exp(self, x: Any, y: Any) -> Any:
        """e^(x - y), and e^x where y is infinite."""
        xp = array_module(x)
        return xp.exp(x - xp.where(xp.isfinite(y), y, y.dtype.type(0)))

    def forward(self, x: Any) -> Any:
        xp = array_module(x)
        largest = x.max(axis=self.axis, keepdims=True)
        y = xp.log(self._exp(x, largest).sum(axis=self.axis, keepdims=True))
        y += xp.where(xp.isfinite(largest), largest, largest.dtype.type(0))
        self.x, self.y = x, y
        return y if self.keepdims else y.squeeze(self.axis)

    def backward(self, gy: Any) -> Any:
        return gy.reshape(self.y.shape) * self._exp(self.x, self.y)


def var(x: Any, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """Variance over `axis` (all axes if None): squared deviations, divided by their number less `ddof`."""
    return Var(axis, keepdims, ddof)(x)


def std(x: Any, axis: Axis = None, keepdims: bool = False, ddof: int = 0) -> Tensor:
    """Standard deviation over `axis`, the root of `var`; its gradient is 0 where it is 0."""
    return Std(axis, keepdims, ddof)(x)


def logsumexp(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """ln sum e^x over `axis` (all axes if None), without overflow."""
    return LogSumExp(axis, keepdims)(x)
