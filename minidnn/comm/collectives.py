"""The collectives, executed over send and receive as :mod:`.algorithms` lays them down.

Every function can be called three ways::

    y = all_reduce(comm, x, "ring")                     # blocking
    pending = all_reduce.start(comm, x, "ring")         # in flight; comm.progress() moves it on
    y = pending.wait()
    comm.start(all_reduce.steps(comm, x, "ring"))       # the same, with the generator in sight

The caller's arrays are never changed (but by the forms called ``..._inplace``), and may be of any dtype and
layout.  ``counts`` are elements of the flat buffer; :mod:`.operation` has the forms that split an axis.

An all_reduce leaves the same bits on every rank, whatever the algorithm: a chunk is summed at one place and
copied, or (doubling) by partners that add the same two numbers.  Two algorithms differ in their order of
summation, and so in the last bits.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import update_wrapper
from math import prod
from typing import Any

import numpy as np

from minidnn.backend import array_module

from . import headers, tuning
from .algorithms import ALGORITHMS, BLOCKED, OPERATIONS, Move, edges_of, normalise
from .communicator import SPACE, Communicator, Pending, check_array
from .execute import collective, execute

Counts = Sequence[int] | None


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


def run(
    comm: Communicator, op: str, x: Any, counts: Counts = None, root=0, algorithm=None, inplace=False
) -> Generator:
    """The steps of one collective (but all_to_all, which has two buffers) on flat arrays.

    The functions below are this with a name; ``inplace``: x is the whole buffer, and is used as such.
    """
    check_array(op, x)
    if inplace and (x.ndim != 1 or not x.flags.c_contiguous):
        raise ValueError(f"{op}_inplace needs a flat contiguous array, got shape {x.shape}")
    p, me, xp, held = comm.size, comm.rank, array_module(x), OPERATIONS[op]
    if algorithm == "auto" and op == "all_reduce":
        algorithm = tuning.choose(p, x.nbytes, comm.engine.link, comm.nodes)
    algorithm = algorithm or ALGORITHMS[op][0]
    whole = inplace or held.before == "whole" or (held.before == "root" and me == root)
    if op not in BLOCKED:
        counts, own, n = x.size, slice(0, x.size), x.size
    else:
        if counts is None:
            if not whole and held.before == "root":
                raise ValueError(f"{op}: ranks other than the root need counts")
            counts = x.size if whole else (x.size,) * p
        counts = normalise(op, algorithm, p, counts)
        own, n = slice(sum(counts[:me]), sum(counts[: me + 1])), sum(counts)
        if whole and n != x.size:
            raise ValueError(f"{op}: counts {counts} add up to {n}, the array has {x.size} elements")
        if not whole and held.before == "block" and counts[me] != x.size:
            raise ValueError(f"{op}: rank {me} brings {x.size} elements, counts {counts}")
    alone = op in ("scatter", "gather") and me != root  # the buffer is the own block
    if inplace:
        work = x
    elif whole and op != "scatter":  # summed, or handed back
        work = xp.array(x, order="C", copy=True).reshape(-1)
    elif whole or (alone and held.before == "block"):  # only read
        work = xp.ascontiguousarray(x).reshape(-1)
    else:
        work = xp.empty(counts[me] if alone else n, x.dtype)
        if held.before == "block":
            work[own] = x.reshape(-1)
    base = own.start if alone else 0
    yield from collective(comm, op, algorithm, counts, work, work, base, root)
    if held.after == "root" and me != root:
        return None
    if held.after == "block":
        if alone:
            return work
        return work[own] if inplace else work[own].copy()  # so that the other blocks' memory is let go
    return work if inplace or op in BLOCKED else work.reshape(x.shape)


@Collective
def all_reduce_inplace(comm: Communicator, flat, algorithm: str = "ring"):
    """Replace a flat contiguous array by its sum over all ranks."""
    return run(comm, "all_reduce", flat, algorithm=algorithm, inplace=True)


@Collective
def all_reduce(comm: Communicator, x, algorithm: str = "ring"):
    """The sum of all ranks' x, on every rank, as a new array; the same bits everywhere."""
    return run(comm, "all_reduce", x, algorithm=algorithm)


@Collective
def reduce_scatter_inplace(comm: Communicator, flat, counts: Counts = None, algorithm: str = "ring"):
    """Replace block r of a flat contiguous array on rank r by its sum over all ranks; what is left of the other
    blocks means nothing. Returns a view of the own block."""
    return run(comm, "reduce_scatter", flat, counts, algorithm=algorithm, inplace=True)


@Collective
def reduce_scatter(comm: Communicator, x, counts: Counts = None, algorithm: str = "ring"):
    """Block r of the sum of all ranks' x, on rank r, flat; ``counts`` are the block sizes (default: even)."""
    return run(comm, "reduce_scatter", x, counts, algorithm=algorithm)


@Collective
def all_gather_inplace(comm: Communicator, flat, counts: Counts = None, algorithm: str = "ring"):
    """Fill a flat contiguous array, of which rank r has written block r, with the blocks of all ranks."""
    return run(comm, "all_gather", flat, counts, algorithm=algorithm, inplace=True)


