"""The ledger: what a rank did and what it sent, always counted, and recorded in full when asked.

Counters are always on and cost about a microsecond a message: messages and bytes by (layer, phase,
operation), and seconds by (state, layer, phase).  A rank is in exactly one state at every moment, so the
seconds of all states add up to the time since the ledger was made.  With :meth:`Ledger.trace` on, every
message and every span of time also leaves a record; the records of the last N steps are kept in memory and
written by :func:`minidnn.comm.trace_files.write`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from math import isfinite
from time import perf_counter
from typing import NamedTuple

# A rank is in one of these states at every moment: "input", "compute", "comm", "wait", "other".


class Labels(NamedTuple):
    """What the program is doing at the moment, as it is written into every record."""

    step: int | None = None
    phase: str = ""
    layer: str = ""
    tensor: str = ""
    micro_batch: int | None = None
    cause: str = ""


#: The fields of a message record, in the order in which :meth:`Ledger.message` stores them.
MESSAGE_FIELDS = (
    *("kind", "side", *Labels._fields),
    *("op", "algorithm", "index", "count", "group", "source", "dest", "tag"),
    *("bytes", "dtype", "start", "stop", "posted", "done", "difference"),
)
SPAN_FIELDS = ("kind", "state", "layer", "phase", "micro_batch", "step", "begin", "end", "flops")
STEP_FIELDS = ("kind", "step", "begin", "end", "loss", "images")
DONE = MESSAGE_FIELDS.index("done")


class Scope:
    """Labels that hold inside a ``with``; written as a class, which costs less than a generator."""

    __slots__ = ("before", "labels", "ledger")

    def __init__(self, ledger, labels):
        self.ledger, self.labels = ledger, labels

    def __enter__(self):
        self.before = self.ledger.labels
        self.ledger.labels = self.before._replace(**self.labels)
        return self.ledger

    def __exit__(self, *error):
        self.ledger.labels = self.before


class Ledger:
    """Counters and, on demand, records of one rank.

    ``rank`` of ``size`` is its number in the world, as written into the trace; ``clock`` gives seconds, and a test or
    a simulator may bring its own.

    Attributes
    ----------
    traffic : dict
        ``traffic[layer, phase, op] = [messages sent, bytes sent, messages received, bytes received]``
    seconds : dict
        ``seconds[state, layer, phase]``, up to the last change of state (:meth:`times` is up to now).
    reference : callable or None
        ``(comm, note, tag, block, span) -> float | None``: while tracing, how far a block about to be sent is
        from what one process computes (:mod:`minidnn.train.reference`).
    """

    def __init__(self, rank: int = 0, size: int = 1, clock: Callable[[], float] = perf_counter):
        self.rank, self.size, self.clock = rank, size, clock
        self.labels = Labels()  # what applies now
        self.traffic: dict[tuple[str, str, str], list[int]] = {}
        self.seconds: dict[tuple[str, str, str], float] = {}
        self.tracing = False
        self.reference: Callable | None = None
        self.dropped_steps = 0
        self._kept: deque[list] = deque()
        self._records: list = []
        self._now = ("other", "", ""), (None, None)  # (state, layer, phase), (micro-batch, step)
        self._flops = 0
        self._since = self._step_begin = clock()
        self._flown, self._took_off = 0.0, None

    def scope(self, **labels) -> Scope:
        """``with ledger.scope(phase="backward", layer="fc6"):`` label what happens inside."""
        return Scope(self, labels)

    def place(self, state: str, labels: Labels, layer: str | None = None, phase: str | None = None) -> tuple:
        """A state under the given labels, for :meth:`restore`; ``layer`` and ``phase`` override the labels'."""
        key = state, labels.layer if layer is None else layer, labels.phase if phase is None else phase
        return key, (labels.micro_batch, labels.step)

    def state(self, state: str, layer: str | None = None, phase: str | None = None, flops: int = 0) -> tuple:
        """Leave the present state and enter another, under the present labels.

        ``flops`` is what the new span will compute.  Returns the state left, for :meth:`restore`.
        """
        return self.restore(self.place(state, self.labels, layer, phase), flops)

    def restore(self, place: tuple, flops: int = 0) -> tuple:
        """Enter a state that :meth:`state` or :meth:`place` returned; returns the one left."""
        now, old, since = self.clock(), self._now, self._since
        seconds, key = self.seconds, old[0]
        seconds[key] = seconds.get(key, 0.0) + (now - since)
        if self.tracing:
            self._records.append(("span", *key, *old[1], since, now, self._flops))
        self._now, self._since, self._flops = place, now, flops
        return old

    @contextmanager
    def during(self, state: str, layer: str | None = None, phase: str | None = None, flops: int = 0):
        """``with ledger.during("input"):`` a state for a while, then the one before."""
        before = self.state(state, layer, phase, flops)
        try:
            yield self
        finally:
            self.restore(before)

    def times(self) -> dict[tuple[str, str, str], float]:
        """Seconds by (state, layer, phase), up to now; their sum is the time since the ledger was made."""
        self.restore(self._now)
        return dict(self.seconds)

    def flying(self, any_collective: bool) -> None:
        """The first collective begins, or the last one under way has ended."""
        self._flown, self._took_off = self.in_flight, self.clock() if any_collective else None

    @property
    def in_flight(self) -> float:
        """Seconds in which a collective was under way, up to now: from its start until this rank noticed its end.

        Less those of communicating and waiting, it is the time hidden behind other work.
        """
        return self._flown + (0.0 if self._took_off is None else self.clock() - self._took_off)

    def cell(self, op: str) -> list[int]:
        """The counters of an operation under the present labels, to add to."""
        return self.traffic.setdefault((self.labels.layer, self.labels.phase, op), [0, 0, 0, 0])

    def message(self, side, labels, how, group, source, dest, tag, nbytes, dtype, span, difference) -> list:
        """Record one end of one message (only while tracing): a list, whose ``DONE`` is for the caller to fill in.

        ``how`` is (op, algorithm, round, of how many rounds); ``span`` is the element slice (start, stop).
        """
        record = ["message", side, *labels, *how, group, source, dest, tag, nbytes, dtype, *span]
        record += [self.clock(), None, difference]
        self._records.append(record)
        return record

    def totals(self) -> tuple[int, int, int, int]:
        """Messages sent, bytes sent, messages received, bytes received, since the ledger was made."""
        cells = self.traffic.values()
        return tuple(sum(column) for column in zip(*cells, strict=True)) if cells else (0, 0, 0, 0)

    def trace(self, last_steps: int | None = None) -> None:
        """Keep records from now on, those of the last ``last_steps`` steps (None: of all)."""
        self.times()
        self.tracing = True
        self._kept = deque(self._kept, maxlen=last_steps)

    def begin_step(self, step: int) -> None:
        """A step begins: a span that is open ends here and goes on as part of the step."""
        self._relabel(step)
        self._step_begin = self._since

    def end_step(self, loss: float | None = None, images: int | None = None) -> None:
        """The step ends; of its record and those before, only as many as wanted are kept."""
        step = self.labels.step
        self._relabel(None)
        if not self.tracing:
            return
        loss = loss if loss is None or isfinite(loss) else None  # JSON has no NaN
        self._records.append(("step", step, self._step_begin, self._since, loss, images))
        self.dropped_steps += len(self._kept) == self._kept.maxlen
        self._kept.append(self._records)
        self._records = []

    def _relabel(self, step):
        self.labels = self.labels._replace(step=step)
        key, (micro_batch, _) = self._now
        self.restore((key, (micro_batch, step)))

    def note(self, kind: str, **fields) -> None:
        """Record something else, as "memory" is; the step and the time are added."""
        if self.tracing:
            self._records.append({"kind": kind, "step": self.labels.step, "time": self.clock(), **fields})

    def records(self):
        """The records kept, oldest first, as dictionaries ready for JSON."""
        fields = {"message": MESSAGE_FIELDS, "span": SPAN_FIELDS, "step": STEP_FIELDS}
        for part in (*self._kept, self._records):
            for record in part:
                whole = isinstance(record, dict)
                yield record if whole else dict(zip(fields[record[0]], record, strict=True))
