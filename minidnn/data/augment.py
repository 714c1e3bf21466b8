"""Random flips and crops, the same for a sample whichever rank prepares it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minidnn.errors import InputError
from minidnn.random import rng


@dataclass(frozen=True)
class Augment:
    """Mirror an image left to right with probability 1/2, and cut it anew out of its mirrored surroundings.

    Attributes
    ----------
    flip : bool
    crop : int
        Pixels by which the image may move along each axis, at most; what comes in at the border is the image
        reflected there. 0 moves nothing.

    Notes
    -----
    What happens to a sample is drawn from ``rng(seed, "augment", epoch, index)``, so it differs from one pass
    over the data to the next and does not depend on how a batch is split over the ranks.
    """

    flip: bool = True
    crop: int = 0

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise InputError(f"crop of {self.crop} pixels: expected 0 or more")

    def __call__(self, images: np.ndarray, indices: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """A changed copy of `images` (n, h, w, c), which are numbers `indices` of their split."""
        n, height, width = images.shape[:3]
        pad = self.crop
        if pad >= min(height, width):
            raise InputError(f"crop of {pad} pixels: expected less than the image, which is {height}x{width}")
        wide = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
        out = np.empty_like(images)
        for i, index in enumerate(indices):
            generator = rng(seed, "augment", epoch, int(index))
            top, left = generator.integers(0, 2 * pad + 1, size=2)
            view = wide[i, top : top + height, left : left + width]
            out[i] = view[:, ::-1] if self.flip and generator.random() < 0.5 else view
        return out
