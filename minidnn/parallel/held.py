"""What each rank holds of the parameters, and the buckets in which their gradients are summed."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod

from ..nn import Parameter
from .placement import Replicate, intervals
from .plan import Plan
from .planned import Bucket, Held, LayerPlan
from .rule import Variable
from .schedule import Update


def held_by(plan: Plan, rank: int) -> tuple[Held, ...]:
    """The parameters and buffers that a rank holds, in the order of the model; what is tied is held once."""
    at = plan.mesh.coordinates[rank]
    early = {a.group for a in plan.schedules[rank] if isinstance(a, Update)}  # after every micro-batch
    found: list[Held] = []
    for layer in plan.layers:
        if layer.layer is None or not plan.runs(rank, layer):
            continue
        in_factors = plan.options.fc_gradients == "factors" and layer.update not in early
        for path, variable in layer.layer.named_variables(prefix=""):
            name, derived = f"{layer.name}.{path}", layer.derived.variables[path]
            layout, sums = derived.layout, derived.sums
            if name not in plan.users or plan.region(layout, (), rank) is None:
                continue  # an earlier layer's; or held at another place alone
            shape, trained = variable.full_shape, variable.requires_grad
            alone = in_factors and path == layer.layer.factors and trained and len(plan.users[name]) == 1
            rows = _factor_rows(plan, layer, sums, rank) if alone and sums else ()
            slices, buffer = intervals(layout, shape, at, plan.mesh), not isinstance(variable, Parameter)
            found.append(Held(name, layer.name, shape, slices, layout, sums, trained, buffer, rows))
    return tuple(found)


def _factor_rows(plan: Plan, layer: LayerPlan, axes: Sequence[str], rank: int) -> tuple[int, ...]:
    """The rows of x and gy that each member of a linear layer's gradient group has in a step."""
    batches, inner = plan.stages[layer.stage].micro_batches, prod(layer.shapes[0][:-1])
    return tuple(
        inner * sum(len(plan.samples(layer.derived.inputs[0], member, batch)) for batch in batches)
        for member in plan.mesh.group(rank, axes)
    )


def buckets_of(plan: Plan, rank: int, tag: int) -> tuple[Bucket, ...]:
    """A rank's parameters in the order in which backward finishes them, cut where a bucket is full.

    A weight whose gradient is exchanged as factors is a bucket of its own. Ranks that sum with one another hold
    alike, so they have the same buckets of that sum, tags (from `tag` on) included; and where a parameter is
    replicated, its bucket is, so that the same sums are made in the same order.
    """
    itemsize, options = plan.dtype.itemsize, plan.options

    def key(layer: LayerPlan, variable: Variable | Held) -> tuple:
        equal = tuple(a for a, p in zip(plan.mesh.names, variable.layout, strict=True) if p == Replicate())
        return variable.sums, layer.update, equal

    reduced: dict[tuple, list[Held]] = {}
    for p in plan.held[rank]:
        if p.trained and p.sums:
            reduced.setdefault(key(plan.by_name[p.layer], p), []).append(p)
    keys = sorted({key(layer, v) for layer in plan.layers for v in layer.derived.variables.values()})
    buckets: list[Bucket] = []
    for (axes, update, equal), parameters in reversed(reduced.items()):
        runs: list[list[Held]] = []
        filled = inf
        for p in reversed(parameters):
            if p.rows:
                runs.append([p])
                continue
            if filled + p.size * itemsize > options.bucket_bytes:
                runs.append(bucket := [])
                filled = 0
            bucket.append(p)
            filled += p.size * itemsize
        runs.sort(key=lambda run: parameters.index(run[-1]), reverse=True)
        members, nodes = len(plan.mesh.group(rank, axes)), _nodes(plan, rank, axes)
        for number, run in enumerate(runs):
            sizes, rows = tuple(p.size for p in run), run[0].rows
            op = "all_gather" if rows else "reduce_scatter" if options.sharded_momentum else "all_reduce"
            summed = options.all_reduce_for(sum(sizes) * itemsize, members, nodes)
            made = Bucket(
                index=len(buckets),
                axes=axes,
                update=update,
                names=tuple(p.name for p in run),
                sizes=sizes,
                op=op,
                algorithm=getattr(options.algorithms, op) if op != "all_reduce" else summed,
                tag=tag + 2 * (number * len(keys) + keys.index((axes, update, equal))),
                sharded=options.sharded_momentum,
                matrix=run[0].shape if rows else None,
                rows=rows,
            )
            buckets.append(made)
    return tuple(buckets)


def _nodes(plan: Plan, rank: int, axes: Sequence[str]) -> tuple[int, ...] | None:
    """The nodes of the ranks that sum with one another, numbered from 0; None where groups that sum the same (as
    layers are replicated along other axes) do not lie alike: their sums must be made in one order."""
    patterns = set()
    for other in range(plan.size) if len(set(plan.nodes)) > 1 else (rank,):
        seen: dict[int, int] = {}
        patterns.add(tuple(seen.setdefault(plan.nodes[r], len(seen)) for r in plan.mesh.group(other, axes)))
    return patterns.pop() if len(patterns) == 1 else None
