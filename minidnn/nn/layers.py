"""The layers: each holds its options and parameters, answers about shapes, and calls one function.

Images are (n, height, width, channels), features the last axis of activations and weights alike. Shapes
given to `output_shape` and `macs` are those of one sample, without n.
"""

import math
from typing import Any

from minidnn import functional as F
from minidnn.functional.conv_transpose import transposed_windows
from minidnn.functional.geometry import Padding, Pair, Windows, pair, windows
from minidnn.functional.pool import pool_windows
from minidnn.nn.dimensions import Part
from minidnn.nn.init import Initializer, he_normal, zeros
from minidnn.nn.module import Module, Shape
from minidnn.nn.parameter import Parameter
from minidnn.tensor import Tensor

_LARGE = (1 << 20, 1 << 20)  # an image that any window fits in


class Linear(Module):
    """y = x W + b        x (..., in_features)   W (in_features, out_features)   b (out_features,)

    Weight decay leaves `b` out, as in eq. 2.13 of the thesis; ``layer.b.decay = True`` takes it in.
    """

    dims = "n ... i, i o, o -> n ... o"
    factors = "W"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        W_init: Initializer = he_normal,
        b_init: Initializer = zeros,
    ) -> None:
        _positive(self, in_features=in_features, out_features=out_features)
        self.in_features, self.out_features, self.bias = in_features, out_features, bias
        self.W = Parameter((in_features, out_features), W_init)
        self.b = Parameter((out_features,), b_init, decay=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.W, self.b)

    def output_shape(self, shape: Shape) -> Shape:
        if not shape or shape[-1] != self.in_features:
            hint = " (put a Flatten before it)" if math.prod(shape) == self.in_features else ""
            raise ValueError(
                f"{self.label}: input of shape {tuple(shape)}, expected {self.in_features} features{hint}"
            )
        return (*shape[:-1], self.out_features)

    def macs(self, shape: Shape) -> int:
        """One per weight and row."""
        return math.prod(self.output_shape(shape)) * self.in_features


