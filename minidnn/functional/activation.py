"""Activation functions. The kernels of ReLU are plain functions on raw arrays: `rectify`, `rectify_gradient`."""

from typing import Any

from minidnn.backend import array_module, masked
from minidnn.backend.kernels import kernel
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


class Sigmoid(Function):
    """y = 1 / (1 + e^-x)"""

    saves_inputs = False

    def forward(self, x: Any) -> Any:
        self.y = sigmoid_array(x)
        return self.y

    def backward(self, gy: Any) -> Any:
        return gy * (self.y * (1 - self.y))


class Tanh(Function):
    """y = tanh x"""

    saves_inputs = False

    def forward(self, x: Any) -> Any:
        self.y = array_module(x).tanh(x)
        return self.y

    def backward(self, gy: Any) -> Any:
        return gy * (1 - self.y * self.y)


class Softmax(Function):
    """y_c = e^(x_c) / sum_j e^(x_j) along `axis`"""

    saves_inputs = False

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def forward(self, x: Any) -> Any:
        y = shifted("softmax", x, self.axis)
        array_module(x).exp(y, out=y)
        y /= y.sum(axis=self.axis, keepdims=True)
        self.y = y
        return y

    def backward(self, gy: Any) -> Any:
        return self.y * (gy - (gy * self.y).sum(axis=self.axis, keepdims=True))


class LogSoftmax(Function):
    """y_c = x_c - ln sum_j e^(x_j) along `axis`"""

    saves_inputs = False

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def forward(self, x: Any) -> Any:
        xp = array_module(x)
        y = shifted("log_softmax", x, self.axis)
        y -= xp.log(xp.exp(y).sum(axis=self.axis, keepdims=True))
        self.y = y
        return y

    def backward(self, gy: Any) -> Any:
        return gy - array_module(gy).exp(self.y) * gy.sum(axis=self.axis, keepdims=True)


def shifted(operation: str, x: Any, axis: int) -> Any:
    """x minus its largest value along `axis`: what is exponentiated overflows nowhere, and somewhere is 0."""
    floating(operation, x)
    if not x.ndim or not x.shape[axis]:
        raise wrong_shape(operation, f"x {x.shape}", f"at least one value along axis {axis}")
    return x - x.max(axis=axis, keepdims=True)


def sigmoid_array(x: Any) -> Any:
    """1 / (1 + e^-x) of a raw array, exact for both signs and without overflow."""
    xp = array_module(x)
    e = xp.exp(-abs(x))  # in (0, 1]
    return xp.where(x >= 0, xp.ones_like(e), e) / (1 + e)


def relu(x: Any) -> Tensor:
    """max(x, 0)"""
    return ReLU()(x)


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + e^-x)"""
    return Sigmoid()(x)


def tanh(x: Any) -> Tensor:
    """Hyperbolic tangent."""
    return Tanh()(x)


def softmax(x: Any, axis: int = -1) -> Tensor:
    """Softmax along `axis`, stable: each row is shifted by its own maximum."""
    return Softmax(axis)(x)


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """Logarithm of softmax along `axis`, without the detour through it."""
    return LogSoftmax(axis)(x)
