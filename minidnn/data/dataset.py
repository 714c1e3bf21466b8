"""What every data set looks like to the rest of the program: two splits of uint8 images with labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidnn.errors import InputError

STATISTICS_SAMPLE = 2048  # training images that the mean and the deviation are taken from


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels: the training or the validation half of a data set.

    Attributes
    ----------
    name : str
        ``"train"`` or ``"validation"``.
    images : array or array-like, uint8 (n, height, width, 3)
        A memory-mapped array, or an object with ``shape``, ``dtype`` and indexing by an integer, a slice or
        an integer array, that makes the rows asked for (`minidnn.data.shapes.ShapeImages`).
    labels : array, int64 (n,)
        Class numbers, positions in `Dataset.classes`.
    mean, std : array, float64 (3,)
        Per channel, in grey levels 0..255, over the **training** images: ``(images - mean) / std`` is what a
        network is given, in both splits.
    """

    name: str
    images: Any
    labels: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {len(self)} images)"


class Dataset:
    """A named pair of splits.

    Attributes
    ----------
    name : str
        For tables and messages.
    image : int
        Height and width of every image.
    classes : tuple of str
        Class names, by label.
    train, validation : Split
    mean, std : array, float64 (3,)
        Normalisation per channel, see `Split`.
    """

    def __init__(
        self, name: str, image: int, classes, train, validation, mean: np.ndarray, std: np.ndarray
    ) -> None:
        self.name, self.image, self.classes = name, image, tuple(classes)
        self.mean, self.std = mean, std
        self.train = Split("train", *train, mean, std)
        self.validation = Split("validation", *validation, mean, std)
        for split in (self.train, self.validation):
            labels = np.asarray(split.labels)
            if not len(labels) or len(labels) != len(split.images):
                raise InputError(
                    f"{name}, {split.name}: {len(split.images)} images and {len(labels)} labels: expected as many of "
                    "both, and one at least"
                )
            if labels.min() < 0 or labels.max() >= len(self.classes):
                raise InputError(
                    f"{name}, {split.name}: labels {labels.min()} to {labels.max()}: expected 0 to "
                    f"{len(self.classes) - 1}, the positions in classes"
                )

    def __repr__(self) -> str:
        return (
            f"{self.name}: {len(self.classes)} classes, {len(self.train)} training and "
            f"{len(self.validation)} validation images of {self.image}x{self.image}"
        )

    def fingerprint(self) -> str:
        """What all ranks must agree on, in a line: sizes, and a digest of classes, labels and normalisation."""
        digest = hashlib.blake2b(repr((self.classes, self.mean.tolist(), self.std.tolist())).encode())
        for split in (self.train, self.validation):
            digest.update(np.ascontiguousarray(split.labels).tobytes())
        return f"{self!r}, digest {digest.hexdigest()[:12]}"


def statistics(images: Any, sample: int = STATISTICS_SAMPLE) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel over at most `sample` evenly spaced images.

    Parameters
    ----------
    images : uint8 (n, height, width, channels), indexable by an integer array
    sample : int
        Most images looked at.

    Returns
    -------
    mean, std : float64 (channels,)
        In grey levels. A channel that never changes gets a deviation of 1, so that dividing by it is safe.
    """
    n = len(images)
    rows = np.unique(np.linspace(0, n - 1, min(n, sample)).astype(np.int64))
    counts = np.zeros((images.shape[-1], 256))
    for start in range(0, len(rows), 128):
        block = images[rows[start : start + 128]]
        for channel in range(counts.shape[0]):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    levels = np.arange(256.0)
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ levels
    std = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0.0))
    return mean, np.where(std > 1e-6, std, 1.0)


def check_image_size(image: Any) -> int:
    """`image` as an int; InputError unless it is a whole number of pixels from 4 to 4096."""
    if isinstance(image, bool) or not isinstance(image, (int, np.integer)) or not 4 <= image <= 4096:
        raise InputError(f"image size {image!r}: expected a whole number of pixels from 4 to 4096")
    return int(image)
