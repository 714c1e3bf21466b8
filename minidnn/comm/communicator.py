"""What a rank sees of the others: sending, receiving, groups.

A transport (:mod:`.threads`, :mod:`.mpi`) writes ``_isend``, ``_irecv``, ``_test``, ``_wait_any``, ``_part``
and ``abort``; everything else is here, in :mod:`.engine` and in :mod:`.collectives`, once for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from operator import attrgetter
from reprlib import repr as short
from typing import Any

import numpy as np

from minidnn.backend import is_array
from minidnn.errors import InputError
from minidnn.tensor import Tensor

from .engine import Engine, Note, Pending
from .ledger import DONE

# Tags: SPACE of them each for single messages, collectives that a plan names, collectives in the order of starting, and
# control (splits, clocks, weights), which no ledger counts; + HEADERS for what the debug check sends ahead of them.
SPACE = 1 << 16
NAMED, SEQUENCE, CONTROL, HEADERS = SPACE, 2 * SPACE, 3 * SPACE, 4 * SPACE
EXCHANGE, PING, STATE = CONTROL, CONTROL + 1, CONTROL + 2
LAST_TAG = HEADERS + CONTROL - 1


class CommunicationError(RuntimeError):
    """Something went wrong between ranks."""


class ProtocolError(CommunicationError):
    """The ranks do not agree on what is being communicated."""


class DeadlockError(CommunicationError):
    """All ranks that have not finished wait for one another."""


class StallError(CommunicationError):
    """A rank has waited for longer than its guard allows; each rank says for what."""


class Communicator(ABC):
    """A group of ranks that can send to one another; this one is ``rank`` of ``size``.

    Attributes
    ----------
    ranks, nodes : tuple of int
        The world rank and the node (host) of each member.
    ledger : Ledger
        Shared with the communicators split from this one, as ``debug`` is.
    debug : bool
        Compare a header before every collective and message (:mod:`.headers`).
    """

    ledger = property(
        attrgetter("engine.ledger"), lambda self, ledger: setattr(self.engine, "ledger", ledger)
    )
    debug = property(attrgetter("engine.debug"), lambda self, debug: setattr(self.engine, "debug", debug))

    def __init__(self, rank: int, ranks: Sequence[int], nodes: Sequence[int], engine: Engine | None = None):
        self.rank, self.size = rank, len(ranks)
        self.ranks, self.nodes = tuple(ranks), tuple(nodes)
        self.engine = Engine() if engine is None else engine
        self.sequence = 0

    def isend(self, array, dest: int, tag: int = 0):
        """Begin to send a contiguous array; it must not change until the request is complete.

        Returns a request for :meth:`wait` and :meth:`test`.  ``tag`` is in 0 ... 65,535.  In the ledger and in a
        trace the message is a "send", as that of :func:`.collectives.send` is.  TypeError or ValueError where
        array, rank or tag cannot be used.
        """
        return self._single("send", array, dest, tag)

    def irecv(self, array, source: int, tag: int = 0):
        """Begin to receive into a contiguous array of the size and dtype that are sent; as :meth:`isend`."""
        return self._single("recv", array, source, tag)

    def wait(self, requests: Sequence) -> None:
        """Return when all requests are complete; meanwhile all collectives in flight move on."""
        check_requests("wait", requests)
        pending = self.start(iter((requests,)))
        try:
            pending.wait()
        finally:
            if not pending.done:  # failed: what comes later does not wait for these
                self.engine.end(pending)
        self._arrived(requests)

    def test(self, requests: Sequence) -> bool:
        """Whether all requests are complete; never waits."""
        check_requests("test", requests)
        if done := self._test(requests):
            self._arrived(requests)
        return done

    def _single(self, side, array, peer, tag):
        """Post one message that is no part of a collective; one of control is not counted."""
        if tag >= CONTROL:
            return self._begin(side, array, peer, tag, Note("control", "direct", self.ledger.labels))
        check_message(f"i{side}", array, peer, self.size, tag)
        ledger, block = self.ledger, array.reshape(-1)
        note = Note("send", "direct", ledger.labels, cell=ledger.cell("send"), tracing=ledger.tracing)
        before = ledger.state("comm")
        try:
            return self.post(side, block, peer, tag, note, (0, block.size))
        finally:
            ledger.restore(before)

    def _arrived(self, requests):
        for note in {request.note for request in requests if request.note}:
            self.arrived(note)

    def post(self, side: str, block, peer: int, tag: int, note: Note, span: tuple[int, int]):
        """Post a flat block, count and, while tracing, record it; ``span`` is what it carries of a flat buffer."""
        if self.ledger.tracing:  # before it is posted: no message may seem to arrive before it was sent
            self.record(side, peer, tag, note, block.nbytes, block.dtype, span, block)
        note.count(side, block.nbytes)
        return self._begin(side, block, peer, tag, note)

    def _begin(self, side, array, peer, tag, note):
        request = (self._isend if side == "send" else self._irecv)(array, peer, tag)
        request.note = note
        return request

    def record(self, side, peer, tag, note, nbytes, dtype, span, block=None) -> None:
        """Record this rank's end of a message in the trace."""
        ledger, ends, difference = self.ledger, (self.ranks[self.rank], self.ranks[peer]), None
        if side == "recv":
            ends = ends[::-1]
        elif ledger.reference is not None and block is not None:
            difference = ledger.reference(self, note, tag, block, span)
        how = note.op, note.algorithm, note.index, note.rounds
        details = *ends, tag, nbytes, dtype.name, span, difference
        note.records.append(ledger.message(side, note.labels, how, self.ranks, *details))

    def arrived(self, note: Note) -> None:
        """The messages of a note are complete: their records, too."""
        for record in note.records:
            record[DONE] = self.ledger.clock()
        note.records = ()

    @abstractmethod
    def _isend(self, array, dest, tag):
        """What :meth:`isend` does, in this transport; the request has a place for a ``note``."""

    @abstractmethod
    def _irecv(self, array, source, tag):
        """What :meth:`irecv` does, in this transport."""

    @abstractmethod
    def _wait_any(self, groups: Sequence[Sequence]) -> list[int]:
        """Return when all requests of at least one group are complete, with the indices of such groups."""

    @abstractmethod
    def _test(self, requests: Sequence) -> bool:
        """What :meth:`test` does, in this transport."""

    def library_all_reduce(self, flat) -> Generator:
        """The steps of the all_reduce that the transport brings itself, in place, where it has one."""
        raise InputError("--all-reduce mpi needs MPI: start the program with mpirun")

    @abstractmethod
    def abort(self, code: int = 1) -> None:
        """End all ranks."""

    def start(self, generator: Iterator, tag: int | None = None) -> Pending:
        """Begin a collective (:mod:`.collectives`, the ``steps`` of a function) and come back at once.

        Collectives are paired by their order: every member starts the same ones, one after the other.  With
        a ``tag``, of 0 ... 65,535, they are paired by that, whatever the order; two that are in flight at
        the same time need two.
        """
        if tag is not None and not 0 <= tag < SPACE:
            raise ValueError(f"start: tag {tag}, expected one of 0 ... {SPACE - 1}")
        return self.engine.start(self, generator, tag)

    def progress(self) -> None:
        """Move on all collectives of this rank whose messages have arrived; never waits."""
        self.engine.progress()

    def next_tag(self) -> int:
        """The tag of the collective that begins: its own, or the next; the same on all members."""
        running = self.engine.running
        if running is not None and running.tag is not None:
            return NAMED + running.tag
        self.sequence += 1
        return SEQUENCE + self.sequence % SPACE

    def exchange(self, values, tag: int = EXCHANGE, op: str = "exchange") -> np.ndarray:
        """Every member's array of the same shape and dtype, stacked in order of rank."""
        return self.start(self.exchanging(values, tag, Note(op, "direct", self.ledger.labels))).wait()

    def exchanging(self, values, tag: int, note: Note) -> Generator:
        """The steps of :meth:`exchange`."""
        own = np.ascontiguousarray(values)
        everyone = np.empty((self.size, *own.shape), own.dtype)
        everyone[self.rank] = own
        others = [(self.rank + k) % self.size for k in range(1, self.size)]
        requests = [self._begin("recv", everyone[r].reshape(-1), r, tag, note) for r in others]
        yield requests + [self._begin("send", own.reshape(-1), r, tag, note) for r in others]
        return everyone

    def exchange_texts(self, text: str) -> list[str]:
        """Every member's text, in order of rank."""
        raw = np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)
        lengths = self.exchange(np.array([raw.size]))[:, 0]
        padded = np.zeros(lengths.max(), np.uint8)
        padded[: raw.size] = raw
        rows = zip(self.exchange(padded), lengths, strict=True)
        return [bytes(row[:n]).decode(errors="surrogateescape") for row, n in rows]

    def barrier(self) -> None:
        """Return when every member has come here."""
        self.exchange(np.zeros(1, np.int8), op="barrier")

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        """Communicators of the members of equal colour, in order of key, then rank; None for colour None."""
        wish = [-1 if color is None else int(color), int(key)]
        table = self.exchange(np.array(wish, np.int64), op="split").tolist()
        self.sequence += 1
        if color is None:
            return self._part(None, (), self.sequence)
        chosen = sorted((own_key, r) for r, (own_color, own_key) in enumerate(table) if own_color == color)
        return self._part(int(color), tuple(r for _, r in chosen), self.sequence)

    @abstractmethod
    def _part(self, color, members, sequence):
        """The communicator of the given members, which share a colour; None where colour is None."""


