"""What a rank sees of the others: sending, receiving, groups.

A transport (:mod:`.threads`, :mod:`.mpi`) writes ``_isend``, ``_irecv``, ``_wait``, ``_test``, ``_wait_any``,
``_part`` and ``abort``; everything else is here, in :mod:`.engine` and in :mod:`.collectives`, once for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence

import numpy as np

from minidnn.errors import InputError

from .checks import check_message, check_requests
from .engine import Engine, Note, Pending, Traffic
from .ledger import DONE, Ledger

# Tags: the user's own messages, collectives, and control (headers, splits, clocks), which no ledger counts.
# MPI guarantees tags up to 32,767.
USER_TAGS, COLLECTIVE_TAGS, CONTROL = 10_000, 20_000, 20_000
EXCHANGE, HEADER, PING, MESSAGE_HEADERS = CONTROL, CONTROL + 1, CONTROL + 2, CONTROL + 3


class CommunicationError(RuntimeError):
    """Something went wrong between ranks."""


class ProtocolError(CommunicationError):
    """The ranks do not agree on what is being communicated."""


class DeadlockError(CommunicationError):
    """All ranks that have not finished wait for one another."""


class StallError(CommunicationError):
    """A rank has waited for longer than its guard allows; each rank says for what."""


class Communicator(ABC):
    """A group of ranks that can send to one another.

    Attributes
    ----------
    rank, size : int
        This rank's place in the group, and the size of the group.
    ranks : tuple of int
        The world rank of each member.
    nodes : tuple of int
        The node (host) of each member.
    ledger : Ledger
        Shared with the communicators split from this one, as ``traffic`` and ``debug`` are.
    traffic : Traffic
        Counted by the transport.
    debug : bool
        Compare a header before every collective and message (:mod:`.headers`).
    """

    def __init__(self, rank: int, ranks: Sequence[int], nodes: Sequence[int], engine: Engine | None = None):
        self.rank, self.size = rank, len(ranks)
        self.ranks, self.nodes = tuple(ranks), tuple(nodes)
        self.engine = Engine() if engine is None else engine
        self.sequence = 0

    @property
    def ledger(self) -> Ledger:
        return self.engine.ledger

    @ledger.setter
    def ledger(self, ledger: Ledger) -> None:
        self.engine.ledger = ledger

    @property
    def traffic(self) -> Traffic:
        return self.engine.traffic

    @property
    def debug(self) -> bool:
        return self.engine.debug

    @debug.setter
    def debug(self, debug: bool) -> None:
        self.engine.debug = debug

    # -- messages ----------------------------------------------------------------------------------------

    def isend(self, array, dest: int, tag: int = 0):
        """Begin to send a contiguous array; it must not change until the request is complete.

        Returns a request for :meth:`wait` and :meth:`test`.  ``tag`` is in 0 ... 9,999.  In the ledger and in a
        trace the message is a "send", as that of :func:`.collectives.send` is.

        Raises
        ------
        TypeError, ValueError
            No array, one that is not contiguous, a rank that does not exist, or a tag out of range.
        """
        return self._single("send", array, dest, tag)

    def irecv(self, array, source: int, tag: int = 0):
        """Begin to receive into a contiguous array of the size and dtype that are sent; as :meth:`isend`."""
        return self._single("recv", array, source, tag)

    def wait(self, requests: Sequence) -> None:
        """Return when all requests are complete."""
        check_requests("wait", requests)
        before = self.ledger.state("wait")
        try:
            self._wait(requests)
        finally:
            self.ledger.restore(before)
        self._complete(requests)

    def test(self, requests: Sequence) -> bool:
        """Whether all requests are complete; never waits."""
        check_requests("test", requests)
        done = self._test(requests)
        if done:
            self._complete(requests)
        return done

    def _single(self, side, array, peer, tag):
        """Post one message that is no part of a collective; count and record it, unless it is control."""
        post = self.post_send if side == "send" else self.post_recv
        if tag >= CONTROL:
            request = post(array, peer, tag)
            request.note = Note("control", "direct", self.ledger.labels)
            return request
        check_message(f"i{side}", array, peer, self.size, tag, USER_TAGS)
        ledger, block = self.ledger, array.reshape(-1)
        note = Note("send", "direct", ledger.labels)
        if ledger.tracing:
            note.record = self.record(side, note, peer, tag, block, (0, block.size))
        before = ledger.state("comm")
        try:
            request = post(block, peer, tag)
        finally:
            ledger.restore(before)
        request.note = note
        cell, column = ledger.cell("send"), 0 if side == "send" else 2
        cell[column] += 1
        cell[column + 1] += block.nbytes
        return request

    def _complete(self, requests):
        if self.ledger.tracing:
            for request in requests:
                record = request.note and request.note.record
                if record and record[DONE] is None:
                    record[DONE] = self.ledger.clock()

    def record(self, side: str, note: Note, peer: int, tag: int, block, span: tuple[int, int]) -> list:
        """Record this rank's end of a message in the trace; ``span`` is what it carries of a flat buffer."""
        ends, difference = (self.ranks[self.rank], self.ranks[peer]), None
        source, dest = ends if side == "send" else ends[::-1]
        how = note.op, note.algorithm, note.index, note.count
        if side == "send" and self.ledger.reference is not None:
            difference = self.ledger.reference(self, note, tag, block, span)
        details = source, dest, tag, block.nbytes, block.dtype.name, span, difference
        return self.ledger.message(side, note.labels, how, self.ranks, *details)

    def post_send(self, array, dest: int, tag: int):
        """Send a flat array that :mod:`.execute` counts in the ledger, or that is control."""
        traffic = self.engine.traffic
        if tag < CONTROL:
            traffic.sent_messages += 1
            traffic.sent_bytes += array.nbytes
        else:
            traffic.control += 1
        return self._isend(array, dest, tag)

    def post_recv(self, array, source: int, tag: int):
        """Receive what :meth:`post_send` sends."""
        traffic = self.engine.traffic
        if tag < CONTROL:
            traffic.received_messages += 1
            traffic.received_bytes += array.nbytes
        return self._irecv(array, source, tag)

    @abstractmethod
    def _isend(self, array, dest, tag):
        """What :meth:`isend` does, in this transport."""

    @abstractmethod
    def _irecv(self, array, source, tag):
        """What :meth:`irecv` does, in this transport."""

    @abstractmethod
    def _wait(self, requests: Sequence) -> None:
        """What :meth:`wait` does, in this transport."""

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

    # -- collectives in flight ---------------------------------------------------------------------------

    def start(self, generator: Generator) -> Pending:
        """Begin a collective (:mod:`.collectives`, the ``steps`` of a function) and come back at once."""
        return self.engine.start(self, generator)

    def alive(self) -> None:
        """Tell the guard that watches for stalls, if there is one, that this rank goes on."""
        self.engine.alive()

    def progress(self) -> None:
        """Move on all collectives of this rank whose messages have arrived; never waits."""
        self.engine.progress()

    def next_tag(self) -> int:
        """The tag of the next collective; the same on all members, as they start the same ones in order."""
        self.sequence += 1
        return USER_TAGS + self.sequence % (COLLECTIVE_TAGS - USER_TAGS)

    # -- control: small messages of the machinery itself, in no ledger ---------------------------------------

    def exchange(self, values, tag: int = EXCHANGE, op: str = "exchange") -> np.ndarray:
        """Every member's array of the same shape and dtype, stacked in order of rank."""
        return self.start(self.exchanging(values, tag, Note(op, "direct", self.ledger.labels))).wait()

    def exchanging(self, values, tag: int, note: Note) -> Generator:
        """The steps of :meth:`exchange`."""
        own = np.ascontiguousarray(values)
        everyone = np.empty((self.size, *own.shape), own.dtype)
        everyone[self.rank] = own
        others = [(self.rank + k) % self.size for k in range(1, self.size)]
        requests = [self.irecv(everyone[r].reshape(-1), r, tag) for r in others]
        requests += [self.isend(own.reshape(-1), r, tag) for r in others]
        for request in requests:
            request.note = note
        yield requests
        return everyone

    def barrier(self) -> None:
        """Return when every member has come here."""
        self.exchange(np.zeros(1, np.int8), op="barrier")

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        """Communicators of the members of equal colour, in order of key, then rank; None for colour None."""
        wish = [-1 if color is None else int(color), int(key)]
        table = self.exchange(np.array(wish, np.int64), op="split")
        self.sequence += 1
        if color is None:
            return self._part(None, (), self.sequence)
        chosen = [r for r in range(self.size) if table[r, 0] == color]
        chosen.sort(key=lambda r: (table[r, 1], r))
        return self._part(int(color), tuple(chosen), self.sequence)

    @abstractmethod
    def _part(self, color, members, sequence):
        """The communicator of the given members, which share a colour; None where colour is None."""
