"""What each rank holds, sums and does: parameters, gradient buckets, and the completed schedule."""

from __future__ import annotations

from math import prod

import numpy as np

from .. import nn
from .placement import Grid, Placement, Replicate, Shard
from .plan import Bucket, Chunk, LayerPlan, Parameter, Plan, Segment
from .schedule import Action, Finish, Forward, Metrics, ReduceGradients, Start, Update
from .shard import localise, parameter_placement
from .strategy import Options, Strategy

Chunks = tuple[tuple[tuple[Chunk, ...], ...], ...]  # [row of the grid][segment]


def per_rank(segments: tuple[Segment, ...], chunks: Chunks, strategy: Strategy, options: Options) -> dict:
    """Parameters, gradient buckets and the completed schedule of every rank."""
    grid = strategy.grid
    parameters: dict[int, tuple] = {}
    buckets: dict[int, tuple] = {}
    schedules: dict[int, tuple] = {}
    alike: dict[str, list[Parameter]] = {}  # what every member holds whole, worked out once
    for rank in range(grid.size):
        member = rank % grid.mp
        if rank >= grid.mp:  # the rows of the grid are alike
            parameters[rank], buckets[rank] = parameters[member], buckets[member]
            schedules[rank] = schedules[member]
            continue
        held, reduced, actions = [], {}, strategy.schedule(member)
        stepped = {a.group for a in actions if isinstance(a, Update)}  # after every chunk
        for segment in segments:
            update = strategy.update_groups[segment.index]
            parts = [row[segment.index] for row in chunks]
            if options.fc_gradients == "sum" or update in stepped:
                parts = []
            for plan in segment.layers:
                own = alike.get(plan.name)
                if own is None:
                    own = _held(plan, grid, member, parts)
                    if plan.placement in (Shard(0), Replicate()):
                        alike[plan.name] = own
                if own:
                    key = (_gradient_group(plan.placement, grid), update)
                    reduced.setdefault(key, []).extend(own)
                    held += own
        parameters[rank] = tuple(held)
        buckets[rank] = _buckets(reduced, options, grid)
        schedules[rank] = _complete(strategy, actions, buckets[rank])
    return {"parameters": parameters, "buckets": buckets, "schedules": schedules}


def _held(plan: LayerPlan, grid: Grid, member: int, chunks: list[tuple[Chunk, ...]]) -> list[Parameter]:
    """What `member` of a model group holds of a layer's parameters.

    `chunks` are the layer's, for each row of the grid; none where gradients are not exchanged as factors.
    """
    if plan.layer is None:
        return []
    local = localise(plan.layer, plan.placement, grid.mp, member, plan.in_shape)
    if local is None:
        return []
    lies, rows = parameter_placement(plan.placement), _factor_rows(plan, grid, chunks)
    return [
        Parameter(name, p.shape, p.full_shape, lies, rows if p is getattr(local, "W", None) else ())
        for name, p in local.named_parameters()
    ]


def _factor_rows(plan: LayerPlan, grid: Grid, chunks: list[tuple[Chunk, ...]]) -> tuple[int, ...]:
    """The rows of x and gy that each member of a linear layer's gradient group has; () for other layers."""
    group = _gradient_group(plan.placement, grid)
    if not group or not isinstance(plan.layer, nn.Linear):
        return ()
    if group == "world":
        rows = (sum(c.counts[m] for c in row) for row in chunks for m in range(grid.mp))
    else:
        rows = (sum(c.size for c in row) for row in chunks)
    return tuple(n * prod(plan.in_shape[:-1]) for n in rows)


def _gradient_group(placement: Placement, grid: Grid) -> str:
    """Over which ranks the gradients of a layer so placed have to be summed ("" for none)."""
    if placement == Shard(0) and grid.size > 1:
        return "world"
    return "column" if grid.dp > 1 else ""


def _buckets(reduced: dict, options: Options, grid: Grid) -> tuple[Bucket, ...]:
    """Parameters in the order in which backward finishes them, cut where a bucket is full.

    A weight whose gradient is exchanged as factors is a bucket of its own. Buckets are in the order in which
    their last gradients are ready.
    """
    itemsize = np.dtype(options.dtype).itemsize
    buckets: list[Bucket] = []
    for (group, update), parameters in reversed(reduced.items()):
        if not group:
            continue
        runs: list[list[Parameter]] = []
        filled = None
        order = list(reversed(parameters))
        for p in order:
            if p.rows:
                runs.append([p])
                continue
            if filled is None or filled + p.size * itemsize > options.bucket_bytes:
                runs.append(summed := [])
                filled = 0
            summed.append(p)
            filled += p.size * itemsize
        for run in sorted(runs, key=lambda run: order.index(run[-1])):
            elements = sum(p.size for p in run)
            size = len(grid.world(0)) if group == "world" else grid.dp
            buckets.append(
                Bucket(
                    index=len(buckets),
                    group=group,
                    update=update,
                    names=tuple(p.name for p in run),
                    sizes=tuple(p.size for p in run),
                    algorithm=options.all_reduce_for(elements * itemsize, size),
                    sharded=options.sharded_momentum,
                    matrix=run[0].shape if run[0].rows else None,
                    rows=run[0].rows,
                )
            )
    return tuple(buckets)


def _complete(strategy: Strategy, actions: list[Action], buckets: tuple[Bucket, ...]) -> tuple[Action, ...]:
    """Put in the sums of gradients before each update, the metrics, and the updates not yet there."""

    def after_sums(update: Update) -> list[Action]:
        return [*(ReduceGradients(b.index) for b in buckets if b.update == update.group), update]

    complete: list[Action] = []
    for action in actions:
        complete += after_sums(action) if isinstance(action, Update) else [action]
    complete.append(Metrics())
    done = {a.group for a in actions if isinstance(a, Update)}
    for group in dict.fromkeys(reversed(strategy.update_groups)):
        if group not in done:
            complete += after_sums(Update(group))
    return tuple(complete)


def forward_only(plan: Plan, rank: int) -> tuple[Action, ...]:
    """The schedule of an evaluation: every segment that `rank` has a part in, once, in one chunk."""
    mine = sorted({a.segment for a in plan.schedules[rank] if isinstance(a, Forward)})
    actions: list[Action] = []
    for segment in mine:
        if segment > 0:
            actions += [Start(segment - 1, 0, "forward"), Finish(segment - 1, 0, "forward")]
        actions.append(Forward(segment, 0))
        if segment + 1 < len(plan.segments) and segment + 1 not in mine:
            actions.append(Start(segment, 0, "forward"))
    return (*actions, Metrics())
