"""The messages of one training step, read off a rank's events: nothing is run.

The ledger of a real run must list the same, in bytes and in order (`tests/test_plan_ledger.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..comm import algorithms
from ..comm.algorithms import Rounds
from .events import Compute, Event, Metrics, Post, PostSum, Share, Wait
from .plan import Plan
from .planned import LayerPlan

METRICS = 3  # loss, correct answers, samples; float64 whatever the model's dtype
SUMS = 3  # of a synchronised batch norm on a micro-batch: values and their number, squares; gradients
SMALL = "doubling"  # the algorithm of sums of a few numbers: metrics, statistics


@dataclass(frozen=True)
class Message:
    """One message that a rank sends or receives in a step; `kind` is "send" or "recv", its round `index` (from 1) of
    `count`."""

    phase: str
    layer: str
    micro_batch: int
    tag: int
    op: str
    algorithm: str
    kind: str
    rank: int
    peer: int
    index: int
    count: int
    elements: int
    bytes: int


class Batch(NamedTuple):
    """What an event sends: one collective of a group, with `counts` as `minidnn.comm` takes them, or given rounds."""

    phase: str
    layer: str
    micro_batch: int
    tag: int
    op: str
    algorithm: str
    group: tuple[int, ...]
    counts: object
    itemsize: int
    rounds: Rounds = ()


def batches(plan: Plan, rank: int, events: Iterable[Event]) -> Iterator[Batch]:
    """What each event of a rank sends and receives; the sum of a bucket where it is waited for."""
    itemsize = plan.dtype.itemsize
    for event in events:
        match event:
            case Post(exchange, direction, number, transfers):
                label = direction, exchange.layer, number, exchange.tag_of(number, direction)
                for t in transfers:
                    if t.moves_data:
                        rounds = t.rounds(t.ranks.index(rank), [plan.nodes[r] for r in t.ranks])
                        yield Batch(*label, t.op, t.algorithm, t.ranks, None, itemsize, rounds)
            case Compute(layer, phase, number) if layer.norms and phase != "weight":
                direction = "forward" if phase == "forward" else "backward"
                what = "all_reduce", SMALL, plan.mesh.group(rank, layer.derived.statistics)
                for i, path in enumerate(layer.norms):
                    inside = f"{layer.name}.{path}." if path else f"{layer.name}."
                    tag = statistics_tag(layer, number, i)
                    n = next(p.size for p in plan.held[rank] if p.name.startswith(inside))  # channels
                    sums = {tag: n + 1, tag + 1: n} if phase == "forward" else {tag + 2: 2 * n}
                    for tag, elements in sums.items():
                        yield Batch(direction, layer.name, number, tag, *what, elements, 8)
            case Wait(PostSum(bucket)):
                group = plan.mesh.group(rank, bucket.axes)
                what = bucket.op, bucket.algorithm, group, bucket.counts(len(group))
                yield Batch("gradient sync", bucket.layer, 0, bucket.tag, *what, itemsize)
            case Share(bucket):
                group = plan.mesh.group(rank, bucket.axes)
                what = (
                    "all_gather",
                    plan.options.algorithms.all_gather,
                    group,
                    bucket.shard_counts(len(group)),
                )
                yield Batch("update", bucket.layer, 0, bucket.tag + 1, *what, itemsize)
            case Metrics(tag):
                world = tuple(range(plan.size))
                yield Batch("metrics", "loss", 0, tag, "all_reduce", SMALL, world, METRICS, 8)


def statistics_tag(layer: LayerPlan, number: int, norm: int) -> int:
    """The tag of the first sum of a batch norm on a micro-batch; `SUMS` follow one another."""
    return layer.tag + SUMS * (number * len(layer.norms) + norm)


def step_messages(plan: Plan, rank: int) -> Iterator[Message]:
    """Every message that `rank` sends or receives, in the order of its events."""
    for b in batches(plan, rank, plan.events[rank]):
        rounds, group = b.rounds, b.group
        if b.counts is not None and len(group) > 1:
            nodes, member = [plan.nodes[r] for r in group], group.index(rank)
            rounds = algorithms.rounds(b.op, b.algorithm, len(group), member, b.counts, nodes=nodes)
        for index, moves in enumerate(rounds, 1):
            for m in moves:
                ends, n = (m.kind, rank, group[m.peer]), m.elements
                yield Message(*b[:6], *ends, index, len(rounds), n, n * b.itemsize)
