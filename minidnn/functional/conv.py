"""Convolution over images (n, h, w, c), weights (kh, kw, c / groups, o), as matrix products.

The three kernels are plain functions on raw arrays:
`convolve` (y), `convolve_input_gradient` (gx) and `convolve_weight_gradient` (gW).
``minidnn/fast/conv.py`` has faster ones with the same results, for NumPy.
"""

from math import prod
from typing import Any

from minidnn.backend import array_module
from minidnn.backend.kernels import kernel
from minidnn.functional.errors import count, wrong_shape
from minidnn.functional.geometry import Padding, Pair, Windows, crop, pad, window_view, windows
from minidnn.functional.products import Affine
from minidnn.graph import Tensor


def columns(x: Any, window: Windows, group: slice) -> Any:
    """im2col: the windows of padded images `x`, channels `group`, as rows (n oh ow, kh kw c). One copy."""
    view = window_view(x, window)[..., group]
    n, oh, ow, kh, kw, c = view.shape
    return view.reshape(n * oh * ow, kh * kw * c)


def channel_groups(c: int, o: int, groups: int) -> list[tuple[slice, slice]]:
    """The channels of each group: of `c` at the input, and of `o` at the output."""
    i, k = c // groups, o // groups
    return [(slice(g * i, (g + 1) * i), slice(g * k, (g + 1) * k)) for g in range(groups)]


@kernel("conv")
def convolve(x: Any, W: Any, window: Windows, groups: int = 1) -> Any:
    """y[n, p, q, o] = sum over i, j, c of x[n, p s + i d - pad, q s + j d - pad, c] W[i, j, c, o]

    Each group is one product: columns of its input channels (n oh ow, kh kw c) times its filters (kh kw c,
    o).
    """
    xp = array_module(x)
    kh, kw, c, o = W.shape
    n = x.shape[0]
    x = pad(x, window.padding)
    W = W.reshape(kh * kw * c, o)
    y = xp.empty((n * window.out[0] * window.out[1], o), x.dtype)
    for of, to in channel_groups(x.shape[-1], o, groups):
        xp.matmul(columns(x, window, of), W[:, to], out=y[:, to])
    return y.reshape(n, *window.out, o)


@kernel("conv")
def convolve_weight_gradient(
    x: Any, gy: Any, W: Any, window: Windows, groups: int = 1, out: Any = None
) -> Any:
    """gW (kh, kw, c, o), into `out` if given: columns transposed times gy. Of `W` only the shape is used."""
    xp = array_module(x)
    kh, kw, c, o = W.shape
    gW = xp.empty(W.shape, gy.dtype) if out is None else out
    flat = gW.reshape(kh * kw * c, o)
    gy = gy.reshape(prod(gy.shape[:-1]), o)
    x = pad(x, window.padding)
    for of, to in channel_groups(x.shape[-1], o, groups):
        xp.matmul(columns(x, window, of).T, gy[:, to], out=flat[:, to])
    return gW


def turned(W: Any, window: Windows, groups: int) -> tuple[Any, Windows]:
    """The kernel (kh, kw, o / groups, c) and the windows of the convolution that gives gx, for stride 1."""
    kh, kw, c, o = W.shape
    turned = W[::-1, ::-1].reshape(kh, kw, c, groups, o // groups).transpose(0, 1, 4, 3, 2)
    sides = tuple((e - 1 - a, e - 1 - b) for e, (a, b) in zip(window.extent, window.padding, strict=True))
    back = Windows(window.out, window.kernel, (1, 1), window.dilation, sides, window.size)
    return turned.reshape(kh, kw, o // groups, groups * c), back


@kernel("conv")
def convolve_input_gradient(gy: Any, W: Any, window: Windows, groups: int = 1) -> Any:
    """gx (n, h, w, c).

    With stride 1 it is a convolution, too: of `gy`, padded so that every pixel meets every tap, with the
    kernel turned by 180 degrees and its input and output channels exchanged. Otherwise gy times W
    transposed gives the gradient of each window, and windows are added where they overlap (col2im).
    """
    xp = array_module(gy)
    kh, kw, c, o = W.shape
    n, oh, ow, _ = gy.shape
    if window.stride == (1, 1):
        return convolve(gy, *turned(W, window, groups), groups)
    W = W.reshape(kh * kw * c, o)
    gx = xp.zeros((n, *window.padded, groups * c), gy.dtype)
    for of, to in channel_groups(groups * c, o, groups):
        gcols = (gy[..., to].reshape(n * oh * ow, o // groups) @ W[:, to].T).reshape(n, oh, ow, kh, kw, c)
        for i in range(kh):
            for j in range(kw):
                gx[(slice(None), *window.tap(i, j), of)] += gcols[:, :, :, i, j]
    return crop(gx, window)


class Conv2d(Affine):
    """y = x * W + b        x (n, h, w, c)   W (kh, kw, c / groups, o)   b (o,)   y (n, oh, ow, o)"""

    operation = "conv2d"

    def __init__(self, stride: Pair, padding: Padding, dilation: Pair, groups: int) -> None:
        self.options, self.groups = (stride, padding, dilation), groups

    def product(self, x: Any, W: Any) -> Any:
        if x.ndim != 4 or W.ndim != 4 or x.shape[-1] != W.shape[2] * self.groups or W.shape[3] % self.groups:
            expected = "x (n, h, w, c), W (kh, kw, c / groups, o) with o divisible by groups"
            raise wrong_shape("conv2d", f"x {x.shape}, W {W.shape}, groups {self.groups}", expected)
        self.window = windows("conv2d", x.shape[1:3], W.shape[:2], *self.options)
        return convolve(x, W, self.window, self.groups)

    def backward_input(self, gy: Any) -> tuple:
        return (convolve_input_gradient(gy, self.W, self.window, self.groups) if self.needs[0] else None,)

    def weight_gradient(self, gy: Any) -> Any:
        return convolve_weight_gradient(self.x, gy, self.W, self.window, self.groups, self.out_buffer(1))


def conv2d(
    x: Any, W: Any, b: Any = None, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1, groups: int = 1
) -> Tensor:
    """Convolution (cross-correlation, as in all frameworks) of images with filters.

    Parameters
    ----------
    x, W, b : Tensors (n, h, w, c), (kh, kw, c / groups, o), and (o,) or None
    stride, dilation : int or pair
        Pixels between windows, and between the taps of a window, along height and width.
    padding : int, pair, ((top, bottom), (left, right)), "valid" or "same"
        Zeros around the image; "same" as in Keras: out = ceil(in / stride), the odd pixel at the bottom and
        right.
    groups : int
        Input and output channels are split into so many groups, each seeing only its own.

    Returns
    -------
    Tensor (n, oh, ow, o)

    Raises
    ------
    ValueError
        Shapes that do not fit, or an image smaller than the window.
    """
    return Conv2d(stride, padding, dilation, count(groups, "groups", "conv2d")).of(x, W, b)