class _Convolution(Module):
    """Common to both convolutions: the options, W (kh, kw, i / groups, o) and b (o,)."""

    @property
    def dims(self) -> str:
        """With groups, whole groups stay together."""
        if self.groups > 1:
            return "n h w (g i), kh kw i (g o), (g o) -> n h w (g o)"
        return "n h w i, kh kw i o, o -> n h w o"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Padding = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        W_init: Initializer = he_normal,
        b_init: Initializer = zeros,
    ) -> None:
        _positive(self, in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{self.label}: {in_channels} and {out_channels} channels do not divide into {groups} groups"
            )
        self.in_channels, self.out_channels, self.groups, self.bias = in_channels, out_channels, groups, bias
        self.kernel_size = pair(kernel_size, "kernel_size", self.label)
        self.stride = pair(stride, "stride", self.label)
        self.padding = padding
        self.dilation = pair(dilation, "dilation", self.label)
        self.output_shape((*_LARGE, in_channels))  # the options are checked here, not at the first image
        self.W = Parameter((*self.kernel_size, in_channels // groups, out_channels), W_init)
        self.b = Parameter((out_channels,), b_init, decay=False) if bias else None

    def output_shape(self, shape: Shape) -> Shape:
        *image, channels = _image(self, shape)
        if channels != self.in_channels:
            raise ValueError(f"{self.label}: input has {channels} channels, expected {self.in_channels}")
        return (*self.image_shape(tuple(image)), self.out_channels)

    def localise(self, part: Part) -> None:
        """Own groups."""
        if self.groups > 1:
            self.groups = self.groups * (part.box[-1][1] - part.box[-1][0]) // part.out[-1]


class _Windowed(Module):
    """What slides windows over images: `window` says where they go on one of (height, width)."""

    windows = "h w"

    def field(self, letter: str, start: int, stop: int, shape: Shape) -> tuple[int, int]:
        """The rows (or columns) under the windows."""
        window, axis = self.window(shape[:2]), "hw".index(letter)
        first, last = _reach(window, axis, start, stop)
        return max(first, 0), min(last, window.size[axis])

    def localise(self, part: Part) -> None:
        """Own groups; padding only where windows look at more than the pixels that are there."""
        super().localise(part)
        sides, window = [], self.window(part.shape[:2])
        for axis, (box, (low, high)) in enumerate(zip(part.box[:2], part.read, strict=False)):
            first, last = _reach(window, axis, *box)
            sides.append((low - first, max(last - high, 0)))
        self.padding = tuple(sides)


def _reach(window: Windows, axis: int, start: int, stop: int) -> tuple[int, int]:
    """The pixels, along an axis, under windows start to stop, padding included."""
    stride, before = window.stride[axis], window.padding[axis][0]
    return start * stride - before, (stop - 1) * stride - before + window.extent[axis]


class Conv2d(_Windowed, _Convolution):
    """Convolution of images        x (n, h, w, i)   W (kh, kw, i / groups, o)   b (o,)   y (n, oh, ow, o)

    ``padding``: 0, "valid", "same" (output = ceil(input / stride)), a number, (height, width), or ((top,
    bottom), (left, right)). With ``groups`` = g, channel group j of the output reads only group j of the
    input. Weight decay leaves `b` out, as in `Linear`.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.W, self.b, self.stride, self.padding, self.dilation, self.groups)

    def window(self, image: tuple[int, int]) -> Windows:
        """Where the kernel goes on an image of (height, width); ValueError if it is too small."""
        return windows(self.label, image, self.kernel_size, self.stride, self.padding, self.dilation)

    def image_shape(self, image: tuple[int, int]) -> tuple[int, int]:
        return self.window(image).out

    def macs(self, shape: Shape) -> int:
        """kh kw i / groups for each element of the output."""
        return math.prod(self.output_shape(shape)) * math.prod(self.W.full_shape[:-1])


class ConvTranspose2d(_Convolution):
    """Transposed convolution        x (n, h, w, i)   W (kh, kw, i / groups, o)   b (o,)   y (n, oh, ow, o)

    oh = (h - 1) stride + (kh - 1) dilation + 1 - top - bottom + output_padding, or h stride with padding "same".
    Other options are those of `Conv2d`.
    """

    whole = "h w"

    def __init__(self, *args: Any, output_padding: Pair = 0, **options: Any) -> None:
        self.output_padding = output_padding
        super().__init__(*args, **options)

    def forward(self, x: Tensor) -> Tensor:
        options = self.stride, self.padding, self.output_padding, self.dilation, self.groups
        return F.conv_transpose2d(x, self.W, self.b, *options)

    def image_shape(self, image: tuple[int, int]) -> tuple[int, int]:
        options = self.kernel_size, self.stride, self.padding, self.output_padding, self.dilation
        return transposed_windows(image, *options).size

    def macs(self, shape: Shape) -> int:
        """One per weight and pixel of the input."""
        return math.prod(shape[:2]) * math.prod(self.W.full_shape)


class _Pool2d(_Windowed):
    """Common to both poolings: a window ``kernel_size`` that moves by ``stride`` (default: its own size)."""

    dims = "n h w c -> n h w c"

    def __init__(
        self, kernel_size: Pair, stride: Pair | None = None, padding: Padding = 0, ceil_mode: bool = False
    ) -> None:
        self.kernel_size = pair(kernel_size, "kernel_size", self.label)
        self.stride = self.kernel_size if stride is None else pair(stride, "stride", self.label)
        self.padding, self.ceil_mode = padding, ceil_mode
        self.window(_LARGE)

    def window(self, image: tuple[int, int]) -> Windows:
        """Where the window goes on an image of (height, width); ValueError if it is too small."""
        return pool_windows(self.label, image, self.kernel_size, self.stride, self.padding, self.ceil_mode)

    def localise(self, part: Part) -> None:
        super().localise(part)
        self.ceil_mode = False

    def output_shape(self, shape: Shape) -> Shape:
        height, width, channels = _image(self, shape)
        return (*self.window((height, width)).out, channels)


class MaxPool2d(_Pool2d):
    """Largest value of each window; windows may overlap (3 by 3 with stride 2 in AlexNet)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode)


class AvgPool2d(_Pool2d):
    """Mean of each window; with ``count_include_pad`` of the padding's zeros, too."""

    def __init__(self, *args: Any, count_include_pad: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.count_include_pad = count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        window = self.kernel_size, self.stride, self.padding, self.ceil_mode
        return F.avg_pool2d(x, *window, self.count_include_pad)


class GlobalAvgPool2d(Module):
    """(n, h, w, c) -> (n, c): the mean of each channel over the whole image"""

    dims = "n h w c -> n c"

    def forward(self, x: Tensor) -> Tensor:
        return F.mean(x, axis=(1, 2))

    def output_shape(self, shape: Shape) -> Shape:
        return _image(self, shape)[-1:]


class Flatten(Module):
    """(n, h, w, c) -> (n, h w c)"""

    dims = "n ... -> n (...)"

    def forward(self, x: Tensor) -> Tensor:
        return F.flatten(x)

    def output_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)


class Add(Module):
    """Sum of the input and of the outputs named in ``also``: a skip connection."""

    @property
    def dims(self) -> str:
        """All inputs are alike."""
        return ", ".join(["..."] * (1 + len(self.also))) + " -> ..."

    def __init__(self, also: tuple[str, ...] | str) -> None:
        self.also = (also,) if isinstance(also, str) else tuple(also)
        if not self.also:
            raise ValueError(f"{self.label}: `also` must name at least one earlier layer")

    def forward(self, x: Tensor, *extra: Tensor) -> Tensor:
        for other in extra:
            x = x + other
        return x

    def output_shape(self, shape: Shape, *extra: Shape) -> Shape:
        for name, other in zip(self.also, extra, strict=True):
            if tuple(other) != tuple(shape):
                raise ValueError(f"{self.label}: cannot add {tuple(other)} of {name} to {tuple(shape)}")
        return tuple(shape)


class Concatenate(Add):
    """The features of the input, then those of the outputs named in ``also``, along the last axis."""

    whole = "c"

    def forward(self, x: Tensor, *extra: Tensor) -> Tensor:
        return F.concatenate((x, *extra), axis=-1)

    def output_shape(self, shape: Shape, *extra: Shape) -> Shape:
        super().output_shape(shape[:-1], *(other[:-1] for other in extra))
        return (*shape[:-1], sum(each[-1] for each in (shape, *extra)))


def _image(layer: Module, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise ValueError(f"{layer.label}: input of shape {tuple(shape)}, expected (height, width, channels)")
    return shape


def _positive(layer: Module, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{type(layer).__name__}: {name} must be at least 1, got {value}")
