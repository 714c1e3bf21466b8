"""Choosing an all_reduce by size: ``--all-reduce auto``.

The cost model is the usual one (Thakur, Rabenseifner and Gropp 2005): a message of n bytes takes alpha + n
beta seconds, adding n bytes takes n gamma.  It is applied to the rounds themselves: a round lasts as long
as its busiest rank.  The three numbers are measured by a short ping-pong when a run starts
(:func:`measure`) and kept per host for a day, in :func:`cache_file`.
"""

from __future__ import annotations

import json
import os
import socket
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minidnn.errors import InputError
from minidnn.files import writing

from .algorithms import rounds
from .communicator import PING, Communicator

MAX_AGE = 24 * 3600.0  # seconds that a measured link is believed: it may have been taken on a busy machine
CANDIDATES = ("ring", "doubling", "halving", "tree", "direct")


class Link(NamedTuple):
    """Seconds per message, per byte sent, and per byte added."""

    alpha: float
    beta: float
    gamma: float


#: Where nothing has been measured, as when a plan is made without MPI: shared memory of one machine, roughly.
DEFAULT = Link(5e-6, 1 / 4e9, 1 / 8e9)


@lru_cache(maxsize=1024)
def predict(algorithm: str, p: int, nbytes: int, link: Link = DEFAULT, nodes: tuple | None = None) -> float:
    """Seconds that an all_reduce of so many bytes takes over p ranks."""
    everyone = (rounds("all_reduce", algorithm, p, rank, nbytes, nodes=nodes) for rank in range(p))
    return sum(max(_round_time(m, link) for m in together) for together in zip(*everyone, strict=True))


def _round_time(moves, link) -> float:
    sent, received = ([m.elements for m in moves if m.kind == kind] for kind in ("send", "recv"))
    messages, sizes = max(len(sent), len(received)), max(sum(sent), sum(received))
    return link.alpha * messages + link.beta * sizes + link.gamma * sum(m.elements for m in moves if m.reduce)


@lru_cache(maxsize=1024)
def choose(p: int, nbytes: int, link: Link | None = None, nodes: tuple | None = None) -> str:
    """The all_reduce that the model expects to be the fastest; every rank of a group comes to the same."""
    candidates = CANDIDATES + (("hierarchical",) if nodes is not None and len(set(nodes)) > 1 else ())
    return min(candidates, key=lambda name: predict(name, p, nbytes, link or DEFAULT, nodes))


def measure(comm: Communicator) -> Link:
    """Measure the link between the first and the last rank, or read it from the cache; every rank calls this.

    All ranks get rank 0's numbers, and keep them as ``comm.engine.link`` for "auto".
    """
    link = DEFAULT
    key = f"{socket.gethostname()} {type(comm).__name__} {comm.size} ranks {len(set(comm.nodes))} nodes"
    if comm.size > 1:
        cached = _load().get(key) if comm.rank == 0 else None
        if not comm.exchange(np.array([cached is not None]))[0, 0]:
            cached = _ping_pong(comm)
            if comm.rank == 0:
                _store(key, cached)
        own = np.array(cached[: len(DEFAULT)] if comm.rank == 0 else DEFAULT)
        link = Link(*map(float, comm.exchange(own)[0]))
    comm.engine.link = link
    return link


def _ping_pong(comm) -> Link:
    last = comm.size - 1
    seconds = {}
    for nbytes, repeats in ((8, 50), (1 << 20, 8)):
        block = np.zeros(nbytes, np.uint8)

        def there_and_back(block=block):
            for sender in (0, last):
                begin = comm.isend if comm.rank == sender else comm.irecv
                comm.wait([begin(block, last - comm.rank, PING)])

        seconds[nbytes] = _fastest(there_and_back, repeats if comm.rank in (0, last) else 0) / 2
    a, b = np.zeros((2, 1 << 18), np.float32)
    adding = _fastest(lambda: np.add(a, b, out=a), 8)
    beta = (seconds[1 << 20] - seconds[8]) / (1 << 20)
    return Link(max(seconds[8], 1e-7), max(beta, 1e-12), adding / a.nbytes)


def _fastest(work, repeats) -> float:
    """Seconds of the fastest run; 0 of none."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times, default=0.0)


def cache_file() -> Path:
    """Where measured links are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minidnn" / "links.json"


def _load() -> dict[str, list[float]]:
    """What is kept and not too old: for each key the numbers of its link, and when they were measured."""
    try:
        entries = json.loads(cache_file().read_text()).items()
        kept = {key: [float(x) for x in value] for key, value in entries}
        return {key: x for key, x in kept.items() if len(x) == 4 and time.time() - x[-1] < MAX_AGE}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # no cache, or not one of ours: measure


def _store(key: str, link: Link) -> None:
    """Keep a link; the file is replaced as a whole, since other runs may be writing it too."""
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as file:
            json.dump({**_load(), key: [*link, time.time()]}, file)
    except (OSError, InputError):
        pass  # a cache that cannot be written only costs the next run its ping-pong
