"""Writing a ledger's records: a folder with ``run.json`` and one ``rank{r}.jsonl`` for each rank.

A rank's file has one JSON object a line: a header; the records, numbered from 0 in ``seq`` so that a lost
one is noticed; and an end line that counts them.  Times are seconds of the rank's own clock;
``clock_offset`` in the header is to be added to bring them to rank 0's, and ``clock_error`` bounds what is
left.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import numpy as np

from minidnn.errors import InputError

from .communicator import PING, Communicator

FORMAT, VERSION = "minidnn-trace", 1
TEXT = 512  # bytes of a complaint that the ranks exchange


def prepare(comm: Communicator, folder: str | Path, overwrite: bool = False) -> str:
    """Make the folder ready, before training: every rank calls this.

    Returns
    -------
    str
        The run's identity, for :func:`write`.

    Raises
    ------
    InputError
        On every rank: the folder holds another run and ``overwrite`` is false, or some rank cannot write
        there.
    """
    folder = Path(folder)
    if comm.rank == 0:
        complaint = _try_folder(folder, comm.rank, overwrite)
        first = _exchange_texts(comm, complaint or "+" + uuid.uuid4().hex)[0]
    else:
        first = _exchange_texts(comm, "")[0]
        complaint = _try_folder(folder, comm.rank, True) if first.startswith("+") else ""
    complaints = _exchange_texts(comm, complaint)  # the folder may be on another machine's disk
    for text in complaints:
        if text:
            raise InputError(text)
    return first[1:]


def _try_folder(folder: Path, rank: int, overwrite: bool) -> str:
    """Make the folder and write into it; what is wrong, or nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = [folder / "run.json", *folder.glob("rank*.jsonl")]
        if not overwrite and any(path.exists() for path in old):
            return f"{folder} holds the trace of another run: choose another folder or use --overwrite"
        probe = folder / f".probe-{rank}-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        return f"cannot write a trace to {folder}: {error.strerror or error}"
    return ""


def _exchange_texts(comm, text: str) -> list[str]:
    own = np.zeros(TEXT, np.uint8)
    data = text.encode()[:TEXT]
    own[: len(data)] = np.frombuffer(data, np.uint8)
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in comm.exchange(own)]


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
    """Write this rank's records; every rank calls this.  When all have, rank 0 writes ``run.json``.

    ``info`` goes into ``run.json``.  ``run`` is what :func:`prepare` returned.  Each file appears whole,
    under its name only when it is complete.
    """
    folder, ledger = Path(folder), comm.ledger
    if comm.rank == 0:  # of an overwritten run, which may have had more ranks
        for path in (folder / "run.json", *folder.glob("rank*.jsonl")):
            path.unlink(missing_ok=True)
    comm.barrier()
    offset, error = measure_clock(comm)
    header = {"format": FORMAT, "version": VERSION, "run": run, "rank": ledger.rank, "size": ledger.size}
    header |= {"clock_offset": offset, "clock_error": error, "dropped_steps": ledger.dropped_steps}
    name = folder / f"rank{ledger.rank}.jsonl"
    partial = name.with_suffix(".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(json.dumps(header) + "\n")
        count = 0
        for record in ledger.records():
            file.write(json.dumps({"seq": count, **record}, default=_plain) + "\n")
            count += 1
        file.write(json.dumps({"kind": "end", "records": count}) + "\n")
    os.replace(partial, name)
    comm.barrier()
    if comm.rank == 0:
        whole = {"format": FORMAT, "version": VERSION, "run": run, **(info or {})}
        text = json.dumps(whole, indent=1, default=_plain)
        (folder / "run.json").write_text(text + "\n", encoding="utf-8")


def _plain(value):
    """NumPy numbers and paths as JSON takes them."""
    return value.item() if isinstance(value, np.generic) else str(value)
