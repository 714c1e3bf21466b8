"""Where a value lives on a mesh: one placement for each axis, and the part of the value that follows for each rank.

The words are those of PyTorch's DTensor: along an axis of the mesh a value is split along one of its own axes
(`Shard`), the same on every rank (`Replicate`), still to be summed (`Partial`), or held at one place alone (`At`).
What a layer with a window reads is a `Halo`: the rows under the windows of its own outputs, and so rows of its
neighbours.  All placements of one value, in the order of the mesh, are its *layout*.

What a rank holds is a rectangle of the whole (`Region`).  Of samples, axis 0, it is a list of *blocks*: the batch is
cut once, over all axes of the mesh along which any layer splits samples, and a rank holds some of the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from math import prod
from typing import NamedTuple

import numpy as np

from .mesh import Mesh, bounds, cut, numbers

Shape = tuple[int, ...]
Range = tuple[int, int]  # start, stop
Numbers = tuple[int, ...]  # of blocks


class Placement:
    """Where a value is along one axis of the mesh."""

    def __str__(self) -> str:
        return type(self).__name__ + "".join(f"({first})" for first in [*vars(self).values()][:1])


@dataclass(frozen=True)
class Shard(Placement):
    """Split along `axis` of the value: 0 is the samples, -1 the features, 1 and 2 the height and width of images.

    `units` is the number of indivisible pieces of that axis, such as the groups of a convolution; None: all entries.
    """

    axis: int
    units: int | None = None


@dataclass(frozen=True)
class Halo(Placement):
    """What windows read: member i of the group along `axes` has the entries ``ranges[i]`` of `axis`, which may overlap.

    As the placement of a gradient it is a sum: what two members have of one entry is added.
    """

    axis: int
    axes: tuple[str, ...]
    ranges: tuple[Range, ...]


@dataclass(frozen=True)
class Replicate(Placement):
    """The same on every rank."""


@dataclass(frozen=True)
class Partial(Placement):
    """Every rank holds a term of a sum still to be made."""


@dataclass(frozen=True)
class At(Placement):
    """Held at coordinate `index` of the axis alone."""

    index: int


Layout = tuple[Placement, ...]  # one for each axis of the mesh


def layout_text(layout: Layout, mesh: Mesh) -> str:
    """A layout in words; along an axis that is not named the value is replicated."""
    said = [(n, p) for n, p, size in zip(mesh.names, layout, mesh.sizes, strict=True) if size > 1]
    if len(said) < 2:
        return str(said[0][1] if said else Shard(0))
    return ", ".join(f"{name}: {p}" for name, p in said if p != Replicate()) or "Replicate"


def elsewhere(layout: Layout, coordinates: Sequence[int]) -> bool:
    """Whether the rank at these coordinates holds nothing of a value so laid out."""
    return any(isinstance(p, At) and p.index != i for p, i in zip(layout, coordinates, strict=True))


def intervals(layout: Layout, shape: Shape, at: Sequence[int], mesh: Mesh) -> tuple[Range, ...]:
    """Start and stop, along each axis of an array of the whole `shape`, of the part at these coordinates."""
    box = [(0, n) for n in shape]
    for placement, i, size in zip(layout, at, mesh.sizes, strict=True):
        if isinstance(placement, Halo):
            own = zip(mesh.names, mesh.sizes, at, strict=True)
            _, sizes, places = zip(*(x for x in own if x[0] in placement.axes), strict=True)
            box[placement.axis % len(shape)] = placement.ranges[numbers(sizes, places)[0]]
        elif isinstance(placement, Shard):
            axis = placement.axis % len(shape)
            start, stop = box[axis]
            width = max(1, shape[axis] // placement.units) if placement.units else 1
            first, last = bounds((stop - start) // width, size, i)
            box[axis] = start + first * width, start + last * width
    return tuple(box)


class Region(NamedTuple):
    """A rectangle of a value: the numbers of its blocks of samples, and start and stop along each other axis."""

    blocks: Numbers
    box: tuple[Range, ...]


class Blocks(NamedTuple):
    """How the samples of a batch lie on a mesh: cut over these axes, in the order of the mesh."""

    mesh: Mesh
    axes: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self.mesh.axis_size(axis) for axis in self.axes)

    @lru_cache(maxsize=65536)  # noqa: B019 - a few to a rank
    def region(self, layout: Layout, shape: Shape, rank: int) -> Region | None:
        """What a rank holds of a value whose samples have `shape`; None where it holds nothing."""
        at = self.mesh.coordinates[rank]
        if elsewhere(layout, at):
            return None
        split = [self.mesh.names.index(name) for name in self.axes]
        held = numbers(self.sizes, tuple(at[i] if layout[i] == Shard(0) else None for i in split))
        return Region(held, intervals(layout, (0, *shape), at, self.mesh)[1:])

    def cut(self, batch: int) -> tuple[Range, ...]:
        """The rows of a batch in each block."""
        return cut(batch, self.sizes)


@dataclass(frozen=True)
class MicroBatch:
    """The samples that pass through a stage at once: rows ``blocks[k]`` (start, stop) of the batch are its block k."""

    blocks: tuple[Range, ...]

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Samples of each block."""
        return tuple(stop - start for start, stop in self.blocks)

    @cached_property
    def size(self) -> int:
        return sum(self.rows)

    @lru_cache(maxsize=64)  # noqa: B019 - few, and kept with the plan
    def samples(self, blocks: Numbers | None = None) -> np.ndarray:
        """The numbers, in the batch, of the samples in some blocks (default: in all)."""
        chosen = self.blocks if blocks is None else [self.blocks[k] for k in blocks]
        return np.concatenate([np.arange(0), *(np.arange(*rows) for rows in chosen)])

    def shape(self, region: Region) -> Shape:
        """The shape of the array that holds a region."""
        return (sum(self.rows[k] for k in region.blocks), *(stop - start for start, stop in region.box))

    def elements(self, *regions: Region) -> int:
        """Numbers in all of the regions."""
        return sum(prod(self.shape(region)) for region in regions)

    def index(self, part: Region, whole: Region) -> tuple[slice, ...]:
        """Where a part lies in the array that holds `whole`; its blocks are consecutive there."""
        first = whole.blocks.index(part.blocks[0]) if part.blocks else 0
        start = sum(self.rows[k] for k in whole.blocks[:first])
        rows = slice(start, start + sum(self.rows[k] for k in part.blocks))
        return rows, *(slice(a - o, b - o) for (a, b), (o, _) in zip(part.box, whole.box, strict=True))


def pieces(source: Region, target: Region, micro_batch: MicroBatch) -> list[Region]:
    """The rectangles in which two regions meet, each in one piece in both."""
    box = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(source.box, target.box, strict=True))
    if any(start >= stop for start, stop in box):
        return []
    return [Region(run, box) for run in _runs(source.blocks, target.blocks, micro_batch)]


@lru_cache(maxsize=4096)
def _runs(source: Numbers, target: Numbers, micro_batch: MicroBatch) -> tuple[Numbers, ...]:
    """The blocks that two regions share, cut where they do not lie one after the other in both; without empty ones."""
    nonempty = ([k for k in held if micro_batch.rows[k]] for held in (source, target))
    there, here = ({k: i for i, k in enumerate(held)} for held in nonempty)
    shared = enumerate(k for k in here if k in there)
    runs = groupby(shared, lambda x: (here[x[1]] - x[0], there[x[1]] - x[0]))
    return tuple(tuple(k for _, k in run) for _, run in runs)
