"""Decode many pictures to one size, on a pool of threads (Pillow lets go of the interpreter lock)."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minidnn.data.source import Source
from minidnn.errors import InputError

PIECE = 16  # pictures per task: few enough to share evenly, enough to keep the pool's own work small


def decode(data: bytes, image: int) -> np.ndarray:
    """One picture as uint8 (image, image, 3).

    The whole picture is scaled to the square, its proportions given up, as Keras and so the thesis do
    (section 4.2), bilinearly over the area that each pixel covers. Greyscale of 8 or 16 bits, palette and CMYK
    become RGB; transparency is dropped; a camera's orientation (EXIF) is applied.

    Raises
    ------
    ValueError
        Pixels without a fixed range of grey (floats, 32 bits). Other bytes that are no picture: what Pillow raises.
    """
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as picture:
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, at less cost: the smallest that is still large
        # enough. Against decoding it whole this moves Dogs vs. Cats by 1.3 grey levels on average.
        picture.draft(None, (image, image))
        ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
            picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))  # 65535 is white
        elif picture.mode in ("I", "F"):
            raise ValueError(f"pixels of 32 bits (mode {picture.mode}): save it with 8 or 16 bits a channel")
        elif picture.mode not in ("RGB", "L"):
            picture = picture.convert("RGB")
        small = picture.resize((image, image), Image.Resampling.BILINEAR)
        return np.asarray(small.convert("RGB"))


def decode_all(
    source: Source,
    files: list[str],
    out: np.ndarray,
    done: Callable[[int], None],
    threads: int | None = None,
) -> None:
    """Fill `out` with the pictures `files` of `source`.

    Parameters
    ----------
    source : FolderSource or ZipSource
    files : list of str
    out : uint8 (len(files), image, image, 3)
    done : callable
        Called in this thread with the number of pictures decoded so far.
    threads : int, optional
        Default: one for each CPU that this process may use.

    Raises
    ------
    InputError
        Naming the first file that cannot be read as a picture.
    """
    check_pillow()
    image = out.shape[1]

    def piece(start: int) -> int:
        stop = min(start + PIECE, len(files))
        for i in range(start, stop):
            data = source.read(files[i])
            try:
                out[i] = decode(data, image)
            # Whatever is wrong with the bytes, Pillow's readers have their own exception for it (OSError,
            # SyntaxError, ValueError, struct.error, ...); all of them mean that this file is no good.
            except Exception as error:
                reason = (
                    "empty"
                    if not data
                    else "no format that Pillow knows"
                    if "BytesIO" in str(error)
                    else error
                )
                raise InputError(
                    f"{source.where(files[i])}: not a picture that can be read ({reason})"
                ) from None
        return stop

    pool = ThreadPoolExecutor(threads or usable_cpus(), thread_name_prefix="decode")
    with warnings.catch_warnings():
        # Pillow's, of what it can read all the same; what it cannot is an error.
        warnings.simplefilter("ignore")
        try:
            for stop in pool.map(piece, range(0, len(files), PIECE)):
                done(stop)
        finally:
            pool.shutdown(cancel_futures=True)


def usable_cpus() -> int:
    """The number of CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_pillow() -> None:
    """InputError that names the extra, where Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise InputError('reading pictures needs Pillow: pip install "minidnn[data]"') from None
