"""The arithmetic of an update.

AlexNet has 61 million weights and little arithmetic per weight in an update, so the update is bound by
memory: it walks through weights, gradients and momenta together in blocks that stay in the cache, and
allocates no more than a block or two of scratch.
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
    xp = array_module(w)
    arrays, limit = [w, g] if v is None else [w, g, v], BLOCK[xp.__name__]
    whole = w.size <= limit
    parts = [arrays] if whole else _blocks(arrays, limit)
    scratch = () if whole else [xp.empty(limit, w.dtype) for _ in range(2)]
    for w, g, *velocity in parts:
        a, b = (None, None) if whole else (buffer[: w.size].reshape(w.shape) for buffer in scratch)
        if decay:
            g = a = xp.asarray(xp.add(xp.multiply(w, decay, out=a), g, out=a))  # an array, of one number too
        for v in velocity:
            v *= momentum
            v += g
            g = xp.add(xp.multiply(v, momentum, out=b), g, out=b) if nesterov else v
        w -= xp.multiply(g, rate, out=a)


@kernel("update")
def factored_update(
    w: Any, x: Any, gy: Any, v: Any, rate: float, momentum: float, nesterov: bool, decay: float
) -> None:
    """`momentum_update` with g = x^T gy"""
    momentum_update(w, x.T @ gy, v, rate, momentum, nesterov, decay)


@kernel("update", small=1 << 17)
def adaptive_update(w, g, m, v, rate, decay, decoupled, beta1, beta2, eps, age1, age2) -> None:
    """m <- beta1 m + (1 - beta1) d;  v <- beta2 v + (1 - beta2) d^2;  w <- w - rate (m / age1) / (sqrt(v / age2) + eps)

    d = g + decay w; or, `decoupled`, d = g and w <- w - rate decay w before. Without m (None) d is in its place.
    """
    xp = array_module(w)
    arrays = [w, g, v] if m is None else [w, g, v, m]
    limit = BLOCK[xp.__name__]
    scratch = [xp.empty(min(limit, w.size), w.dtype) for _ in range(2)]
    for w, g, v, *mean in _blocks(arrays, limit):
        a, b = [buffer[: w.size].reshape(w.shape) for buffer in scratch]
        if decoupled:
            w *= 1 - rate * decay
        elif decay:
            g = xp.add(xp.multiply(w, decay, out=a), g, out=a)
        v *= beta2
        v += xp.multiply(xp.multiply(g, g, out=b), 1 - beta2, out=b)
        for m in mean:
            m *= beta1
            m += xp.multiply(g, 1 - beta1, out=b)
            g = m
        xp.sqrt(v, out=b)
        b *= age2**-0.5
        b += eps
        xp.divide(g, b, out=b)
        b *= rate / age1
        w -= b


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
