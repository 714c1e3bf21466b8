"""Arranging values anew: stacks, parts, margins, and axes of length 1."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minidnn.backend import array_module
from minidnn.functional.shape import Axis, concatenate, reshape
from minidnn.graph import Function, Tensor, as_tensor


class Split(Function):
    """ys = the parts of x along `axis`; `sections` equal ones, or cut before each of the indices"""

    saves_inputs = False

    def __init__(self, sections: int | Sequence[int], axis: int) -> None:
        self.sections, self.axis = sections, axis

    def forward(self, x: Any) -> tuple:
        ys = array_module(x).split(x, self.sections, self.axis)
        self.shapes = [y.shape for y in ys]
        return tuple(ys)

    def backward(self, *gys: Any) -> Any:
        given = next(gy for gy in gys if gy is not None)
        xp = array_module(given)
        pairs = zip(gys, self.shapes, strict=True)
        parts = [xp.zeros(shape, given.dtype) if gy is None else gy for gy, shape in pairs]
        return xp.concatenate(parts, axis=self.axis)


class Pad(Function):
    """y = x with `value` around it; `width` (ndim, 2) before and after each axis"""

    saves_inputs = False

    def __init__(self, width: Any, value: float) -> None:
        self.width, self.value = width, value

    def forward(self, x: Any) -> Any:
        sides = zip(self.width, x.shape, strict=True)
        self.inside = tuple(slice(before, before + n) for (before, _), n in sides)
        return array_module(x).pad(x, self.width, constant_values=self.value)

    def backward(self, gy: Any) -> Any:
        return gy[self.inside]


def stack(xs: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors `xs`, all of one shape, one after the other along a new axis."""
    return concatenate([expand_dims(x, axis) for x in xs], axis)


def split(x: Any, sections: int | Sequence[int], axis: int = 0) -> tuple[Tensor, ...]:
    """`x` in parts along `axis`: so many equal ones, or cut before each of the given indices."""
    return Split(sections if np.ndim(sections) == 0 else list(sections), axis)(x)


def pad(x: Any, width: Any, value: float = 0.0) -> Tensor:
    """`x` with margins of `value`: `width` is an int, (before, after), or such a pair for each axis."""
    x = as_tensor(x)
    return Pad(np.broadcast_to(width, (x.ndim, 2)).tolist(), value)(x)


def squeeze(x: Any, axis: Axis = None) -> Tensor:
    """`x` without the axes given, which have length 1; without all such axes if None."""
    return reshape(x, np.squeeze(np.broadcast_to(0, x.shape), axis).shape)


def expand_dims(x: Any, axis: int | tuple[int, ...]) -> Tensor:
    """`x` with a new axis of length 1 at each position given, counted in the result."""
    return reshape(x, np.expand_dims(np.broadcast_to(0, x.shape), axis).shape)
