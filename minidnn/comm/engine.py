"""The collectives that a rank has in flight.

A collective is a generator that posts messages, yields their requests, and goes on when those are complete;
its return value is the result.  So any number of collectives can be in flight at once:
:meth:`.Communicator.start` begins one, :meth:`.Communicator.progress` moves on all whose messages have
arrived, and ``pending.wait()`` sees one to its end (moving on the others meanwhile, since the ranks it
waits for may be waiting for those).  Waiting for single messages is the same: a collective of one round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .ledger import Ledger


class Note:
    """What a message is part of: for error messages, and for the ledger.

    ``cell`` are the ledger's counters, ``records`` those of its messages in a trace that are not complete.
    """

    __slots__ = ("algorithm", "cell", "index", "labels", "op", "records", "rounds")

    def __init__(self, op, algorithm, labels, index=1, rounds=1, cell=None, tracing=False):
        self.op, self.algorithm, self.labels, self.index, self.rounds = op, algorithm, labels, index, rounds
        self.cell, self.records = cell, [] if tracing else ()

    def count(self, side: str, nbytes: int) -> None:
        """One message, in the ledger."""
        column = 0 if side == "send" else 2
        self.cell[column] += 1
        self.cell[column + 1] += nbytes

    def __str__(self):
        parts = [f"{self.op} {self.algorithm} round {self.index}/{self.rounds}"]
        labels = self.labels._asdict().items()
        return ", ".join(parts + [f"{name} {value}" for name, value in labels if value not in ("", None)])


class Pending:
    """A collective in flight.

    ``tag`` names it, where not the order of starting does; ``requests`` is what it waits for, None while it runs.
    """

    __slots__ = "_engine _generator _running _waiting comm done error labels requests result tag".split()

    def __init__(self, engine, comm, generator, tag):
        ledger = engine.ledger
        self._engine, self._generator, self.comm, self.tag = engine, generator, comm, tag
        self.labels = ledger.labels
        self._running, self._waiting = ledger.place("comm", self.labels), ledger.place("wait", self.labels)
        self.requests: Sequence | None = None
        self.done, self.result, self.error = False, None, None

    def test(self) -> bool:
        """Move on what can be moved on, and say whether this one is complete."""
        if not self.done:
            self._engine.progress()
        return self.done

    def wait(self) -> Any:
        """See it to its end and return its result, or raise what it failed with."""
        if not self.done:
            self._engine.finish(self)
        if self.error is not None:
            raise self.error
        return self.result


class Engine:
    """The collectives that one rank has in flight, over all its communicators."""

    def __init__(self):
        self.ledger, self.debug = Ledger(), False
        self.alive: Callable[[], None] = lambda: None  # a guard that watches for stalls puts its own here
        self.stalled = False  # no rank has given a sign of life for too long; the guard's, too
        self.groups: list = []  # what a transport wants to know of this rank's groups
        self.pending: list[Pending] = []
        self.running: Pending | None = None  # whose generator runs at the moment
        self.scratch: dict = {}
        self.link = None  # what minidnn.comm.tuning measured, for "auto"
        self.departed: set[int] = set()  # world ranks known to have finished
        self.find_departed: Callable[[], None] = lambda: None  # brings that up to date; the guard's

    def start(self, comm, generator, tag=None) -> Pending:
        pending = Pending(self, comm, generator, tag)
        if not self.pending:
            self.ledger.flying(True)
        self.pending.append(pending)
        self._advance(pending)
        return pending

    def _advance(self, pending) -> None:
        """Run the generator to its next yield; its own labels apply, and its time counts as communication."""
        ledger = self.ledger
        outside = ledger.labels, self.running
        ledger.labels, self.running, pending.requests = pending.labels, pending, None
        before = ledger.restore(pending._running)
        try:
            pending.requests = next(pending._generator)
        except StopIteration as stop:
            pending.result = stop.value
            self.end(pending)
        except BaseException as error:
            pending.error = error
            self.end(pending)
            raise
        finally:
            ledger.restore(before)
            ledger.labels, self.running = outside

    def end(self, pending) -> None:
        """It is complete, or given up."""
        pending.done = True
        self.pending.remove(pending)
        if not self.pending:
            self.ledger.flying(False)

    def progress(self) -> None:
        """Move on every collective whose messages have arrived; never waits."""
        for pending in self.pending.copy():
            while pending.requests is not None and pending.comm._test(pending.requests):
                self._advance(pending)

    def finish(self, pending) -> None:
        """Wait until a collective is complete; meanwhile all others move on."""
        while not pending.done:
            flying = [each for each in self.pending if each.requests is not None]
            before = self.ledger.restore(pending._waiting)
            try:
                ready = pending.comm._wait_any([each.requests for each in flying])
            finally:
                self.ledger.restore(before)
            for each in [flying[i] for i in ready]:
                if each.requests is not None:
                    self._advance(each)
