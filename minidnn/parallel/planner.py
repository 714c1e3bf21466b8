"""From (model, strategy, shapes) to a `Plan`: the rule applied to every layer, communication layers put in between.

Nothing here touches an array or a communicator, so the plan of 1,024 ranks is made on a laptop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from .. import nn
from ..errors import InputError
from .events import FIRST_TAG, lower
from .held import buckets_of, held_by
from .mesh import bounds
from .messages import SUMS
from .placement import At, Blocks, Halo, Layout, MicroBatch, Partial, Replicate, Shard
from .plan import Plan
from .planned import Exchange, Input, LayerPlan, PerRank, Stage
from .rule import Derived, PlacementError, derive
from .strategy import Strategy

LOSS = "loss"
LAST_TAG = 1 << 18  # what a communicator can tell apart

Shapes = tuple[int, ...] | Mapping[str, tuple[int, ...]]


def make_plan(
    model: nn.Sequential,
    shape: Shapes,
    strategy: Strategy,
    batch: int,
    title: str = "model",
    nodes: Sequence[int] | None = None,
    check: bool = True,
) -> Plan:
    """Plan one training step.

    Parameters
    ----------
    model : Sequential
        Needs no weights.
    shape : tuple of int, or dict of them
        One sample, (H, W, C); of a model of several inputs, that of each by name.
    batch : int
        Samples of the whole step, over all ranks.
    nodes : sequence of int, optional
        The node (host) of each rank; default all on one.
    check : bool
        Refuse a batch that leaves a rank or micro-batch without a sample.

    Raises
    ------
    InputError
        More ranks than the batch can be split over, or more micro-batches than there are tags.
    PlacementError
        A layer that cannot be split as the strategy says, or tied layers that are split in different ways.
    """
    builder = _Builder(model, shape, strategy)
    if check:
        _check_batch(strategy, builder.blocks, batch)
    stages, inputs = builder.build(_micro_batches(strategy, builder.blocks, batch))
    if builder.tag + 2 * len(stages) * len(builder.names) > LAST_TAG:
        raise InputError(
            f"{max(strategy.micro_batches)} micro-batches send more messages than there are tags: use fewer"
        )
    size = strategy.mesh.size
    plan = Plan(
        model=title,
        strategy=strategy.name,
        mesh=strategy.mesh,
        batch=batch,
        blocks=builder.blocks,
        inputs=inputs,
        stages=stages,
        options=strategy.options,
        nodes=tuple(nodes) if nodes else (0,) * size,
        notes=strategy.notes,
        schedules=PerRank(size, lambda r: tuple(strategy.schedule(strategy.mesh.coordinate(r, "stage")))),
        events=PerRank(size, lambda r: lower(plan, r)),
        held=PerRank(size, lambda r: held_by(plan, r)),
        buckets=PerRank(size, lambda r: buckets_of(plan, r, builder.tag)),
    )
    _check_tied(plan)
    return plan


def _check_batch(strategy: Strategy, blocks: Blocks, batch: int) -> None:
    """Refuse a batch that leaves a rank or a micro-batch without a sample."""
    most = 1 if strategy.by_member else max(strategy.micro_batches)
    parts = prod(blocks.sizes) * most
    if batch < parts:
        cut = f" in {most} micro-batches" if most > 1 else ""
        raise InputError(
            f"a batch of {batch} cannot be split over {strategy.mesh.size} ranks{cut} by strategy "
            f"{strategy.name!r}: give batch={parts} or more, or fewer ranks"
        )


def _micro_batches(strategy: Strategy, blocks: Blocks, batch: int) -> list[tuple[MicroBatch, ...]]:
    """Those of each stage: a part of every block, or the blocks of one member."""
    cut, found = blocks.cut(batch), []
    members = [0] * len(cut)
    if strategy.by_member in blocks.axes:
        i, sizes = blocks.axes.index(strategy.by_member), blocks.sizes
        members = [k // prod(sizes[i + 1 :]) % sizes[i] for k in range(len(cut))]
    for count in strategy.micro_batches:
        parts = []
        for j in range(count):
            if strategy.by_member and count > 1:
                part = [
                    rows if member == j else (rows[0], rows[0])
                    for rows, member in zip(cut, members, strict=True)
                ]
            else:
                part = [tuple(a + x for x in bounds(b - a, count, j)) for a, b in cut]
            parts.append(MicroBatch(tuple(part)))
        found.append(tuple(parts))
    return found


def _check_tied(plan: Plan) -> None:
    """Refuse a variable whose users do not hold the same part of it on the same ranks."""

    def place(layer: LayerPlan, variable: nn.Variable) -> tuple:
        path = next(key for key, own in layer.layer.named_variables(prefix="") if own is variable)
        return layer.derived.variables[path], plan.stages[layer.stage].at, layer.update

    for name, users in plan.users.items():
        first = plan.by_name[users[0]]
        shared = dict(first.layer.named_variables(prefix=first.name))[name]
        for user in users[1:]:
            if place(plan.by_name[user], shared) != place(first, shared):
                raise PlacementError(
                    f"{user} and {first.name} share {name}, but would not hold the same part of it on the same ranks: "
                    "split them alike, in one stage and one parameter group"
                )


class _Builder:
    """Works out, layer by layer, which communication layers go in."""

    def __init__(self, model: nn.Sequential, shape: Shapes, strategy: Strategy) -> None:
        self.strategy, self.mesh, self.tag = strategy, strategy.mesh, FIRST_TAG
        rows = list(model.shapes(shape))
        self.inputs = list(model.inputs)
        self.names = [*model.names, LOSS]
        self.layers = {name: layer for name, layer, *_ in rows} | {LOSS: None}
        self.out_shapes = model.input_shapes(shape) | {name: tuple(out) for name, *_, out in rows}
        self.sources = dict(model.sources) | {LOSS: (model.names[-1],)}
        self.in_shapes = {n: tuple(self.out_shapes[v] for v in self.sources[n]) for n in self.names}
        self.out_shapes[LOSS] = ()
        self.stage = dict(zip(self.names, self._stages(), strict=True))
        self.uses = {v: [n for n in self.names if v in self.sources[n]] for v in [*self.inputs, *self.names]}
        self.derived = {n: self._derive(n) for n in self.names}
        spread = {
            a
            for split in strategy.splits.values()
            for a in split.letters.get("n", ())
            if self.mesh.axis_size(a) > 1
        }
        self.blocks = Blocks(self.mesh, tuple(a for a in self.mesh.names if a in spread))
        self.trained = {n: any(p.requires_grad for p in self.layers[n].parameters()) for n in model.names} | {
            LOSS: False
        }
        self.differentiable: dict[str, bool] = dict.fromkeys(self.inputs, False)
        for n in self.names:
            self.differentiable[n] = self.trained[n] or any(self.differentiable[v] for v in self.sources[n])
        self.gradients = self._gradients()

    def _stages(self) -> list[int]:
        starts, index, found = self.strategy.starts, 0, []
        for name in self.names:
            index += index < len(starts) and name == starts[index]
            found.append(index)
        return found

    def _derive(self, name: str) -> Derived:
        """The rule; on a pipeline, at the place of the layer's stage."""
        split = self.strategy.splits[name]
        if self.strategy.pipelined:
            split = replace(split, at={**split.at, "stage": self.stage[name]})
        return derive(name, self.layers[name], self.in_shapes[name], self.out_shapes[name], split, self.mesh)

    def _gradients(self) -> dict[str, tuple[Layout, tuple[Layout, ...]]]:
        """For each layer, the layout of the gradient of its output, and those it leaves of its inputs.

        The backward of a layer without parameters is linear in its gradient. So such a layer, where
        it is replicated, passes a `Partial` gradient on as it is, and the sum is made further down,
        where it may cost less: a reduce_scatter in place of an all_reduce.
        """
        result: dict[str, tuple[Layout, tuple[Layout, ...]]] = {}
        for name in reversed(self.names):
            derived, consumers = self.derived[name], self.uses[name]
            out, leaves = derived.gradient, derived.leaves
            alone = (
                len(consumers) == 1
                and len(self.sources[name]) == 1
                and self.sources[consumers[0]].count(name) == 1
            )
            if name != LOSS and alone and not self.layers[name].parameters():
                (consumer,) = consumers
                if self.stage[consumer] == self.stage[name]:
                    theirs = result[consumer][1][self.sources[consumer].index(name)]
                    passes = [
                        (a, b, c, d) == (Replicate(), Replicate(), Replicate(), Partial())
                        for a, b, c, d in zip(
                            derived.output, derived.inputs[0], leaves[0], theirs, strict=True
                        )
                    ]
                    out = tuple(Partial() if p else x for p, x in zip(passes, out, strict=True))
                    leaves = (tuple(Partial() if p else x for p, x in zip(passes, leaves[0], strict=True)),)
            result[name] = out, leaves
        return result

    def build(
        self, micro_batches: Sequence[tuple[MicroBatch, ...]]
    ) -> tuple[tuple[Stage, ...], dict[str, Input]]:
        """The stages, and how the model's inputs are loaded."""
        inputs: dict[str, Input] = {}
        known: dict[
            str, tuple[int, Layout, Layout]
        ] = {}  # of each value: its stage, its layout, that of its gradient
        for value in self.inputs:
            first = self.uses[value][0]
            i = self.sources[first].index(value)
            # loaded whole but for samples: who needs a part of each image cuts it out
            loaded = tuple(
                p if isinstance(p, At) or p == Shard(0) else Replicate()
                for p in self.derived[first].inputs[i]
            )
            inputs[value] = Input(loaded, self.out_shapes[value], self.stage[first])
            known[value] = self.stage[first], loaded, self.gradients[first][1][i]
        stages = []
        for index, parts in enumerate(micro_batches):
            names = [n for n in self.names if self.stage[n] == index]
            entries = []
            here = {v: (layout, grad) for v, (stage, layout, grad) in known.items() if stage == index}
            for value, (origin, layout, grad) in known.items():
                users = [n for n in names if value in self.sources[n]]
                if origin < index and users:
                    i = self.sources[users[0]].index(value)
                    needed, leaves = self.derived[users[0]].inputs[i], self.gradients[users[0]][1][i]
                    if len(users) > 1:  # a halo is for one of them
                        needed, leaves = _without_halo(needed), _without_halo(leaves)
                    moved = (origin, index), (layout, needed, leaves, grad)
                    entries.append(self._exchange(value, users[0], *moved, len(parts)))
                    here[value] = needed, leaves
            layers = []
            for name in names:
                layers.append(self._layer(name, here, index, len(parts)))
                here[name] = self.derived[name].output, self.gradients[name][0]
                known[name] = index, *here[name]
            at = index if self.strategy.pipelined and self.mesh.axis_size("stage") > 1 else None
            stages.append(Stage(index, tuple(layers), tuple(entries), parts, at, self.strategy.alive[index]))
        return tuple(stages), inputs

    def _layer(
        self, name: str, here: dict[str, tuple[Layout, Layout]], stage: int, micro_batches: int
    ) -> LayerPlan:
        derived, (gradient, leaves) = self.derived[name], self.gradients[name]
        exchanges = []
        for i, value in enumerate(self.sources[name]):
            layout, grad = here[value]
            same = layout == derived.inputs[i] and (leaves[i] == grad or not self.differentiable[value])
            moved = (stage, stage), (layout, derived.inputs[i], leaves[i], grad)
            exchanges.append(None if same else self._exchange(value, name, *moved, micro_batches))
        statistics = derived.statistics if self.strategy.options.sync_batch_norm else ()
        plan = LayerPlan(
            name=name,
            layer=self.layers[name],
            stage=stage,
            inputs=tuple(self.sources[name]),
            exchanges=tuple(exchanges),
            shapes=self.in_shapes[name],
            out_shape=self.out_shapes[name],
            derived=replace(derived, gradient=gradient, leaves=leaves, statistics=statistics),
            differentiable=tuple(self.differentiable[v] for v in self.sources[name]),
            backward=self.differentiable[name],
            update=self.strategy.updates.get(name, "all"),
            tag=self.tag,
        )
        self.tag += SUMS * micro_batches * len(plan.norms)
        return plan

    def _exchange(self, value: str, layer: str, stages, layouts, micro_batches: int) -> Exchange:
        shape, tag = self.out_shapes[value], self.tag
        self.tag += 2 * micro_batches
        return Exchange(value, layer, *stages, *layouts, shape, self.differentiable[value], tag)


def _without_halo(layout: Layout) -> Layout:
    """The same without what overlaps."""
    return tuple(Shard(p.axis) if isinstance(p, Halo) else p for p in layout)
