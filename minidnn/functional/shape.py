"""Reductions, and operations that only move values: reshape, transpose, slices, concatenation."""

import itertools
import math
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import numpy as np

from minidnn.backend import array_module, is_array, masked
from minidnn.graph import Function, Tensor, as_tensor

Axis = int | tuple[int, ...] | None


def _kept(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """`shape` with 1 at the reduced axes, as with ``keepdims=True``."""
    if axis is None:
        return (1,) * len(shape)
    axes = {a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))}
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


class Reduction(Function):
    """y = `reduce` of x over `axis`"""

    reduce: str

    def __init__(self, axis: Axis = None, keepdims: bool = False) -> None:
        self.axis, self.keepdims = axis, keepdims

    def forward(self, x: Any) -> Any:
        self.shape = x.shape
        return getattr(x, self.reduce)(axis=self.axis, keepdims=self.keepdims)

    def spread(self, gy: Any) -> Any:
        """`gy` at every value that it is the gradient for."""
        return array_module(gy).broadcast_to(gy.reshape(_kept(self.shape, self.axis)), self.shape)


class Sum(Reduction):
    """y = sum of x over `axis`"""

    reduce, saves_inputs = "sum", False

    def backward(self, gy: Any) -> Any:
        return self.spread(gy)


class Mean(Reduction):
    """y = mean of x over `axis`"""

    reduce, saves_inputs = "mean", False

    def backward(self, gy: Any) -> Any:
        return self.spread(gy / (math.prod(self.shape) // (gy.size or 1)))


class Max(Reduction):
    """y = max of x over `axis`; equal maxima share the gradient equally"""

    reduce = "max"

    def forward(self, x: Any) -> Any:
        self.x, self.y = x, super().forward(x)
        return self.y

    def backward(self, gy: Any) -> Any:
        kept = _kept(self.shape, self.axis)
        largest = self.x == self.y.reshape(kept)
        share = gy.reshape(kept) / largest.sum(axis=self.axis, keepdims=True, dtype=gy.dtype)
        return masked(self.spread(share), largest)


class Min(Max):
    """y = min of x over `axis`; equal minima share the gradient equally"""

    reduce = "min"


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
        axes = self.axes and sorted(range(gy.ndim), key=lambda i: self.axes[i] % gy.ndim)  # the inverse
        return gy.transpose(axes)


class GetItem(Function):
    """y = x[key]; where integer arrays name an element several times, its gradients add up"""

    saves_inputs = False

    def __init__(self, key: tuple) -> None:
        self.key = key

    def forward(self, x: Any) -> Any:
        self.shape = x.shape
        y = x[self.key]
        # a mask is the numbers of what it holds, from here on
        parts = (k.nonzero() if is_array(k) and k.dtype.kind == "b" else (k,) for k in self.key)
        self.key = tuple(k for part in parts for k in part)
        return y

    def backward(self, gy: Any) -> Any:
        xp = array_module(gy)
        gx = xp.zeros(self.shape, gy.dtype)
        if not any(is_array(k) for k in self.key):
            gx[self.key] = gy
            return gx
        position, stride = 0, 1  # in the flat gx: adding there is several times faster than by rows
        for after, n in enumerate(reversed(self.shape)):
            numbers = (xp.arange(n) * stride).reshape(n, *(1,) * after)
            position, stride = position + xp.broadcast_to(numbers, self.shape)[self.key], n * stride
        xp.add.at(gx.reshape(-1), position.reshape(-1), gy.reshape(-1))
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
        edges = list(itertools.accumulate(self.lengths, initial=0))
        return tuple(gy[(*before, slice(a, b))] for a, b in itertools.pairwise(edges))


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


def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Smallest value over `axis` (all axes if None)."""
    return Min(axis, keepdims)(x)


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
    """``x[key]`` as in NumPy: integers, slices, ``...``, None, arrays or lists of integers or booleans, tensors.

    TypeError: anything else, such as floats.
    """
    x = as_tensor(x)
    return GetItem(tuple(_index(k, x) for k in (key if isinstance(key, tuple) else (key,))))(x)


def _index(k: Any, x: Tensor) -> Any:
    """One part of a key, an array as a copy beside `x`: backward needs it as it is now."""
    if isinstance(k, (int, np.integer, slice, EllipsisType, type(None))) and not isinstance(k, bool):
        return k
    k = k.data if isinstance(k, Tensor) else k
    k = array_module(x.data).array(k if is_array(k) or np.size(k) else np.zeros(np.shape(k), int))
    if k.dtype.kind not in "iub" or (k.dtype.kind == "b" and not k.ndim):
        raise TypeError(
            f"getitem: integers, slices, ..., None and arrays of integers or booleans, not {k!r:.60}"
        )
    return k


def concatenate(xs: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors `xs`, one after the other along an axis they have; all other axes are equal."""
    return Concatenate(axis)(*xs)
