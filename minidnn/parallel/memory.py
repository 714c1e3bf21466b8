"""What a rank must hold during a step, estimated from shapes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..text import size
from .events import Compute
from .plan import Plan


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
        return sum(vars(self).values())

    def __str__(self) -> str:
        return (
            f"{size(self.total)} (weights {size(self.parameters)}, gradients {size(self.gradients)}, "
            f"momenta {size(self.momenta)}, activations {size(self.activations)})"
        )


def rank_memory(plan: Plan, rank: int) -> Memory:
    """The memory of `rank` in one step of `plan`, with plain momentum SGD."""
    weights = sum(p.size for p in plan.held[rank])
    momenta = gradients = sum(p.size for p in plan.held[rank] if p.trained)
    for bucket in plan.buckets[rank]:
        group = plan.mesh.group(rank, bucket.axes)
        if bucket.sharded:
            momenta -= bucket.elements - bucket.shard_counts(len(group))[group.index(rank)]
        if bucket.matrix:
            gradients -= bucket.elements - sum(bucket.factor_counts)
    alive = peak = 0
    for event in plan.events[rank]:
        if isinstance(event, Compute) and event.layer.backward and event.phase != "input":
            layer, batches = event.layer, plan.stages[event.layer.stage].micro_batches
            shape = batches[event.micro_batch].shape(plan.region(layer.layout, layer.out_shape, rank))
            kept = 0 if layer.layer is None else prod(shape)
            alive += kept if event.phase == "forward" else -kept
            peak = max(peak, alive)
    return Memory(*(plan.dtype.itemsize * n for n in (weights, gradients, momenta, peak)))
