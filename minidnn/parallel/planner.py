"""From (model, strategy, shapes) to a `Plan`: communication layers put in, schedules completed.

Nothing here touches an array or a communicator, so the plan of 1,024 ranks is made on a laptop.
"""

from __future__ import annotations

import numpy as np

from .. import nn
from ..errors import InputError
from .per_rank import per_rank
from .placement import Partial, Placement, Replicate, Shard, bounds, split
from .plan import Boundary, Chunk, Exchange, LayerPlan, Plan, Segment
from .shard import Requirement, requirement
from .strategy import Options, Strategy

LOSS = "loss"
INPUT = "input"


def make_plan(
    model: nn.Sequential,
    shape: tuple[int, ...],
    strategy: Strategy,
    batch: int,
    options: Options,
    title: str = "model",
    check: bool = True,
) -> Plan:
    """Plan one training step.

    Parameters
    ----------
    model : Sequential
        Needs no weights.
    shape : tuple of int
        One sample: (H, W, C).
    batch : int
        Samples of the whole step, over all ranks.

    Raises
    ------
    InputError
        More ranks than the batch can be split over.
    PlacementError
        A layer that cannot take its placement.
    """
    grid = strategy.grid
    if check:
        check_batch(strategy, batch)
    segments, boundaries, first = _Builder(model, shape, strategy, options).build()
    row_batches = split(batch, grid.dp)
    chunks = tuple(_chunks(strategy, rows) for rows in row_batches)
    return Plan(
        model=title,
        strategy=strategy.name,
        grid=grid,
        batch=batch,
        dtype=np.dtype(options.dtype),
        row_batches=row_batches,
        segments=segments,
        boundaries=boundaries,
        chunks=chunks,
        alive=strategy.alive,
        input_placement=first,
        algorithms=options.algorithms,
        nodes=options.nodes or (0,) * grid.size,
        **per_rank(segments, chunks, strategy, options),
    )


def check_batch(strategy: Strategy, batch: int) -> None:
    """Refuse a batch that leaves a rank or a chunk without a sample."""
    grid, most = strategy.grid, max(strategy.chunks)
    sharded = Shard(0) in strategy.placements.values()
    parts = grid.dp * (grid.mp if sharded else 1)
    if strategy.chunking != "by member":
        parts *= most
    if batch < parts:
        chunks = f" in {most} chunks" if most > 1 else ""
        raise InputError(
            f"a batch of {batch} cannot be split over {grid.size} ranks{chunks} by strategy "
            f"{strategy.name!r}: give --batch {parts} or more, or fewer ranks"
        )


def _chunks(strategy: Strategy, rows: int) -> tuple[tuple[Chunk, ...], ...]:
    """The chunks of each segment for a model group with `rows` samples."""
    size = strategy.grid.mp
    blocks = [bounds(rows, size, m) for m in range(size)]
    plans = []
    for count in strategy.chunks:
        if strategy.chunking == "contiguous":
            parts = [[bounds(rows, count, c)] + [(0, 0)] * (size - 1) for c in range(count)]
        elif strategy.chunking == "by member" and count > 1:
            parts = [[blocks[m] if m == c else (0, 0) for m in range(size)] for c in range(count)]
        else:
            parts = [
                [tuple(start + x for x in bounds(stop - start, count, c)) for start, stop in blocks]
                for c in range(count)
            ]
        plans.append(tuple(Chunk(tuple(part)) for part in parts))
    return tuple(plans)


