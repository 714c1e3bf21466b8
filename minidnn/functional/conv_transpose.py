"""Transposed convolution: the gradient of a convolution by its input, as an operation of its own."""

from typing import Any

from minidnn.functional.conv import convolve, convolve_input_gradient, convolve_weight_gradient
from minidnn.functional.errors import count, place, wrong_shape
from minidnn.functional.geometry import Padding, Pair, Windows, pair, windows
from minidnn.functional.products import Affine
from minidnn.graph import Tensor


def exchanged(W: Any, groups: int) -> Any:
    """Filters with input and output channels exchanged: (kh, kw, i / groups, o) as (kh, kw, o / groups, i)."""
    kh, kw, i, o = W.shape
    W = W.reshape(kh, kw, i, groups, o // groups).transpose(0, 1, 4, 3, 2)
    return W.reshape(kh, kw, o // groups, i * groups)


def transposed_windows(
    image: tuple[int, int], kernel: Pair, stride: Pair, padding: Padding, output_padding: Pair, dilation: Pair
) -> Windows:
    """The windows of the convolution that takes the result back to `image`: their `size` is the result's."""
    operation = "conv_transpose2d"
    given = {"kernel": kernel, "stride": stride, "dilation": dilation}
    kernel, stride, dilation = (pair(value, name, operation) for name, value in given.items())
    more = pair(output_padding, "output_padding", operation, least=0)
    extent = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    large = tuple(n * s + e for n, s, e in zip(image, stride, extent, strict=True))
    sides = windows(operation, large, kernel, stride, padding, dilation).padding
    size = tuple(
        m + (n * s if padding == "same" else (n - 1) * s + e - sum(p))
        for n, s, e, p, m in zip(image, stride, extent, sides, more, strict=True)
    )
    if min(size) < 1:
        raise ValueError(f"{place(operation)}: padding={padding!r} leaves no pixel of the result")
    window = windows(operation, size, kernel, stride, padding, dilation)
    if window.out != tuple(image):
        expected = f"less than the stride {stride}, and 0 with padding='same'"
        raise ValueError(f"{place(operation)}: output_padding={output_padding!r}, expected {expected}")
    return window


class ConvTranspose2d(Affine):
    """y with <y, z> = <x, z * W> for all z        x (n, h, w, i)   W (kh, kw, i / groups, o)   y (n, oh, ow, o)

    Every value of x, times the filters, is added to the window of y that a convolution would read for it.
    """

    operation = "conv_transpose2d"

    def __init__(self, window: Windows, groups: int) -> None:
        self.window, self.groups = window, groups

    def product(self, x: Any, W: Any) -> Any:
        self.W = exchanged(W, self.groups)
        return convolve_input_gradient(x, self.W, self.window, self.groups)

    def backward_input(self, gy: Any) -> tuple:
        return (convolve(gy, self.W, self.window, self.groups) if self.needs[0] else None,)

    def weight_gradient(self, gy: Any) -> Any:
        gW = convolve_weight_gradient(gy, self.x, self.W, self.window, self.groups)
        return exchanged(gW, self.groups)


def conv_transpose2d(
    x: Any,
    W: Any,
    b: Any = None,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Transposed convolution of images with filters: enlarges them by the stride.

    oh = (h - 1) stride + (kh - 1) dilation + 1 - top - bottom + output_padding

    Parameters
    ----------
    x, W, b : Tensors (n, h, w, i), (kh, kw, i / groups, o), and (o,) or None
    padding : as for `conv2d`
        Pixels cut off around the result; "same" as in Keras: out = in * stride.
    output_padding : int or pair
        Pixels of the result, fewer than the stride, at the bottom and right that a convolution back would not
        read.
    stride, dilation, groups : as for `conv2d`

    Returns
    -------
    Tensor (n, oh, ow, o)
    """
    operation, i = "conv_transpose2d", x.shape[-1]
    groups = count(groups, "groups", operation)
    if len(x.shape) != 4 or len(W.shape) != 4 or i != W.shape[2] * groups or W.shape[3] % groups:
        expected = "x (n, h, w, i), W (kh, kw, i / groups, o) with o divisible by groups"
        raise wrong_shape(operation, f"x {x.shape}, W {W.shape}, groups {groups}", expected)
    image, kernel = tuple(x.shape[1:3]), tuple(W.shape[:2])
    window = transposed_windows(image, kernel, stride, padding, output_padding, dilation)
    return ConvTranspose2d(window, groups).of(x, W, b)
