"""Executing a collective by its rounds: header check, posting, counting, adding up."""

from __future__ import annotations

from collections.abc import Generator

from minidnn.backend import array_module

from . import headers
from .algorithms import LIBRARY, Rounds, rounds
from .communicator import Communicator, Note


def collective(comm: Communicator, op, algorithm, counts, outbox, inbox, base=0, root=0) -> Generator:
    """The steps of one collective whose rounds are looked up; the buffers are those of :func:`execute`."""
    # The tag first: collectives start in one order on all ranks, but their headers may not end in that order.
    tag = comm.next_tag()
    if comm.debug:
        check = headers.check(comm, op, algorithm, outbox.dtype, counts, root, tag)
        if algorithm == LIBRARY:  # at once: the library pairs its calls by their order
            for requests in check:
                comm.wait(requests)
        else:
            yield from check
    own = rounds(op, algorithm, comm.size, comm.rank, counts, root, nodes=comm.nodes)
    if algorithm == LIBRARY and own:
        yield from _library(comm, own, inbox, tag)
    else:
        yield from execute(comm, op, algorithm, own, outbox, inbox, base, tag)


def execute(comm: Communicator, op, algorithm, own: Rounds, outbox, inbox, base, tag) -> Generator:
    """Send and receive one rank's rounds: sends read ``outbox``, receives write (or are added to) ``inbox``.

    Both are flat arrays whose entry 0 is element ``base`` of the collective's buffer; for most collectives
    they are one and the same.
    """
    ledger, xp, labels, cell = comm.ledger, array_module(inbox), comm.ledger.labels, comm.ledger.cell(op)
    # kept between collectives: fresh pages cost as much as the sum
    scratch = comm.engine.scratch.setdefault((xp.__name__, inbox.dtype), [])
    for index, moves in enumerate(own, 1):
        if not moves:
            continue
        note = Note(op, algorithm, labels, index, len(own), cell, ledger.tracing)
        requests, additions = [], []
        for move in moves:
            start, stop = move.start, move.stop
            block = (outbox if move.kind == "send" else inbox)[start - base : stop - base]
            if move.reduce:
                additions.append((block, _borrow(scratch, xp, inbox.dtype, block.size)))
                block = additions[-1][1][: block.size]
            requests.append(comm.post(move.kind, block, move.peer, tag, note, (start, stop)))
        yield requests
        comm.arrived(note)
        for target, block in additions:
            xp.add(target, block[: target.size], out=target)
            scratch.append(block)


def _borrow(kept, xp, dtype, n):
    """An array of at least n elements."""
    for i, array in enumerate(kept):
        if array.size >= n:
            return kept.pop(i)
    if kept:  # outgrown
        kept.pop()
    return xp.empty(n, dtype)


def _library(comm, own: Rounds, flat, tag) -> Generator:
    """The steps of the transport's own all_reduce, counted and recorded as its pattern says."""
    ledger = comm.ledger
    note = Note("all_reduce", LIBRARY, ledger.labels, cell=ledger.cell("all_reduce"), tracing=ledger.tracing)
    for move in (move for moves in own for move in moves):
        nbytes = move.elements * flat.itemsize
        note.count(move.kind, nbytes)
        if ledger.tracing:
            comm.record(move.kind, move.peer, tag, note, nbytes, flat.dtype, (0, flat.size))
    yield from comm.library_all_reduce(flat)
    comm.arrived(note)
