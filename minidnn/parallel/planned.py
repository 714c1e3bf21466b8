"""What a plan is made of: layers, stages and what passes between them; what each rank holds and sums."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from ..comm.algorithms import split_counts
from ..nn import Module
from .mesh import split
from .placement import Layout, MicroBatch
from .rule import Derived


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
    op: str
    algorithm: str
    tag: int
    sharded: bool = False  # reduce_scatter, update the own shard, all_gather: the 2014 code's momentum
    matrix: tuple[int, int] | None = None  # (i, o) of a weight matrix whose gradient is exchanged as factors
    rows: tuple[int, ...] = ()  # of the batch, that each member of the group brings to them

    @property
    def elements(self) -> int:
        return sum(self.sizes)

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
        return "..".join(dict.fromkeys(self.names[i].rpartition(".")[0] for i in (0, -1)))

    @property
    def tensor(self) -> str:
        """What the ledger calls the contents; no other bucket of a rank is called so."""
        return "..".join(dict.fromkeys((self.names[0], self.names[-1])))
