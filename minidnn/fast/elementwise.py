"""Bias, ReLU and the error function on all cores."""

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


def rectify(x: np.ndarray) -> np.ndarray:
    """max(x, 0)"""
    if not x.flags.c_contiguous:
        return plain("rectify")(x)
    y = np.empty_like(x)
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    each(lambda part: np.maximum(flat_x[part], 0, out=flat_y[part]), spans(x.size, PART))
    return y


def rectify_gradient(gy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """gy where y > 0, else 0"""
    if not (gy.flags.c_contiguous and y.flags.c_contiguous):
        return plain("rectify_gradient")(gy, y)
    gx = np.empty_like(gy)
    flat_gy, flat_y, flat_gx = gy.reshape(-1), y.reshape(-1), gx.reshape(-1)
    each(lambda part: masked(flat_gy[part], flat_y[part] > 0, flat_gx[part]), spans(gy.size, PART))
    return gx


def erf_array(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The error function, in parts small enough for the dozens of passes over each to stay in the cache."""
    y = np.empty(x.shape, x.dtype) if out is None else out
    if not (x.flags.c_contiguous and y.flags.c_contiguous):
        return plain("erf_array")(x, y)
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    each(lambda part: plain("erf_array")(flat_x[part], flat_y[part]), spans(x.size, PART >> 4))
    return y
