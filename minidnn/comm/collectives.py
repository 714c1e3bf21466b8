"""The collectives, executed over send and receive as :mod:`.algorithms` lays them down.

Every function can be called three ways::

    y = all_reduce(comm, x, "ring")                     # blocking
    pending = all_reduce.start(comm, x, "ring")         # in flight; comm.progress() moves it on
    y = pending.wait()
    comm.start(all_reduce.steps(comm, x, "ring"))       # the same, with the generator in sight

The caller's arrays are never changed (but by the forms called ``..._inplace``), and may be of any dtype and
layout.
``counts`` are elements of the flat buffer; :mod:`.operation` has the forms that split an axis.

An all_reduce leaves the same bits on every rank, whatever the algorithm: a chunk is summed at one place and
copied, or (doubling) by partners that add the same two numbers.  Two algorithms differ in their order of
summation, and so in the last bits.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import update_wrapper
from math import prod
from typing import Any, NamedTuple

import numpy as np

from minidnn.backend import array_module

from . import headers, tuning
from .algorithms import ALGORITHMS, BLOCKED, LIBRARY, Move, Rounds, edges_of, normalise, rounds
from .checks import check_array
from .communicator import SPACE, Communicator, Note, Pending


class Held(NamedTuple):
    """What a member brings to an operation and what it gets: "whole", its own "block", or, at "root" or "dest"
    only, the whole; and the operation that takes the gradient back."""

    before: str
    after: str
    adjoint: str


#: The adjoint brings what the operation gets.  A value summed over all (from "whole") is one that each used.
OPERATIONS = {
    "send": Held("root", "dest", "send"),
    "broadcast": Held("root", "whole", "reduce"),
    "reduce": Held("whole", "root", "broadcast"),
    "scatter": Held("root", "block", "gather"),
    "gather": Held("block", "root", "scatter"),
    "all_gather": Held("block", "whole", "reduce_scatter"),
    "reduce_scatter": Held("whole", "block", "all_gather"),
    "all_to_all": Held("block", "block", "all_to_all"),  # blocks along two axes
    "all_reduce": Held("whole", "whole", "all_reduce"),  # each copy is a variable of its own
    "reduce_from": Held("whole", "whole", "copy_to"),  # an all_reduce whose copies are one value
    "copy_to": Held("whole", "whole", "reduce_from"),  # no message: one value enters work that is split
}


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


# -- executing rounds


def _execute(comm, op, algorithm, own: Rounds, outbox, inbox, base, tag) -> Generator:
    """Send and receive one rank's rounds: sends read ``outbox``, receives write (or are added to) ``inbox``.

    Both are flat arrays whose entry 0 is element ``base`` of the collective's buffer; for most collectives
    they are one and the same.
    """
    ledger, xp, scratch = comm.ledger, array_module(inbox), None
    labels, cell = ledger.labels, ledger.cell(op)
    for index, moves in enumerate(own, 1):
        if not moves:
            continue
        note = Note(op, algorithm, labels, index, len(own), cell, ledger.tracing)
        requests, additions, used = [], [], 0
        for move in moves:
            start, stop = move.start, move.stop
            block = (outbox if move.kind == "send" else inbox)[start - base : stop - base]
            if move.reduce:
                if scratch is None:
                    need = max(sum(m.stop - m.start for m in every if m.reduce) for every in own)
                    scratch = _borrow(comm, xp, inbox.dtype, need)
                target, block = block, scratch[used : used + stop - start]
                used += stop - start
                additions.append((target, block))
            requests.append(comm.post(move.kind, block, move.peer, tag, note, (start, stop)))
        yield requests
        comm.arrived(note)
        for target, block in additions:
            xp.add(target, block, out=target)
    if scratch is not None:
        comm.engine.scratch[xp.__name__, scratch.dtype].append(scratch)


def _borrow(comm, xp, dtype, n):
    """Scratch of at least n elements, kept between collectives: fresh pages cost as much as the sum."""
    kept = comm.engine.scratch.setdefault((xp.__name__, dtype), [])
    for i, array in enumerate(kept):
        if array.size >= n:
            return kept.pop(i)
    if kept:  # outgrown
        kept.pop()
    return xp.empty(n, dtype)


def _library(comm, own: Rounds, flat, tag) -> Generator:
    """The steps of the transport's own all_reduce, counted and recorded as its pattern says.

    The transport's counters, which cannot see what the library sends either, are told the same.
    """
    ledger = comm.ledger
    labels, cell = ledger.labels, ledger.cell("all_reduce")
    note = Note("all_reduce", LIBRARY, labels, cell=cell, tracing=ledger.tracing)
    for move in (move for moves in own for move in moves):
        nbytes = move.elements * flat.itemsize
        comm.traffic.count(move.kind, nbytes)
        note.count(move.kind, nbytes)
        if ledger.tracing:
            comm.record(move.kind, move.peer, tag, note, nbytes, flat.dtype, (0, flat.size))
    yield from comm.library_all_reduce(flat)
    comm.arrived(note)


def run(
    comm: Communicator,
    op: str,
    x: Any,
    counts: Sequence[int] | None = None,
    root: int = 0,
    algorithm: str | None = None,
    inplace: bool = False,
    segments: int | None = None,
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
    at_root = me == root
    whole = inplace or held.before == "whole" or (held.before == "root" and at_root)
    start, stop = 0, x.size
    if op in BLOCKED:
        if counts is None and not whole and held.before == "root":
            raise ValueError(f"{op}: ranks other than the root need counts")
        if counts is None:
            counts = x.size if whole else (x.size,) * p
        counts = normalise(op, algorithm, p, counts)
        edges = edges_of(counts)
        start, stop = edges[me], edges[me + 1]
        if whole and edges[-1] != x.size:
            raise ValueError(f"{op}: counts {counts} add up to {edges[-1]}, the array has {x.size} elements")
        if not whole and held.before == "block" and stop - start != x.size:
            raise ValueError(f"{op}: rank {me} brings {x.size} elements, counts {counts}")
    else:
        counts, edges = normalise(op, algorithm, p, x.size), (0, x.size)
    alone = op in ("scatter", "gather") and not at_root  # the buffer is the own block
    if inplace:
        work = x
    elif whole and op != "scatter":  # summed, or handed back
        work = xp.array(x, order="C", copy=True).reshape(-1)
    elif whole or (alone and held.before == "block"):  # only read
        work = xp.ascontiguousarray(x).reshape(-1)
    else:
        work = xp.empty(stop - start if alone else edges[-1], x.dtype)
        if held.before == "block":
            work[start:stop] = x.reshape(-1)
    if p > 1:
        # The tag first: collectives start in one order on all ranks, but their headers may not end in that order.
        tag = comm.next_tag()
        if comm.debug:
            check = headers.check(comm, op, algorithm, x.dtype, counts, root, tag)
            if algorithm == LIBRARY:  # at once: the library pairs its calls by their order
                for requests in check:
                    comm.wait(requests)
            else:
                yield from check
        own = rounds(op, algorithm, p, me, counts, root, nodes=comm.nodes, segments=segments)
        if algorithm == LIBRARY:
            yield from _library(comm, own, work, tag)
        else:
            yield from _execute(comm, op, algorithm, own, work, work, start if alone else 0, tag)
    if held.after == "root" and not at_root:
        return None
    if held.after == "block":
        own = work if alone else work[start:stop]
        return own if alone or inplace else own.copy()  # so that the other blocks' memory is let go
    return work if inplace or op in BLOCKED else work.reshape(x.shape)


# -- the collectives


@Collective
def all_reduce_inplace(comm: Communicator, flat, algorithm: str = "ring"):
    """Replace a flat contiguous array by its sum over all ranks."""
    return run(comm, "all_reduce", flat, algorithm=algorithm, inplace=True)


@Collective
def all_reduce(comm: Communicator, x, algorithm: str = "ring"):
    """The sum of all ranks' x, on every rank, as a new array; the same bits everywhere."""
    return run(comm, "all_reduce", x, algorithm=algorithm)


