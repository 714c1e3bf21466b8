"""What a rank must hold during a step, estimated from shapes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from .placement import OnRank, Shard
from .plan import Plan
from .schedule import peak_activations


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank: weights, their gradients, momenta, and the outputs kept for backward.

    Work space inside an operation (the columns of a convolution) is not counted.
    """

    parameters: int
    gradients: int
    momenta: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.momenta + self.activations

    def text(self) -> str:
        from ..report.text import size

        return (
            f"{size(self.total)} (weights {size(self.parameters)}, gradients {size(self.gradients)}, "
            f"momenta {size(self.momenta)}, activations {size(self.activations)})"
        )


def rank_memory(plan: Plan, rank: int) -> Memory:
    """The memory of `rank` in one step of `plan`, with plain momentum SGD."""
    itemsize, member = plan.dtype.itemsize, rank % plan.grid.mp
    weights = sum(p.size for p in plan.parameters[rank])
    momenta = gradients = weights
    for bucket in plan.buckets[rank]:
        group = plan.group(bucket.group, rank)
        if bucket.sharded:
            momenta -= bucket.elements - bucket.shard_counts(len(group))[group.index(rank)]
        if bucket.matrix:
            gradients -= bucket.elements - sum(bucket.factor_counts)
    activations = 0
    for segment, chunks in zip(plan.segments, plan.chunks_of(rank), strict=True):
        alive = peak_activations(list(plan.schedules[rank]), segment.index)
        held = 0
        for layer in segment.layers:
            if isinstance(layer.placement, OnRank) and layer.placement.rank != member:
                continue
            n = len(chunks[0].held(layer.placement, member))
            features = layer.out_shape
            if layer.placement == Shard(-1):
                features = (*features[:-1], layer.local_features(plan.grid.mp, member))
            held += n * prod(features)
        activations += alive * held
    return Memory(*(itemsize * n for n in (weights, gradients, momenta, activations)))
