"""Image sizes that a network can take: counted through its layers, so no table can go out of date."""

from math import inf

from minidnn.errors import InputError
from minidnn.nn.sequential import Sequential

LARGEST = (
    1024  # where the search for the smallest image stops; every network of this folder takes far smaller ones
)


def image_shape(image: int | tuple[int, int], channels: int) -> tuple[int, int, int]:
    """(height, width, channels) of an image given as one side or two."""
    height, width = (image, image) if isinstance(image, int) else image
    if min(height, width, channels) < 1:
        raise InputError(f"an image of {height}x{width}x{channels} has no pixels")
    return height, width, channels


def smallest_image(features: Sequential, channels: int) -> int:
    """Side of the smallest square image that passes through all layers."""
    for side in range(1, LARGEST + 1):
        try:
            features.output_shape((side, side, channels))
        except ValueError:
            continue
        return side
    raise ValueError(f"no image up to {LARGEST}x{LARGEST} pixels passes through these layers")


def flat_features(model: str, features: Sequential, shape: tuple[int, int, int]) -> int:
    """Features per image after the layers, whose last one is a Flatten.

    InputError: the image is too small: names the first layer that cannot take it, and the smallest image that works.
    """
    try:
        return features.output_shape(shape)[0]
    except ValueError as error:
        side = smallest_image(features, shape[2])
        raise InputError(
            f"{model}: images of {shape[0]}x{shape[1]} are too small, use at least {side}x{side} ({error})"
        ) from None


def scaled(count: int, width: float, groups: int = 1) -> int:
    """``count`` channels or features times ``width``, as a multiple of ``groups``; one each at least."""
    if not 0 < width < inf:
        raise InputError(f"width must be positive, got {width}")
    return groups * max(1, round(count * width / groups))
