"""Activation functions. The kernels of ReLU are plain functions on raw arrays: `rectify`, `rectify_gradient`."""

from math import pi
from typing import Any

import numpy as np

from minidnn.backend import array_module, masked
from minidnn.backend.kernels import kernel
from minidnn.functional.elementwise import elementwise, erf_array
from minidnn.functional.errors import floating, wrong_shape
from minidnn.graph import Function, Tensor


@kernel("elementwise", small=1 << 17)
def rectify(x: Any) -> Any:
    """y: max(x, 0)"""
    return array_module(x).maximum(x, 0)


@kernel("elementwise", small=1 << 17)
def rectify_gradient(gy: Any, y: Any) -> Any:
    """gx: gy where y > 0, else 0"""
    return masked(gy, y > 0)


class ReLU(Function):
    """y = max(x, 0)"""

    saves_inputs = False

    def forward(self, x: Any) -> Any:
        self.y = rectify(x)
        return self.y

    def backward(self, gy: Any) -> Any:
        return rectify_gradient(gy, self.y)


class Softmax(Function):
    """y_c = e^(x_c) / sum_j e^(x_j) along `axis`"""

    saves_inputs = False

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def forward(self, x: Any) -> Any:
        self.y = y = shifted("softmax", x, self.axis)
        array_module(x).exp(y, out=y)
        y /= y.sum(axis=self.axis, keepdims=True)
        return y

    def backward(self, gy: Any) -> Any:
        return self.y * (gy - (gy * self.y).sum(axis=self.axis, keepdims=True))


class LogSoftmax(Softmax):
    """y_c = x_c - ln sum_j e^(x_j) along `axis`"""

    def forward(self, x: Any) -> Any:
        xp = array_module(x)
        self.y = y = shifted("log_softmax", x, self.axis)
        y -= xp.log(xp.exp(y).sum(axis=self.axis, keepdims=True))
        return y

    def backward(self, gy: Any) -> Any:
        return gy - array_module(gy).exp(self.y) * gy.sum(axis=self.axis, keepdims=True)


class LeakyReLU(Function):
    """y = x where x > 0, else slope x"""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def forward(self, x: Any) -> Any:
        self.x, xp = x, array_module(x)
        y = xp.minimum(x, 0)
        y *= self.slope
        y += xp.maximum(x, 0)
        return y

    def backward(self, gy: Any) -> Any:
        positive = self.x > 0
        gx = masked(gy, ~positive)
        gx *= self.slope
        gx += masked(gy, positive)
        return gx


class GELU(Function):
    """y = x P        P = (1 + erf(x / sqrt 2)) / 2, the probability of a standard normal value below x"""

    def forward(self, x: Any) -> Any:
        p = erf_array(x * 0.5**0.5)
        p += 1
        p *= 0.5
        self.x, self.p = x, p
        return x * p

    def backward(self, gy: Any) -> Any:
        x = self.x
        density = array_module(x).exp(x * x * -0.5)
        density *= x
        density *= (2 * pi) ** -0.5
        density += self.p
        density *= gy
        return density


def shifted(operation: str, x: Any, axis: int) -> Any:
    """x minus its largest value along `axis`: what is exponentiated overflows nowhere, and somewhere is 0."""
    floating(operation, x)
    if not x.ndim or not x.shape[axis]:
        raise wrong_shape(operation, f"x {x.shape}", f"at least one value along axis {axis}")
    return x - x.max(axis=axis, keepdims=True)


def sigmoid_array(x: Any) -> Any:
    """1 / (1 + e^-x) of a raw array, exact for both signs: 0 where the exponential overflows."""
    xp = array_module(x)
    y = xp.negative(x)
    with np.errstate(over="ignore"):
        y = xp.exp(y)
    y += 1
    return xp.divide(1, y)


_values = {"value": lambda xp, x: sigmoid_array(x), "by_result": True}
sigmoid = elementwise("sigmoid", "1 / (1 + e^-x)", lambda xp, y: y * (1 - y), **_values)


def _silu_slope(xp: Any, x: Any) -> Any:
    s = sigmoid_array(x)
    return s * (1 + x * (1 - s))


silu = elementwise(
    "silu",
    "x / (1 + e^-x), also called swish (Hendrycks and Gimpel 2016; Ramachandran et al. 2017)",
    _silu_slope,
    value=lambda xp, x: x * sigmoid_array(x),
)


def relu(x: Any) -> Tensor:
    """max(x, 0)"""
    return ReLU()(x)


def leaky_relu(x: Any, slope: float = 0.01) -> Tensor:
    """x where it is positive, else slope x (Maas et al. 2013)."""
    return LeakyReLU(float(slope))(x)


def gelu(x: Any) -> Tensor:
    """x times the probability of a standard normal value below x (Hendrycks and Gimpel 2016); by erf, exact."""
    return GELU()(x)


def softmax(x: Any, axis: int = -1) -> Tensor:
    """Softmax along `axis`, stable: each row is shifted by its own maximum."""
    return Softmax(axis)(x)


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """Logarithm of softmax along `axis`, without the detour through it."""
    return LogSoftmax(axis)(x)
