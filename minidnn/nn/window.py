"""Sizes of sliding windows: what convolution and pooling layers answer about shapes without any array."""

from collections.abc import Sequence

Padding = int | str | tuple


def pair(value: int | Sequence[int], what: str) -> tuple[int, int]:
    """(height, width) from one positive number or two."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2 or any(not isinstance(n, int) or n < 1 for n in both):
        raise ValueError(f"{what} must be a positive integer or two of them, got {value!r}")
    return both


def check_padding(padding: Padding) -> Padding:
    """The padding in a form that the functions take; ValueError otherwise."""
    if padding in ("same", "valid") or isinstance(padding, int) and padding >= 0:
        return padding
    if isinstance(padding, tuple | list) and len(padding) == 2:
        sides = [p if isinstance(p, tuple | list) else (p, p) for p in padding]
        if all(len(p) == 2 and all(isinstance(n, int) and n >= 0 for n in p) for p in sides):
            return tuple(tuple(p) for p in sides)
    raise ValueError(
        "padding must be 'same', 'valid', a number, (height, width) or ((top, bottom), (left, right)), "
        f"got {padding!r}"
    )


def window_shape(
    label: str,
    image: tuple[int, int],
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding,
    dilation: tuple[int, int] = (1, 1),
    ceil_mode: bool = False,
) -> tuple[int, int]:
    """(height, width) of the output of a window of ``size`` that slides over an image.

    ``(in + padding - reach) / stride + 1``, rounded down (up with ``ceil_mode``, as long as the last window
    starts inside the image or the padding before it), where reach = dilation (size - 1) + 1; ``ceil(in /
    stride)`` with padding "same".

    Raises
    ------
    ValueError
        The padded image is smaller than the window.
    """
    out = []
    for axis in range(2):
        reach = dilation[axis] * (size[axis] - 1) + 1
        if padding == "same":
            out.append(-(-image[axis] // stride[axis]))
            continue
        before, after = _sides(padding, axis)
        free = image[axis] + before + after - reach
        if free < 0:
            padded = f" with padding {padding}" if before + after else ""
            raise ValueError(
                f"{label}: input {image[0]}x{image[1]}{padded} is smaller than its {size[0]}x{size[1]} kernel"
                + (f" of dilation {dilation[0]}x{dilation[1]}" if reach != size[axis] else "")
            )
        count = (-(-free // stride[axis]) if ceil_mode else free // stride[axis]) + 1
        if ceil_mode and (count - 1) * stride[axis] >= image[axis] + before:
            count -= 1
        out.append(count)
    return out[0], out[1]


def _sides(padding: Padding, axis: int) -> tuple[int, int]:
    if padding == "valid":
        return 0, 0
    if isinstance(padding, int):
        return padding, padding
    side = padding[axis]
    return (side, side) if isinstance(side, int) else tuple(side)
