"""The arithmetic of an SGD update.

AlexNet has 61 million weights and little arithmetic per weight in an update, so the update is bound by
memory: it walks through weights, gradients and momenta together in blocks that stay in the cache, and
allocates no more than a few blocks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from minidnn.backend import array_module
from minidnn.backend.kernels import kernel

BLOCK = {"numpy": 1 << 16, "cupy": 1 << 22}  # elements: fits a core's cache; on a GPU large enough to fill it


@kernel("update", small=1 << 17)
def momentum_update(
    w: Any, g: Any, v: Any, rate: float, momentum: float, nesterov: bool, decay: float
) -> None:
    """d = g + decay w;  v <- momentum v + d;  w <- w - rate v, or w - rate (momentum v + d) for Nesterov

    All in place; without momentum `v` is None and w <- w - rate d.
    """
    arrays, limit = [w, g] if v is None else [w, g, v], BLOCK[array_module(w).__name__]
    parts = [arrays] if w.size <= limit else _blocks(arrays, limit)
    for w, g, *velocity in parts:
        if decay:
            g = decay * w + g
        for v in velocity:
            v *= momentum
            v += g
            g = momentum * v + g if nesterov else v
        w -= rate * g


@kernel("update")
def factored_update(
    w: Any, x: Any, gy: Any, v: Any, rate: float, momentum: float, nesterov: bool, decay: float
) -> None:
    """`momentum_update` with g = x^T gy"""
    momentum_update(w, x.T @ gy, v, rate, momentum, nesterov, decay)


def _blocks(arrays: Sequence[Any], limit: int) -> Iterator[Sequence[Any]]:
    """The same parts of all arrays, views of at most ``limit`` elements that together cover them."""
    if arrays[0].size <= limit:
        yield arrays
    elif all(array.flags.c_contiguous for array in arrays):
        flat = [array.reshape(-1) for array in arrays]
        for start in range(0, flat[0].size, limit):
            yield [array[start : start + limit] for array in flat]
    else:  # some layout is not C's: halve the longest axis until the parts are small enough
        axis = int(np.argmax(arrays[0].shape))
        half = arrays[0].shape[axis] // 2
        for part in (slice(half), slice(half, None)):
            yield from _blocks([array[(slice(None),) * axis + (part,)] for array in arrays], limit)
