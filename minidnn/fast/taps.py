"""A convolution as a sum over the taps of its kernel, each applied where it meets the image."""

import functools

import numpy as np

from minidnn.functional.geometry import Windows

Area = tuple[slice, slice]  # rows and columns
Tap = tuple[tuple[int, int], Area, Area]  # which one, the pixels it reads, the pixels it adds to


def meets(window: Windows, axis: int) -> list[tuple[int, slice, slice]]:
    """Along one axis: (tap, pixels of the image under it, windows they belong to), where there are any."""
    size, out, before, s = window.size[axis], window.out[axis], window.padding[axis][0], window.stride[axis]
    found = []
    for i in range(window.kernel[axis]):
        shift = i * window.dilation[axis] - before
        start, stop = max(0, -(shift // s)), min(out, (size - 1 - shift) // s + 1)
        first = start * s + shift
        if start < stop:
            found.append((i, slice(first, first + (stop - start - 1) * s + 1, s), slice(start, stop)))
    return found


@functools.lru_cache(maxsize=256)
def all_taps(window: Windows) -> list[Tap]:
    """The taps of a kernel, row by row, that meet the image anywhere."""
    rows, cols = meets(window, 0), meets(window, 1)
    return [((i, j), (of_r, of_c), (to_r, to_c)) for i, of_r, to_r in rows for j, of_c, to_c in cols]


@functools.lru_cache(maxsize=256)
def taps_into_output(window: Windows) -> list[Tap]:
    """The same taps; those that reach all of the output first."""
    return sorted(all_taps(window), key=lambda tap: -_pixels(tap[2]))


@functools.lru_cache(maxsize=256)
def taps_into_image(window: Windows) -> list[Tap]:
    """The same taps the other way, from output to image."""
    return [(tap, to, of) for tap, of, to in taps_into_output(window)]


def _pixels(area: Area) -> int:
    return (area[0].stop - area[0].start) * (area[1].stop - area[1].start)


def apply_taps(x: np.ndarray, y: np.ndarray, taps: list[Tap], W: np.ndarray) -> None:
    """y[to] = sum over taps of x[of] W[tap]        x (n, h, w, c)   y (n, h', w', o)   W (kh, kw, c, o)"""
    n, rows, cols, o = y.shape
    if not taps or _pixels(taps[0][2]) < rows * cols:
        y[...] = 0
        fresh = False
    else:
        fresh = True  # the first tap reaches every pixel: its product is the first value of all
    for (i, j), of, to in taps:
        pixels = x[(slice(None), *of)].reshape(-1, x.shape[-1])
        if fresh and y.flags.c_contiguous:
            np.matmul(pixels, W[i, j], out=y.reshape(-1, o))
        else:
            target = y[(slice(None), *to)]
            product = (pixels @ W[i, j]).reshape(target.shape)
            if fresh:
                target[...] = product
            else:
                target += product
        fresh = False
