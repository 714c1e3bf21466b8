"""Local response normalisation on all cores, a part that fits the cache at a time."""

import numpy as np

from minidnn.backend.kernels import plain
from minidnn.backend.pool import each, spans

SMALL = 1 << 16  # elements that are not worth more than one thread
PART = 1 << 16


def lrn(
    x: np.ndarray, size: int, alpha: float, beta: float, k: float, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """y and s, (..., c) both"""
    if x.size < SMALL or not x.flags.c_contiguous:
        return plain("lrn")(x, size, alpha, beta, k, groups)
    y, s = np.empty_like(x), np.empty_like(x)
    rows_x, rows_y, rows_s = (a.reshape(-1, x.shape[-1]) for a in (x, y, s))

    def part(rows: slice) -> None:
        rows_y[rows], rows_s[rows] = plain("lrn")(rows_x[rows], size, alpha, beta, k, groups)

    each(part, _rows(rows_x))
    return y, s


def lrn_gradient(
    gy: np.ndarray, x: np.ndarray, s: np.ndarray, size: int, alpha: float, beta: float, groups: int
) -> np.ndarray:
    """gx (..., c)"""
    if gy.size < SMALL or not (gy.flags.c_contiguous and x.flags.c_contiguous):
        return plain("lrn_gradient")(gy, x, s, size, alpha, beta, groups)
    gx = np.empty_like(gy)
    rows_gy, rows_x, rows_s, rows_gx = (a.reshape(-1, gy.shape[-1]) for a in (gy, x, s, gx))

    def part(rows: slice) -> None:
        arrays = rows_gy[rows], rows_x[rows], rows_s[rows]
        rows_gx[rows] = plain("lrn_gradient")(*arrays, size, alpha, beta, groups)

    each(part, _rows(rows_gy))
    return gx


def _rows(x: np.ndarray) -> list[slice]:
    return spans(len(x), max(1, PART // x.shape[1]))
