"""Reductions, and operations that only move values: reshape, transpose, slices, concatenation."""

import math
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import numpy as np

from minidnn.backend import array_module, masked
from minidnn.graph import Function, Tensor

Axis = int | tuple[int, ...] | None


def _kept(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """`shape` with 1 at the reduced axes, as with ``keepdims=True``."""
    if axis is None:
        return (1,) * len(shape)
    axes = {a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))}
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


class Sum(Function):
    """y = sum of x over `axis`"""

    saves_inputs = False

    def __init__(self, axis: Axis = None, keepdims: bool = False) -> None:
        self.axis, self.keepdims = axis, keepdims

    def forward(self, x: Any) -> Any:
        self.shape = x.shape
        return x.sum(axis=self.axis, keepdims=self.keepdims)

    def backward(self, gy: Any) -> Any:
        return array_module(gy).broadcast_to(gy.reshape(_kept(self.shape, self.axis)), self.shape)


class Mean(Function):
    """y = mean of x over `axis`"""

    saves_inputs = False

    def __init__(self, axis: Axis = None, keepdims: bool = False) -> None:
        self.axis, self.keepdims = axis, keepdims

    def forward(self, x: Any) -> Any:
        self.shape = x.shape
        return x.mean(axis=self.axis, keepdims=self.keepdims)

    def backward(self, gy: Any) -> Any:
        kept = _kept(self.shape, self.axis)
        count = math.prod(self.shape) // (gy.size or 1)
        return array_module(gy).broadcast_to(gy.reshape(kept) / count, self.shape)


class Max(Function):
    """y = max of x over `axis`; equal maxima share the gradient equally"""

    def __init__(self, axis: Axis = None, keepdims: bool = False) -> None:
        self.axis, self.keepdims = axis, keepdims

    def forward(self, x: Any) -> Any:
        y = x.max(axis=self.axis, keepdims=self.keepdims)
        self.x, self.y = x, y
        return y

    def backward(self, gy: Any) -> Any:
        kept = _kept(self.x.shape, self.axis)
        largest = self.x == self.y.reshape(kept)
        share = gy.reshape(kept) / largest.sum(axis=self.axis, keepdims=True, dtype=gy.dtype)
        return masked(array_module(gy).broadcast_to(share, largest.shape), largest)


class Reshape(Function):
    """y = x with another shape and the same order of elements"""

    saves_inputs = False

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.new_shape = shape

    def forward(self, x: Any) -> Any:
        self.shape = x.shape
        return x.reshape(self.new_shape)

    def backward(self, gy: Any) -> Any:
        return gy.reshape(self.shape)


class Transpose(Function):
    """y = x with its axes in the order `axes` (reversed if None)"""

    saves_inputs = False

    def __init__(self, axes: tuple[int, ...] | None = None) -> None:
        self.axes = axes

    def forward(self, x: Any) -> Any:
        return x.transpose(self.axes)

    def backward(self, gy: Any) -> Any:
        if self.axes is None:
            return gy.transpose()
        inverse = [0] * gy.ndim
        for i, a in enumerate(self.axes):
            inverse[a % gy.ndim] = i
        return gy.transpose(inverse)


class GetItem(Function):
    """y = x[key]        key of integers, slices, ... and None"""

    saves_inputs = False

    def __init__(self, key: Any) -> None:
        self.key = key

    def forward(self, x: Any) -> Any:
        self.shape = x.shape
        return x[self.key]

    def backward(self, gy: Any) -> Any:
        gx = array_module(gy).zeros(self.shape, gy.dtype)
        gx[self.key] = gy
        return gx


class Concatenate(Function):
    """y = the xs, one after the other along `axis`"""

    saves_inputs = False

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, *xs: Any) -> Any:
        self.lengths = [x.shape[self.axis] for x in xs]
        return array_module(xs[0]).concatenate(xs, axis=self.axis)

    def backward(self, gy: Any) -> tuple:
        before = (slice(None),) * (self.axis % gy.ndim)
        parts, start = [], 0
        for length in self.lengths:
            parts.append(gy[(*before, slice(start, start + length))])
            start += length
        return tuple(parts)


def _spread(values: tuple) -> tuple:
    """Numbers that are given one by one, or as one sequence."""
    return tuple(values[0]) if len(values) == 1 and np.ndim(values[0]) else values


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Sum over `axis` (all axes if None)."""
    return Sum(axis, keepdims)(x)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Mean over `axis` (all axes if None)."""
    return Mean(axis, keepdims)(x)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Largest value over `axis` (all axes if None)."""
    return Max(axis, keepdims)(x)


def reshape(x: Any, *shape: Any) -> Tensor:
    """`x` with another shape, given as one tuple or as numbers; one of them may be -1."""
    return Reshape(_spread(shape))(x)


def transpose(x: Any, *axes: Any) -> Tensor:
    """`x` with its axes permuted, given as one tuple or as numbers; reversed without."""
    return Transpose(_spread(axes) or None)(x)


def flatten(x: Any) -> Tensor:
    """(n, ...) to (n, product of the rest)"""
    shape = x.shape
    return Reshape((shape[0], math.prod(shape[1:])))(x)


def getitem(x: Any, key: Any) -> Tensor:
    """``x[key]`` for integers, slices, ``...`` and None.

    Raises
    ------
    TypeError
        Index arrays, lists and masks: their gradient would need an addition per index.
    """
    for k in key if isinstance(key, tuple) else (key,):
        if isinstance(k, bool) or not isinstance(k, (int, np.integer, slice, EllipsisType, type(None))):
            raise TypeError(f"getitem: integers, slices, ... and None, not {type(k).__name__}")
    return GetItem(key)(x)


def concatenate(xs: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors `xs`, one after the other along an axis they have; all other axes are equal."""
    return Concatenate(axis)(*xs)
