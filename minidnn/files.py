"""The one way in which this package writes a file: beside its place, down to the disk, then renamed.

So a file is whole or absent, and what was there before stays until then: a full disk, a process that is killed or
two programs at once leave no half of anything.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from .errors import InputError


@contextmanager
def writing(path: str | os.PathLike, mode: str = "w") -> Iterator[IO[Any]]:
    """``with writing(path) as file:``, in text (UTF-8) or, with mode "wb", in bytes.

    The file gets its name when the block ends; where the block raises, nothing is left of it.

    Raises
    ------
    InputError
        It cannot be written: the folder is missing or closed to the user, the disk is full, ...
    """
    place = Path(os.path.realpath(path))
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"}
    with disk(path), beside(place) as part:
        with open(part, mode.replace("w", "x"), **text) as file:
            yield file
            if not file.closed:
                to_disk(file)
        os.replace(part, place)


@contextmanager
def beside(place: Path) -> Iterator[Path]:
    """A name in the same folder that nobody else uses; what has it at the end is removed."""
    part = place.parent / f".{uuid4().hex[:16]}.part"
    try:
        yield part
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def to_disk(file: IO[Any]) -> None:
    """Have what was written to an open file on the disk, and close it; OSError where it does not fit."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


@contextmanager
def disk(path: str | os.PathLike) -> Iterator[None]:
    """Turn what goes wrong on the disk into one line about `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def check_target(path: str | os.PathLike) -> None:
    """Before long work: can its result be written to `path`? InputError if not."""
    place = Path(os.path.realpath(path))
    with disk(path), beside(place) as part:
        if not stat.S_ISREG(_mode(place)):
            raise InputError(f"{path}: expected the name of a file, there is something else")
        part.touch(exist_ok=False)


def _mode(place: Path) -> int:
    try:
        return os.stat(place).st_mode  # OSError where the name is too long
    except FileNotFoundError:
        return stat.S_IFREG
