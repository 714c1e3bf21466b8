"""Keep decoded images on disk: a folder per data set and image size, made once and memory-mapped from then
on.

The folder is written under a temporary name and renamed when it is whole, so a reader never sees half of it.
When several ranks start at once, one decodes and the others wait for it: the waiting rests on a file lock
that the system takes back when its holder dies, and is given up when the holder shows no progress, so nothing
that another process does or leaves behind can hang this one. The lock only saves work: where there is none
(another system, some network file systems) every process decodes for itself and the last rename wins.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from minidnn.data.progress import ProgressBar
from minidnn.errors import InputError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

STALL_SECONDS = (
    60.0  # without progress of the process that decodes, after which the others stop waiting for it
)
ABANDONED_SECONDS = 86400.0  # age at which a temporary folder is taken for one that its writer left behind

# Fills the two arrays "train" and "validation", calling the second argument with the count of images done.
Fill = Callable[[dict[str, np.ndarray], Callable[[int], None]], None]


def cache_folder() -> Path:
    """Where decoded images are kept: $MINIDNN_CACHE, else $XDG_CACHE_HOME/minidnn, else ~/.cache/minidnn."""
    if os.environ.get("MINIDNN_CACHE"):
        return Path(os.environ["MINIDNN_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "minidnn"


def load_or_fill(
    folder: Path, shapes: dict[str, tuple[int, ...]], fill: Fill, notes: Callable, bar: ProgressBar
) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays kept in `folder`; where it is missing or damaged, make it first.

    Parameters
    ----------
    folder : Path
        The entry of the cache; its name must change with everything that its contents depend on.
    shapes : dict
        Name -> shape of each uint8 array.
    fill : callable
        Writes the arrays (see `Fill`); called by the one process that makes the entry.
    notes : callable
        Given the filled arrays, returns a JSON-able dict that is kept beside them.
    bar : ProgressBar
        Shows the progress, whichever process makes it.

    Returns
    -------
    arrays : dict of uint8 arrays, memory-mapped and read-only
    notes : dict

    Raises
    ------
    InputError
        What `fill` raised, in this process or in the one waited for; or the cache cannot be written.
    """
    kept = _open(folder, shapes)
    if kept:
        return kept
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.lock", "a+b", buffering=0) as lock:
            waited = _acquire(lock.fileno(), bar)
            kept = _open(folder, shapes)  # somebody may have made it meanwhile
            if not kept:
                if waited:
                    _raise_failure(lock.fileno())
                _make(folder, shapes, fill, notes, bar, lock.fileno())
                kept = _open(folder, shapes)
    except OSError as error:
        raise InputError(
            f"{folder.parent}: cannot keep the decoded images here ({error.strerror or error}): set "
            f"MINIDNN_CACHE to a folder with {sum(map(math.prod, shapes.values())) / 2**20:.0f} MiB free"
        ) from None
    finally:
        bar.close()
    if not kept:
        raise InputError(f"{folder}: removed while it was being used: start again")
    return kept


def _open(folder: Path, shapes: dict) -> tuple[dict[str, np.ndarray], dict] | None:
    """The entry, or None where it is missing, cut short or not what was asked for."""
    try:
        notes = json.loads((folder / "notes.json").read_text())
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes}
    except (OSError, ValueError, EOFError):
        return None
    if any(arrays[name].shape != shape or arrays[name].dtype != np.uint8 for name, shape in shapes.items()):
        return None
    # As plain arrays: indexing a np.memmap gives np.memmap objects, which cost time and surprise.
    return {name: array.view(np.ndarray) for name, array in arrays.items()}, notes


def _make(folder: Path, shapes: dict, fill: Fill, notes: Callable, bar: ProgressBar, lock: int) -> None:
    for old in folder.parent.glob(f"{folder.name}.part-*"):
        if time.time() - old.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
    count = _Counter(lock, bar)
    try:
        arrays = {name: _create(part / f"{name}.npy", shape) for name, shape in shapes.items()}
        fill(arrays, count)
        (part / "notes.json").write_text(json.dumps(notes(arrays)))
        for array in arrays.values():
            array.flush()
        if folder.exists():
            if _open(folder, shapes):  # made by another process, while this one worked without the lock
                return
            shutil.rmtree(folder)  # damaged: `_open` refused it
        try:
            os.rename(part, folder)
        except OSError:
            if not _open(folder, shapes):
                raise
    except InputError as error:
        count.write(f"failed {error}")
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _create(path: Path, shape: tuple[int, ...]) -> np.memmap:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    # Take the room on the disk now: running out of it while writing to mapped memory would kill the process.
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise  # others only say that this file system cannot do it
    return array


class _Counter:
    """Called with the count done: draws the bar, and leaves the count in the lock file for those who wait."""

    def __init__(self, lock: int, bar: ProgressBar) -> None:
        self.lock, self.bar = lock, bar
        self(0)

    def __call__(self, done: int) -> None:
        self.bar.update(done)
        self.write(f"done {done}")

    def write(self, text: str) -> None:
        os.ftruncate(self.lock, 0)
        os.write(self.lock, text.encode())  # opened for appending: lands at the start


def _read(lock: int) -> str:
    os.lseek(lock, 0, os.SEEK_SET)
    return os.read(lock, 65536).decode(errors="replace")


def _acquire(lock: int, bar: ProgressBar) -> bool:
    """Take the lock, waiting while its holder makes progress. Returns whether another process held it."""
    if fcntl is None:
        return False
    seen, changed_at, waited = "", time.monotonic(), False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed when the file is closed, by death too
            return waited
        except BlockingIOError:
            waited = True
        except OSError:  # a file system without locks
            return False
        text = _read(lock)
        if text != seen:
            seen, changed_at = text, time.monotonic()
            if text.startswith("done "):
                bar.update(int(text[5:]))
        elif time.monotonic() - changed_at > STALL_SECONDS:
            return False
        time.sleep(0.02)


def _raise_failure(lock: int) -> None:
    """The process waited for found bad input: so would this one, after the same work."""
    verb, _, message = _read(lock).partition(" ")
    if verb == "failed":
        raise InputError(message)
