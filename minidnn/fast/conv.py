"""Convolution on all cores, in parts whose matrices fit the cache. Three ways, by shape:

- **taps** (stride 1, many channels): y is the sum over the taps (i, j) of the images, shifted by the tap,
  times W[i, j]. A tap is applied only where it meets the image: padding costs nothing, and a 3x3 kernel on
  3x3 images does 49 of its 81 products.
- **kernel rows** (stride 1, few channels): the images are widened once, each pixel to the kw pixels beside it,
  and y is the sum over the kernel's rows of the widened images times W[i] (kw c, o). With the height as first
  axis the pixels under a kernel row are a contiguous matrix, so im2col's kh copies of them are saved (Cho and
  Brand 2017, arXiv 1706.06873).
- **columns** (any stride and dilation): im2col, of a few images at a time.
"""

from typing import Any

import numpy as np

from minidnn.backend.kernels import plain
from minidnn.backend.openblas import add_product
from minidnn.backend.workers import each, spans, threads
from minidnn.fast.taps import apply_taps, meets, taps_into_image, taps_into_output
from minidnn.functional.conv import channel_groups, columns, turned
from minidnn.functional.geometry import Windows, pad

TAP_CHANNELS = 192  # products less deep lose more to the additions between them than to padding
ROWS = 1024  # of a part's matrices: they and the weights fit a core's cache
GRADIENT_ROWS = 2048  # the weights' gradient is added up once per part
SMALL = 1 << 19  # multiplications that are not worth more than one thread


