"""What a rank sees of the others: sending, receiving, and collectives in flight.

A transport (:mod:`.threads`, :mod:`.mpi`) writes ``_isend``, ``_irecv``, ``wait``, ``test``, ``wait_any``,
``_part`` and ``abort``; everything else is here and in :mod:`.collectives`, once for all.

A collective is a generator that posts messages, yields their requests, and goes on when those are complete;
its return value is the result.  So any number of collectives can be in flight at once:
:meth:`Communicator.start` begins one, :meth:`Communicator.progress` moves on all whose messages have
arrived, and ``pending.wait()`` sees one to its end (moving on the others meanwhile, since the ranks it
waits for may be waiting for those).  Each collective takes its tag from the communicator's sequence
counter.  Every rank starts the same collectives in the same order, so the tags agree without a word being
sent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from minidnn.errors import InputError

from .ledger import Ledger

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


class Traffic:
    """What went through the transport, counted there: the tests compare the ledger with it."""

    __slots__ = ("control", "received_bytes", "received_messages", "sent_bytes", "sent_messages")

    def __init__(self):
        self.sent_messages = self.sent_bytes = self.received_messages = self.received_bytes = 0
        self.control = 0  # messages of the machinery itself

    def count(self, sent_messages, sent_bytes, received_messages, received_bytes) -> None:
        self.sent_messages += sent_messages
        self.sent_bytes += sent_bytes
        self.received_messages += received_messages
        self.received_bytes += received_bytes

    def totals(self) -> tuple[int, int, int, int]:
        """Messages sent, bytes sent, messages received, bytes received."""
        return self.sent_messages, self.sent_bytes, self.received_messages, self.received_bytes


class Note:
    """What a message is part of, to be put into words only when something has gone wrong."""

    __slots__ = ("algorithm", "count", "index", "labels", "op")

    def __init__(self, op, algorithm, labels, index=1, count=1):
        self.op, self.algorithm, self.labels, self.index, self.count = op, algorithm, labels, index, count

    def __str__(self):
        parts = [f"{self.op} {self.algorithm} round {self.index}/{self.count}"]
        labels = self.labels._asdict().items()
        parts += [f"{name} {value}" for name, value in labels if value not in ("", None)]
        return ", ".join(parts)


class Pending:
    """A collective in flight."""

    __slots__ = ("_engine", "_generator", "comm", "done", "labels", "requests", "result")

    def __init__(self, engine, comm, generator):
        self._engine, self._generator, self.comm = engine, generator, comm
        self.labels = comm.ledger.labels
        self.requests: Sequence = ()
        self.done, self.result = False, None

    def test(self) -> bool:
        """Move on what can be moved on, and say whether this one is complete."""
        if not self.done:
            self._engine.progress()
        return self.done

    def wait(self) -> Any:
        """See it to its end and return its result."""
        if not self.done:
            self._engine.finish(self)
        return self.result


class Engine:
    """The collectives that one rank has in flight, over all its communicators."""

    def __init__(self):
        self.ledger, self.traffic = Ledger(), Traffic()
        self.alive: Callable[[], None] = lambda: None  # a guard that watches for stalls puts its own here
        self.debug = False
        self.pending: list[Pending] = []
        self.scratch: dict = {}
        self.link = None  # what minidnn.comm.tuning measured, for "auto"
        self.departed: set[int] = set()  # world ranks known to have finished
        self.find_departed: Callable[[], None] = lambda: None  # brings that up to date; the guard's

    def start(self, comm, generator) -> Pending:
        pending = Pending(self, comm, generator)
        self.pending.append(pending)
        self._advance(pending)
        return pending

    def _advance(self, pending) -> None:
        """Run the generator to its next yield; its own labels apply, and its time counts as communication."""
        ledger = self.ledger
        labels, ledger.labels = ledger.labels, pending.labels
        before = ledger.state("comm", labels=pending.labels)
        try:
            pending.requests = next(pending._generator)
        except StopIteration as stop:
            self._end(pending)
            pending.result = stop.value
        except BaseException:
            self._end(pending)
            raise
        finally:
            ledger.restore(before)
            ledger.labels = labels

    def _end(self, pending):
        pending.done, pending.requests = True, ()
        self.pending.remove(pending)

    def progress(self) -> None:
        """Move on every collective whose messages have arrived; never waits."""
        for pending in self.pending.copy():
            while not pending.done and pending.comm.test(pending.requests):
                self._advance(pending)

    def finish(self, pending) -> None:
        while not pending.done:
            before = self.ledger.state("wait", labels=pending.labels)
            try:
                if len(self.pending) == 1:
                    pending.comm.wait(pending.requests)
                    ready = (pending,)
                else:
                    flying = self.pending.copy()
                    ready = [flying[i] for i in pending.comm.wait_any([each.requests for each in flying])]
            finally:
                self.ledger.restore(before)
            for each in ready:
                if not each.done:
                    self._advance(each)


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
        """Begin to send a contiguous array; it must not change until the request is complete."""
        traffic = self.engine.traffic
        if tag < CONTROL:
            traffic.sent_messages += 1
            traffic.sent_bytes += array.nbytes
        else:
            traffic.control += 1
        return self._isend(array, dest, tag)

    def irecv(self, array, source: int, tag: int = 0):
        """Begin to receive into a contiguous array of the size and dtype that are sent."""
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
    def wait(self, requests: Sequence) -> None:
        """Return when all requests are complete."""

    @abstractmethod
    def wait_any(self, groups: Sequence[Sequence]) -> list[int]:
        """Return when all requests of at least one group are complete, with the indices of such groups."""

    @abstractmethod
    def test(self, requests: Sequence) -> bool:
        """Whether all requests are complete; never waits."""

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

    def exchange(self, values, tag: int = EXCHANGE) -> np.ndarray:
        """Every member's array of the same shape and dtype, stacked in order of rank."""
        return self.start(self.exchanging(values, tag)).wait()

    def exchanging(self, values, tag: int = EXCHANGE, note: Note | None = None) -> Generator:
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
        self.exchange(np.zeros(1, np.int8))

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        """Communicators of the members of equal colour, in order of key, then rank; None for colour None."""
        wish = [-1 if color is None else int(color), int(key)]
        table = self.exchange(np.array(wish, np.int64))
        self.sequence += 1
        if color is None:
            return self._part(None, (), self.sequence)
        chosen = [r for r in range(self.size) if table[r, 0] == color]
        chosen.sort(key=lambda r: (table[r, 1], r))
        return self._part(int(color), tuple(chosen), self.sequence)

    @abstractmethod
    def _part(self, color, members, sequence):
        """The communicator of the given members, which share a colour; None where colour is None."""
