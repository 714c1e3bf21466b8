"""What a trace is made of: spans of time, steps, messages, and the trace that holds them.

Times are seconds on one clock for all ranks, counted from the first thing that any rank recorded.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from minidnn.errors import InputError

PHASES = ("input", "forward", "backward", "gradient sync", "update")
STATES = ("input", "compute", "comm", "wait", "other")


@dataclass(slots=True)
class Span:
    """A stretch of time (seconds) that one rank spent in one state."""

    rank: int
    state: str
    layer: str
    phase: str
    chunk: int | None
    step: int
    begin: float
    end: float
    flops: float = 0.0


@dataclass(slots=True)
class Step:
    """One training step on one rank."""

    rank: int
    step: int
    begin: float
    end: float
    loss: float | None = None
    images: int | None = None


@dataclass(slots=True)
class Message:
    """A send and its receive.

    `sent` and `ready` are the times at which the sender and the receiver posted their halves, `done` the
    time at which the receiver knew the data to be there, `send_done` the time at which the sender could
    forget its buffer.
    """

    number: int
    source: int
    dest: int
    bytes: int
    step: int
    phase: str
    layer: str
    tensor: str
    chunk: int | None
    op: str
    algorithm: str
    index: int
    count: int
    group: tuple[int, ...]
    tag: int
    dtype: str
    start: int
    stop: int
    cause: str
    needed_by: str
    sent: float
    send_done: float
    ready: float
    done: float
    difference: float | None = None

    @property
    def sender_late(self) -> float:
        """Seconds for which the receiver was ready and nothing had been sent."""
        return max(0.0, min(self.sent, self.done) - self.ready)

    @property
    def receiver_late(self) -> float:
        """Seconds for which the message was on offer and the receiver had not asked for it."""
        return max(0.0, min(self.ready, self.done) - self.sent)

    @property
    def wire(self) -> float:
        """Seconds from the moment both sides were there to the arrival."""
        return max(0.0, self.done - max(self.sent, self.ready))


@dataclass
class Trace:
    """What a trace folder says, with aligned clocks and paired messages; times in seconds from the first
    record."""

    folder: Path
    run: dict
    size: int
    ranks: list[int]
    spans: dict[int, list[Span]] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    steps: dict[int, dict[int, Step]] = field(default_factory=dict)
    memory: dict[int, list[dict]] = field(default_factory=dict)
    clock_error: float = 0.0
    clock_shift: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What to call this run in a table: its strategy, or else the folder's name."""
        return str(self.run.get("strategy") or self.folder.name)

    def complete_steps(self) -> list[int]:
        """Numbers of the steps that every rank recorded."""
        return sorted(n for n, by_rank in self.steps.items() if len(by_rank) == len(self.ranks))

    def typical_step(self) -> int:
        """The step whose duration is the median: the one a picture of a single step should show."""
        steps = self.complete_steps()
        if not steps:
            raise InputError(f"{self.folder}: the trace holds no complete step")
        return sorted(steps, key=self.duration)[len(steps) // 2]

    def duration(self, step: int) -> float:
        """Seconds that one step took: the longest over the ranks."""
        return max(s.end - s.begin for s in self.steps[step].values())

    @cached_property
    def _index(self) -> tuple[dict, dict]:
        spans, messages = defaultdict(list), defaultdict(list)
        for rank, own in self.spans.items():
            for span in own:
                spans[rank, span.step].append(span)
        for message in self.messages:
            messages[message.step].append(message)
        return spans, messages

    def spans_of(self, rank: int, step: int) -> list[Span]:
        """Spans of one rank in one step, in order of time."""
        return self._index[0].get((rank, step), [])

    def messages_of(self, step: int) -> list[Message]:
        """Messages of one step, in the order in which they were sent."""
        return self._index[1].get(step, [])

    def layers(self) -> list[str]:
        """Layer names in the order in which they first compute, then those that only communicate."""
        seen = {}
        for rank in self.ranks:
            for span in self.spans.get(rank, []):
                if span.layer and span.state == "compute" and span.phase == "forward":
                    seen.setdefault(span.layer)
        for message in self.messages:
            if message.layer:
                seen.setdefault(message.layer)
        return list(seen)
