"""The messages of one training step, read off a plan: nothing is run.

This walks a rank's schedule and lists, for every action, the messages of its communication layers.
The ledger of a real run must list the same, in bytes and in order (`tests/test_plan_ledger.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..comm import algorithms
from ..comm.algorithms import Move
from ..comm.closed_forms import closed_form
from .plan import Boundary, Bucket, Chunk, LayerPlan, Message, Plan
from .schedule import (
    Action,
    Backward,
    BackwardInput,
    BackwardWeight,
    Finish,
    Forward,
    Metrics,
    ReduceGradients,
    Start,
    Update,
)
from .transfer import Transfer

METRICS = 3  # loss, correct answers, samples; float64 whatever the model's dtype
METRICS_ALGORITHM = "doubling"
LIBRARY = "mpi"  # the library's own all_reduce


@dataclass(frozen=True)
class _Label:
    phase: str
    layer: str
    chunk: int = 0


class _Reader:
    """Lists the messages of one rank."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        self.row, self.member = plan.group("row", rank), rank % plan.grid.mp
        self.chunks = plan.chunks_of(rank)
        self.buckets = {bucket.index: bucket for bucket in plan.buckets[rank]}

    def action(self, action: Action) -> Iterator[Message]:
        match action:
            case Forward(segment, chunk):
                for layer in self.plan.segments[segment].layers:
                    yield from self.layer(layer, "forward", segment, chunk)
            case Backward(segment, chunk) | BackwardInput(segment, chunk):
                for layer in reversed(self.plan.segments[segment].layers):
                    yield from self.layer(layer, "backward", segment, chunk)
            case Start(boundary, chunk, direction):
                yield from self.boundary(self.plan.boundaries[boundary], direction, chunk)
            case ReduceGradients(bucket):
                yield from self.gradients(self.buckets[bucket])
            case Metrics():
                label = _Label("metrics", "loss")
                world = self.plan.group("world", self.rank)
                yield from self.collective("all_reduce", METRICS_ALGORITHM, world, METRICS, label, itemsize=8)
            case Update(group):
                for bucket in self.buckets.values():
                    if bucket.sharded and bucket.update == group:
                        counts = bucket.shard_counts(len(self.plan.group(bucket.group, self.rank)))
                        yield from self.bucket_collective("all_gather", counts, bucket, "update")
            case Finish() | BackwardWeight():
                pass  # its messages were posted by Start; the weight half of backward sends nothing

    def layer(self, layer: LayerPlan, phase: str, segment: int, chunk: int) -> Iterator[Message]:
        part = self.chunks[segment][chunk]
        label = _Label(phase, layer.name, chunk)
        exchanges = [self.transfer(e, phase, part, label) for e in layer.exchanges if e is not None]
        statistics = self.statistics(layer, label)
        for messages in (
            (*exchanges, statistics) if phase == "forward" else (statistics, *reversed(exchanges))
        ):
            yield from messages

    def statistics(self, layer: LayerPlan, label: _Label) -> Iterator[Message]:
        """The sums of a synchronised batch norm: of values with their number, then of squares; backward in one."""
        if layer.sync:
            features = layer.local_features(self.plan.grid.mp, self.member)
            group = self.plan.group(layer.sync, self.rank)
            for elements in (features + 1, features) if label.phase == "forward" else (2 * features,):
                yield from self.collective(
                    "all_reduce", METRICS_ALGORITHM, group, elements, label, itemsize=8
                )

    def boundary(self, boundary: Boundary, direction: str, chunk: int) -> Iterator[Message]:
        part = self.chunks[boundary.index + 1][chunk]
        for exchange in boundary.exchanges:
            yield from self.transfer(exchange, direction, part, _Label(direction, boundary.layer, chunk))

    def transfer(self, exchange, phase: str, chunk: Chunk, label: _Label) -> Iterator[Message]:
        transfer: Transfer | None = (
            exchange.forward(chunk) if phase == "forward" else exchange.backward(chunk)
        )
        if transfer is not None:
            rounds = transfer.rounds(self.member)
            yield from self.rounds(rounds, transfer.op, transfer.algorithm, self.row, label)

    def gradients(self, bucket: Bucket) -> Iterator[Message]:
        counts = bucket.counts(len(self.plan.group(bucket.group, self.rank)))
        yield from self.bucket_collective(bucket.op, counts, bucket, "gradient sync")

    def bucket_collective(self, op: str, counts, bucket: Bucket, phase: str) -> Iterator[Message]:
        group = self.plan.group(bucket.group, self.rank)
        algorithm = bucket.algorithm if op == "all_reduce" else getattr(self.plan.algorithms, op)
        yield from self.collective(op, algorithm, group, counts, _Label(phase, bucket.layer))

    def collective(self, op, algorithm, group, counts, label: _Label, itemsize: int = 0) -> Iterator[Message]:
        if len(group) == 1:
            return
        rank, size = group.index(self.rank), len(group)
        if algorithm == LIBRARY:
            rounds = _library_rounds(rank, size, counts)
        else:
            nodes = tuple(self.plan.nodes[r] for r in group)
            rounds = algorithms.rounds(op, algorithm, size, rank, counts, nodes=nodes)
        yield from self.rounds(rounds, op, algorithm, group, label, itemsize)

    def rounds(self, rounds, op, algorithm, group, label: _Label, itemsize: int = 0) -> Iterator[Message]:
        itemsize = itemsize or self.plan.dtype.itemsize
        for index, moves in enumerate(rounds, 1):
            for move in moves:
                yield Message(
                    kind=move.kind,
                    rank=self.rank,
                    peer=group[move.peer],
                    phase=label.phase,
                    layer=label.layer,
                    op=op,
                    algorithm=algorithm,
                    index=index,
                    count=len(rounds),
                    elements=move.elements,
                    bytes=move.elements * itemsize,
                    chunk=label.chunk,
                )


def _library_rounds(rank: int, size: int, n: int) -> tuple:
    """What stands in the ledger for the library's own all_reduce, whose messages nobody can see.

    One message to the right neighbour, of what the ring would send.
    """
    left = (rank - 1) % size
    sent, received = (closed_form("all_reduce", LIBRARY, size, r, n).elements for r in (rank, left))
    moves = Move("recv", left, 0, received), Move("send", (rank + 1) % size, 0, sent)
    return (moves,) if n else ()


def step_messages(plan: Plan, rank: int) -> list[Message]:
    """Every message that `rank` sends or receives in one step, in the order of its schedule."""
    reader = _Reader(plan, rank)
    return [message for action in plan.schedules[rank] for message in reader.action(action)]
