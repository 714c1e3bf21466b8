"""Keep decoded images on disk: a folder per data set and image size, made once and memory-mapped from then
on.

The folder is written under a temporary name and renamed when it is whole, so a reader never sees half of it. What
a process that was killed had decoded is kept, and the next one goes on from there.
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
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import numpy as np

from minidnn.data.progress import ProgressBar
from minidnn.errors import InputError
from minidnn.files import writing

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

STALL_SECONDS = (
    60.0  # without progress of the process that decodes, after which the others stop waiting for it
)
ABANDONED_SECONDS = 86400.0  # age at which a temporary folder is taken for one that its writer left behind
KEPT_SECONDS = 5.0  # of decoding, at most, are lost to a process that is killed

# Fills the two arrays "train" and "validation", calling the second argument with the count of images done. Those before
# its attribute `kept` are there already.
Fill = Callable[[dict[str, np.ndarray], Callable[[int], None]], None]


def cache_folder() -> Path:
    """Where decoded images are kept: $MINIDNN_CACHE, else $XDG_CACHE_HOME/minidnn, else ~/.cache/minidnn."""
    own, base = os.environ.get("MINIDNN_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.path.expanduser(own)) if own else Path(os.path.expanduser(base)) / "minidnn"
    if folder.parts[:1] and folder.parts[0].startswith("~"):
        raise InputError(
            f"MINIDNN_CACHE {folder}: there is no such user: set it to a folder that can be written"
        )
    return folder


def load_or_fill(
    folder: Path,
    shapes: dict[str, tuple[int, ...]],
    fill: Fill,
    notes: Callable,
    bar: ProgressBar,
    usable: Callable[[dict], bool] = bool,
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
    usable : callable
        Whether notes found on the disk are what `notes` returns.

    Returns
    -------
    arrays : dict of uint8 arrays, memory-mapped and read-only
    notes : dict

    Raises
    ------
    InputError
        What `fill` raised, in this process or in the one waited for; or the cache cannot be written.
    """
    kept = _open(folder, shapes, usable)
    if kept:
        return kept
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.lock", "a+b", buffering=0) as lock:
            held, waited = _acquire(lock.fileno(), bar)
            kept = _open(folder, shapes, usable)  # somebody may have made it meanwhile
            if not kept:
                if held and waited:
                    _raise_failure(lock.fileno())
                _make(folder, shapes, fill, notes, _Counter(lock.fileno(), bar), held, usable)
                kept = _open(folder, shapes, usable)
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


def _open(
    folder: Path, shapes: dict, usable: Callable[[dict], bool]
) -> tuple[dict[str, np.ndarray], dict] | None:
    """The entry, or None where it is missing, cut short or not what was asked for."""
    try:
        notes = json.loads((folder / "notes.json").read_text())
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes}
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(notes, dict) or not usable(notes):
        return None
    if any(arrays[name].shape != shape or arrays[name].dtype != np.uint8 for name, shape in shapes.items()):
        return None
    # As plain arrays: indexing a np.memmap gives np.memmap objects, which cost time and surprise.
    return {name: array.view(np.ndarray) for name, array in arrays.items()}, notes


def _make(
    folder: Path, shapes: dict, fill: Fill, notes: Callable, count: _Counter, held: bool, usable
) -> None:
    for old in folder.parent.glob("*.part*"):
        with suppress(FileNotFoundError):  # another process may be sweeping, too
            if time.time() - old.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    # Whoever holds the lock is alone with the folder that the one before may have left.
    part = folder.with_name(f"{folder.name}.part" + ("" if held else f"-{uuid4().hex[:8]}"))
    try:
        part.mkdir(exist_ok=held)
        arrays = {name: _array(part / f"{name}.npy", shape) for name, shape in shapes.items()}
        count.begin(part / "done", arrays)
        fill(arrays, count)
        for array in arrays.values():
            array.flush()
        with writing(part / "notes.json") as file:
            file.write(json.dumps(notes(arrays)))
        (part / "done").unlink(missing_ok=True)
        if folder.exists():
            # Made by another process, while this one worked without the lock; or damaged, which `_open` refuses.
            if _open(folder, shapes, usable):
                shutil.rmtree(part)
                return
            shutil.rmtree(folder)
        try:
            os.rename(part, folder)
        except OSError:
            if not _open(folder, shapes, usable):
                raise
    except (InputError, OSError) as error:
        if isinstance(error, InputError):
            count.write(f"failed {error}")
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        if not held:
            shutil.rmtree(part, ignore_errors=True)


def _array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """The array that a process before has left, or a new one; its room on the disk is taken now."""
    try:
        array = np.load(path, mmap_mode="r+")
        if array.shape != shape or array.dtype != np.uint8:
            raise ValueError
    except (OSError, ValueError, EOFError):
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        (path.parent / "done").unlink(missing_ok=True)
    # Running out of it while writing to mapped memory would kill the process.
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise  # others only say that this file system cannot do it
    return array


class _Counter:
    """Called with the count done: draws the bar, leaves the count in the lock file for those who wait, and beside the
    arrays for the one who goes on after this process has been killed.
    """

    def __init__(self, lock: int, bar: ProgressBar) -> None:
        self.lock, self.bar = lock, bar

    def begin(self, file: Path, arrays: dict[str, np.memmap]) -> None:
        self.file, self.arrays, self.at = file, arrays, time.monotonic()
        try:
            self.kept = int(file.read_text())
        except (OSError, ValueError):
            self.kept = 0
        self(self.kept)

    def __call__(self, done: int) -> None:
        self.bar.update(done)
        self.write(f"done {done}")
        if time.monotonic() - self.at > KEPT_SECONDS:
            for array in self.arrays.values():
                array.flush()
            with writing(self.file) as file:
                file.write(str(done))
            self.at = time.monotonic()

    def write(self, text: str) -> None:
        os.ftruncate(self.lock, 0)
        os.write(self.lock, text.encode(errors="backslashreplace"))  # opened for appending: at the start


def _read(lock: int) -> str:
    os.lseek(lock, 0, os.SEEK_SET)
    return os.read(lock, 65536).decode(errors="replace")


def _acquire(lock: int, bar: ProgressBar) -> tuple[bool, bool]:
    """Take the lock, waiting while its holder makes progress. Returns whether it is held, and was waited for."""
    if fcntl is None:
        return False, False
    seen, changed_at, waited = "", time.monotonic(), False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed when the file is closed, by death too
            return True, waited
        except BlockingIOError:
            waited = True
        except OSError:  # a file system without locks
            return False, waited
        text = _read(lock)
        if text != seen:
            seen, changed_at = text, time.monotonic()
            if text.startswith("done "):
                bar.update(int(text[5:]))
        elif time.monotonic() - changed_at > STALL_SECONDS:
            return False, waited
        time.sleep(0.02)


def _raise_failure(lock: int) -> None:
    """The process waited for found bad input: so would this one, after the same work."""
    verb, _, message = _read(lock).partition(" ")
    if verb == "failed":
        raise InputError(message)
