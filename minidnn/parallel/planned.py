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
from .placement import Blocks, Layout, MicroBatch, Region, Replicate
from .rule import Derived
from .strategy import Options
from .transfer import Transfer, steps, transfers


@dataclass(frozen=True)
class Exchange:
    """A communication layer: a value moves from layout `source` to `target`, its gradient from `leaves` to `gradient`.

    Attributes
    ----------
    value, layer : str
        What moves, and the first layer that needs it: its name in the ledger.
    origin, stage : int
        The stage that has the value, and the one that needs it, whose micro-batches are moved.
    shape : tuple of int
        Of one sample.
    differentiable : bool
        False where no gradient flows, as to the images.
    tag : int
        The first of the tags of its messages: two for each micro-batch.
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
    tag: int

    def layouts(self, direction: str) -> tuple[Layout, Layout]:
        """From where to where, forward or backward."""
        return (self.source, self.target) if direction == "forward" else (self.leaves, self.gradient)

    def tag_of(self, micro_batch: int, direction: str) -> int:
        """The tag of one move: made of what it is, so that both ends agree on it in whatever order they come to it."""
        return self.tag + 2 * micro_batch + (direction == "backward")


@dataclass(frozen=True)
class LayerPlan:
    """One layer of the model, with what the rule derives for it; the loss is the last.

    Attributes
    ----------
    layer : Module or None
        The whole layer; None is the loss.
    inputs : tuple of str
        Names of the values it takes.
    exchanges : tuple of (Exchange or None)
        The communication layer before each input.
    shapes, out_shape : tuples of int
        Of one sample: of the inputs and the output.
    differentiable : tuple of bool
        Which inputs get a gradient.
    backward : bool
        Whether the layer has a backward at all.
    update : str
        The parameter group, for its own learning rate and update period.
    tag : int
        As `Exchange.tag`, of the statistics that are summed within the layer.
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
        if self.layer is None or not self.derived.statistics:
            return ()
        return tuple(path for path, module in self.layer.named_modules() if module.statistics)


@dataclass(frozen=True)
class Stage:
    """Consecutive layers, through which the batch passes in one or more micro-batches.

    Attributes
    ----------
    entries : tuple of Exchange
        What comes from earlier stages.
    at : int or None
        The coordinate, along the axis "stage", of the ranks that run it; None: all ranks do.
    alive : int
        The most micro-batches whose activations a rank holds at once; `check_plan` holds the schedule to it.
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
    """What a rank holds of a parameter or buffer.

    Attributes
    ----------
    sums : tuple of str
        The axes of the mesh over which its gradient is summed.
    trained, buffer : bool
        Whether the optimiser steps it; whether it is no parameter, but a buffer.
    rows : tuple of int
        Where the gradient is exchanged as factors: see `Bucket.rows`.
    """

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
    """Parameters whose gradients are summed together, over the ranks along `axes`.

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

    Attributes
    ----------
    schedules, events : PerRank
        What each rank does in a training step, in order: as its schedule has it, and lowered to what happens.
    held, buckets : PerRank
        What each rank holds of the parameters, and what it sums.
    nodes : tuple of int
        The node (host) of each rank.
    notes : tuple of str
        What could not be done as asked.
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
    def use_counts(self) -> dict[tuple[int, str], int]:
        """How often each value is taken, by its stage and name: by layers, and by what goes on to later stages."""
        found: Counter = Counter()
        for stage in self.stages:
            found.update((stage.index, value) for layer in stage.layers for value in layer.inputs)
            for entry in stage.entries:
                one_for_many = len(self.stages[entry.origin].micro_batches) != len(stage.micro_batches)
                found[entry.origin, entry.value] += len(stage.micro_batches) if one_for_many else 1
        return found

    @cached_property
    def groups(self) -> list[tuple[str, ...]]:
        """The sets of axes along which anything moves, in one order on every rank."""
        found = {self.mesh.names}
        for stage in self.stages:
            for exchange in (*stage.entries, *(e for layer in stage.layers for e in layer.exchanges if e)):
                for direction in ("forward", "backward"):
                    found |= {axes for _, _, axes in steps(*exchange.layouts(direction), self.mesh)}
            for layer in stage.layers:
                found |= {v.sums for v in layer.derived.variables.values()} | {layer.derived.statistics}
        return sorted(found - {()})

    @property
    def repeats(self) -> bool:
        """Whether ranks compute the same gradients each by itself: then all must round alike."""
        variables = (v for layer in self.layers for v in layer.derived.variables.values())
        return self.options.fc_gradients == "factors" or any(
            p == Replicate() and n > 1 and axis not in v.sums
            for v in variables
            for axis, n, p in zip(self.mesh.names, self.mesh.sizes, v.layout, strict=True)
        )

    def runs(self, rank: int, layer: LayerPlan) -> bool:
        """Whether a rank computes anything of a layer."""
        return self.blocks.region(layer.derived.gradient, (), rank) is not None

    def region(self, layout: Layout, shape: Sequence[int], rank: int) -> Region | None:
        """What a rank holds of a value whose samples have `shape`; None where it holds nothing."""
        return self.blocks.region(layout, shape, rank)

    def local_shape(self, layout: Layout, shape: Sequence[int], rank: int, batch: MicroBatch) -> tuple | None:
        """The shape of the array that a rank holds of it; None where it holds nothing."""
        region = self.region(layout, shape, rank)
        return None if region is None else batch.shape(region)

    def samples(self, layout: Layout, rank: int, batch: MicroBatch) -> np.ndarray:
        """The numbers, in the batch, of the samples that a rank holds of a value so laid out."""
        region = self.region(layout, (), rank)
        return batch.samples(() if region is None else region.blocks)

    def transfers(
        self, exchange: Exchange, direction: str, micro_batch: int, rank: int
    ) -> tuple[Transfer, ...]:
        """The transfers of an exchange that concern a rank."""
        batch = self.stages[exchange.stage].micro_batches[micro_batch]
        layouts = exchange.layouts(direction)
        return transfers(*layouts, exchange.shape, batch, self.blocks, rank, self.options.algorithms)

    def input_rows(self, rank: int) -> tuple[int, int]:
        """Start and stop, in the whole batch, of the samples that `rank` loads."""
        found = []
        for given in self.inputs.values():
            for batch in self.stages[given.stage].micro_batches:
                rows = self.samples(given.layout, rank, batch)
                found += [int(rows.min()), int(rows.max()) + 1] if rows.size else []
        return (min(found), max(found)) if found else (0, 0)
