"""The collectives that a rank has in flight.

A collective is a generator that posts messages, yields their requests, and goes on when those are complete;
its return value is the result.  So any number of collectives can be in flight at once:
:meth:`.Communicator.start` begins one, :meth:`.Communicator.progress` moves on all whose messages have
arrived, and ``pending.wait()`` sees one to its end (moving on the others meanwhile, since the ranks it
waits for may be waiting for those).  Each collective takes its tag from the communicator's sequence
counter.  Every rank starts the same collectives in the same order, so the tags agree without a word being
sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .ledger import Ledger


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

    __slots__ = ("algorithm", "count", "index", "labels", "op", "record")

    def __init__(self, op, algorithm, labels, index=1, count=1):
        self.op, self.algorithm, self.labels, self.index, self.count = op, algorithm, labels, index, count
        self.record = None  # of a single message in a trace, to be completed when it has arrived

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
        self.stalled = False  # no rank has given a sign of life for too long; the guard's, too
        self.debug = False
        self.groups: list = []  # what a transport wants to know of this rank's groups
        self.pending: list[Pending] = []
        self.scratch: dict = {}
        self.link = None  # what minidnn.comm.tuning measured, for "auto"
        self.departed: set[int] = set()  # world ranks known to have finished
        self.find_departed: Callable[[], None] = lambda: None  # brings that up to date; the guard's

    def start(self, comm, generator) -> Pending:
        pending = Pending(self, comm, generator)
        if not self.pending:
            self.ledger.flying(True)
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
        if not self.pending:
            self.ledger.flying(False)

    def progress(self) -> None:
        """Move on every collective whose messages have arrived; never waits."""
        for pending in self.pending.copy():
            while not pending.done and pending.comm._test(pending.requests):
                self._advance(pending)

    def finish(self, pending) -> None:
        while not pending.done:
            before = self.ledger.state("wait", labels=pending.labels)
            try:
                if len(self.pending) == 1:
                    pending.comm._wait(pending.requests)
                    ready = (pending,)
                else:
                    flying = self.pending.copy()
                    ready = [flying[i] for i in pending.comm._wait_any([each.requests for each in flying])]
            finally:
                self.ledger.restore(before)
            for each in ready:
                if not each.done:
                    self._advance(each)
