"""What a plan is made of: layers, stages and what passes between them; what each rank holds and sums.

Nothing here needs MPI or arrays.  What differs from rank to rank is worked out when it is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from ..comm.algorithms import split_counts
from ..nn import Module
from .mesh import Mesh, split
from .placement import Blocks, Layout, MicroBatch, Region
from .rule import Derived
from .strategy import Options
from .transfer import Transfer, steps, transfers


@dataclass(frozen=True)
class Exchange:
    """A communication layer: a value, of `shape` a sample, moves from layout `source` to `target`, and its gradient,
    if it is `differentiable`, from `leaves` to `gradient`.

    It moves from stage `origin` to `layer`, the first of `stage` that needs it, in the micro-batches of that stage:
    rows of what the origin has, if that ran the batch `at_once`. Each has two tags of its own, from `tag` on.
    """

    value: str
    layer: str
    origin: int
    stage: int
    source: Layout
    target: Layout
    leaves: Layout
    gradient: Layout
    shape: tuple[int, ...]
    differentiable: bool
    at_once: bool
    tag: int

    def layouts(self, direction: str) -> tuple[Layout, Layout]:
        """From where to where, forward or backward."""
        return (self.source, self.target) if direction == "forward" else (self.leaves, self.gradient)

    def tag_of(self, micro_batch: int, direction: str) -> int:
        """The tag of one move: made of what it is, so that both ends agree on it in whatever order they come to it."""
        return self.tag + 2 * micro_batch + (direction == "backward")


@dataclass(frozen=True)
class LayerPlan:
    """One layer of the model, or the loss (`layer` is None), with what the rule derives for it.

    `inputs` names the values it takes; for each there are the communication layer before it, if any (`exchanges`), its
    shape of one sample, and whether a gradient flows to it (`differentiable`). `update` is its parameter group, `tag`
    the first tag of the statistics that are summed within it.
    """

    name: str
    layer: Module | None
    stage: int
    inputs: tuple[str, ...]
    exchanges: tuple[Exchange | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    out_shape: tuple[int, ...]
    derived: Derived
    differentiable: tuple[bool, ...]
    backward: bool
    update: str
    tag: int

    @property
    def layout(self) -> Layout:
        """Of the output."""
        return self.derived.output

    @cached_property
    def norms(self) -> tuple[str, ...]:
        """Paths, inside the layer, of what sums statistics over ranks."""
        modules = self.layer.named_modules() if self.layer and self.derived.statistics else ()
        return tuple(path for path, module in modules if module.statistics)


@dataclass(frozen=True)
class Stage:
    """Consecutive layers, through which the batch passes in micro-batches; `entries` come from earlier stages.

    It runs at coordinate `at` of the axis "stage", or on all ranks (None). A rank holds the activations of at most
    `alive` micro-batches at once; `check_plan` holds the schedule to it.
    """

    index: int
    layers: tuple[LayerPlan, ...]
    entries: tuple[Exchange, ...]
    micro_batches: tuple[MicroBatch, ...]
    at: int | None
    alive: int


@dataclass(frozen=True)
class Input:
    """An input of the model: the layout in which it is loaded, the shape of a sample, and the stage that takes it."""

    layout: Layout
    shape: tuple[int, ...]
    stage: int


@dataclass(frozen=True)
class Held:
    """What a rank holds of a parameter or buffer: `slices` of the whole. Its gradient is summed over the axes `sums`,
    as factors if there are `rows`: see `Bucket`."""

    name: str
    layer: str
    full_shape: tuple[int, ...]
    slices: tuple[tuple[int, int], ...]
    layout: Layout
    sums: tuple[str, ...]
    trained: bool
    buffer: bool
    rows: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.slices)

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Bucket:
    """Parameters of one group whose gradients are summed together, over the ranks along `axes`.

    A weight matrix may be a bucket of its own whose factors are gathered instead: see `FactorExchange`.
    """

    index: int
    axes: tuple[str, ...]
    update: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    algorithm: str
    tag: int
    sharded: bool = False  # reduce_scatter, update the own shard, all_gather: the 2014 code's momentum
    matrix: tuple[int, int] | None = None  # (i, o) of a weight matrix whose gradient is exchanged as factors
    rows: tuple[int, ...] = ()  # of the batch, that each member of the group brings to them

    @property
    def elements(self) -> int:
        return sum(self.sizes)

    @property
    def op(self) -> str:
        """The collective of the gradients."""
        return "all_gather" if self.matrix else "reduce_scatter" if self.sharded else "all_reduce"

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


class PerRank(Mapping):
    """Something of every rank, by number, made when it is asked for."""

    def __init__(self, size: int, make: Callable[[int], Any]) -> None:
        self.size, self.make, self.made = size, make, {}

    def __getitem__(self, rank: int) -> Any:
        if rank not in self.made:
            self.made[rank] = self.make(rank)
        return self.made[rank]

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size))

    def __len__(self) -> int:
        return self.size


@dataclass(eq=False)
class Planned:
    """One training step of `model` by `strategy` over a process mesh.

    By rank: its schedule, the events that it is lowered to, what the rank holds of the parameters, and the buckets of
    gradients that it sums. `nodes` is the node (host) of each rank; `notes` say what could not be done as asked.
    """

    model: str
    strategy: str
    mesh: Mesh
    batch: int
    blocks: Blocks
    inputs: dict[str, Input]
    stages: tuple[Stage, ...]
    options: Options
    nodes: tuple[int, ...]
    notes: tuple[str, ...]
    schedules: PerRank
    events: PerRank
    held: PerRank
    buckets: PerRank

    @property
    def size(self) -> int:
        return self.mesh.size

    @cached_property
    def dtype(self) -> np.dtype:
        return np.dtype(self.options.dtype)

    @cached_property
    def layers(self) -> list[LayerPlan]:
        return [layer for stage in self.stages for layer in stage.layers]

    @cached_property
    def by_name(self) -> dict[str, LayerPlan]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def users(self) -> dict[str, list[str]]:
        """The layers that use each parameter or buffer, by its name: several where they are tied."""
        first: dict[int, str] = {}
        found: dict[str, list[str]] = {}
        for plan in self.layers:
            for name, variable in plan.layer.named_variables(prefix=plan.name) if plan.layer else ():
                found.setdefault(first.setdefault(id(variable), name), []).append(plan.name)
        return found

    @cached_property
    def use_counts(self) -> Counter:
        """How often each value is taken, by its stage and name: by layers, and by what goes on to later stages."""
        found = Counter((layer.stage, value) for layer in self.layers for value in layer.inputs)
        for stage in self.stages:
            for entry in stage.entries:
                found[entry.origin, entry.value] += len(stage.micro_batches) if entry.at_once else 1
        return found

    @cached_property
    def groups(self) -> list[tuple[str, ...]]:
        """The sets of axes along which anything moves, in one order on every rank."""
        found = {self.mesh.names}
        for layer in self.layers:
            found |= {v.sums for v in layer.derived.variables.values()} | {layer.derived.statistics}
        moves = [e for stage in self.stages for e in stage.entries]
        for exchange in moves + [e for layer in self.layers for e in layer.exchanges if e]:
            for direction in ("forward", "backward"):
                found |= {axes for *_, axes in steps(*exchange.layouts(direction), self.mesh)}
        return sorted(found - {()})

    def runs(self, rank: int, layer: LayerPlan) -> bool:
        """Whether a rank computes anything of a layer."""
        return self.region(layer.derived.gradient, (), rank) is not None

    def region(self, layout: Layout, shape: Sequence[int], rank: int) -> Region | None:
        """What a rank holds of a value whose samples have `shape`; None where it holds nothing."""
        return self.blocks.region(layout, shape, rank)

    def samples(self, layout: Layout, rank: int, batch: MicroBatch) -> np.ndarray:
        """The numbers, in the batch, of the samples that a rank holds of a value so laid out."""
        region = self.region(layout, (), rank)
        return batch.samples(region.blocks if region else ())

    def transfers(self, exchange: Exchange, direction: str, number: int, rank: int) -> tuple[Transfer, ...]:
        """The transfers of an exchange, in micro-batch `number`, that concern a rank."""
        batch, layouts = self.stages[exchange.stage].micro_batches[number], exchange.layouts(direction)
        return transfers(*layouts, exchange.shape, batch, self.blocks, rank, self.options.algorithms)

    def input_rows(self, rank: int) -> tuple[int, int]:
        """Start and stop, in the whole batch, of the samples that `rank` loads."""
        rows = [
            self.samples(given.layout, rank, batch)
            for given in self.inputs.values()
            for batch in self.stages[given.stage].micro_batches
        ]
        found = np.concatenate(rows)
        return (int(found.min()), int(found.max()) + 1) if found.size else (0, 0)