class _Builder:
    """Works out, layer by layer, which communication layers go in."""

    def __init__(
        self, model: nn.Sequential, shape: tuple[int, ...], strategy: Strategy, options: Options
    ) -> None:
        self.strategy, self.options, self.size = strategy, options, strategy.grid.mp
        rows = list(model.shapes(shape))
        self.names = [name for name, *_ in rows] + [LOSS]
        self.layers = {name: layer for name, layer, *_ in rows} | {LOSS: None}
        self.in_shapes = {name: inputs for name, _, inputs, _ in rows}
        self.out_shapes = {INPUT: tuple(shape)} | {name: out for name, *_, out in rows}
        last = self.names[-2]
        self.in_shapes[LOSS] = (self.out_shapes[last],)
        self.out_shapes[LOSS] = ()
        previous = [INPUT, *self.names[:-1]]
        self.sources = {
            n: (p, *(self.layers[n].also if n != LOSS else ()))
            for n, p in zip(self.names, previous, strict=True)
        }
        self.placements = strategy.placements
        self.consumers = {v: [n for n in self.names if v in self.sources[n]] for v in [INPUT, *self.names]}
        self.segment = self._segments()
        self.needs = {n: self._requirement(n) for n in self.names}
        self.gradients = self._gradients()
        self.differentiable = self._differentiable()

    def _segments(self) -> dict[str, int]:
        index, segments = 0, {}
        for name in self.names:
            if index < len(self.strategy.starts) and name == self.strategy.starts[index]:
                index += 1
            segments[name] = index
        return segments

    def _requirement(self, name: str):
        placement = self.placements[name]
        layer = self.layers[name]
        if layer is None:
            return Requirement(placement, placement)
        return requirement(name, layer, placement, self.size, self.in_shapes[name][0])

    def _gradients(self) -> dict[str, tuple[Placement, Placement]]:
        """For each layer, the placement of the gradient of its output, and the one it leaves of its input.

        The backward of a layer without parameters is linear in its gradient. So such a layer, where
        it is replicated, passes a `Partial` gradient on as it is, and the sum is made further down,
        where it may cost less: a reduce_scatter in place of an all_reduce.
        """
        result: dict[str, tuple[Placement, Placement]] = {}
        for name in reversed(self.names):
            placement, need = self.placements[name], self.needs[name]
            out = Replicate() if isinstance(placement, Partial) else placement
            leaves = need.gradient
            layer, consumers = self.layers[name], self.consumers[name]
            plain = layer is not None and not list(layer.named_parameters())
            if plain and placement == Replicate() and len(consumers) == 1 and len(self.sources[name]) == 1:
                consumer = consumers[0]
                if self.segment[consumer] == self.segment[name] and result[consumer][1] == Partial():
                    out = leaves = Partial()
            result[name] = (out, leaves)
        return result

    def _differentiable(self) -> set[str]:
        """Values that depend on a parameter, so that a gradient flows to them."""
        found: set[str] = set()
        for name in self.names[:-1]:
            if list(self.layers[name].named_parameters()) or any(s in found for s in self.sources[name]):
                found.add(name)
        return found

    def _exchange(self, value: str, src, dst, grad_src, grad_dst) -> Exchange:
        return Exchange(
            src=src,
            dst=dst,
            grad_src=grad_src,
            grad_dst=grad_dst,
            shape=self.out_shapes[value],
            size=self.size,
            differentiable=value in self.differentiable,
            algorithms=self.options.algorithms,
        )

    def build(self) -> tuple[tuple[Segment, ...], tuple[Boundary, ...], Placement]:
        """The segments, the boundaries, and the placement in which the images are loaded."""
        first = self.names[0]
        # Where each value lies within the running segment, and the placement its gradient must reach there.
        # Images are loaded whole: who needs some of their channels cuts them out.
        loaded = Replicate() if self.needs[first].input == Shard(-1) else self.needs[first].input
        here = {INPUT: (loaded, self.gradients[first][1])}
        segments, boundaries = [], []
        for index in range(len(self.strategy.starts) + 1):
            names = [n for n in self.names if self.segment[n] == index]
            if index > 0:
                boundary, here = self._boundary(index, names, here)
                boundaries.append(boundary)
            layers = []
            for name in names:
                layers.append(self._layer(name, here))
                here[name] = (self.placements[name], self.gradients[name][0])
            segments.append(Segment(index, tuple(layers)))
        return tuple(segments), tuple(boundaries), loaded

    def _layer(self, name: str, here: dict) -> LayerPlan:
        need, leaves = self.needs[name], self.gradients[name][1]
        exchanges = []
        for value in self.sources[name]:
            src, grad_dst = here[value]
            exchange = self._exchange(value, src, need.input, leaves, grad_dst)
            exchanges.append(None if exchange.is_identity else exchange)
        placement, layer, sync = self.placements[name], self.layers[name], ""
        if isinstance(layer, nn.BatchNorm) and self.options.sync_batch_norm:
            sync = self._samples_group(placement)
        return LayerPlan(
            name=name,
            layer=layer,
            placement=placement,
            inputs=self.sources[name],
            exchanges=tuple(exchanges),
            in_shape=self.in_shapes[name][0],
            out_shape=self.out_shapes[name],
            sync=sync,
        )

    def _samples_group(self, placement: Placement) -> str:
        """The group over which the samples of a layer so placed are spread ("" for none)."""
        grid = self.strategy.grid
        if placement == Shard(0):
            return "world" if grid.size > 1 else ""
        return "column" if grid.dp > 1 else ""

    def _boundary(self, index: int, names: list[str], here: dict) -> tuple[Boundary, dict]:
        """What enters segment `index`: each earlier value that it or a later segment still needs."""
        values, exchanges, arrived = [], [], {}
        for value, (src, grad_dst) in here.items():
            users = [n for n in self.consumers[value] if self.segment[n] >= index]
            if not users:
                continue
            inside = [n for n in users if n in names]
            if inside:
                dst, leaves = self.needs[inside[0]].input, self.gradients[inside[0]][1]
            else:  # it only passes through: on the rank that the segment runs on
                dst = leaves = self.placements[names[0]]
            values.append(value)
            exchanges.append(self._exchange(value, src, dst, leaves, grad_dst))
            arrived[value] = (dst, leaves)
        return Boundary(index - 1, names[0], tuple(values), tuple(exchanges)), arrived
