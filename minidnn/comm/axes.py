"""Between a tensor split along an axis and the flat buffer of its blocks that the collectives move."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from minidnn.backend import array_module

from .algorithms import edges_of


def cut(x, axis: int, counts: Sequence[int]):
    """The blocks of x along an axis (``counts`` entries each), flat, one after the other.

    Along axis 0 that is x itself, seen flat; along another it is a copy.
    """
    xp, axis = array_module(x), axis % x.ndim
    if sum(counts) != x.shape[axis]:
        raise ValueError(
            f"counts {tuple(counts)} do not add up to {x.shape[axis]}, axis {axis} of shape {x.shape}"
        )
    if prod(x.shape[:axis]) == 1:
        return xp.ascontiguousarray(x).reshape(-1)
    flat, at = xp.empty(x.size, x.dtype), 0
    for block in xp.split(x, edges_of(counts)[1:-1], axis):
        flat[at : at + block.size].reshape(block.shape)[...] = block
        at += block.size
    return flat


def join(flat, shape: Sequence[int], axis: int, counts: Sequence[int]):
    """The inverse of :func:`cut`: the array of the given shape whose blocks the buffer holds."""
    xp, axis = array_module(flat), axis % len(shape)
    if prod(shape[:axis]) == 1:
        return flat.reshape(shape)
    whole, at = xp.empty(shape, flat.dtype), 0
    for block in xp.split(whole, edges_of(counts)[1:-1], axis):  # views
        block[...] = flat[at : at + block.size].reshape(block.shape)
        at += block.size
    return whole


def with_axis(shape: Sequence[int], axis: int, length: int) -> tuple[int, ...]:
    """The shape with one axis of another length."""
    shape = list(shape)
    shape[axis] = length
    return tuple(shape)


def row_sizes(shape: Sequence[int], axis: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Elements of the blocks of ``counts`` entries along an axis."""
    inner = prod(n for k, n in enumerate(shape) if k != axis % len(shape))
    return tuple(count * inner for count in counts)
