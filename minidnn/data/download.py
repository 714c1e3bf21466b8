"""Fetch a file over HTTP: with a progress bar, resumed where it was cut off, checked at the end."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from uuid import uuid4

from minidnn.data.progress import ProgressBar
from minidnn.errors import InputError
from minidnn.files import disk, to_disk

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
CHUNK = 2**18  # bytes
ATTEMPTS = 4  # connections, while each brings the file further
CHECKSUMS = {32: "md5", 40: "sha1", 64: "sha256"}  # by the number of hexadecimal digits


def download(
    url: str,
    target: str | os.PathLike,
    checksum: str | None = None,
    progress: bool | None = None,
    timeout: float = 30.0,
) -> Path:
    """Fetch `url` into the file `target`.

    What has arrived is kept in ``target.part``, so a download that was cut off, by the network or by Ctrl-C,
    goes on where it stopped when it is asked for again, if the server serves ranges and there is a checksum to tell
    whether the parts are of one file. `target` appears when it is whole and its checksum is right; where it is there
    already, it is only checked.

    Parameters
    ----------
    url : str
    target : path
        The file to write; its folder is made.
    checksum : str, optional
        MD5, SHA-1 or SHA-256 in hexadecimal, told apart by length. None or empty: not checked, but for its length,
        which the server must tell.
    progress : bool, optional
        Whether to draw a bar on stderr; by default, where that is a terminal.
    timeout : float
        Seconds without a byte after which a connection is given up.

    Returns
    -------
    Path
        `target`.

    Raises
    ------
    InputError
        No connection, no such file on the server, a broken transfer, a full disk or a wrong checksum.
    """
    target = Path(target)
    # Without a checksum nothing could tell whether what is there, or what another process adds, is of the same file.
    part = target.with_name(f"{target.name}.part" if checksum else f".{uuid4().hex[:16]}.part")
    if checksum and (len(checksum) not in CHECKSUMS or set(checksum.lower()) - set("0123456789abcdef")):
        raise InputError(f"checksum {checksum}: expected the 32, 40 or 64 digits of an MD5, SHA-1 or SHA-256")
    if url.partition(":")[0].lower() not in ("http", "https"):
        raise InputError(f"{url}: not an address: expected http://... or https://...")
    with disk(target):
        if part.is_symlink():
            raise InputError(f"{part}: a link, and what is fetched would go where it points: remove it")
        if target.exists():
            if checksum and not _matches(target, checksum):
                raise InputError(
                    f"{target}: there already, with another checksum than {checksum}: move it away"
                )
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
    bar = None
    try:
        for attempt in range(ATTEMPTS):
            before = _size(part)
            bar = ProgressBar(f"{target.name}:", None, progress, " MiB", 2**20)
            done, reason = _fetch(url, part, bar, timeout)
            if done:
                break
            if not checksum or attempt == ATTEMPTS - 1 or _size(part) <= before:
                remedy = "the same command goes on from there" if checksum else "try again"
                raise InputError(f"{url}: broken off after {_size(part):,} bytes ({reason}): {remedy}")
        if not checksum and bar.total is None:
            raise InputError(f"{url}: the server does not tell the length, so it may be cut: give a checksum")
        with disk(target):
            if checksum and not _matches(part, checksum):
                raise InputError(
                    f"{url}: not the file expected: its checksum is not {checksum}. It is kept in {part}: "
                    "delete that to fetch it anew, or give the right checksum"
                )
            with open(part, "rb") as file:
                to_disk(file)
            os.replace(part, target)
    finally:
        if bar:
            bar.close()
        if not checksum:
            part.unlink(missing_ok=True)
    return target


def _fetch(url: str, part: Path, bar: ProgressBar, timeout: float) -> tuple[bool, str]:
    """One connection: add to `part` what is missing. Returns whether it is whole now, and if not, why."""
    have = _size(part)
    headers = {"User-Agent": "minidnn", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:  # nothing beyond what is here: it is whole, or not of this file
                total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
                if total == str(have):
                    return True, ""
                part.unlink()
                return _fetch(url, part, bar, timeout)
            if error.code >= 500 and have:
                return False, f"HTTP {error.code} {error.reason}"
            hint = "no such file on the server: " if error.code == 404 else ""
            raise InputError(f"{url}: HTTP {error.code} {error.reason}: {hint}check the address") from None
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        if have:
            return False, str(reason)
        raise InputError(f"{url}: no connection ({reason}): check the network and the address") from None
    except ValueError as error:
        raise InputError(f"{url}: not an address ({error}): expected http://... or https://...") from None
    with answer:
        start = _start(answer, have)
        length = answer.headers.get("Content-Length")
        bar.total = start + int(length) if length and length.isdigit() else None
        with disk(part):
            file = open(part, "r+b" if start else "wb")  # a server that serves no ranges starts anew
        with file:
            file.seek(start)
            return _copy(answer, file, part, bar)


def _start(answer: Any, have: int) -> int:
    """The position in the file at which the answer begins."""
    if answer.status != 206:
        return 0
    header = answer.headers.get("Content-Range") or ""
    first = header.removeprefix("bytes ").partition("-")[0]
    if first != str(have):
        raise InputError(f"{answer.url}: asked for bytes from {have}, the server sent {header!r}")
    return have


def _copy(answer: Any, file: Any, part: Path, bar: ProgressBar) -> tuple[bool, str]:
    at = file.tell()
    while True:
        bar.update(at)
        try:
            data = answer.read(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            return False, str(error) or type(error).__name__
        if not data:
            break
        with disk(part):
            file.write(data)
        at += len(data)
    # A connection that is closed early looks like the end of the file: only the length tells.
    return bar.total is None or at == bar.total, f"the server closed the connection, of {bar.total} bytes"


def _matches(path: Path, checksum: str) -> bool:
    kind = CHECKSUMS[len(checksum)]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False))
    return digest.hexdigest() == checksum.lower()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
