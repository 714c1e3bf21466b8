"""Writing a ledger's records: a folder with ``run.json`` and one ``rank{r}.jsonl`` for each rank.

A rank's file has one JSON object a line: a header; the records, numbered from 0 in ``seq`` so that a lost
one is noticed; and an end line that counts them.  Times are seconds of the rank's own clock;
``clock_offset`` in the header is to be added to bring them to rank 0's, and ``clock_error`` bounds what is
left.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from minidnn.errors import InputError
from minidnn.files import beside, to_disk, writing
from minidnn.launch import alive

from .communicator import PING, Communicator

FORMAT, VERSION = "minidnn-trace", 1


class Claim(str):
    """The identity of a run; as long as it is kept, or until :func:`write`, no other run gets the folder."""

    lock: int | None = None

    def release(self) -> None:
        """Let others have the folder."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    __del__ = release


def prepare(
    comm: Communicator, folder: str | Path, overwrite: bool = False, also: Sequence[str] = ()
) -> Claim:
    """Make the folder ready, before training: every rank calls this.

    Parameters
    ----------
    overwrite : bool
        The files of an earlier run may be replaced, when those of this one are whole.
    also : sequence of str
        Names of other files that the run will write there.

    Returns
    -------
    Claim
        The run's identity, for :func:`write`.

    Raises
    ------
    InputError
        On every rank: another run is writing there, the folder holds another run and ``overwrite`` is false, it
        holds files of these names that are not a trace's, or some rank cannot write there.
    """
    folder = Path(folder)
    claim = Claim()
    if comm.rank == 0:
        claim, complaint = _claim(folder, overwrite, also)
        first = comm.exchange_texts(complaint or "+" + claim)[0]
    else:
        first = comm.exchange_texts("")[0]
        complaint = _try_folder(folder) if first.startswith("+") else ""
    try:
        _agree(comm, complaint)  # the folder may be on another machine's disk
    except InputError:
        claim.release()
        raise
    return claim or Claim(first[1:])


def _claim(folder: Path, overwrite: bool, also: Sequence[str]) -> tuple[Claim, str]:
    """Rank 0's look at the folder: the claim, and what is wrong, or nothing."""
    claim = Claim(uuid.uuid4().hex)
    if complaint := _try_folder(folder):
        return claim, complaint
    claim.lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(claim.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed by death, too
    except BlockingIOError:
        return claim, f"another run is writing its trace to {folder}: choose another folder"
    except OSError:
        pass  # a file system without locks
    ranks = sorted(folder.glob("rank*.jsonl"))
    foreign = [path for path in (folder / "run.json", *ranks) if path.exists() and not _is_ours(path)]
    if not foreign and not (folder / "run.json").exists():
        foreign = [folder / name for name in also if (folder / name).exists()]
    if foreign:
        return claim, f"{foreign[0]} is no part of a trace: choose another folder"
    if not overwrite and (ranks or (folder / "run.json").exists()):
        return claim, f"{folder} holds the trace of another run: choose another folder or use --overwrite"
    return claim, ""


def _try_folder(folder: Path) -> str:
    """Make the folder and write into it; what is wrong, or nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with beside(folder / "probe") as probe:
            probe.touch()
    except OSError as error:
        return f"cannot write a trace to {folder}: {error.strerror or error}"
    return ""


def _is_ours(path: Path) -> bool:
    """Whether a file of a trace's name begins as one does."""
    try:
        with open(path, "rb") as file:
            return f'"format": "{FORMAT}"'.encode() in file.read(200)
    except OSError:
        return False


def _agree(comm: Communicator, complaint: str) -> None:
    """Raise InputError on every rank if one has something to complain about."""
    for text in comm.exchange_texts(complaint):
        if text:
            raise InputError(text)


def measure_clock(comm: Communicator, rounds: int = 30) -> tuple[float, float]:
    """How far rank 0's clock is ahead of this rank's, by ping-pong with rank 0; every rank calls this.

    Returns
    -------
    offset, error : float
        Seconds; the truth is within ``error`` of ``offset``.  Of all rounds the one with the shortest way
        there and back counts (Cristian, "Probabilistic clock synchronization", 1989).
    """
    clock, own, theirs = comm.ledger.clock, np.zeros(1), np.zeros(1)
    best = (0.0, 0.0) if comm.rank == 0 else (0.0, np.inf)
    for rank in range(1, comm.size):
        for _ in range(rounds if comm.rank in (0, rank) else 0):
            if comm.rank == 0:
                comm.wait([comm.irecv(theirs, rank, PING)])
                own[0] = clock()
                comm.wait([comm.isend(own, rank, PING)])
            else:
                begin = clock()
                comm.wait([comm.isend(own, 0, PING), comm.irecv(theirs, 0, PING)])
                end = clock()
                if (end - begin) / 2 < best[1]:
                    best = float(theirs[0]) - (begin + end) / 2, (end - begin) / 2
    return best


def write(comm: Communicator, folder: str | Path, run: str, info: dict | None = None) -> None:
    """Write this rank's records; every rank calls this.  The last file is ``run.json``, by rank 0.

    ``info`` goes into ``run.json``.  ``run`` is what :func:`prepare` returned.  When the files of all ranks are
    whole and on the disk, they take the place of those of an overwritten run; before, nothing of that is touched.

    Raises
    ------
    InputError
        On every rank, where one cannot write its file.
    """
    folder, ledger, complaint = Path(folder), comm.ledger, ""
    offset, error = measure_clock(comm)
    about = {"format": FORMAT, "version": VERSION, "run": run}
    header = about | {"rank": ledger.rank, "size": ledger.size}
    header |= {"clock_offset": offset, "clock_error": error, "dropped_steps": ledger.dropped_steps}
    with ExitStack() as last, ExitStack() as own:
        if isinstance(run, Claim):
            last.callback(run.release)
        try:
            if comm.rank == 0:
                file = last.enter_context(writing(folder / "run.json"))
                file.write(json.dumps(about | (info or {}), indent=1, default=_plain, allow_nan=False) + "\n")
                to_disk(file)
            file = own.enter_context(writing(folder / f"rank{ledger.rank}.jsonl"))
            _write_records(file, header, ledger.records())
            to_disk(file)
        except (InputError, OSError) as fault:
            complaint = f"cannot write a trace to {folder}: {getattr(fault, 'strerror', None) or fault}"
        _agree(comm, complaint)
        try:
            own.close()
        except InputError as fault:
            complaint = str(fault)
        _agree(comm, complaint)
        if comm.rank == 0:  # of an overwritten run, which may have had more ranks
            for path in folder.glob("rank*.jsonl"):
                if path.stem[4:].isdecimal() and int(path.stem[4:]) >= ledger.size:
                    path.unlink()


def _write_records(file, header: dict, records: Iterable[dict]) -> None:
    file.write(json.dumps(header) + "\n")
    count = 0
    for record in records:
        file.write(json.dumps({"seq": count, **record}, default=_plain) + "\n")
        count += 1
        if count % 10_000 == 0:
            alive()
    file.write(json.dumps({"kind": "end", "records": count}) + "\n")


def _plain(value):
    """NumPy numbers and paths as JSON takes them."""
    return value.item() if isinstance(value, np.generic) else str(value)
