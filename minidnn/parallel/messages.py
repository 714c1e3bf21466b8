"""The messages of one training step, read off a rank's events: nothing is run.

The ledger of a real run must list the same, in bytes and in order (`tests/test_plan_ledger.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..comm import algorithms
from ..comm.algorithms import Rounds
from .events import Compute, Event, Metrics, Post, Share, WaitSum
from .planned import Bucket, LayerPlan, Planned

METRICS = 3  # loss, correct answers, samples; float64 whatever the model's dtype
SUMS = 3  # of a synchronised batch norm on a micro-batch: two forward, one backward
SMALL = "doubling"  # the algorithm of sums of a few numbers: metrics, statistics


@dataclass(frozen=True)
class Message:
    """One message that a rank sends or receives in a step."""

    kind: str  # "send" or "recv"
    rank: int
    peer: int
    phase: str
    layer: str
    op: str
    algorithm: str
    index: int  # round i (from 1) ...
    count: int  # ... of n
    elements: int
    bytes: int
    micro_batch: int
    tag: int


@dataclass(frozen=True)
class Batch:
    """What an event sends: one collective, or one round of messages, of a group of ranks."""

    phase: str
    layer: str
    micro_batch: int
    tag: int
    op: str
    algorithm: str
    group: tuple[int, ...]
    counts: object  # of a collective, as `minidnn.comm` takes them; None where `rounds` are given
    itemsize: int
    rounds: Rounds = ()


def batches(plan: Planned, rank: int, events: Iterable[Event]) -> Iterator[Batch]:
    """What each event of a rank sends and receives; the sum of a bucket where it is waited for."""
    itemsize = plan.dtype.itemsize
    for event in events:
        match event:
            case Post(exchange, direction, number, transfers):
                for t in transfers:
                    if t.moves_data:
                        group = t.ranks
                        rounds = t.rounds(group.index(rank), [plan.nodes[r] for r in group])
                        label = direction, exchange.layer, number, exchange.tag_of(number, direction)
                        yield Batch(*label, t.op, t.algorithm, group, None, itemsize, rounds)
            case Compute(layer, phase, number) if layer.norms and phase != "weight":
                direction = "forward" if phase == "forward" else "backward"
                group = plan.mesh.group(rank, layer.derived.statistics)
                for tag, elements in statistics(plan, rank, layer, number, direction):
                    yield Batch(direction, layer.name, number, tag, "all_reduce", SMALL, group, elements, 8)
            case WaitSum(bucket):
                yield _of_bucket(plan, rank, bucket, bucket.op, "gradient sync")
            case Share(bucket):
                yield _of_bucket(plan, rank, bucket, "all_gather", "update")
            case Metrics(tag):
                world = tuple(range(plan.size))
                yield Batch("metrics", "loss", 0, tag, "all_reduce", SMALL, world, METRICS, 8)


def statistics(
    plan: Planned, rank: int, layer: LayerPlan, number: int, direction: str
) -> list[tuple[int, int]]:
    """(tag, elements) of each sum of a synchronised batch norm: of values with their number, then of squares; of
    gradients in one."""
    held = {p.name: p.size for p in plan.held[rank]}
    found = []
    for i, path in enumerate(layer.norms):
        prefix = f"{layer.name}.{path}." if path else f"{layer.name}."
        channels = next(size for name, size in held.items() if name.startswith(prefix))
        first = statistics_tag(layer, number, i)
        if direction == "forward":
            found += [(first, channels + 1), (first + 1, channels)]
        else:
            found.append((first + 2, 2 * channels))
    return found


def statistics_tag(layer: LayerPlan, number: int, norm: int) -> int:
    """The tag of the first sum of a batch norm on a micro-batch; `SUMS` follow one another."""
    return layer.tag + SUMS * (number * len(layer.norms) + norm)


def _of_bucket(plan: Planned, rank: int, bucket: Bucket, op: str, phase: str) -> Batch:
    group = plan.mesh.group(rank, bucket.axes)
    algorithm = bucket.algorithm if op == "all_reduce" else getattr(plan.options.algorithms, op)
    counts = bucket.counts(len(group)) if phase == "gradient sync" else bucket.shard_counts(len(group))
    tag = bucket.tag + (phase == "update")
    return Batch(phase, bucket.layer, 0, tag, op, algorithm, group, counts, plan.dtype.itemsize)


def step_messages(plan: Planned, rank: int, events: Iterable[Event]) -> Iterator[Message]:
    """Every message that `rank` sends or receives, in the order of its events."""
    for b in batches(plan, rank, events):
        rounds = b.rounds
        if b.counts is not None and len(b.group) > 1:
            nodes = [plan.nodes[r] for r in b.group]
            rounds = algorithms.rounds(
                b.op, b.algorithm, len(b.group), b.group.index(rank), b.counts, nodes=nodes
            )
        for index, moves in enumerate(rounds, 1):
            for move in moves:
                yield Message(
                    kind=move.kind,
                    rank=rank,
                    peer=b.group[move.peer],
                    phase=b.phase,
                    layer=b.layer,
                    op=b.op,
                    algorithm=b.algorithm,
                    index=index,
                    count=len(rounds),
                    elements=move.elements,
                    bytes=move.elements * b.itemsize,
                    micro_batch=b.micro_batch,
                    tag=b.tag,
                )
