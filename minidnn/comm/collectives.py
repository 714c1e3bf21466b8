"""The collectives, executed over send and receive as :mod:`.algorithms` lays them down.

Every function can be called three ways::

    y = all_reduce(comm, x, "ring")                     # blocking
    pending = all_reduce.start(comm, x, "ring")         # in flight; comm.progress() moves it on
    y = pending.wait()
    comm.start(all_reduce.steps(comm, x, "ring"))       # the same, with the generator in sight

The caller's arrays are never changed (but by the forms called ``..._inplace``), and may be of any dtype and
layout.
``counts`` are elements of the flat buffer; :mod:`.axes` has the forms that split an axis.

An all_reduce leaves the same bits on every rank, whatever the algorithm: a chunk is summed at one place and
copied, or (doubling) by partners that add the same two numbers.  Two algorithms differ in their order of
summation, and so in the last bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import update_wrapper

import numpy as np

from minidnn.backend import array_module

from . import headers, tuning
from .algorithms import edges_of, normalise, rounds
from .checks import check_array
from .communicator import USER_TAGS, Communicator, Pending
from .execute import execute, library_all_reduce


class Collective:
    """A generator function that communicates, with the three ways to call it."""

    def __init__(self, steps):
        self.steps = steps
        update_wrapper(self, steps)

    def __call__(self, comm: Communicator, *args, **kwargs):
        return comm.start(self.steps(comm, *args, **kwargs)).wait()

    def start(self, comm: Communicator, *args, **kwargs) -> Pending:
        """Begin it and come back at once."""
        return comm.start(self.steps(comm, *args, **kwargs))


def _run(comm, op, algorithm, counts, work, inbox=None, root=0, base=0, **options):
    """Header check and execution of one collective whose rounds are looked up."""
    counts = normalise(op, algorithm, comm.size, counts)
    # The tag first: collectives start in one order on all ranks, but their headers may not end in that order.
    tag = comm.next_tag()
    if comm.debug:
        yield from headers.check(comm, op, algorithm, work.dtype, counts, root)
    if algorithm == "hierarchical":
        options["nodes"] = comm.nodes
    own = rounds(op, algorithm, comm.size, comm.rank, counts, root, **options)
    yield from execute(comm, op, algorithm, own, work, work if inbox is None else inbox, base, tag)


def _flat(x):
    """x as a flat contiguous array; a copy only where the layout asks for one."""
    return array_module(x).ascontiguousarray(x).reshape(-1)


def _copy(x):
    """x as a new flat contiguous array."""
    return array_module(x).array(x, order="C", copy=True).reshape(-1)


def _blocks(comm, op, counts, size) -> tuple[int, ...]:
    """The counts of a blocked collective, checked against the size of the array that they cut."""
    counts = normalise(op, "direct", comm.size, size if counts is None else counts)
    if sum(counts) != size:
        raise ValueError(f"{op}: counts {counts} add up to {sum(counts)}, the array has {size} elements")
    return counts


def _check_flat(op, flat) -> None:
    """What works in place needs the caller's own memory, in order."""
    check_array(op, flat)
    if flat.ndim != 1 or not flat.flags.c_contiguous:
        raise ValueError(f"{op} needs a flat contiguous array, got shape {flat.shape}")


# -- the collectives


@Collective
def all_reduce_inplace(comm: Communicator, flat, algorithm: str = "ring"):
    """Replace a flat contiguous array by its sum over all ranks."""
    _check_flat("all_reduce_inplace", flat)
    if algorithm == "auto":
        algorithm = tuning.choose(comm.size, flat.nbytes, comm.engine.link, comm.nodes)
    if comm.size == 1:
        return flat
    if algorithm == "mpi":
        tag = comm.next_tag()
        if comm.debug:  # waited for here and now: the library's calls must be made in the order of starting
            for requests in headers.check(comm, "all_reduce", "mpi", flat.dtype, flat.size, 0):
                comm.wait(requests)
        yield from library_all_reduce(comm, flat, tag)
    else:
        yield from _run(comm, "all_reduce", algorithm, flat.size, flat)
    return flat


@Collective
def all_reduce(comm: Communicator, x, algorithm: str = "ring"):
    """The sum of all ranks' x, on every rank, as a new array; the same bits everywhere."""
    check_array("all_reduce", x)
    work = _copy(x)
    yield from all_reduce_inplace.steps(comm, work, algorithm)
    return work.reshape(x.shape)


@Collective
def reduce_scatter_inplace(
    comm: Communicator, flat, counts: Sequence[int] | None = None, algorithm: str = "ring"
):
    """Replace block r of a flat contiguous array on rank r by its sum over all ranks; what is left of the other
    blocks means nothing. Returns a view of the own block."""
    _check_flat("reduce_scatter_inplace", flat)
    counts = _blocks(comm, "reduce_scatter", counts, flat.size)
    start = sum(counts[: comm.rank])
    yield from _run(comm, "reduce_scatter", algorithm, counts, flat)
    return flat[start : start + counts[comm.rank]]


@Collective
def reduce_scatter(comm: Communicator, x, counts: Sequence[int] | None = None, algorithm: str = "ring"):
    """Block r of the sum of all ranks' x, on rank r, flat; ``counts`` are the block sizes (default: even)."""
    check_array("reduce_scatter", x)
    own = yield from reduce_scatter_inplace.steps(comm, _copy(x), counts, algorithm)
    # a copy, so that the other blocks' memory is let go
    return own.copy() if comm.size > 1 else own


