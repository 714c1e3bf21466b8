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
from math import prod
from typing import NamedTuple

import numpy as np

from .mesh import Mesh, bounds


@dataclass(frozen=True)
class Shard:
    """Split along `axis` of the value: 0 is the samples, -1 the features, 1 and 2 the height and width of images.

    `units` is the number of indivisible pieces of that axis, such as the groups of a convolution; None: all entries.
    """

    axis: int
    units: int | None = None

    def __str__(self) -> str:
        return f"Shard({self.axis})"


@dataclass(frozen=True)
class Halo:
    """What windows read: member i of the group along `axes` has the entries ``ranges[i]`` of `axis`, which may overlap.

    As the placement of a gradient it is a sum: what two members have of one entry is added.
    """

    axis: int
    axes: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return f"Halo({self.axis})"


@dataclass(frozen=True)
class Replicate:
    """The same on every rank."""

    def __str__(self) -> str:
        return "Replicate"


@dataclass(frozen=True)
class Partial:
    """Every rank holds a term of a sum still to be made."""

    def __str__(self) -> str:
        return "Partial"


@dataclass(frozen=True)
class At:
    """Held at coordinate `index` of the axis alone."""

    index: int

    def __str__(self) -> str:
        return f"At({self.index})"


Placement = Shard | Halo | Replicate | Partial | At
Layout = tuple[Placement, ...]  # one for each axis of the mesh


def layout_text(layout: Layout, mesh: Mesh) -> str:
    """A layout in words; along an axis that is not named the value is replicated."""
    said = [(n, p) for n, p, size in zip(mesh.names, layout, mesh.sizes, strict=True) if size > 1]
    if len(said) < 2:
        return str(said[0][1] if said else Shard(0))
    parts = [f"{name}: {placement}" for name, placement in said if placement != Replicate()]
    return ", ".join(parts) or "Replicate"


class Region(NamedTuple):
    """A rectangle of a value: the numbers of its blocks of samples, and start and stop along each other axis."""

    blocks: tuple[int, ...]
    box: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class MicroBatch:
    """The samples that pass through a stage at once: rows ``blocks[k]`` (start, stop) of the batch are its block k."""

    blocks: tuple[tuple[int, int], ...]

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Samples of each block."""
        return tuple(stop - start for start, stop in self.blocks)

    @cached_property
    def size(self) -> int:
        return sum(self.rows)

    @lru_cache(maxsize=64)  # noqa: B019 - few, and kept with the plan
    def samples(self, blocks: tuple[int, ...] | None = None) -> np.ndarray:
        """The numbers, in the batch, of the samples in some blocks (default: in all)."""
        chosen = self.blocks if blocks is None else [self.blocks[k] for k in blocks]
        return np.concatenate([np.arange(0), *(np.arange(*rows) for rows in chosen)])

    def shape(self, region: Region) -> tuple[int, ...]:
        """The shape of the array that holds a region."""
        return (sum(self.rows[k] for k in region.blocks), *(stop - start for start, stop in region.box))

    def index(self, part: Region, whole: Region) -> tuple[slice, ...]:
        """Where a part lies in the array that holds `whole`; its blocks are consecutive there."""
        first = whole.blocks.index(part.blocks[0]) if part.blocks else 0
        start = sum(self.rows[k] for k in whole.blocks[:first])
        rows = slice(start, start + sum(self.rows[k] for k in part.blocks))
        inner = (slice(a - o, b - o) for (a, b), (o, _) in zip(part.box, whole.box, strict=True))
        return rows, *inner


class Blocks(NamedTuple):
    """How the samples of a batch lie on a mesh: cut over these axes, in the order of the mesh."""

    mesh: Mesh
    axes: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self.mesh.axis_size(axis) for axis in self.axes)

    def held(self, layout: Layout, coordinates: Sequence[int]) -> tuple[int, ...]:
        """The numbers of the blocks that a rank holds of a value so laid out."""
        places = [self.mesh.names.index(name) for name in self.axes]
        return _held(self.sizes, tuple(coordinates[i] if layout[i] == Shard(0) else None for i in places))

    def region(self, layout: Layout, shape: Sequence[int], rank: int) -> Region | None:
        """What a rank holds of a value whose samples have `shape`; None where it holds nothing."""
        return _region(self, layout, tuple(shape), self.mesh.coordinates[rank])

    def cut(self, batch: int) -> tuple[tuple[int, int], ...]:
        """The rows of a batch in each block."""
        rows = [(0, batch)]
        for size in self.sizes:
            rows = [
                (start + a, start + b)
                for start, stop in rows
                for a, b in (bounds(stop - start, size, i) for i in range(size))
            ]
        return tuple(rows)


@lru_cache(maxsize=65536)
def _held(sizes: tuple[int, ...], places: tuple[int | None, ...]) -> tuple[int, ...]:
    """The numbers of the blocks at given places along each axis; None: at all of them."""
    held = [0]
    for size, place in zip(sizes, places, strict=True):
        own = range(size) if place is None else (place,)
        held = [k * size + j for k in held for j in own]
    return tuple(held)


@lru_cache(maxsize=65536)
def _region(blocks: Blocks, layout: Layout, shape: tuple[int, ...], at: tuple[int, ...]) -> Region | None:
    if any(isinstance(p, At) and p.index != i for p, i in zip(layout, at, strict=True)):
        return None
    box = intervals(layout, (0, *shape), at, blocks.mesh)[1:]
    return Region(blocks.held(layout, at), box)


def intervals(
    layout: Layout, shape: Sequence[int], coordinates: Sequence[int], mesh: Mesh
) -> tuple[tuple[int, int], ...]:
    """Start and stop, along each axis of an array of the whole `shape`, of the part at `coordinates`."""
    found = []
    for axis, n in enumerate(shape):
        start, stop, units = 0, n, n
        for placement, i, size in zip(layout, coordinates, mesh.sizes, strict=True):
            if not isinstance(placement, Shard | Halo) or placement.axis % len(shape) != axis:
                continue
            if isinstance(placement, Halo):
                start, stop = placement.ranges[mesh.index(coordinates, placement.axes)]
                continue
            if placement.units is not None and units == n:  # the outermost split says what is in one piece
                units = placement.units
                stop = units
            first, last = bounds(stop - start, size, i)
            start, stop = start + first, start + last
        found.append((start * n // units, stop * n // units) if units and units != n else (start, stop))
    return tuple(found)


def pieces(source: Region, target: Region, micro_batch: MicroBatch) -> list[Region]:
    """The rectangles in which two regions meet, each in one piece in both."""
    box = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(source.box, target.box, strict=True))
    if any(start >= stop for start, stop in box):
        return []
    return [Region(run, box) for run in _runs(source.blocks, target.blocks, micro_batch)]


@lru_cache(maxsize=4096)
def _runs(
    source: tuple[int, ...], target: tuple[int, ...], micro_batch: MicroBatch
) -> tuple[tuple[int, ...], ...]:
    """The blocks that two regions share, cut where they do not lie one after the other in both; without empty ones."""
    there = {k: i for i, k in enumerate(k for k in source if micro_batch.rows[k])}
    runs: list[list[int]] = []
    last = None
    for i, k in enumerate(k for k in target if micro_batch.rows[k]):
        if k in there:
            if last == (i - 1, there[k] - 1):
                runs[-1].append(k)
            else:
                runs.append([k])
            last = i, there[k]
    return tuple(map(tuple, runs))


def elements(region: Region, micro_batch: MicroBatch) -> int:
    """Numbers in a region."""
    return prod(micro_batch.shape(region))