def convolve(x: np.ndarray, W: np.ndarray, window: Windows, groups: int = 1) -> np.ndarray:
    """y (n, oh, ow, o)"""
    n, o = len(x), W.shape[3]
    if n * window.out[0] * window.out[1] * W.size < SMALL:
        return plain("convolve")(x, W, window, groups)
    y = np.empty((n, *window.out, o), x.dtype)
    pairs = channel_groups(x.shape[-1], o, groups)
    if not _slides(window):
        W = W.reshape(-1, o)

        def part(images: slice) -> None:
            padded = pad(x[images], window.padding)
            for of, to in pairs:
                np.matmul(columns(padded, window, of), W[:, to], out=y[images].reshape(-1, o)[:, to])

    elif W.shape[2] >= TAP_CHANNELS:
        taps = taps_into_output(window)

        def part(images: slice) -> None:
            for of, to in pairs:
                apply_taps(x[images, ..., of], y[images, ..., to], taps, W[..., to])

    else:
        rows = [W[..., to].reshape(len(W), -1, o // groups) for _, to in pairs]

        def part(images: slice) -> None:
            for (of, to), W_rows in zip(pairs, rows, strict=True):
                _kernel_rows(x[images, ..., of], y[images, ..., to], W_rows, window)

    each(part, _images(n, window, ROWS))
    return y


def convolve_input_gradient(gy: np.ndarray, W: np.ndarray, window: Windows, groups: int = 1) -> np.ndarray:
    """gx (n, h, w, c)"""
    n, o = len(gy), W.shape[3]
    c = W.shape[2] * groups
    if n * window.out[0] * window.out[1] * W.size < SMALL:
        return plain("convolve_input_gradient")(gy, W, window, groups)
    if _slides(window) and o // groups < TAP_CHANNELS:
        return convolve(gy, *turned(W, window, groups), groups)
    gx = np.empty((n, *window.size, c), gy.dtype)
    pairs = channel_groups(c, o, groups)
    if _slides(window):
        taps = taps_into_image(window)

        def part(images: slice) -> None:
            for of, to in pairs:
                apply_taps(gy[images, ..., to], gx[images, ..., of], taps, W[..., to].swapaxes(2, 3))

    else:

        def part(images: slice) -> None:
            gx[images] = plain("convolve_input_gradient")(gy[images], W, window, groups)

    each(part, _images(n, window, ROWS))
    return gx


def convolve_weight_gradient(
    x: np.ndarray, gy: np.ndarray, W: np.ndarray, window: Windows, groups: int = 1, out: Any = None
) -> np.ndarray:
    """gW (kh, kw, c / groups, o); of `W` only the shape is used"""
    kh, kw, c, o = W.shape
    rows = len(gy) * window.out[0] * window.out[1]
    if rows * W.size < SMALL:
        return plain("convolve_weight_gradient")(x, gy, W, window, groups, out)
    gW = np.empty(W.shape, gy.dtype) if out is None else out
    pairs = channel_groups(c * groups, o, groups)
    if _slides(window) and c >= TAP_CHANNELS and rows <= 2 * GRADIENT_ROWS:
        _gradient_by_taps(x, gy, gW, window, pairs)
        return gW
    gradient = _gradient_by_rows if _slides(window) else _gradient_by_columns
    parts = _images(len(x), window, GRADIENT_ROWS)
    shares = [parts[s] for s in spans(len(parts))]  # one a thread, so that the sum has a fixed order

    def share(number: int) -> np.ndarray:
        total = gW if number == 0 else np.empty_like(gW)
        total[...] = 0
        for images in shares[number]:
            gradient(x[images], gy[images], total, window, pairs)
        return total

    for other in each(share, range(len(shares)))[1:]:
        gW += other
    return gW


def _slides(window: Windows) -> bool:
    """Whether windows move by one pixel and have no holes, and no side is cut off or all padding."""
    if window.stride != (1, 1) or window.dilation != (1, 1):
        return False
    sides = zip(window.kernel, window.padding, strict=True)
    return all(0 <= before < k and 0 <= after < k for k, (before, after) in sides)


def _images(n: int, window: Windows, rows: int) -> list[slice]:
    """Parts of a batch of about `rows` output pixels, at least one for each thread."""
    return spans(n, max(1, rows // (window.out[0] * window.out[1])))


def _widened(x: np.ndarray, window: Windows) -> np.ndarray:
    """Images (n, h, w, c) as (h, n, ow, kw c): each output column with the pixels under a kernel row."""
    n, h, w, c = x.shape
    left, right = window.padding[1]
    padded = np.empty((h, n, left + w + right, c), x.dtype)
    padded[:, :, :left] = 0
    padded[:, :, left + w :] = 0
    padded[:, :, left : left + w] = x.transpose(1, 0, 2, 3)
    shape = h, n, window.out[1], window.kernel[1] * c
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(padded, shape, padded.strides))


def _reach(window: Windows) -> list[tuple[int, slice, slice]]:
    """(kernel row, image rows under it, output rows they belong to), the rows that reach furthest first."""
    return sorted(meets(window, 0), key=lambda row: row[2].start - row[2].stop)


def _kernel_rows(x: np.ndarray, y: np.ndarray, W_rows: np.ndarray, window: Windows) -> None:
    """The convolution of some images into `y`; W_rows (kh, kw c, o)."""
    n, oh, ow, o = y.shape
    wide = _widened(x, window)
    reach = _reach(window)
    total = np.empty((oh, n * ow, o), y.dtype)
    covered = reach and reach[0][2] == slice(0, oh)
    if not covered:
        total[...] = 0
    for number, (i, of, to) in enumerate(reach):
        pixels, outputs = wide[of].reshape(-1, wide.shape[-1]), total[to].reshape(-1, o)
        add_product(pixels, W_rows[i], outputs, keep=0.0 if covered and number == 0 else 1.0)
    y[...] = total.reshape(oh, n, ow, o).transpose(1, 0, 2, 3)


def _gradient_by_rows(x, gy, gW, window, pairs) -> None:
    """Add the gW of some images, from the widened images."""
    kh, kw, c, o = gW.shape
    gW = gW.reshape(kh, kw * c, o)
    gy = np.ascontiguousarray(gy.transpose(1, 0, 2, 3))
    for of, to in pairs:
        wide = _widened(x[..., of], window)
        for i, rows, outputs in _reach(window):
            pixels = wide[rows].reshape(-1, kw * c)
            add_product(pixels.T, gy[outputs].reshape(-1, o)[:, to], gW[i][:, to])


def _gradient_by_columns(x, gy, gW, window, pairs) -> None:
    """Add the gW of some images, by im2col."""
    o = gW.shape[3]
    padded, gy = pad(x, window.padding), gy.reshape(-1, o)
    for of, to in pairs:
        add_product(columns(padded, window, of).T, gy[:, to], gW.reshape(-1, o)[:, to])


def _gradient_by_taps(x, gy, gW, window, pairs) -> None:
    """gW of all images: each tap's is the product of the pixels it met and the outputs they went to."""
    kh, kw, c, o = gW.shape
    taps = taps_into_output(window)
    if len(taps) < kh * kw:
        gW[...] = 0
    # a few taps are cut in two, so that all threads finish together
    halves = 1 if len(taps) % threads() == 0 or len(taps) >= 8 * threads() else 2
    cuts = [slice(c * k // halves, c * (k + 1) // halves) for k in range(halves)]

    def product(item) -> None:
        ((i, j), of, to), cut, (of_channels, to_channels) = item
        channels = slice(of_channels.start + cut.start, of_channels.start + cut.stop)
        pixels = x[(slice(None), *of, channels)].reshape(-1, cut.stop - cut.start)
        outputs = gy[(slice(None), *to, to_channels)].reshape(len(pixels), -1)
        np.matmul(pixels.T, outputs, out=gW[i, j, cut, to_channels])

    each(product, [(tap, cut, pair) for tap in taps for cut in cuts for pair in pairs])
