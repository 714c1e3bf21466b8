"""Pooling over images (n, h, w, c). Padding never is the maximum, nor part of a mean unless that is asked for.

The kernels are plain functions on raw arrays: `max_pool`, `max_pool_gradient`, `avg_pool`,
`avg_pool_gradient`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minidnn.backend import array_module, masked
from minidnn.backend.kernels import kernel
from minidnn.functional.errors import floating, place, wrong_shape
from minidnn.functional.geometry import Padding, Pair, Windows, crop, pad, windows
from minidnn.graph import Function, Tensor

Sides = tuple[tuple[int, int], tuple[int, int]]


@kernel("pool", small=1 << 17)
def max_pool(x: Any, window: Windows) -> tuple[Any, Any]:
    """The largest value of each window, and which tap (row-major, the first of equals, the last NaN) it came from.

    Returns
    -------
    y : array (n, oh, ow, c)
    tap : uint8 array of the same shape (uint16 for windows of more than 256 taps)
    """
    xp = array_module(x)
    kh, kw = window.kernel
    least = lowest(x.dtype)
    y = xp.full((len(x), *window.out, x.shape[-1]), least, x.dtype)
    tap = xp.empty(y.shape, xp.uint8 if kh * kw <= 256 else xp.uint16)
    tap[...] = first_taps(window, xp)
    x = pad(x, window.padding, value=least)
    for k in range(kh * kw):
        candidate = x[(slice(None), *window.tap(*divmod(k, kw)))]
        xp.copyto(tap, k, where=(candidate > y) | (candidate != candidate))
        xp.maximum(y, candidate, out=y)
    return y, tap


def lowest(dtype: Any) -> Any:
    """What no value is below: -inf, or the least integer."""
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def first_taps(window: Windows, xp: Any) -> Any:
    """The first tap of each window that is not in the padding, (oh, ow, 1)."""
    rows, cols = (
        xp.asarray([max(0, before - i * s) for i in range(out)])
        for (before, _), s, out in zip(window.padding, window.stride, window.out, strict=True)
    )
    return (rows[:, None] * window.kernel[1] + cols)[..., None]


@kernel("pool", small=1 << 15)
def max_pool_gradient(gy: Any, tap: Any, window: Windows) -> Any:
    """gx (n, h, w, c): each gy goes to the pixel that won; where windows overlap they add up."""
    return _scattered(lambda k: masked(gy, tap == k), gy, window)


def window_counts(window: Windows, counted: Sides, xp: Any, dtype: Any) -> Any:
    """How many pixels of the image and of the `counted` sides around it each window covers: (oh, ow, 1)."""
    per_axis = []
    for n, k, s, (before, _), (least, most), out in zip(
        window.size, window.kernel, window.stride, window.padding, counted, window.out, strict=True
    ):
        starts = [i * s - before for i in range(out)]
        per_axis.append([min(start + k, n + most) - max(start, -least) for start in starts])
    rows, cols = (xp.asarray(counts, dtype) for counts in per_axis)
    return (rows[:, None] * cols)[..., None]


def avg_pool(x: Any, window: Windows, counted: Sides) -> Any:
    """The mean of each window, (n, oh, ow, c)."""
    xp = array_module(x)
    kh, kw = window.kernel
    x = pad(x, window.padding)
    y = x[(slice(None), *window.tap(0, 0))].copy()
    for k in range(1, kh * kw):
        y += x[(slice(None), *window.tap(*divmod(k, kw)))]
    y /= window_counts(window, counted, xp, x.dtype)
    return y


def avg_pool_gradient(gy: Any, window: Windows, counted: Sides) -> Any:
    """gx (n, h, w, c): every pixel of a window gets an equal share of its gy."""
    share = gy / window_counts(window, counted, array_module(gy), gy.dtype)
    return _scattered(lambda k: share, gy, window)


def _scattered(share: Callable[[int], Any], gy: Any, window: Windows) -> Any:
    """The sum, at each pixel, of the shares of all windows that it is in: share(k) (n, oh, ow, c) goes to tap k."""
    gx = array_module(gy).zeros((len(gy), *window.padded, gy.shape[-1]), gy.dtype)
    for k in range(window.kernel[0] * window.kernel[1]):
        gx[(slice(None), *window.tap(*divmod(k, window.kernel[1])))] += share(k)
    return crop(gx, window)


class MaxPool2d(Function):
    """y[n, p, q, c] = max of x[n, :, :, c] over window (p, q)        x (n, h, w, c)   y (n, oh, ow, c)"""

    saves_inputs = False

    def __init__(self, window: Windows) -> None:
        self.window = window

    def forward(self, x: Any) -> Any:
        y, self.tap = max_pool(x, self.window)
        return y

    def backward(self, gy: Any) -> Any:
        return max_pool_gradient(gy, self.tap, self.window)


class AvgPool2d(Function):
    """y[n, p, q, c] = mean of x[n, :, :, c] over window (p, q)        x (n, h, w, c)   y (n, oh, ow, c)"""

    saves_inputs = False

    def __init__(self, window: Windows, counted: Sides) -> None:
        self.windows = window, counted

    def forward(self, x: Any) -> Any:
        return avg_pool(floating("avg_pool2d", x), *self.windows)

    def backward(self, gy: Any) -> Any:
        return avg_pool_gradient(gy, *self.windows)


def pool_windows(
    operation: str, image: tuple[int, int], size: Pair, stride: Pair | None, padding: Padding, ceil_mode: bool
) -> Windows:
    """The windows of a pooling: `stride` None is `size`; each must cover a pixel of the image.

    ValueError: options out of range, padding as wide as the window, or an image smaller than the window.
    """
    window = windows(operation, image, size, size if stride is None else stride, padding, 1, ceil_mode)
    for k, (before, _), n, s, out in zip(
        window.kernel, window.padding, image, window.stride, window.out, strict=True
    ):
        if before >= k or (out - 1) * s - before >= n:
            problem = f"padding {padding!r} leaves a window of {size} without a pixel"
            raise ValueError(f"{place(operation)}: {problem}")
    return window


def max_pool2d(
    x: Any, size: Pair, stride: Pair | None = None, padding: Padding = 0, ceil_mode: bool = False
) -> Tensor:
    """Largest value of each window, channel by channel; padding never wins.

    Parameters
    ----------
    x : Tensor (n, h, w, c)
    size, stride : int or pair
        Of the windows; a stride below the size makes them overlap. The default stride is the size.
    padding : int, pair, ((top, bottom), (left, right)), "valid" or "same"
        Of fewer pixels than the window has.
    ceil_mode : bool
        Keep a last, partial window.

    Returns
    -------
    Tensor (n, oh, ow, c)
    """
    return MaxPool2d(_windows_for("max_pool2d", x, size, stride, padding, ceil_mode))(x)


def avg_pool2d(
    x: Any,
    size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
) -> Tensor:
    """Mean of each window over the pixels of the image that it covers. Options as for `max_pool2d`.

    With `count_include_pad` the pixels of the padding are part of the mean, as zeros; what `ceil_mode` adds
    beyond it is not.
    """
    window, counted = _windows_for("avg_pool2d", x, size, stride, padding, ceil_mode), ((0, 0), (0, 0))
    if count_include_pad:
        counted = _windows_for("avg_pool2d", x, size, stride, padding, False).padding
    return AvgPool2d(window, counted)(x)


def _windows_for(
    operation: str, x: Any, size: Pair, stride: Pair | None, padding: Padding, ceil_mode: bool
) -> Windows:
    if len(x.shape) != 4:
        raise wrong_shape(operation, f"x {x.shape}", "x (n, h, w, c)")
    return pool_windows(operation, x.shape[1:3], size, stride, padding, ceil_mode)
