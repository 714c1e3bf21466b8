"""The momentum update on all cores."""

import numpy as np

from minidnn.backend.kernels import plain
from minidnn.backend.pool import each, spans

SMALL = 1 << 17  # elements that are not worth more than one thread
PART = 1 << 18  # elements of a part


def momentum_update(
    w: np.ndarray,
    g: np.ndarray,
    v: np.ndarray | None,
    rate: float,
    momentum: float,
    nesterov: bool,
    decay: float,
) -> None:
    """Update w and v in place."""
    arrays = (w, g) if v is None else (w, g, v)
    if w.size < SMALL or not all(a.flags.c_contiguous for a in arrays):
        plain("momentum_update")(w, g, v, rate, momentum, nesterov, decay)
        return
    flat = [a.reshape(-1) for a in arrays]

    def part(elements: slice) -> None:
        w, g, *velocity = (a[elements] for a in flat)
        plain("momentum_update")(w, g, velocity[0] if velocity else None, rate, momentum, nesterov, decay)

    each(part, spans(w.size, PART))