@Collective
def reduce_scatter_inplace(
    comm: Communicator, flat, counts: Sequence[int] | None = None, algorithm: str = "ring"
):
    """Replace block r of a flat contiguous array on rank r by its sum over all ranks; what is left of the other
    blocks means nothing. Returns a view of the own block."""
    return run(comm, "reduce_scatter", flat, counts, algorithm=algorithm, inplace=True)


@Collective
def reduce_scatter(comm: Communicator, x, counts: Sequence[int] | None = None, algorithm: str = "ring"):
    """Block r of the sum of all ranks' x, on rank r, flat; ``counts`` are the block sizes (default: even)."""
    return run(comm, "reduce_scatter", x, counts, algorithm=algorithm)


@Collective
def all_gather_inplace(
    comm: Communicator, flat, counts: Sequence[int] | None = None, algorithm: str = "ring"
):
    """Fill a flat contiguous array, of which rank r has written block r, with the blocks of all ranks."""
    return run(comm, "all_gather", flat, counts, algorithm=algorithm, inplace=True)


@Collective
def all_gather(comm: Communicator, x, counts: Sequence[int] | None = None, algorithm: str = "ring"):
    """All ranks' x one after the other, on every rank, flat; ``counts`` are their sizes (default: alike)."""
    return run(comm, "all_gather", x, counts, algorithm=algorithm)


