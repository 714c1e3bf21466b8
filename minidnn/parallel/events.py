"""What happens on one rank in a step, in order: a plan's schedule, lowered once.

The executor carries the events out; the list of messages, the check, the memory and the narrative are folds over the
same events, so none of them can see another step than the one that runs.  What the executor relies on is worked out
here: when a transfer begins and who waits for it, which backward is the last to add to a bucket of gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .plan import Plan
from .planned import Bucket, Exchange, LayerPlan
from .schedule import Action, Backward, Forward, Prefetch, Update
from .transfer import Transfer


@dataclass(frozen=True)
class Compute:
    """Run one layer on a micro-batch; `phase` is "forward", or of backward "both", "input" or "weight"."""

    layer: LayerPlan
    phase: str
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.phase} of {self.layer.name}, micro-batch {self.micro_batch}"


@dataclass(frozen=True)
class Post:
    """Begin to move a value (`direction` "forward"), or its gradient ("backward")."""

    exchange: Exchange
    direction: str
    micro_batch: int
    transfers: tuple[Transfer, ...]

    def __str__(self) -> str:
        e = self.exchange
        return f"{self.direction} move of {e.value} for {e.layer}, micro-batch {self.micro_batch}"


@dataclass(frozen=True)
class Wait:
    """Wait until what was posted has arrived, or the sum is there."""

    post: Post | PostSum

    def __str__(self) -> str:
        return str(self.post)


@dataclass(frozen=True)
class PostSum:
    """Begin to sum the gradients of a bucket: nothing more is added to them."""

    bucket: Bucket

    def __str__(self) -> str:
        return f"sum of the gradients of {self.bucket.tensor}"


@dataclass(frozen=True)
class Step:
    """Let the optimiser step a group of parameters; `micro_batch` as of `schedule.Update`."""

    group: str
    micro_batch: int | None = None


@dataclass(frozen=True)
class Share:
    """Gather the weights of a bucket, of which each rank has updated a part."""

    bucket: Bucket


@dataclass(frozen=True)
class Metrics:
    """Sum loss, correct answers and count over all ranks; stops a run whose loss is not finite."""

    tag: int = 0  # the planner's begin at 1

    def __str__(self) -> str:
        return "sum of the metrics"


Event = Compute | Post | PostSum | Wait | Step | Share | Metrics


def lower(plan: Plan, rank: int, training: bool = True) -> tuple[Event, ...]:
    """The events of one rank: of a training step, or of an evaluation, which is all stages forward."""
    lowering, actions = _Lowering(plan, rank), plan.schedules[rank]
    if not training:
        stages = {a.stage for a in actions if isinstance(a, Forward)}
        actions = [Forward(stage, 0) for stage in sorted(stages)]
    for action in actions:
        lowering.add(action)
    lowering.events.append(Metrics())
    done = {a.group for a in actions if isinstance(a, Update)}
    for group in dict.fromkeys(layer.update for layer in reversed(plan.layers) if layer.layer is not None):
        if training and group not in done:
            lowering.add(Update(group))
    return tuple(lowering.events)


class _Lowering:
    """The events of one rank as they come to be."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank, self.place = plan, rank, plan.mesh.coordinate(rank, "stage")
        self.events: list[Event] = []
        self.posted: dict[int, Post] = {}  # by tag

    def add(self, action: Action) -> None:
        match action:
            case Forward(stage, micro_batch):
                self._forward(stage, micro_batch)
            case Backward(stage, micro_batch, part):
                self._backward(stage, micro_batch, part)
            case Prefetch(stage, micro_batch):
                for entry in self.plan.stages[stage].entries:
                    self._post(entry, "forward", micro_batch)
            case Update(group, micro_batch):
                self._update(group, micro_batch)

    def _post(self, exchange: Exchange | None, direction: str, micro_batch: int) -> Post | None:
        """Begin a move, unless it has begun; None where this rank has no part in it."""
        if exchange is None or (direction == "backward" and not exchange.differentiable):
            return None
        tag = exchange.tag_of(micro_batch, direction)
        if tag not in self.posted:
            if not any(self.plan.region(layout, (), self.rank) for layout in exchange.layouts(direction)):
                return None
            moves = self.plan.transfers(exchange, direction, micro_batch, self.rank)
            self.posted[tag] = Post(exchange, direction, micro_batch, moves)
            self.events.append(self.posted[tag])
        return self.posted[tag]

    def _move(self, exchange: Exchange | None, direction: str, micro_batch: int) -> None:
        """Begin a move, unless it has begun, and wait for it."""
        if post := self._post(exchange, direction, micro_batch):
            self.events.append(Wait(post))

    def _leaving(self, stage: int, micro_batch: int) -> Iterator[tuple[Exchange, int]]:
        """What goes on from here to later stages, and the numbers of the micro-batches there."""
        for later in self.plan.stages[stage + 1 :]:
            for entry in later.entries:
                if entry.origin == stage:
                    numbers = range(len(later.micro_batches)) if entry.at_once else (micro_batch,)
                    yield from ((entry, number) for number in numbers)

    def _compute(self, layer: LayerPlan, phase: str, micro_batch: int) -> None:
        if (phase == "forward" or layer.backward) and self.plan.runs(self.rank, layer):
            self.events.append(Compute(layer, phase, micro_batch))

    def _forward(self, stage: int, micro_batch: int) -> None:
        for entry in self.plan.stages[stage].entries:
            self._move(entry, "forward", micro_batch)
        for layer in self.plan.stages[stage].layers:
            for exchange in layer.exchanges:
                self._move(exchange, "forward", micro_batch)
            self._compute(layer, "forward", micro_batch)
        for entry, number in self._leaving(stage, micro_batch):
            if self.plan.stages[entry.stage].at not in (None, self.place):
                self._post(entry, "forward", number)

    def _backward(self, stage: int, micro_batch: int, part: str) -> None:
        moves = part != "weight"  # for that half nobody waits
        for entry, number in self._leaving(stage, micro_batch) if moves else ():
            self._move(entry, "backward", number)
        for layer in reversed(self.plan.stages[stage].layers):
            self._compute(layer, part, micro_batch)
            for exchange in reversed(layer.exchanges) if moves else ():
                self._move(exchange, "backward", micro_batch)
        for entry in self.plan.stages[stage].entries if moves else ():
            self._post(entry, "backward", micro_batch)

    def _update(self, group: str, micro_batch: int | None) -> None:
        """The update of a group; each of its buckets is summed from when the last gradient is there."""
        buckets = [b for b in self.plan.buckets[self.rank] if b.update == group]
        overlaps = self.plan.options.bucket_mib > 0
        if overlaps:
            self._start_sums(buckets, group)
        for bucket in buckets:
            post = PostSum(bucket)
            self.events += [Wait(post)] if overlaps else [post, Wait(post)]
        self.events.append(Step(group, micro_batch))
        self.events += [Share(bucket) for bucket in buckets if bucket.sharded]

    def _start_sums(self, buckets: Sequence[Bucket], group: str) -> None:
        """Put the beginning of each sum behind the last event since the last update that adds to its gradients."""
        start, last = 0, {}
        for i, event in enumerate(self.events, 1):
            if isinstance(event, Compute) and event.phase in ("both", "weight"):
                last[event.layer.name] = i
            elif isinstance(event, Step) and event.group == group:
                start, last = i, {}
        places = []
        for bucket in buckets:
            users = {layer for name in bucket.names for layer in self.plan.users[name]}
            places.append((max(last.get(layer, start) for layer in users), bucket.index, bucket))
        for at, _, bucket in sorted(places, reverse=True):
            self.events.insert(at, PostSum(bucket))
