"""Max pooling on all cores, image by image, without a padded copy: a tap is compared where it meets the image."""

import numpy as np

from minidnn.backend import masked
from minidnn.backend.kernels import plain
from minidnn.backend.workers import each, spans
from minidnn.fast.taps import all_taps
from minidnn.functional.geometry import Windows
from minidnn.functional.pool import first_taps, lowest

PART = 1 << 17


def max_pool(x: np.ndarray, window: Windows) -> tuple[np.ndarray, np.ndarray]:
    """y and the number of the tap it came from, (n, oh, ow, c) both"""
    if window.kernel[0] * window.kernel[1] > 256:
        return plain("max_pool")(x, window)
    n, c = len(x), x.shape[-1]
    y = np.empty((n, *window.out, c), x.dtype)
    tap = np.empty(y.shape, np.uint8)
    least, first, kw = lowest(x.dtype), first_taps(window, np), window.kernel[1]
    taps = [(i * kw + j, of, to) for (i, j), of, to in all_taps(window)]

    def part(images: slice) -> None:
        largest, winner = y[images], tap[images]
        largest.fill(least)
        winner[...] = first
        for number, of, to in taps:
            candidate = x[(images, *of)]
            best, best_tap = largest[(slice(None), *to)], winner[(slice(None), *to)]
            # the taps are numbered in this order, so the last one that was larger has the largest number
            np.maximum(best_tap, (candidate > best).view(np.uint8) * np.uint8(number), out=best_tap)
            np.maximum(best, candidate, out=best)
        if np.isnan(largest.max()):  # seldom: NaN is not larger than anything
            for number, of, to in taps:
                np.copyto(winner[(slice(None), *to)], number, where=np.isnan(x[(images, *of)]))

    each(part, _images(x))
    return y, tap


def max_pool_gradient(gy: np.ndarray, tap: np.ndarray, window: Windows) -> np.ndarray:
    """gx (n, h, w, c)"""
    n, _, _, c = gy.shape
    h, w = window.size
    gx = np.empty((n, h, w, c), gy.dtype)

    def part(images: slice) -> None:
        gx[images] = 0
        for (i, j), of, to in all_taps(window):
            windows, target = (images, *to), gx[(images, *of)]
            target += masked(gy[windows], tap[windows] == i * window.kernel[1] + j)

    each(part, _images(gx))
    return gx


def _images(x: np.ndarray) -> list[slice]:
    """Parts of a batch that fit the cache."""
    return spans(len(x), max(1, PART * len(x) // x.size))