@Collective
def broadcast(comm: Communicator, x, root: int = 0, algorithm: str = "binomial", segments=None):
    """The root's x on every rank; on the others x gives shape and dtype only."""
    return run(comm, "broadcast", x, None, root, algorithm, segments=segments)


@Collective
def reduce(comm: Communicator, x, root: int = 0, algorithm: str = "binomial"):
    """The sum of all ranks' x on the root, None elsewhere."""
    return run(comm, "reduce", x, None, root, algorithm)


@Collective
def scatter(comm: Communicator, x, root: int = 0, counts: Sequence[int] | None = None):
    """Block r of the root's x on rank r, flat; on other ranks x gives the dtype only, counts are needed."""
    return run(comm, "scatter", x, counts, root)


@Collective
def gather(comm: Communicator, x, root: int = 0, counts: Sequence[int] | None = None):
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
    if p > 1:
        tag = comm.next_tag()
        if comm.debug:
            yield from headers.check(comm, "all_to_all", algorithm, x.dtype, counts, 0, tag)
        own = rounds("all_to_all", algorithm, p, me, counts)
        yield from _execute(comm, "all_to_all", algorithm, own, outbox, inbox, 0, tag)
    return inbox


# -- messages between some of the ranks


@Collective
def sendrecv(
    comm: Communicator,
    blocks: Mapping[int, Any],
    shapes: Mapping[int, Sequence[int]],
    dtype=None,
    tag: int | None = None,
    xp=np,
):
    """Send each peer its block and receive from each peer an array of the shape given, all at once.

    Parameters
    ----------
    blocks, shapes : mapping
        By the peer's rank; the blocks must not change until this is complete.
    dtype, xp : optional
        Of what is received; where something is sent, they are those of the blocks.
    tag : int, optional
        Pairs the two ends of a message (default: the tag of :meth:`.Communicator.start`, else 0).

    Returns
    -------
    dict
        What came, by the peer's rank.
    """
    running = comm.engine.running
    tag = tag if tag is not None else running.tag or 0
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
    yield from _execute(comm, "send", "direct", own, outbox, inbox, 0, tag)
    return {
        peer: inbox[into[i] : into[i + 1]].reshape(shape) for i, (peer, shape) in enumerate(shapes.items())
    }


@Collective
def send(comm: Communicator, x, dest: int, tag: int | None = None):
    """Send x to one rank, which receives it; x must not change until this is complete."""
    yield from sendrecv.steps(comm, {dest: x}, {}, tag=tag)


@Collective
def recv(comm: Communicator, shape, dtype, source: int, tag: int | None = None, xp=np):
    """Receive an array of the given shape and dtype from one rank."""
    got = yield from sendrecv.steps(comm, {}, {source: shape}, dtype, tag, xp)
    return got[source]
