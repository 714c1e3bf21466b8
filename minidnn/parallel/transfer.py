"""Moving one tensor from one placement to another: which collective that is, as data.

A communication layer is two of these: the forward move, and the move of the gradient back, whose
placements are the adjoint ones (the gradient of `Shard` is `Shard`; of `Replicate` used by sharded
work, `Partial`; of a `Partial` output, `Replicate`).  The planner reads the messages off a
`Transfer`; the executor runs the same object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from ..comm import algorithms
from ..comm.algorithms import Move
from .placement import OnRank, Partial, Placement, Replicate, Shard, bounds, split

_OPERATIONS = {
    (Shard, Replicate): "all_gather",
    (Shard, Shard): "all_to_all",
    (Shard, OnRank): "gather",
    (Partial, Replicate): "all_reduce",
    (Partial, Shard): "reduce_scatter",
    (Partial, OnRank): "reduce",
    (Replicate, Shard): "slice",
    (Replicate, OnRank): "keep",
    (OnRank, Replicate): "broadcast",
    (OnRank, Shard): "scatter",
    (OnRank, OnRank): "send",
    (Shard, Partial): "pad",
    (Replicate, Partial): "pad",
    (OnRank, Partial): "pad",
}
LOCAL_OPERATIONS = ("none", "slice", "keep", "pad")


def operation(src: Placement, dst: Placement) -> str:
    """The name of the collective that turns `src` into `dst`.

    No layer takes its input as `Partial`; a gradient becomes so where a value has several uses that
    leave its gradient placed differently: zeros elsewhere ("pad"), and all can be summed together.
    """
    return "none" if src == dst else _OPERATIONS[type(src), type(dst)]


@dataclass(frozen=True)
class Algorithms:
    """The algorithm of each collective that has several."""

    all_reduce: str = "ring"
    all_gather: str = "ring"
    reduce_scatter: str = "ring"
    broadcast: str = "chain"
    reduce: str = "binomial"
    scatter: str = "direct"
    gather: str = "direct"
    all_to_all: str = "direct"


@dataclass(frozen=True)
class Transfer:
    """The move of a tensor of whole `shape` (samples first) over `size` members.

    `rows` are the samples that each member holds where a placement is `Shard(0)`; features are
    split by `split(features, size)`.
    """

    src: Placement
    dst: Placement
    shape: tuple[int, ...]
    size: int
    rows: tuple[int, ...]
    algorithms: Algorithms = Algorithms()

    @cached_property
    def op(self) -> str:
        """The collective. Where one member holds all rows, gathering them is a broadcast (OWT's scheme b)."""
        if self.size == 1:
            return "none"
        op = operation(self.src, self.dst)
        one_holder = sum(r > 0 for r in self.rows) == 1
        if one_holder and op == "all_gather" and self.src == Shard(0):
            return "broadcast"
        if one_holder and op == "reduce_scatter" and self.dst == Shard(0):
            return "reduce"
        return op

    @property
    def algorithm(self) -> str:
        return getattr(self.algorithms, self.op, "direct")

    @property
    def moves_data(self) -> bool:
        return self.op not in LOCAL_OPERATIONS

    @property
    def root(self) -> int:
        """The member that is the root of a rooted collective (0 where there is none)."""
        for placement in (self.src, self.dst):
            if isinstance(placement, OnRank):
                return placement.rank
        return max(range(self.size), key=lambda m: self.rows[m]) if Shard(0) in (self.src, self.dst) else 0

    def part(self, placement: Placement, member: int) -> tuple[slice, ...] | None:
        """The slice of the whole tensor that `member` holds; None where it holds nothing."""
        whole = tuple(slice(0, n) for n in self.shape)
        if isinstance(placement, OnRank):
            return whole if placement.rank == member else None
        if isinstance(placement, Shard):
            if placement.axis == 0:
                start = sum(self.rows[:member])
                return (slice(start, start + self.rows[member]), *whole[1:])
            start, stop = bounds(self.shape[-1], self.size, member)
            return (*whole[:-1], slice(start, stop))
        return whole

    def local_shape(self, placement: Placement, member: int) -> tuple[int, ...] | None:
        """The shape of what `member` holds; None where it holds nothing."""
        part = self.part(placement, member)
        return None if part is None else tuple(s.stop - s.start for s in part)

    def blocks(self, axis: int) -> tuple[int, ...]:
        """Elements of each member's block where the tensor is split along `axis`."""
        if axis == 0:
            return tuple(r * prod(self.shape[1:]) for r in self.rows)
        return tuple(prod(self.shape[:-1]) * c for c in split(self.shape[-1], self.size))

    def counts(self) -> tuple | int:
        """The element counts of the collective, as `minidnn.comm` takes them."""
        if self.op in ("all_gather", "gather"):
            return self.blocks(self.src.axis)
        if self.op in ("reduce_scatter", "scatter"):
            return self.blocks(self.dst.axis)
        if self.op == "all_to_all":
            inner = prod(self.shape[1:-1])
            columns = split(self.shape[-1], self.size)
            if self.src.axis == 0:  # member i sends its rows of j's columns
                return tuple(tuple(r * inner * c for c in columns) for r in self.rows)
            return tuple(tuple(r * inner * c for r in self.rows) for c in columns)
        return prod(self.shape)

    def rounds(self, member: int) -> tuple:
        """The rounds of messages of `member`, as `minidnn.comm.algorithms` gives them."""
        if not self.moves_data:
            return ()
        if self.op == "send":
            n = prod(self.shape)
            ends = {
                self.src.rank: Move("send", self.dst.rank, 0, n),
                self.dst.rank: Move("recv", self.src.rank, 0, n),
            }
            return ((ends[member],),) if member in ends and n else ()
        return algorithms.rounds(self.op, self.algorithm, self.size, member, self.counts(), root=self.root)