# What callers hand over is checked in constant time before anything is sent: a mistake gives the same error on every
# transport, where MPI by itself would read what it cannot use in its own way, or end the process.


def check_array(what: str, x: Any) -> None:
    """Raise a TypeError unless x is a NumPy or CuPy array (or a NumPy number) of plain values."""
    if not isinstance(x, np.ndarray | np.generic) and not is_array(x):
        hint = f"np.asarray({short(x)})"
        if isinstance(x, Tensor):
            hint = "tensor.data, or minidnn.comm.functions, through which gradients flow"
        raise TypeError(f"{what}: expected an array, got {short(x)} ({type(x).__name__}); use {hint}")
    if x.dtype.hasobject:
        raise TypeError(f"{what}: expected an array of numbers, got dtype {x.dtype}")


def check_message(what: str, array: Any, peer: Any, size: int, tag: int) -> None:
    """Raise a TypeError or ValueError unless array, rank and tag are such as a message can have."""
    if isinstance(array, np.generic):
        kind = type(array).__name__
        raise TypeError(f"{what}: expected an array, got a number of type {kind}; use np.asarray")
    check_array(what, array)
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{what}: the array of shape {array.shape} and strides {array.strides} is not contiguous; "
            "use a contiguous one (np.ascontiguousarray makes a copy)"
        )
    if not (isinstance(peer, int | np.integer) and 0 <= peer < size):
        raise ValueError(f"{what}: rank {peer!r}, expected one of 0 ... {size - 1}")
    if not 0 <= tag < SPACE:
        expected = f"one of 0 ... {SPACE - 1} (higher ones are the collectives')"
        raise ValueError(f"{what}: tag {tag}, expected {expected}")


def check_requests(what: str, requests: Any) -> None:
    """Raise a TypeError unless this is a list (or another sequence) of requests."""
    if not isinstance(requests, Sequence):
        hint = f"write comm.{what}([request])"
        raise TypeError(f"{what}: expected a list of requests, got {short(requests)}; {hint}")
