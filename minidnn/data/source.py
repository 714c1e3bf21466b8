"""Read files from a folder or straight out of a zip, through one interface.

Nothing is unpacked, so names that point elsewhere are only names.

Paths inside a source use "/" and are relative to its top. `names` gives sub-folders a trailing "/".
What archivers and file managers leave behind (``__MACOSX``, names that start with a dot) is not seen.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG

from minidnn.errors import InputError

LARGEST = 2**28  # bytes of a file: far above any picture, far below what a small zip can be made to unpack to
DEEPEST = 16  # folders in one another that are looked into


class FolderSource:
    """The files below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self, folder: str = "") -> list[str]:
        """Sorted names in `folder`; empty where there is no such folder."""
        try:
            with os.scandir(self.path / folder) as entries:
                names = [e.name + "/" * e.is_dir() for e in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise InputError(f"{self.where(folder)}: cannot be listed: {error.strerror}") from None
        return sorted(name for name in names if _visible(name))

    def read(self, name: str) -> bytes:
        """The bytes of one file; InputError names the file where that fails."""
        try:
            with open(self.path / name, "rb", opener=_without_waiting) as file:
                stat = os.fstat(file.fileno())
                if not S_ISREG(stat.st_mode):
                    raise InputError(f"{self.where(name)}: not a file")
                _check_size(self.where(name), stat.st_size)
                return file.read()
        except FileNotFoundError:
            raise InputError(f"{self.where(name)}: no such file") from None
        except OSError as error:
            raise InputError(f"{self.where(name)}: cannot be read: {error.strerror}") from None

    def where(self, name: str) -> str:
        """`name` as a person would look for it."""
        return os.path.join(self.path, name)  # keeps the "/" that ends a folder

    def stamp(self, names: Iterable[str]) -> str:
        """A text that changes when one of the files does (name, size or time of change)."""
        digest = hashlib.sha256(str(self.path.resolve()).encode(errors="surrogateescape"))
        for name in names:
            try:
                stat = os.stat(self.path / name)
            except OSError as error:
                raise InputError(f"{self.where(name)}: cannot be read: {error.strerror}") from None
            digest.update(f"{name}\0{_changes(stat)}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()


class ZipSource:
    """The files in a zip, read where they lie: nothing is unpacked. Reading is safe from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise InputError(
                f"{path}: truncated or damaged zip ({_reason(error)}): fetch or copy it again"
            ) from None
        self.folders: dict[str, set[str]] = {"": set()}
        self.members: dict[str, zipfile.ZipInfo] = {}
        for info in self.file.infolist():
            parts = [part for part in info.filename.split("/") if part]
            if not parts or len(parts) > DEEPEST or "__MACOSX" in parts:
                continue
            for depth in range(len(parts) - 1):  # a zip need not hold an entry for a folder
                self._add(parts[: depth + 1], "/")
            self._add(parts, "/" * info.is_dir())
            self.members["/".join(parts)] = info

    def _add(self, parts: list[str], slash: str) -> None:
        self.folders.setdefault("/".join(parts[:-1]), set()).add(parts[-1] + slash)

    def names(self, folder: str = "") -> list[str]:
        """Sorted names in `folder`; empty where there is no such folder."""
        return sorted(name for name in self.folders.get(folder.rstrip("/"), ()) if _visible(name))

    def read(self, name: str) -> bytes:
        """The bytes of one file; InputError names the file where that fails."""
        info = self.members.get(name)
        if info is None:
            raise InputError(f"{self.where(name)}: no such file in the zip")
        _check_size(self.where(name), info.file_size)
        try:
            return self.file.read(info)
        # A damaged member shows in the zip's structure, in its packed bytes or in its checksum; RuntimeError
        # is an encrypted one, NotImplementedError an unknown packing.
        # ValueError is a name or a field that makes no sense.
        except (
            zipfile.BadZipFile,
            zlib.error,
            lzma.LZMAError,
            EOFError,
            OSError,
            RuntimeError,
            ValueError,
        ) as error:
            raise InputError(f"{self.where(name)}: damaged in the zip ({_reason(error)})") from None

    def where(self, name: str) -> str:
        """`name` as a person would look for it."""
        return f"{self.path}:{name}"

    def stamp(self, names: Iterable[str]) -> str:
        """A text that changes when the zip does (path, size or time of change)."""
        stat = os.stat(self.path)
        text = f"{self.path.resolve()}\0{_changes(stat)}"
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


Source = FolderSource | ZipSource


def open_source(path: str | os.PathLike) -> Source:
    """The folder or zip at `path`; InputError where it is missing, empty or neither."""
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path):
        source: Source = FolderSource(path)
    elif not os.path.exists(path):
        raise InputError(f"{path}: no such file or folder: expected a data set's folder or its zip")
    elif os.path.isfile(path) and (path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)):
        source = ZipSource(path)
    else:
        raise InputError(f"{path}: neither a folder nor a zip: expected a data set's folder or its zip")
    if not source.names():
        raise InputError(f"{path}: empty: expected a data set's folder or its zip")
    return source


def _without_waiting(path: str, flags: int) -> int:
    """Open; of a pipe, which is no picture either, without waiting for somebody to write into it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_size(where: str, size: int) -> None:
    if size > LARGEST:
        raise InputError(f"{where}: {size:,} bytes: expected a picture or a list of at most {LARGEST:,}")


def _changes(stat: os.stat_result) -> str:
    """Size and times of a file: the last of which the system alone can set."""
    return f"{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"


def _visible(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).replace("\n", " ")
