"""Where the windows of a convolution or pooling lie in an image: sizes, padding, the view of all."""

import dataclasses
import functools
from typing import Any, Literal

import numpy as np

from minidnn.backend import array_module
from minidnn.functional.errors import place

Pair = int | tuple[int, int]
Padding = int | Literal["same", "valid"] | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of `kernel` taps sliding over an image; every pair is (along height, along width)."""

    size: tuple[int, int]  # of the image
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]  # ((top, bottom), (left, right)) pixels around the image
    out: tuple[int, int]  # number of windows

    @property
    def extent(self) -> tuple[int, int]:
        """Pixels from a window's first tap to its last, inclusive."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def padded(self) -> tuple[int, int]:
        """Size of the image with its padding."""
        return tuple(s + a + b for s, (a, b) in zip(self.size, self.padding, strict=True))

    def tap(self, i: int, j: int) -> tuple[slice, slice]:
        """The pixels of the padded image under tap (i, j) of all windows: a view of `out` pixels."""
        (oh, ow), (sh, sw), (dh, dw) = self.out, self.stride, self.dilation
        top, left = i * dh, j * dw
        return slice(top, top + (oh - 1) * sh + 1, sh), slice(left, left + (ow - 1) * sw + 1, sw)


def pair(value: Pair, name: str, operation: str, least: int = 1) -> tuple[int, int]:
    """An int or a pair of ints as a pair."""
    values = tuple(value) if np.ndim(value) else (value, value)
    if len(values) != 2 or any(not isinstance(v, (int, np.integer)) or v < least for v in values):
        raise ValueError(
            f"{place(operation)}: {name}={value!r}, expected an int >= {least} or a pair of them"
        )
    return int(values[0]), int(values[1])


def windows(
    operation: str,
    size: tuple[int, int],
    kernel: Pair,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Windows:
    """The windows that `operation` ("conv2d", ...; for messages) slides over an image of `size`.

    ``"same"`` is that of Keras: out = ceil(size / stride), the odd pixel of padding at the bottom and right.
    With `ceil_mode` a last, partial window is kept if it starts inside the image or its top or left padding.

    ValueError: an option out of range, or no window fits in the image.
    """
    options = (size, kernel, stride, padding, dilation)
    return _windows(operation, *map(_as_tuples, options), ceil_mode)


def _as_tuples(value: Any) -> Any:
    """Lists and arrays, also those inside, as tuples."""
    return tuple(map(_as_tuples, value)) if isinstance(value, (list, tuple, np.ndarray)) else value


@functools.lru_cache(maxsize=1024)
def _windows(operation, size, kernel, stride, padding, dilation, ceil_mode) -> Windows:
    """`windows` of options that can be looked up."""
    given = {"kernel": kernel, "stride": stride, "dilation": dilation}
    kernel, stride, dilation = (pair(value, name, operation) for name, value in given.items())
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"{place(operation)}: padding={padding!r}, expected 'same', 'valid' or numbers")
        sides = None if padding == "same" else ((0, 0), (0, 0))
    elif isinstance(padding, tuple) and all(isinstance(p, tuple) for p in padding):
        sides = tuple(pair(p, "padding", operation, least=0) for p in padding)
        if len(sides) != 2:
            expected = "((top, bottom), (left, right))"
            raise ValueError(f"{place(operation)}: padding={padding!r}, expected {expected}")
    else:
        sides = tuple((p, p) for p in pair(padding, "padding", operation, least=0))
    out, around = [], []
    for axis, (n, k, s, d) in enumerate(zip(size, kernel, stride, dilation, strict=True)):
        extent = (k - 1) * d + 1
        if sides is None:
            count = -(-n // s)
            total = max((count - 1) * s + extent - n, 0)
            before, after = total // 2, total - total // 2
        else:
            before, after = sides[axis]
            room = n + before + after - extent
            count = room // s + 1
            if ceil_mode and room >= 0 and room % s and count * s < n + before:
                count += 1
                after += s - room % s
        if count < 1:
            raise ValueError(
                f"{place(operation)}: a window of {kernel[0]}x{kernel[1]} with dilation {dilation} "
                f"does not fit in an image of {size[0]}x{size[1]} with padding {padding!r}"
            )
        out.append(count)
        around.append((before, after))
    return Windows(size, kernel, stride, dilation, tuple(around), tuple(out))


def pad(x: Any, padding: tuple[tuple[int, int], tuple[int, int]], value: float = 0.0) -> Any:
    """`x` (n, h, w, c) with `value` around its images; negative padding cuts off. No copy without any."""
    (t, b), (left, r) = padding
    n, h, w, c = x.shape
    if min(t, b, left, r) < 0:
        x = x[:, max(-t, 0) : h + min(b, 0), max(-left, 0) : w + min(r, 0)]
        t, b, left, r = max(t, 0), max(b, 0), max(left, 0), max(r, 0)
        n, h, w, c = x.shape
    if t == b == left == r == 0:
        return x
    y = array_module(x).full((n, h + t + b, w + left + r, c), value, x.dtype)
    y[:, t : t + h, left : left + w] = x
    return y


def crop(y: Any, window: Windows) -> Any:
    """The image without its padding: the view that undoes `pad`."""
    (t, _), (left, _) = window.padding
    h, w = window.size
    return y[:, t : t + h, left : left + w]


def window_view(x: Any, window: Windows) -> Any:
    """All windows of the padded images `x` (n, h, w, c), as a view (n, oh, ow, kh, kw, c)."""
    n, _, _, c = x.shape
    sn, sh, sw, sc = x.strides
    (oh, ow), (kh, kw) = window.out, window.kernel
    steps = sh * window.stride[0], sw * window.stride[1]
    taps = sh * window.dilation[0], sw * window.dilation[1]
    view = array_module(x).lib.stride_tricks.as_strided
    return view(x, (n, oh, ow, kh, kw, c), (sn, *steps, *taps, sc))
