"""The plan of one training step, as data: who holds what, who does what, who sends what to whom.

A `Plan` needs no MPI and no arrays.  The planner makes it, the executor runs it, `print` shows it,
and the tests hold the ledger of a real run equal to it, byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod

import numpy as np

from ..comm.algorithms import split_counts
from ..nn import Module
from .placement import Grid, OnRank, Placement, Shard, bounds, split
from .schedule import Action
from .transfer import Algorithms, Transfer


@dataclass(frozen=True)
class Chunk:
    """A part of a model group's batch: rows ``parts[m]`` (start, stop) come from member m.

    The whole chunk is their concatenation, in the order of the members.
    """

    parts: tuple[tuple[int, int], ...]

    @cached_property
    def counts(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.parts)

    @property
    def size(self) -> int:
        return sum(self.counts)

    @cached_property
    def rows(self) -> np.ndarray:
        """Row numbers of the whole chunk, within the batch of the model group."""
        return np.concatenate([np.arange(start, stop) for start, stop in self.parts])

    def held(self, placement: Placement, member: int) -> np.ndarray:
        """Row numbers of what `member` holds of a tensor so placed."""
        if placement == Shard(0):
            return np.arange(*self.parts[member])
        if isinstance(placement, OnRank) and placement.rank != member:
            return np.arange(0)
        return self.rows


@dataclass(frozen=True)
class Exchange:
    """A communication layer: a tensor moves from `src` to `dst`, its gradient from `grad_src` to `grad_dst`.

    `shape` is that of one sample; `differentiable` is False where no gradient flows (the images).
    """

    src: Placement
    dst: Placement
    grad_src: Placement
    grad_dst: Placement
    shape: tuple[int, ...]
    size: int
    differentiable: bool
    algorithms: Algorithms

    def forward(self, chunk: Chunk) -> Transfer:
        """The forward move for one chunk of the batch."""
        return _transfer(self.src, self.dst, self.shape, self.size, chunk.counts, self.algorithms)

    def backward(self, chunk: Chunk) -> Transfer | None:
        """The move of the gradient for one chunk; None where no gradient flows."""
        if not self.differentiable:
            return None
        return _transfer(self.grad_src, self.grad_dst, self.shape, self.size, chunk.counts, self.algorithms)

    @property
    def is_identity(self) -> bool:
        """Whether nothing happens, in either direction."""
        return self.size == 1 or (self.src == self.dst and self.grad_src == self.grad_dst)


@lru_cache(maxsize=4096)
def _transfer(src, dst, shape, size, counts, algorithms) -> Transfer:
    return Transfer(src, dst, (sum(counts), *shape), size, counts, algorithms)


@dataclass(frozen=True)
class LayerPlan:
    """One layer: its placement, its inputs by name, and the communication layers before it.

    `sync` is the group over which a synchronised batch norm sums its statistics ("" for none).
    """

    name: str
    layer: Module | None  # None: the loss
    placement: Placement
    inputs: tuple[str, ...]
    exchanges: tuple[Exchange | None, ...]
    in_shape: tuple[int, ...]  # per sample
    out_shape: tuple[int, ...]  # per sample
    sync: str = ""

    def local_features(self, size: int, member: int) -> int:
        """Output features that `member` of `size` computes."""
        if self.placement != Shard(-1):
            return self.out_shape[-1]
        start, stop = bounds(self.out_shape[-1], size, member)
        return stop - start


@dataclass(frozen=True)
class Segment:
    """Consecutive layers. A batch passes through them in one or more chunks."""

    index: int
    layers: tuple[LayerPlan, ...]


@dataclass(frozen=True)
class Boundary:
    """What passes from segment `index` to the next: the exchange of each value that is still needed.

    `layer` is the layer whose input the transfer makes, for the ledger.
    """

    index: int
    layer: str
    values: tuple[str, ...]
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True)
class Bucket:
    """Parameters whose gradients are summed together, over `group` ("world" or "column").

    A weight matrix may be a bucket of its own whose factors are gathered instead: see `FactorExchange`.
    """

    index: int
    group: str
    update: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    algorithm: str
    sharded: bool = False  # reduce_scatter, update the own shard, all_gather: the 2014 code's momentum
    matrix: tuple[int, int] | None = None  # (i, o) of a weight matrix whose gradient is exchanged as factors
    rows: tuple[int, ...] = ()  # of the batch, that each member of the group brings to them

    @property
    def elements(self) -> int:
        return sum(self.sizes)

    @property
    def op(self) -> str:
        """The collective of the gradients."""
        if self.matrix:
            return "all_gather"
        return "reduce_scatter" if self.sharded else "all_reduce"

    @property
    def factor_counts(self) -> tuple[int, ...]:
        """Elements of the factors that each member brings: a row of x (i) and one of gy (o) for each sample."""
        return tuple(n * sum(self.matrix) for n in self.rows)

    def counts(self, size: int) -> int | tuple[int, ...]:
        """Elements of the collective `op` over `size` members, as `minidnn.comm` takes them."""
        if self.matrix:
            return self.factor_counts
        return self.shard_counts(size) if self.sharded else self.elements

    def shard_counts(self, size: int) -> tuple[int, ...]:
        """Elements of the weights of which each of `size` members updates; of a matrix in factors whole rows."""
        if self.matrix:
            return tuple(n * self.matrix[1] for n in split(self.matrix[0], size))
        return split_counts(self.elements, size)

    @property
    def layer(self) -> str:
        return _from_to(*(self.names[i].rpartition(".")[0] for i in (0, -1)))

    @property
    def tensor(self) -> str:
        """What the ledger calls the contents; no other bucket of a rank is called so."""
        return _from_to(self.names[0], self.names[-1])


def _from_to(first: str, last: str) -> str:
    return first if first == last else f"{first}..{last}"


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
    chunk: int


@dataclass(frozen=True)
class Parameter:
    """What a rank holds of a parameter."""

    name: str
    shape: tuple[int, ...]
    full_shape: tuple[int, ...]
    placement: Placement
    rows: tuple[int, ...] = ()  # where its gradient is exchanged as factors: see `Bucket.rows`

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass
class Plan:
    """One training step of `model` by `strategy` over a process grid.

    `str(plan)` is the listing of `report.plan_text`: every rank, layer, placement and message.
    """

    model: str
    strategy: str
    grid: Grid
    batch: int
    dtype: np.dtype
    row_batches: tuple[int, ...]
    segments: tuple[Segment, ...]
    boundaries: tuple[Boundary, ...]
    chunks: tuple[
        tuple[tuple[Chunk, ...], ...], ...
    ]  # [row of the grid][segment]: rows may differ by one sample
    buckets: dict[int, tuple[Bucket, ...]]  # by rank: what a rank holds differs
    parameters: dict[int, tuple[Parameter, ...]]
    schedules: dict[int, tuple[Action, ...]]
    alive: tuple[
        int, ...
    ]  # chunks of each segment whose activations a rank holds at once: no more than these
    input_placement: Placement
    algorithms: Algorithms
    nodes: tuple[int, ...]  # of each rank
    options: object = field(repr=False, default=None)

    @property
    def size(self) -> int:
        return self.grid.size

    def group(self, name: str, rank: int) -> tuple[int, ...]:
        """World ranks of the group `name` ("row", "column", "world") that `rank` is in."""
        return getattr(self.grid, name)(rank)

    def samples(self, rank: int) -> tuple[int, int]:
        """Start and stop of the part of the batch that the model group of `rank` works on."""
        d = rank // self.grid.mp
        start = sum(self.row_batches[:d])
        return start, start + self.row_batches[d]

    def chunks_of(self, rank: int) -> tuple[tuple[Chunk, ...], ...]:
        """The chunks of each segment in the model group of `rank`."""
        return self.chunks[rank // self.grid.mp]

    @property
    def layers(self) -> list[LayerPlan]:
        return [layer for segment in self.segments for layer in segment.layers]

    def input_rows(self, rank: int) -> tuple[int, int]:
        """Start and stop, in the whole batch, of the images that `rank` loads."""
        start, stop = self.samples(rank)
        member = rank % self.grid.mp
        chunks = self.chunks_of(rank)[0]
        if self.input_placement == Shard(0):
            return start + chunks[0].parts[member][0], start + chunks[-1].parts[member][1]
        if isinstance(self.input_placement, OnRank) and self.input_placement.rank != member:
            return start, start
        return start, stop

    def messages(self, rank: int) -> list[Message]:
        """Every message that `rank` sends or receives in one step, in the order of its schedule."""
        from .messages import step_messages

        return step_messages(self, rank)

    def bytes_sent(self, rank: int) -> int:
        return sum(m.bytes for m in self.messages(rank) if m.kind == "send")

    def __str__(self) -> str:
        from .describe import plan_text

        return plan_text(self)