@Collective
def all_gather(comm: Communicator, x, counts: Counts = None, algorithm: str = "ring"):
    """All ranks' x one after the other, on every rank, flat; ``counts`` are their sizes (default: alike)."""
    return run(comm, "all_gather", x, counts, algorithm=algorithm)


@Collective
def broadcast(comm: Communicator, x, root: int = 0, algorithm: str = "binomial"):
    """The root's x on every rank; on the others x gives shape and dtype only."""
    return run(comm, "broadcast", x, None, root, algorithm)


@Collective
def reduce(comm: Communicator, x, root: int = 0, algorithm: str = "binomial"):
    """The sum of all ranks' x on the root, None elsewhere."""
    return run(comm, "reduce", x, None, root, algorithm)


@Collective
def scatter(comm: Communicator, x, root: int = 0, counts: Counts = None):
    """Block r of the root's x on rank r, flat; on other ranks x gives the dtype only, counts are needed."""
    return run(comm, "scatter", x, counts, root)


@Collective
def gather(comm: Communicator, x, root: int = 0, counts: Counts = None):
    """All ranks' x one after the other on the root, flat, and None elsewhere; ``counts`` as in all_gather."""
    return run(comm, "gather", x, counts, root)


@Collective
def all_to_all(comm: Communicator, x, counts=None, algorithm: str = "direct"):
    """Block j of rank i's x becomes block i of rank j's result, flat.

    ``counts[i][j]`` is the size of that block (default: every rank cuts its x evenly, all x being of one
    size).
    """
    check_array("all_to_all", x)
    p, me, xp = comm.size, comm.rank, array_module(x)
    counts = normalise("all_to_all", algorithm, p, x.size if counts is None else counts)
    out, into = edges_of(counts[me]), edges_of([row[me] for row in counts])
    if out[-1] != x.size:
        raise ValueError(f"all_to_all: rank {me} brings {x.size} elements, counts {counts[me]}")
    outbox, inbox = xp.ascontiguousarray(x).reshape(-1), xp.empty(into[-1], x.dtype)
    inbox[into[me] : into[me + 1]] = outbox[out[me] : out[me + 1]]
    yield from collective(comm, "all_to_all", algorithm, counts, outbox, inbox)
    return inbox


@Collective
def sendrecv(
    comm: Communicator, blocks: Mapping[int, Any], shapes: Mapping, dtype=None, tag=None, xp=np, op="send"
):
    """Send each peer its block and receive from each peer an array of the shape given, all at once.

    Parameters
    ----------
    blocks, shapes : mapping
        By the peer's rank; the blocks must not change until this is complete.  What came is returned likewise.
    dtype, xp : optional
        Of what is received; where something is sent, they are those of the blocks.
    tag : int, optional
        Pairs the two ends of a message (default: the tag of :meth:`.Communicator.start`, else 0).
    op : str
        What the ledger calls it.
    """
    tag = tag if tag is not None else comm.engine.running.tag or 0
    if not 0 <= tag < SPACE:
        raise ValueError(f"tag {tag}, expected one of 0 ... {SPACE - 1}")
    for peer in (*blocks, *shapes):
        if peer == comm.rank or not 0 <= peer < comm.size:
            raise ValueError(f"rank {comm.rank} of {comm.size} cannot exchange a message with rank {peer}")
    flat = []
    for block in blocks.values():
        check_array("send", block)
        xp, dtype = array_module(block), block.dtype
        flat.append(xp.ascontiguousarray(block).reshape(-1))
    outbox = flat[0] if len(flat) == 1 else xp.concatenate(flat or [xp.empty(0, dtype)])
    into = edges_of([prod(shape) for shape in shapes.values()])
    out, inbox = edges_of([block.size for block in flat]), xp.empty(into[-1], dtype)
    moves = [Move("recv", peer, *into[i : i + 2]) for i, peer in enumerate(shapes)]
    moves += [Move("send", peer, *out[i : i + 2]) for i, peer in enumerate(blocks)]
    if comm.debug:
        yield from headers.check_messages(comm, moves, inbox.dtype, tag)
    own = (tuple(m for m in moves if m.elements),)
    yield from execute(comm, op, "direct", own, outbox, inbox, 0, tag)
    places = zip(shapes.items(), into, into[1:], strict=False)
    return {peer: inbox[a:b].reshape(shape) for (peer, shape), a, b in places}


@Collective
def send(comm: Communicator, x, dest: int, tag: int | None = None):
    """Send x to one rank, which receives it; x must not change until this is complete."""
    yield from sendrecv.steps(comm, {dest: x}, {}, tag=tag)


@Collective
def recv(comm: Communicator, shape, dtype, source: int, tag: int | None = None, xp=np):
    """Receive an array of the given shape and dtype from one rank."""
    got = yield from sendrecv.steps(comm, {}, {source: shape}, dtype, tag, xp)
    return got[source]
