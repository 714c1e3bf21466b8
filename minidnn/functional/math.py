"""Arithmetic, with NumPy's broadcasting.

A Python number as an operand takes the dtype of the other: it never widens a float32 result.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidnn.backend import array_module
from minidnn.graph import Function, Tensor, as_tensor


def unbroadcast(gy: Any, shape: tuple[int, ...]) -> Any:
    """Sum `gy` over the axes along which an operand of `shape` was repeated."""
    if gy.shape == shape:
        return gy
    lead = gy.ndim - len(shape)
    axes = [lead + i for i, n in enumerate(shape) if n == 1 and gy.shape[lead + i] != 1]
    return gy.sum(axis=(*range(lead), *axes), keepdims=True).reshape(shape)


class Add(Function):
    """z = x + y"""

    saves_inputs = False

    def forward(self, x: Any, y: Any) -> Any:
        self.shapes = x.shape, y.shape
        return x + y

    def backward(self, gz: Any) -> tuple:
        return tuple(
            unbroadcast(gz, s) if need else None for s, need in zip(self.shapes, self.needs, strict=True)
        )


class Sub(Add):
    """z = x - y"""

    def forward(self, x: Any, y: Any) -> Any:
        self.shapes = x.shape, y.shape
        return x - y

    def backward(self, gz: Any) -> tuple:
        gx, gy = super().backward(gz)
        return gx, None if gy is None else -gy


class Mul(Function):
    """z = x y, element by element"""

    def forward(self, x: Any, y: Any) -> Any:
        self.x, self.y = x, y
        return x * y

    def backward(self, gz: Any) -> tuple:
        gx = unbroadcast(gz * self.y, self.x.shape) if self.needs[0] else None
        return gx, unbroadcast(gz * self.x, self.y.shape) if self.needs[1] else None


class Div(Function):
    """z = x / y, element by element"""

    def forward(self, x: Any, y: Any) -> Any:
        self.x, self.y = x, y
        return x / y

    def backward(self, gz: Any) -> tuple:
        q = gz / self.y
        gx = unbroadcast(q, self.x.shape) if self.needs[0] else None
        return gx, unbroadcast(-q * (self.x / self.y), self.y.shape) if self.needs[1] else None


class Neg(Function):
    """y = -x"""

    saves_inputs = False

    def forward(self, x: Any) -> Any:
        return -x

    def backward(self, gy: Any) -> Any:
        return -gy


class Power(Function):
    """y = x^p        p a number"""

    def __init__(self, exponent: float) -> None:
        self.exponent = exponent

    def forward(self, x: Any) -> Any:
        self.x = x
        return x**self.exponent

    def backward(self, gy: Any) -> Any:
        p = self.exponent
        return gy * (p * self.x ** (p - 1)) if p else gy * 0  # x^-1 is not wanted where y is constant


class TensorPower(Function):
    """z = x^y, element by element; gx = gz y x^(y - 1), gy = gz z ln x"""

    def forward(self, x: Any, y: Any) -> Any:
        self.x, self.y, self.z = x, y, x**y
        return self.z

    def backward(self, gz: Any) -> tuple:
        xp, x, y, gx, gy = array_module(gz), self.x, self.y, None, None
        one = gz.dtype.type(1)
        if self.needs[0]:
            gx = unbroadcast(gz * (y * x ** xp.where(y == 0, one, y - 1)), x.shape)
        if self.needs[1]:  # 0^y is constant, but for negative y
            gy = unbroadcast(gz * (self.z * xp.log(xp.where((x == 0) & (y >= 0), one, x))), y.shape)
        return gx, gy


def _operand(x: Any, other: Any) -> Tensor:
    """`x` as a tensor; a number gets the dtype of tensor `other`, on its device."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, (int, float, np.generic)):
        data = as_tensor(other).data
        if data.dtype.kind != "f" and not isinstance(x, (int, np.integer)):
            raise TypeError(f"a tensor of dtype {data.dtype} with the number {x}: convert the tensor first")
        return Tensor(array_module(data).asarray(x, dtype=data.dtype))
    return Tensor(x)


def binary(name: str, kind: type[Function]) -> Callable[[Any, Any], Tensor]:
    """The function of two tensors, or of a tensor and a number, whose node is a `kind`."""

    def function(x: Any, y: Any) -> Tensor:
        return kind()(_operand(x, y), _operand(y, x))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = kind.__doc__
    return function


add = binary("add", Add)
sub = binary("sub", Sub)
mul = binary("mul", Mul)
div = binary("div", Div)


def neg(x: Any) -> Tensor:
    """-x"""
    return Neg()(x)


def power(x: Any, exponent: Any) -> Tensor:
    """x^exponent, element by element; the exponent is a number or a tensor."""
    if isinstance(exponent, (int, float, np.generic)):
        return Power(getattr(exponent, "item", lambda: exponent)())(x)
    return TensorPower()(_operand(x, exponent), _operand(exponent, x))
