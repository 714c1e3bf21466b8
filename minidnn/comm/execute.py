"""Executing the rounds of a collective: posting, counting, recording, adding up."""

from __future__ import annotations

from collections.abc import Generator

from minidnn.backend import array_module

from .algorithms import Rounds
from .closed_forms import closed_form
from .communicator import Communicator, Note
from .ledger import DONE


def execute(comm: Communicator, op: str, algorithm: str, own: Rounds, outbox, inbox, base, tag):
    """Send and receive one rank's rounds: sends read ``outbox``, receives write (or are added to) ``inbox``.

    Both are flat arrays whose entry 0 is element ``base`` of the collective's buffer; for most collectives
    they are one and the same.
    """
    ledger, labels = comm.ledger, comm.ledger.labels
    xp, cell = array_module(inbox), ledger.cell(op, labels)
    need = max((sum(m.elements for m in moves if m.reduce) for moves in own), default=0)
    scratch = _borrow(comm, xp, inbox.dtype, need)
    for index, moves in enumerate(own, 1):
        if not moves:
            continue
        note = Note(op, algorithm, labels, index, len(own))
        requests, additions, records, used = [], [], [], 0
        for move in moves:
            span = slice(move.start - base, move.stop - base)
            if move.kind == "send":
                block, post, column = outbox[span], comm.post_send, 0
            else:
                post, column = comm.post_recv, 2
                if move.reduce:
                    block = scratch[used : used + move.elements]
                    used += move.elements
                    additions.append((inbox[span], block))
                else:
                    block = inbox[span]
            if ledger.tracing:  # before it is posted: no message may seem to arrive before it was sent
                records.append(comm.record(move.kind, note, move.peer, tag, block, (move.start, move.stop)))
            request = post(block, move.peer, tag)
            request.note = note
            requests.append(request)
            cell[column] += 1
            cell[column + 1] += block.nbytes
        yield requests
        for record in records:
            record[DONE] = ledger.clock()
        for target, block in additions:
            xp.add(target, block, out=target)
    _give_back(comm, xp, scratch)


def _borrow(comm, xp, dtype, n):
    """Scratch of at least n elements, kept between collectives: fresh pages cost as much as the sum."""
    kept = comm.engine.scratch.setdefault((xp.__name__, dtype), [])
    for i, array in enumerate(kept):
        if array.size >= n:
            return kept.pop(i)
    if kept:  # outgrown
        kept.pop()
    return xp.empty(n, dtype)


def _give_back(comm, xp, scratch):
    comm.engine.scratch[xp.__name__, scratch.dtype].append(scratch)


def library_all_reduce(comm: Communicator, flat, tag: int) -> Generator:
    """The steps of the transport's own all_reduce, counted and recorded.

    What the library sends cannot be seen: it appears as one message to the right neighbour, of the bytes
    that the ring would send, which is the least that any algorithm can.  The transport's counters, which
    cannot see it either, are told the same.
    """
    ledger, labels = comm.ledger, comm.ledger.labels
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    sent, received = (
        closed_form("all_reduce", "mpi", comm.size, rank, flat.size).elements * flat.itemsize
        for rank in (comm.rank, left)
    )
    records = []
    if flat.size:
        comm.traffic.count(1, sent, 1, received)
        cell = ledger.cell("all_reduce", labels)
        cell[:] = [old + new for old, new in zip(cell, (1, sent, 1, received), strict=True)]
    if ledger.tracing and flat.size:
        me = comm.ranks[comm.rank]
        for side, ends, size in (
            ("send", (me, comm.ranks[right]), sent),
            ("recv", (comm.ranks[left], me), received),
        ):
            details = *ends, tag, size, flat.dtype.name, (0, flat.size)
            records.append(ledger.message(side, labels, ("all_reduce", "mpi", 1, 1), comm.ranks, *details))
    yield from comm.library_all_reduce(flat)
    for record in records:
        record[DONE] = ledger.clock()
