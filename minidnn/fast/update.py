"""The updates on all cores; that by momentum of a gradient in factors, without ever holding the gradient.

Momentum is two or three additions of vectors, v <- momentum v + g, v <- v + decay w and w <- w - rate v, each a pass
over a part in the cache. With a gradient in factors the first one is a matrix product added to v.
"""

import numpy as np

from minidnn.backend.kernels import plain
from minidnn.backend.openblas import add_product, add_scaled
from minidnn.backend.workers import each, spans

PART = 1 << 18  # elements a thread works on at a time, so that 3 MB stay in the cache


def momentum_update(w: np.ndarray, g: np.ndarray, v: np.ndarray | None, *rule: float | bool) -> None:
    """Update w and v in place."""
    rate, momentum, nesterov, decay = rule
    arrays = [a for a in (w, g, v) if a is not None]
    if not all(a.flags.c_contiguous for a in arrays):
        plain("momentum_update")(w, g, v, *rule)
        return

    def part(elements: slice) -> None:
        w, g, *velocity = (a.reshape(-1)[elements] for a in arrays)
        if nesterov or not velocity:
            plain("momentum_update")(w, g, velocity[0] if velocity else None, *rule)
            return
        add_scaled(g, velocity[0], keep=momentum)
        _step(w, velocity[0], rate, decay)

    each(part, spans(w.size, PART))


def factored_update(
    w: np.ndarray, x: np.ndarray, gy: np.ndarray, v: np.ndarray | None, *rule: float | bool
) -> None:
    """Update w and v in place with the gradient x^T gy, some rows at a time."""
    rate, momentum, nesterov, decay = rule

    def part(rows: slice) -> None:
        if v is None or nesterov:
            velocity = None if v is None else v[rows]
            plain("momentum_update")(w[rows], x[:, rows].T @ gy, velocity, *rule)
        else:
            add_product(x[:, rows].T, gy, v[rows], keep=momentum)
            _step(w[rows], v[rows], rate, decay)

    each(part, spans(len(w), max(1, PART // w.shape[1])))


def adaptive_update(
    w: np.ndarray, g: np.ndarray, m: np.ndarray | None, v: np.ndarray, *rule: float | bool
) -> None:
    """Update w, m and v in place, a part of them on each thread."""
    arrays = [a for a in (w, g, v, m) if a is not None]
    if not all(a.flags.c_contiguous for a in arrays):
        plain("adaptive_update")(w, g, m, v, *rule)
        return

    def part(elements: slice) -> None:
        w, g, v, *mean = (a.reshape(-1)[elements] for a in arrays)
        plain("adaptive_update")(w, g, mean[0] if mean else None, v, *rule)

    each(part, spans(w.size, PART))


def _step(w: np.ndarray, v: np.ndarray, rate: float, decay: float) -> None:
    """v <- v + decay w;  w <- w - rate v"""
    if decay:
        add_scaled(w, v, decay)
    add_scaled(v, w, -rate)
