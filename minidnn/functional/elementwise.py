"""More functions element by element: of one tensor, and choices between two, with NumPy's broadcasting."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from minidnn.backend import array_module, masked
from minidnn.backend.kernels import kernel
from minidnn.functional.math import _operand, binary, unbroadcast
from minidnn.graph import Function, Tensor, as_tensor


@functools.cache
def _erf_polynomial(dtype: str) -> tuple[float, list[float]]:
    """(a, coefficients of P): erf x = x P(2 x^2 / a^2 - 1) for |x| <= a, and 1 to the last digit beyond.

    By interpolation at Chebyshev's points, whose angles are multiples of pi / 2n, reduced before they are rounded.
    """
    a, n = {"float64": (5.95, 43)}.get(dtype, (3.95, 17))
    odd = 2 * np.arange(n) + 1
    samples = [math.erf(x) / x for x in a * np.cos(odd * (math.pi / (4 * n)))]
    series = np.cos(np.outer(np.arange(n), odd) % (4 * n) * (math.pi / (2 * n))) @ samples * (2 / n)
    series[0] /= 2
    return a, np.polynomial.chebyshev.cheb2poly(series).tolist()


@kernel("elementwise", small=1 << 14)
def erf_array(x: Any, out: Any = None) -> Any:
    """The error function of a raw array, into `out` if given; within 3e-7 in float32, 6e-15 in float64."""
    xp = array_module(x)
    a, (*coefficients, y) = _erf_polynomial(x.dtype.name)
    x = xp.clip(x, -a, a)
    u = x * x
    u *= 2 / a**2
    u -= 1
    y = xp.full_like(u, y)
    for c in reversed(coefficients):  # Horner's rule
        y *= u
        y += c
    return xp.multiply(x, y, out=out)


class Elementwise(Function):
    """y = f(x), element by element; gx = gy f'(x), where `slope` gives f' from x, or from y if `by_result`"""

    value: Callable[[Any, Any], Any]
    slope: Callable[[Any, Any], Any]
    by_result = False

    def forward(self, x: Any) -> Any:
        y = self.value(array_module(x), x)
        self.kept = y if self.by_result else x
        return y

    def backward(self, gy: Any) -> Any:
        return gy * self.slope(array_module(gy), self.kept)


def elementwise(name: str, doc: str, slope: Any, by_result: bool = False, value: Any = None) -> Callable:
    """A function of one tensor, by default the array module's of this name; its nodes are of a class of its own."""
    value = value or (lambda xp, x: getattr(xp, name)(x))
    rules = {"value": staticmethod(value), "slope": staticmethod(slope), "by_result": by_result}
    kind = type(name.title(), (Elementwise,), {"__doc__": doc, "saves_inputs": not by_result, **rules})

    def function(x: Any) -> Tensor:
        return kind()(x)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function


abs = elementwise("abs", "|x|, with gradient 0 at 0", lambda xp, x: xp.sign(x))
sign = elementwise("sign", "-1, 0 or 1, with gradient 0", lambda xp, x: x.dtype.type(0))
exp = elementwise("exp", "e^x", lambda xp, y: y, by_result=True)
expm1 = elementwise("expm1", "e^x - 1, exact for small x", lambda xp, y: y + 1, by_result=True)
log = elementwise("log", "ln x", lambda xp, x: 1 / x)
log1p = elementwise("log1p", "ln(1 + x), exact for small x", lambda xp, x: 1 / (1 + x))
sqrt = elementwise("sqrt", "The square root of x", lambda xp, y: 0.5 / y, by_result=True)
sin = elementwise("sin", "sin x", lambda xp, x: xp.cos(x))
cos = elementwise("cos", "cos x", lambda xp, x: -xp.sin(x))
tanh = elementwise("tanh", "tanh x", lambda xp, y: 1 - y * y, by_result=True)
erf = elementwise(
    "erf",
    "The error function: 2 / sqrt(pi) times the integral of e^(-t^2) over t = 0 ... x",
    lambda xp, x: xp.exp(-x * x) * (2 / math.pi**0.5),
    value=lambda xp, x: erf_array(x),
)


class Clip(Function):
    """y = min(max(x, low), high); the gradient passes where low <= x <= high"""

    saves_inputs = False

    def __init__(self, low: Any, high: Any) -> None:
        self.low, self.high = low, high

    def forward(self, x: Any) -> Any:
        y = array_module(x).clip(x, self.low, self.high)
        self.inside = y == x
        return y

    def backward(self, gy: Any) -> Any:
        return masked(gy, self.inside)


class Cast(Function):
    """y = x in another dtype"""

    saves_inputs = False

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def forward(self, x: Any) -> Any:
        self.source = x.dtype
        return x.astype(self.dtype)

    def backward(self, gy: Any) -> Any:
        return gy.astype(self.source)


class Where(Function):
    """z = x where `condition`, else y"""

    saves_inputs = False

    def __init__(self, condition: Any) -> None:
        self.condition = condition

    def forward(self, x: Any, y: Any) -> Any:
        self.shapes = x.shape, y.shape
        return array_module(x).where(self.condition, x, y)

    def backward(self, gz: Any) -> tuple:
        gx = unbroadcast(masked(gz, self.condition), self.shapes[0]) if self.needs[0] else None
        return gx, unbroadcast(masked(gz, ~self.condition), self.shapes[1]) if self.needs[1] else None


class Maximum(Function):
    """z = max(x, y), element by element; equals share the gradient equally"""

    choose, loses = "maximum", staticmethod(operator.lt)

    def forward(self, x: Any, y: Any) -> Any:
        self.pair = x, y
        return getattr(array_module(x), self.choose)(x, y)

    def backward(self, gz: Any) -> tuple:
        x, y = self.pair
        gz = gz * (1 - (x == y) * gz.dtype.type(0.5))
        gx = unbroadcast(masked(gz, ~self.loses(x, y)), x.shape) if self.needs[0] else None
        return gx, unbroadcast(masked(gz, ~self.loses(y, x)), y.shape) if self.needs[1] else None


class Minimum(Maximum):
    """z = min(x, y), element by element; equals share the gradient equally"""

    choose, loses = "minimum", staticmethod(operator.gt)


def clip(x: Any, low: float | None = None, high: float | None = None) -> Tensor:
    """min(max(x, low), high) for numbers `low` and `high`; None leaves a side open.

    Bounds that are tensors or arrays: `maximum` and `minimum`.
    """
    x = as_tensor(x)
    return Clip(*(None if bound is None else x.dtype.type(bound) for bound in (low, high)))(x)


def astype(x: Any, dtype: Any) -> Tensor:
    """`x` in another dtype; the gradient comes back in the dtype of `x`. Integers need no gradient."""
    x, dtype = as_tensor(x), np.dtype(dtype)
    return Cast(dtype)(x if dtype.kind == "f" else x.detach())


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """`x` where `condition` (booleans, a tensor or array) holds, else `y`; all three broadcast."""
    x, y = _operand(x, y), _operand(y, x)
    condition = condition.data if isinstance(condition, Tensor) else condition
    return Where(array_module(x.data).array(condition, dtype=bool))(x, y)


maximum = binary("maximum", Maximum)
minimum = binary("minimum", Minimum)
