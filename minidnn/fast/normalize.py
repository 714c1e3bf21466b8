"""Local response normalisation on all cores, a part that fits the cache at a time.

The sums over neighbouring channels are taken on the part as one long vector, with zeros between the rows: sums of
2, 4, ... neighbours from sums of half as many, so five channels cost three additions.
"""

import numpy as np

from minidnn.backend.kernels import plain
from minidnn.backend.workers import each, spans
from minidnn.functional.normalize import inverse_power

PART = 1 << 16


def lrn(
    x: np.ndarray, size: int, alpha: float, beta: float, k: float, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """y and s, (..., c) both"""
    if not x.flags.c_contiguous:
        return plain("lrn")(x, size, alpha, beta, k, groups)
    y, s = np.empty_like(x), np.empty_like(x)
    rows_x, rows_y, rows_s = (_rows(a, groups) for a in (x, y, s))

    def part(rows: slice) -> None:
        x, s = rows_x[rows], rows_s[rows]
        np.multiply(_neighbours(x, x, size // 2, size), alpha, out=s)
        s += k
        np.multiply(x, inverse_power(s, beta), out=rows_y[rows])

    each(part, _parts(rows_x))
    return y, s


def lrn_gradient(
    gy: np.ndarray, x: np.ndarray, s: np.ndarray, size: int, alpha: float, beta: float, groups: int
) -> np.ndarray:
    """gx (..., c)"""
    if not (gy.flags.c_contiguous and x.flags.c_contiguous and s.flags.c_contiguous):
        return plain("lrn_gradient")(gy, x, s, size, alpha, beta, groups)
    gx = np.empty_like(gy)
    rows_gy, rows_x, rows_s, rows_gx = (_rows(a, groups) for a in (gy, x, s, gx))

    def part(rows: slice) -> None:
        x, s, direct = rows_x[rows], rows_s[rows], rows_gx[rows]
        np.multiply(inverse_power(s, beta), rows_gy[rows], out=direct)
        through = _neighbours(direct / s, x, (size - 1) // 2, size) * x
        through *= 2 * alpha * beta
        direct -= through

    each(part, _parts(rows_gy))
    return gx


def _rows(a: np.ndarray, groups: int) -> np.ndarray:
    """(..., c) as (rows, c / groups): neighbours are those in a row."""
    return a.reshape(-1, a.shape[-1] // groups)


def _parts(rows: np.ndarray) -> list[slice]:
    return spans(len(rows), max(1, PART // rows.shape[1]))


def _neighbours(a: np.ndarray, b: np.ndarray, before: int, size: int) -> np.ndarray:
    """Sums of a b over the `size` channels that begin `before` channels to the left; rows (m, c)."""
    m, c = a.shape
    padded = np.zeros((m, c + size - 1), a.dtype)
    np.multiply(a, b, out=padded[:, before : before + c])
    sums, width, flat = None, 1, padded.reshape(-1)
    count, at = flat.size - size + 1, 0
    while True:  # flat[i] is the sum of `width` values from i on
        if size & width:
            term = flat[at : at + count]
            sums = term if sums is None else sums + term
            at += width
        if 2 * width > size:
            break
        flat = flat[:-width] + flat[width:]
        width *= 2
    step = padded.strides
    return np.lib.stride_tricks.as_strided(sums, (m, c), step)
