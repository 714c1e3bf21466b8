"""Messages and bytes of a step over all ranks, of plans whose messages are too many to list."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from math import prod

from ..comm.algorithms import ALGORITHMS, BLOCKED, rounds, split_counts
from .events import Post
from .messages import batches
from .placement import At, Replicate, Shard, elements
from .planned import Planned
from .transfer import Transfer


def totals(plan: Planned) -> tuple[int, int]:
    """Messages and bytes that all ranks together send in a step; each collective is counted once, not on each rank."""
    alike = _alike(plan)
    images = prod(
        plan.mesh.axis_size(axis) for axis in alike
    )  # the places to which one rank's work can be moved
    seen: set[tuple] = set()
    messages = sent = 0
    for rank in _representatives(plan, alike):
        times: Counter = Counter()
        for what, group, label, itemsize in _moves(plan, rank):
            times[label] += 1
            if (key := (label, times[label])) in seen:
                continue
            seen.add(key)
            weight = images // prod(len({plan.mesh.coordinate(r, axis) for r in group}) for axis in alike)
            n, size = _of_transfer(what, plan) if isinstance(what, Transfer) else _sent(*what)
            messages, sent = messages + weight * n, sent + weight * size * itemsize
    return messages, sent


def _moves(plan: Planned, rank: int):
    """What a rank takes part in: a transfer or arguments of `_sent`, the group, what names it, bytes of an element."""
    for event in plan.events[rank]:
        if isinstance(event, Post):
            for t in event.transfers:
                label = "move", event.exchange.tag_of(event.micro_batch, event.direction), t.op, t.ranks
                yield t, t.ranks, label, plan.dtype.itemsize
            continue
        for b in batches(plan, rank, [event]):
            counts = b.counts if isinstance(b.counts, int) else tuple(b.counts)
            what = b.op, b.algorithm, len(b.group), counts, 0, _nodes(plan, b.algorithm, b.group)
            yield what, b.group, (b.phase, b.op, b.tag, b.group), b.itemsize


def _nodes(plan: Planned, algorithm: str, group: tuple[int, ...]) -> tuple[int, ...] | None:
    return tuple(plan.nodes[r] for r in group) if algorithm == "hierarchical" else None


def _alike(plan: Planned) -> tuple[str, ...]:
    """The axes along which ranks do the same on as many samples, so that one of them stands for all."""
    even = all(len(set(batch.rows)) == 1 for stage in plan.stages for batch in stage.micro_batches)
    if not even or len(set(plan.nodes)) > 1:
        return ()
    weights = [v.layout for x in plan.layers for v in x.derived.variables.values()]
    free = set(plan.mesh.names) - {"stage"}
    for allowed, layouts in (((Shard(0), Replicate()), _values(plan)), ((Replicate(),), weights)):
        for layout in layouts:
            pairs = zip(plan.mesh.names, layout, strict=True)
            free -= {axis for axis, p in pairs if p not in allowed}
    return tuple(sorted(free))


def _values(plan: Planned) -> list:
    """The layouts of all values."""
    return [layout for x in plan.layers for layout in (*x.derived.inputs, x.layout, x.derived.gradient)]


def _representatives(plan: Planned, alike: tuple[str, ...]) -> list[int]:
    """Ranks that take part in all that is sent: one of every group in each place where something is held alone."""
    pairs = [pair for x in _values(plan) for pair in zip(plan.mesh.names, x, strict=True)]
    alone = {"stage", *(axis for axis, p in pairs if isinstance(p, At))}
    covered: set[tuple] = set()
    chosen = []
    for rank in range(plan.size):
        if any(plan.mesh.coordinate(rank, axis) for axis in alike):
            continue
        place = tuple(plan.mesh.coordinate(rank, axis) for axis in sorted(alone))
        own = {(axes, plan.mesh.group(rank, axes)[0], place) for axes in plan.groups}
        if not own <= covered:
            chosen.append(rank)
            covered |= own
    return chosen


def _of_transfer(t: Transfer, plan: Planned) -> tuple[int, int]:
    if t.operation is None:
        moved = [p for p in t.pieces if p.source != p.target]
        return len({(p.source, p.target) for p in moved}), sum(
            elements(p.region, t.micro_batch) for p in moved
        )
    op, algorithm = t.operation.collective, t.algorithm or ALGORITHMS[t.operation.collective][0]
    nodes = _nodes(plan, algorithm, t.ranks)
    return _sent(op, algorithm, len(t.ranks), t.operation.elements(), t.operation.root, nodes)


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
