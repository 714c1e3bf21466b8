"""What each rank holds of the parameters, and the buckets in which their gradients are summed."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..nn import Parameter
from .placement import At, Replicate, intervals
from .planned import Bucket, Held, LayerPlan, Planned
from .rule import Variable
from .schedule import Update


def held_by(plan: Planned, rank: int) -> tuple[Held, ...]:
    """The parameters and buffers that a rank holds, in the order of the model; what is tied is held once."""
    at = plan.mesh.coordinates[rank]
    early = {
        a.group for a in plan.schedules[rank] if isinstance(a, Update)
    }  # groups that step after every micro-batch
    found: list[Held] = []
    for layer in plan.layers:
        if layer.layer is None or not plan.runs(rank, layer):
            continue
        matrix = (
            layer.layer.factors
            if plan.options.fc_gradients == "factors" and layer.update not in early
            else ""
        )
        for path, variable in layer.layer.named_variables(prefix=""):
            name = f"{layer.name}.{path}"
            derived = layer.derived.variables[path]
            if name not in plan.users or any(
                isinstance(p, At) and p.index != i for p, i in zip(derived.layout, at, strict=True)
            ):
                continue  # an earlier layer's; or held at another place alone
            trained = variable.requires_grad
            alone = path == matrix and trained and len(plan.users[name]) == 1
            found.append(
                Held(
                    name=name,
                    layer=layer.name,
                    full_shape=variable.full_shape,
                    slices=intervals(derived.layout, variable.full_shape, at, plan.mesh),
                    layout=derived.layout,
                    sums=derived.sums,
                    trained=trained,
                    buffer=not isinstance(variable, Parameter),
                    rows=_factor_rows(plan, layer, derived.sums, rank) if alone and derived.sums else (),
                )
            )
    return tuple(found)


def _factor_rows(plan: Planned, layer: LayerPlan, axes: Sequence[str], rank: int) -> tuple[int, ...]:
    """The rows of x and gy that each member of a linear layer's gradient group has in a step."""
    batches, inner = plan.stages[layer.stage].micro_batches, prod(layer.shapes[0][:-1])
    members = plan.mesh.group(rank, axes)
    return tuple(
        inner * sum(len(plan.samples(layer.derived.inputs[0], member, batch)) for batch in batches)
        for member in members
    )


def buckets_of(plan: Planned, rank: int, tag: int) -> tuple[Bucket, ...]:
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
        for number, run in enumerate(sorted(runs, key=lambda run: order.index(run[-1]))):
            elements, size = sum(p.size for p in run), len(plan.mesh.group(rank, axes))
            buckets.append(
                Bucket(
                    index=len(buckets),
                    axes=axes,
                    update=update,
                    names=tuple(p.name for p in run),
                    sizes=tuple(p.size for p in run),
                    algorithm=options.all_reduce_for(elements * itemsize, size, _nodes(plan, rank, axes)),
                    tag=tag + 2 * (number * len(keys) + keys.index((axes, update, equal))),
                    sharded=options.sharded_momentum,
                    matrix=run[0].shape if run[0].rows else None,
                    rows=run[0].rows,
                )
            )
    return tuple(buckets)


def _nodes(plan: Planned, rank: int, axes: Sequence[str]) -> tuple[int, ...] | None:
    """The nodes of the ranks that sum with one another, numbered from 0; None where groups that sum the same (as
    layers are replicated along other axes) do not lie alike: their sums must be made in one order."""
    patterns = set()
    for other in range(plan.size) if len(set(plan.nodes)) > 1 else (rank,):
        seen: dict[int, int] = {}
        patterns.add(tuple(seen.setdefault(plan.nodes[r], len(seen)) for r in plan.mesh.group(other, axes)))
    return patterns.pop() if len(patterns) == 1 else None
