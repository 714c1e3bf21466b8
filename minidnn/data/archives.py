"""The two data sets of the thesis (section 4.2), read from a folder or straight from the zip."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np

from minidnn.data.cache import cache_folder, load_or_fill
from minidnn.data.dataset import Dataset, check_image_size, statistics
from minidnn.data.decode import check_pillow, decode_all
from minidnn.data.layouts import Listing, recognise
from minidnn.data.progress import ProgressBar
from minidnn.data.source import Source, open_source

VERSION = 2  # of what is kept in the cache: to be raised when decoding or its layout changes


class ArchiveDataset(Dataset):
    """A data set on disk, its images decoded once and memory-mapped from then on.

    Parameters
    ----------
    path : path
        The folder, or the zip, in the publisher's layout (`minidnn.data.layouts`).
    image : int, optional
        Height and width to scale to; by default the thesis's for this set.
    progress : bool, optional
        Whether to draw a progress bar on stderr while images are decoded; by default, where stderr is a
        terminal. Of several ranks, only one should.
    threads : int, optional
        Threads that decode; by default one for each CPU.

    Attributes
    ----------
    layout : str
        How the files were found to be arranged.

    Raises
    ------
    InputError
        The path is missing, of another layout, incomplete or damaged (naming the file), or no image size.
    """

    expected: str | None = None  # the name of the set that a subclass reads; None: any known one

    def __init__(
        self,
        path: str | os.PathLike,
        image: int | None = None,
        progress: bool | None = None,
        threads: int | None = None,
    ) -> None:
        if image is not None:
            image = check_image_size(image)
        source = open_source(path)
        listing = recognise(source, self.expected)
        image = image or listing.image
        arrays, notes = _decoded(source, listing, image, progress, threads)
        self.layout = listing.layout
        super().__init__(
            listing.name,
            image,
            listing.classes,
            (arrays["train"], listing.train[1]),
            (arrays["validation"], listing.validation[1]),
            np.array(notes["mean"]),
            np.array(notes["std"]),
        )


class TinyImageNet(ArchiveDataset):
    """Tiny ImageNet: 200 classes of 64x64 pictures, to 56x56 as in the thesis. See `ArchiveDataset`."""

    expected = "Tiny ImageNet"


class DogsVsCats(ArchiveDataset):
    """Dogs vs. Cats: photographs of many sizes, scaled to 128x128 as in the thesis. See `ArchiveDataset`.

    Where there is only ``train/``, as in Kaggle's own archive, the last fifth of each class by number is the
    validation set.
    """

    expected = "Dogs vs. Cats"


def open_dataset(
    path: str | os.PathLike,
    image: int | None = None,
    progress: bool | None = None,
    threads: int | None = None,
) -> ArchiveDataset:
    """Open the folder or zip at `path`, whichever of the two sets it holds. See `ArchiveDataset`."""
    return ArchiveDataset(path, image, progress, threads)


def inspect(path: str | os.PathLike) -> Listing:
    """What the folder or zip at `path` holds, without decoding an image."""
    return recognise(open_source(path))


def _decoded(
    source: Source,
    listing: Listing,
    image: int,
    progress: bool | None,
    threads: int | None,
) -> tuple[dict[str, np.ndarray], dict]:
    parts = {"train": listing.train[0], "validation": listing.validation[0]}
    files = [name for names in parts.values() for name in names]
    key = "\0".join([str(VERSION), str(image), source.stamp(files), *map(str, map(len, parts.values()))])
    stem = re.sub(r"[^a-z0-9]+", "-", listing.name.lower()).strip("-")
    folder = cache_folder() / f"{stem}-{image}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def fill(arrays: dict[str, np.ndarray], done) -> None:
        check_pillow()
        before = 0
        for name, names in parts.items():
            first = min(max(0, done.kept - before), len(names))
            at, before = before + first, before + len(names)
            decode_all(source, names[first:], arrays[name][first:], lambda n, at=at: done(at + n), threads)

    def notes(arrays: dict[str, np.ndarray]) -> dict:
        mean, std = statistics(arrays["train"])
        return {"source": str(Path(source.path).resolve()), "mean": mean.tolist(), "std": std.tolist()}

    shapes = {name: (len(names), image, image, 3) for name, names in parts.items()}
    bar = ProgressBar(f"decoding {listing.name} to {image}x{image}", len(files), progress)
    return load_or_fill(folder, shapes, fill, notes, bar, _usable)


def _usable(notes: dict) -> bool:
    """Whether notes hold what is read of them."""
    try:
        kept = np.array([notes["mean"], notes["std"]], np.float64)
    except (KeyError, TypeError, ValueError):
        return False
    return kept.shape == (2, 3) and bool(np.isfinite(kept).all())
