"""Bias, ReLU and the error function on all cores."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidnn.backend import masked
from minidnn.backend.kernels import plain
from minidnn.backend.workers import each, spans

PART = 1 << 18  # elements of a part


def add_bias(y: np.ndarray, b: np.ndarray) -> np.ndarray:
    """y += b"""
    if not y.flags.c_contiguous:
        return plain("add_bias")(y, b)
    rows = y.reshape(-1, y.shape[-1])

    def add(part: slice) -> None:
        rows[part] += b

    each(add, spans(len(rows), max(1, PART // len(b))))
    return y


def _flat(function: Callable[..., Any], *arrays: np.ndarray, part: int = PART) -> None:
    """Call a function with the same elements of all arrays, part by part."""
    flat = [a.reshape(-1) for a in arrays]
    each(lambda elements: function(*(a[elements] for a in flat)), spans(flat[0].size, part))


def rectify(x: np.ndarray) -> np.ndarray:
    """max(x, 0)"""
    if not x.flags.c_contiguous:
        return plain("rectify")(x)
    y = np.empty_like(x)
    _flat(lambda x, y: np.maximum(x, 0, out=y), x, y)
    return y


def rectify_gradient(gy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """gy where y > 0, else 0"""
    if not (gy.flags.c_contiguous and y.flags.c_contiguous):
        return plain("rectify_gradient")(gy, y)
    gx = np.empty_like(gy)
    _flat(lambda gy, y, gx: masked(gy, y > 0, gx), gy, y, gx)
    return gx


def erf_array(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The error function, in parts small enough for the dozens of passes over each to stay in the cache."""
    y = np.empty(x.shape, x.dtype) if out is None else out
    if not (x.flags.c_contiguous and y.flags.c_contiguous):
        return plain("erf_array")(x, y)
    _flat(plain("erf_array"), x, y, part=PART >> 4)
    return y
