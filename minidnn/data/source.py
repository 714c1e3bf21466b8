"""Read files from a folder or straight out of a zip, through one interface.

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

from minidnn.errors import InputError


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
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise InputError(f"{self.where(name)}: no such file") from None
        except OSError as error:
            raise InputError(f"{self.where(name)}: cannot be read: {error.strerror}") from None

    def where(self, name: str) -> str:
        """`name` as a person would look for it."""
        return os.path.join(self.path, name)  # keeps the "/" that ends a folder

    def stamp(self, names: Iterable[str]) -> str:
        """A text that changes when one of the files does (name, size or time of change)."""
        digest = hashlib.sha256(str(self.path.resolve()).encode())
        for name in names:
            try:
                stat = os.stat(self.path / name)
            except OSError as error:
                raise InputError(f"{self.where(name)}: cannot be read: {error.strerror}") from None
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode(errors="surrogateescape"))
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
        for name in self.file.namelist():
            if "__MACOSX/" not in name:
                self._add(name)

    def _add(self, name: str) -> None:
        parent, _, last = name.rstrip("/").rpartition("/")
        if parent not in self.folders:  # a zip need not hold an entry for a folder
            self._add(parent + "/")
        self.folders[parent].add(last + "/" * name.endswith("/"))
        if name.endswith("/"):
            self.folders.setdefault(name.rstrip("/"), set())

    def names(self, folder: str = "") -> list[str]:
        """Sorted names in `folder`; empty where there is no such folder."""
        return sorted(name for name in self.folders.get(folder.rstrip("/"), ()) if _visible(name))

    def read(self, name: str) -> bytes:
        """The bytes of one file; InputError names the file where that fails."""
        try:
            return self.file.read(name)
        except KeyError:
            raise InputError(f"{self.where(name)}: no such file in the zip") from None
        # A damaged member shows in the zip's structure, in its packed bytes or in its checksum; RuntimeError
        # is an encrypted one, NotImplementedError an unknown packing.
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError) as error:
            raise InputError(f"{self.where(name)}: damaged in the zip ({_reason(error)})") from None

    def where(self, name: str) -> str:
        """`name` as a person would look for it."""
        return f"{self.path}:{name}"

    def stamp(self, names: Iterable[str]) -> str:
        """A text that changes when the zip does (path, size or time of change)."""
        stat = os.stat(self.path)
        text = f"{self.path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


Source = FolderSource | ZipSource


def open_source(path: str | os.PathLike) -> Source:
    """The folder or zip at `path`; InputError where it is missing, empty or neither."""
    path = Path(path).expanduser()
    if path.is_dir():
        source: Source = FolderSource(path)
    elif not path.exists():
        raise InputError(f"{path}: no such file or folder: expected a data set's folder or its zip")
    elif path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
        source = ZipSource(path)
    else:
        raise InputError(f"{path}: neither a folder nor a zip: expected a data set's folder or its zip")
    if not source.names():
        raise InputError(f"{path}: empty: expected a data set's folder or its zip")
    return source


def _visible(name: str) -> bool:
    return not name.startswith((".", "__MACOSX"))


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).replace("\n", " ")
