"""What a trace is made of: spans of time, steps, messages, and the trace that holds them.

Times are seconds on one clock for all ranks, counted from the first thing that any rank recorded.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from minidnn.errors import InputError, printable

PHASES = ("input", "forward", "backward", "gradient sync", "metrics", "update")
CONTENTS = {
    "forward": "activations",
    "backward": "gradients of activations",
    "gradient sync": "gradients of weights",
    "update": "weights",
    "metrics": "loss and counts",
}
REASONS = {
    "forward": "{layer} needs them in another placement than the layer before it left them",
    "backward": "the gradient of what {layer} was given goes back to where that came from",
    "gradient sync": "ranks with a copy of {layer} must get the same, summed gradient",
    "update": "each rank updated its shard of {layer} and the others need it",
    "metrics": "every rank must know the loss of the whole batch",
}


@dataclass(slots=True)
class Span:
    """A stretch of time (seconds) that one rank spent in one state.

    `until` is for waiting: the arrival that ended it is noted in the ledger a little later, when the rank
    goes on with the collective, at `until` at the latest.
    """

    rank: int
    state: str
    layer: str
    phase: str
    micro_batch: int | None
    step: int
    begin: float
    end: float
    flops: float = 0.0
    until: float = 0.0


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
    micro_batch: int | None
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
    def content(self) -> str:
        """What is in the message: the kind of values, and of which tensor."""
        return CONTENTS.get(self.phase, "data") + (f" of {self.tensor}" if self.tensor else "")

    @property
    def reason(self) -> str:
        """Why it is sent; a cause that only repeats the layer is put into words."""
        words = REASONS.get(self.phase, "").format(layer=self.layer)
        if not words or self.cause in ("", self.layer):
            return words or self.cause
        return f"{self.cause}: {words}"

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

    @property
    def name(self) -> str:
        """What to call this run in a table: its strategy, or else the folder's name."""
        return str(self.run.get("strategy") or printable(self.folder.name))

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

    def window(self, step: int) -> tuple[float, float]:
        """When the first rank began a step, and when the last one ended it."""
        frames = self.steps[step].values()
        return min(frame.begin for frame in frames), max(frame.end for frame in frames)

    def spans_of(self, rank: int, step: int) -> list[Span]:
        """Spans of one rank in one step, in order of time."""
        return self._index[0].get((rank, step), [])

    def messages_of(self, step: int) -> list[Message]:
        """Messages of one step, in the order in which they were sent."""
        return self._index[1].get(step, [])

    def layers(self) -> list[str]:
        """Layer names in the order of the forward pass, taken from the plan or else from what computes."""
        rows = (self.run.get("plan_rows") or {}).get("rows", [])
        seen = {row["name"]: None for row in rows if row["kind"] == "layer"}
        for rank in self.ranks:
            for span in self.spans.get(rank, []):
                if span.layer and span.state == "compute" and span.phase == "forward":
                    seen.setdefault(span.layer)
        return list(seen)
