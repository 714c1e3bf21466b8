"""Messages and bytes of a step over all ranks, of plans whose messages are too many to list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import repeat
from math import prod

from ..comm.algorithms import BLOCKED, rounds, split_counts
from .events import Post
from .messages import Batch, batches
from .placement import At, Layout, Placement, Replicate, Shard
from .plan import Plan
from .transfer import Transfer


def totals(plan: Plan) -> tuple[int, int]:
    """Messages and bytes that all ranks together send in a step; each collective is counted once, not on each rank."""
    alike = _alike(plan)
    images = prod(map(plan.mesh.axis_size, alike))  # the places to which one rank's work can be moved
    seen: set[tuple] = set()
    messages = sent = 0
    for rank in _representatives(plan, alike):
        times: Counter = Counter()
        for event in plan.events[rank]:
            moves = [t for t in event.transfers if t.moves_data] if isinstance(event, Post) else repeat(None)
            for batch, move in zip(batches(plan, rank, [event]), moves, strict=False):
                label = batch.phase, batch.op, batch.tag, batch.group
                times[label] += 1
                if (label, times[label]) not in seen:
                    seen.add((label, times[label]))
                    weight = images
                    for axis in alike:
                        weight //= len({plan.mesh.coordinate(r, axis) for r in batch.group})
                    count, elements = _counted(plan, batch, move)
                    messages, sent = messages + weight * count, sent + weight * elements * batch.itemsize
    return messages, sent


def _alike(plan: Plan) -> list[str]:
    """The axes along which ranks do the same on as many samples, so that one of them stands for all."""
    even = all(len(set(batch.rows)) == 1 for stage in plan.stages for batch in stage.micro_batches)
    if not even or len(set(plan.nodes)) > 1:
        return []
    weights = [v.layout for x in plan.layers for v in x.derived.variables.values()]
    free = set(plan.mesh.names) - {"stage"}
    free -= {axis for axis, p in _placed(plan, _values(plan)) if p not in (Shard(0), Replicate())}
    return sorted(free - {axis for axis, p in _placed(plan, weights) if p != Replicate()})


def _values(plan: Plan) -> list[Layout]:
    return [layout for x in plan.layers for layout in (*x.derived.inputs, x.layout, x.derived.gradient)]


def _placed(plan: Plan, layouts: Iterable[Layout]) -> set[tuple[str, Placement]]:
    """The placements along each axis of the mesh."""
    return {pair for layout in layouts for pair in zip(plan.mesh.names, layout, strict=True)}


def _representatives(plan: Plan, alike: Sequence[str]) -> list[int]:
    """Ranks that take part in all that is sent: one of every group in each place where something is held alone."""
    alone = sorted({"stage", *(axis for axis, p in _placed(plan, _values(plan)) if isinstance(p, At))})
    covered: set[tuple] = set()
    chosen = []
    for rank in range(plan.size):
        if not any(plan.mesh.coordinate(rank, axis) for axis in alike):
            place = tuple(plan.mesh.coordinate(rank, axis) for axis in alone)
            own = {(axes, plan.mesh.group(rank, axes)[0], place) for axes in plan.groups}
            if not own <= covered:
                chosen.append(rank)
                covered |= own
    return chosen


def _counted(plan: Plan, batch: Batch, move: Transfer | None) -> tuple[int, int]:
    """Messages and elements that all members send in what an event of one of them begins."""
    if move is not None and move.operation is None:
        given = [p for p in move.pieces if p.source != p.target]
        regions = [p.region for p in given]
        return len({(p.source, p.target) for p in given}), move.micro_batch.elements(*regions)
    counts, root = (move.operation.elements(), move.operation.root) if move else (batch.counts, 0)
    nodes = tuple(plan.nodes[r] for r in batch.group) if batch.algorithm == "hierarchical" else None
    return _sent(batch.op, batch.algorithm, len(batch.group), counts, root, nodes)


@lru_cache(maxsize=1024)
def _sent(op: str, algorithm: str, p: int, counts, root: int, nodes) -> tuple[int, int]:
    """Messages and elements that all members of a collective send."""
    if p == 1:
        return 0, 0
    if op in ("all_reduce", "reduce_scatter", "all_gather"):
        # Where each message is one block, turning the ranks round turns the blocks, too: so what one member sends
        # with blocks of one element is how often all members together send each block.
        turned = rounds(op, algorithm, p, 0, p if op == "all_reduce" else (1,) * p, nodes=nodes)
        sends = [m for moves in turned for m in moves if m.kind == "send"]
        if algorithm in ("ring", "direct") and all(m.elements == 1 for m in sends):
            blocks = counts if op in BLOCKED else split_counts(counts, p)
            return len(sends) * sum(n > 0 for n in blocks), len(sends) * sum(blocks)
    everyone = (rounds(op, algorithm, p, member, counts, root, nodes=nodes) for member in range(p))
    sends = [m.elements for own in everyone for moves in own for m in moves if m.kind == "send"]
    return len(sends), sum(sends)
