"""Matrix products of a fully connected layer on all cores, each with its own part of the weights.

With few rows (a batch of 16) these products are bound by reading W: 64 MB for AlexNet's fc7. Every part of W
is read by one core only, and a part of the result stays in the cache until it is complete.
"""

from typing import Any

import numpy as np

from minidnn.backend.kernels import plain
from minidnn.backend.workers import each, spans

SMALL = 1 << 19  # multiplications that are not worth more than one thread
FEW_ROWS = 64
WEIGHT_ROWS = 512  # of W at a time
GRADIENT_ROWS = 128  # of gW at a time: they are written twice by a product, the second time in the cache


def product(x: np.ndarray, W: np.ndarray) -> np.ndarray:
    """x W, (n, o)"""
    n, o = len(x), W.shape[1]
    if n * W.size < SMALL:
        return plain("product")(x, W)
    if n < FEW_ROWS:
        return _sum(each(lambda part: x[:, part] @ W[part], spans(len(W))))
    y = np.empty((n, o), x.dtype)
    each(lambda part: np.matmul(x, W[:, part], out=y[:, part]), spans(o))
    return y


def product_input_gradient(gy: np.ndarray, W: np.ndarray) -> np.ndarray:
    """gy W^T, (n, i)"""
    n, i = len(gy), len(W)
    if n * W.size < SMALL:
        return plain("product_input_gradient")(gy, W)
    if n >= FEW_ROWS:
        gx = np.empty((n, i), gy.dtype)
        each(lambda part: np.matmul(gy, W[part].T, out=gx[:, part]), spans(i))
        return gx
    transposed = np.empty((i, n), gy.dtype)  # W in the order in which it lies in memory
    columns = np.ascontiguousarray(gy.T)
    each(lambda part: np.matmul(W[part], columns, out=transposed[part]), spans(i, WEIGHT_ROWS))
    return np.ascontiguousarray(transposed.T)


def product_weight_gradient(x: np.ndarray, gy: np.ndarray, out: Any = None) -> np.ndarray:
    """x^T gy, (i, o)"""
    i, o = x.shape[1], gy.shape[1]
    if len(x) * i * o < SMALL:
        return plain("product_weight_gradient")(x, gy, out)
    gW = np.empty((i, o), gy.dtype) if out is None else out
    rows = GRADIENT_ROWS if len(x) < FEW_ROWS else i
    each(lambda part: np.matmul(x[:, part].T, gy, out=gW[part]), spans(i, rows))
    return gW


def sum_rows(gy: np.ndarray, out: Any = None) -> np.ndarray:
    """The sum over all axes but the last: a product with ones reads the rows once, with all lanes."""
    if not gy.flags.c_contiguous:
        return plain("sum_rows")(gy, out)
    rows = gy.reshape(-1, gy.shape[-1])
    total = _sum(each(lambda part: np.ones(len(rows[part]), gy.dtype) @ rows[part], spans(len(rows), 4096)))
    if out is None:
        return total
    out[...] = total
    return out


def _sum(parts: list[np.ndarray]) -> np.ndarray:
    """In order, into the first."""
    total, *others = parts
    for other in others:
        total += other
    return total