@Collective
def all_gather_inplace(
    comm: Communicator, flat, counts: Sequence[int] | None = None, algorithm: str = "ring"
):
    """Fill a flat contiguous array, of which rank r has written block r, with the blocks of all ranks."""
    _check_flat("all_gather_inplace", flat)
    counts = _blocks(comm, "all_gather", counts, flat.size)
    yield from _run(comm, "all_gather", algorithm, counts, flat)
    return flat


@Collective
def all_gather(comm: Communicator, x, counts: Sequence[int] | None = None, algorithm: str = "ring"):
    """All ranks' x one after the other, on every rank, flat; ``counts`` are their sizes (default: alike)."""
    check_array("all_gather", x)
    counts = (x.size,) * comm.size if counts is None else tuple(counts)
    start, stop = sum(counts[: comm.rank]), sum(counts[: comm.rank + 1])
    if stop - start != x.size:
        raise ValueError(f"all_gather: rank {comm.rank} brings {x.size} elements, counts {counts}")
    work = array_module(x).empty(sum(counts), x.dtype)
    work[start:stop] = x.reshape(-1)
    yield from all_gather_inplace.steps(comm, work, counts, algorithm)
    return work


@Collective
def broadcast(comm: Communicator, x, root: int = 0, algorithm: str = "binomial", segments=None):
    """The root's x on every rank; on the others x gives shape and dtype only."""
    check_array("broadcast", x)
    work = _copy(x) if comm.rank == root else array_module(x).empty(x.size, x.dtype)
    yield from _run(comm, "broadcast", algorithm, x.size, work, root=root, segments=segments)
    return work.reshape(x.shape)


@Collective
def reduce(comm: Communicator, x, root: int = 0, algorithm: str = "binomial"):
    """The sum of all ranks' x on the root, None elsewhere."""
    check_array("reduce", x)
    work = _copy(x)
    yield from _run(comm, "reduce", algorithm, x.size, work, root=root)
    return work.reshape(x.shape) if comm.rank == root else None


@Collective
def scatter(comm: Communicator, x, root: int = 0, counts: Sequence[int] | None = None):
    """Block r of the root's x on rank r, flat; on other ranks x gives the dtype only, counts are needed."""
    check_array("scatter", x)
    if comm.rank == root:
        counts = _blocks(comm, "scatter", counts, x.size)
    elif counts is None:
        raise ValueError("scatter: ranks other than the root need counts")
    start, stop = sum(counts[: comm.rank]), sum(counts[: comm.rank + 1])
    if comm.rank == root:
        work, base = _flat(x), 0
    else:
        work, base = array_module(x).empty(stop - start, x.dtype), start
    yield from _run(comm, "scatter", "direct", counts, work, root=root, base=base)
    return work[start:stop].copy() if comm.rank == root else work


@Collective
def gather(comm: Communicator, x, root: int = 0, counts: Sequence[int] | None = None):
    """All ranks' x one after the other on the root, flat, and None elsewhere; ``counts`` as in all_gather."""
    check_array("gather", x)
    counts = (x.size,) * comm.size if counts is None else tuple(counts)
    start, stop = sum(counts[: comm.rank]), sum(counts[: comm.rank + 1])
    if stop - start != x.size:
        raise ValueError(f"gather: rank {comm.rank} brings {x.size} elements, counts {counts}")
    if comm.rank == root:
        work, base = array_module(x).empty(sum(counts), x.dtype), 0
        work[start:stop] = x.reshape(-1)
    else:
        work, base = _flat(x), start
    yield from _run(comm, "gather", "direct", counts, work, root=root, base=base)
    return work if comm.rank == root else None


@Collective
def all_to_all(comm: Communicator, x, counts=None, algorithm: str = "direct"):
    """Block j of rank i's x becomes block i of rank j's result, flat.

    ``counts[i][j]`` is the size of that block (default: every rank cuts its x evenly, all x being of one
    size).
    """
    check_array("all_to_all", x)
    counts = normalise("all_to_all", algorithm, comm.size, x.size if counts is None else counts)
    if sum(counts[comm.rank]) != x.size:
        raise ValueError(f"all_to_all: rank {comm.rank} brings {x.size} elements, counts {counts[comm.rank]}")
    mine = [row[comm.rank] for row in counts]
    outbox, inbox = _flat(x), array_module(x).empty(sum(mine), x.dtype)
    out, into = edges_of(counts[comm.rank]), edges_of(mine)
    r = comm.rank
    inbox[into[r] : into[r + 1]] = outbox[out[r] : out[r + 1]]
    yield from _run(comm, "all_to_all", algorithm, counts, outbox, inbox)
    return inbox


# -- one message


@Collective
def send(comm: Communicator, x, dest: int, tag: int = 0):
    """Send x to one rank, which receives it; x must not change until this is complete."""
    check_array("send", x)
    work = _flat(x)
    yield from _one_message(comm, work, comm.rank, dest, tag)


@Collective
def recv(comm: Communicator, shape, dtype, source: int, tag: int = 0, xp=np):
    """Receive an array of the given shape and dtype from one rank."""
    work = xp.empty(shape, dtype)
    yield from _one_message(comm, work.reshape(-1), source, comm.rank, tag)
    return work


def _one_message(comm, work, source, dest, tag):
    if not 0 <= tag < USER_TAGS:
        raise ValueError(f"tag {tag} is not in 0..{USER_TAGS - 1}")
    peer = dest if comm.rank == source else source
    if peer == comm.rank or not 0 <= peer < comm.size:
        raise ValueError(f"rank {comm.rank} of {comm.size} cannot exchange a message with rank {peer}")
    if comm.debug:
        yield from headers.check_message(comm, work, source, dest, tag)
    own = rounds("send", "direct", comm.size, comm.rank, work.size, source, dest=dest)
    yield from execute(comm, "send", "direct", own, work, work, 0, tag)
