"""From (model, strategy, shapes) to a `Plan`: the rule applied to every layer, communication layers put in between.

Nothing here touches an array or a communicator, so the plan of 1,024 ranks is made on a laptop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from .. import nn
from ..errors import InputError
from .describe import plan_text
from .events import lower
from .held import buckets_of, held_by
from .mesh import bounds
from .messages import SUMS, step_messages
from .placement import At, Blocks, Halo, Layout, MicroBatch, Partial, Replicate, Shard
from .plan import PerRank, Plan
from .planned import Exchange, Input, LayerPlan, Stage
from .rule import Derived, PlacementError, Variable, derive
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
        More ranks than the batch can be split over; micro-batches that do not fit, or more than there are tags.
    PlacementError
        A layer that cannot be split as the strategy says, or tied layers that are split in different ways.
    """
    mesh, builder = strategy.mesh, _Builder(model, shape, strategy)
    most = 1 if strategy.by_member else max(strategy.micro_batches)
    parts = prod(builder.blocks.sizes) * most
    if check and batch < parts:
        cut = f" in {most} micro-batches" if most > 1 else ""
        raise InputError(
            f"a batch of {batch} cannot be split over {mesh.size} ranks{cut} by strategy {strategy.name!r}: "
            f"give batch={parts} or more, or fewer ranks"
        )
    stages, inputs = builder.build(_micro_batches(strategy, builder.blocks, batch))
    if builder.tag + 2 * len(stages) * len(builder.names) > LAST_TAG:
        raise InputError(
            f"{max(strategy.micro_batches)} micro-batches send more messages than there are tags: use fewer"
        )
    plan = Plan(
        model=title,
        strategy=strategy.name,
        mesh=mesh,
        batch=batch,
        blocks=builder.blocks,
        inputs=inputs,
        stages=stages,
        options=strategy.options,
        nodes=tuple(nodes) if nodes else (0,) * mesh.size,
        notes=strategy.notes,
        schedules=PerRank(mesh.size, lambda r: tuple(strategy.schedule(mesh.coordinate(r, "stage")))),
        events=PerRank(mesh.size, lambda r: lower(plan, r)),
        evaluation=PerRank(mesh.size, lambda r: lower(plan, r, training=False)),
        held=PerRank(mesh.size, lambda r: held_by(plan, r)),
        buckets=PerRank(mesh.size, lambda r: buckets_of(plan, r, builder.tag)),
        messages=lambda r: list(step_messages(plan, r)),
        text=lambda: plan_text(plan),
    )
    _check_tied(plan)
    return plan


def _micro_batches(strategy: Strategy, blocks: Blocks, batch: int) -> list[tuple[MicroBatch, ...]]:
    """Those of each stage: a part of every block, or the blocks of one member."""
    cut = blocks.cut(batch)
    members = [0] * len(cut)
    if strategy.by_member in blocks.axes:
        i, sizes = blocks.axes.index(strategy.by_member), blocks.sizes
        members = [k // prod(sizes[i + 1 :]) % sizes[i] for k in range(len(cut))]

    def part(j: int, count: int) -> MicroBatch:
        if strategy.by_member and count > 1:
            rows = ((a, b if member == j else a) for (a, b), member in zip(cut, members, strict=True))
        else:
            rows = (tuple(a + x for x in bounds(b - a, count, j)) for a, b in cut)
        return MicroBatch(tuple(rows))

    return [tuple(part(j, count) for j in range(count)) for count in strategy.micro_batches]


def _check_tied(plan: Plan) -> None:
    """Refuse a variable whose users do not hold the same part of it on the same ranks."""

    def place(user: str, shared: nn.Variable) -> tuple[Variable, int | None, str]:
        layer = plan.by_name[user]
        path = next(path for path, own in layer.layer.named_variables(prefix="") if own is shared)
        return layer.derived.variables[path], plan.stages[layer.stage].at, layer.update

    for name, (first, *others) in plan.users.items():
        for user in others:
            shared = dict(plan.by_name[first].layer.named_variables(prefix=first))[name]
            if place(user, shared) != place(first, shared):
                raise PlacementError(
                    f"{user} and {first} share {name}, but would not hold the same part of it on the same ranks: "
                    "split them alike, in one stage and one parameter group"
                )


class _Builder:
    """Works out, layer by layer, which communication layers go in; `tag` is the next that is free."""

    def __init__(self, model: nn.Sequential, shape: Shapes, strategy: Strategy) -> None:
        self.strategy, self.mesh, self.tag = strategy, strategy.mesh, 1
        rows = list(model.shapes(shape))
        self.names = [*model.names, LOSS]
        self.layers = {name: layer for name, layer, *_ in rows} | {LOSS: None}
        self.sources = dict(model.sources) | {LOSS: (model.names[-1],)}
        outputs = {name: tuple(out) for name, *_, out in rows} | {LOSS: ()}
        self.shapes = model.input_shapes(shape) | outputs  # of one sample of each value
        self.uses = {v: [n for n in self.names if v in self.sources[n]] for v in self.shapes}
        self.stage: dict[str, int] = {}
        self.derived: dict[str, Derived] = {}
        self.differentiable, index = dict.fromkeys(model.inputs, False), 0
        for n in self.names:
            layer, sources, split = self.layers[n], self.sources[n], strategy.splits[n]
            index += n in strategy.starts[index : index + 1]
            self.stage[n] = index
            if strategy.pipelined:
                split = replace(split, at={**split.at, "stage": index})
            shapes = [self.shapes[v] for v in sources]
            self.derived[n] = derive(n, layer, shapes, self.shapes[n], split, self.mesh)
            trained = layer is not None and any(p.requires_grad for p in layer.parameters())
            self.differentiable[n] = trained or any(self.differentiable[v] for v in sources)
        for n in reversed(self.names):
            self._pass_on(n)
        spread = {axis for split in strategy.splits.values() for axis in split.letters.get("n", ())}
        axes = zip(self.mesh.names, self.mesh.sizes, strict=True)
        self.blocks = Blocks(self.mesh, tuple(axis for axis, size in axes if axis in spread and size > 1))

    def _pass_on(self, name: str) -> None:
        """Let a replicated layer without parameters, whose backward is linear in its gradient, pass on a `Partial`
        gradient as it is: further down the sum may cost less, a reduce_scatter in place of an all_reduce."""
        derived, consumers = self.derived[name], self.uses[name]
        if len(consumers) != 1 or len(self.sources[name]) > 1 or self.layers[name].parameters():
            return
        (consumer,) = consumers
        if self.sources[consumer].count(name) > 1 or self.stage[consumer] != self.stage[name]:
            return
        theirs = self.derived[consumer].leaves[self.sources[consumer].index(name)]
        places = zip(derived.output, derived.inputs[0], derived.leaves[0], theirs, strict=True)
        passes = [place == (Replicate(), Replicate(), Replicate(), Partial()) for place in places]
        gradient, leaf = (
            tuple(Partial() if p else x for p, x in zip(passes, layout, strict=True))
            for layout in (derived.gradient, derived.leaves[0])
        )
        self.derived[name] = replace(derived, gradient=gradient, leaves=(leaf,))

    def _user(self, value: str, users: Sequence[str]) -> tuple[str, Layout, Layout]:
        """The first layer that takes a value, the layout that it needs, and that of the gradient it leaves."""
        derived, i = self.derived[users[0]], self.sources[users[0]].index(value)
        return users[0], derived.inputs[i], derived.leaves[i]

    def build(self, parts: list[tuple[MicroBatch, ...]]) -> tuple[tuple[Stage, ...], dict[str, Input]]:
        """The stages, each with its micro-batches, and how the model's inputs are loaded."""
        self.counts = [len(batches) for batches in parts]
        inputs: dict[str, Input] = {}
        known: dict[str, tuple[int, Layout, Layout]] = {}  # by value: its stage, its layout, its gradient's
        for value in (v for v in self.shapes if v not in self.layers):
            first, needed, leaves = self._user(value, self.uses[value])
            # loaded whole but for samples: who needs a part of each image cuts it out
            loaded = tuple(p if isinstance(p, At) or p == Shard(0) else Replicate() for p in needed)
            inputs[value] = Input(loaded, self.shapes[value], self.stage[first])
            known[value] = self.stage[first], loaded, leaves
        stages = []
        for index, batches in enumerate(parts):
            here = {v: layouts for v, (stage, *layouts) in known.items() if stage == index}
            entries = []
            for value, (origin, layout, gradient) in known.items():
                users = [n for n in self.uses[value] if self.stage[n] == index]
                if origin < index and users:
                    first, *wanted = self._user(value, users)
                    if len(users) > 1:  # what overlaps is for one of them
                        wanted = [
                            tuple(Shard(p.axis) if isinstance(p, Halo) else p for p in x) for x in wanted
                        ]
                    entries.append(self._exchange(value, first, origin, (layout, *wanted, gradient)))
                    here[value] = wanted
            layers = []
            for name in (n for n in self.names if self.stage[n] == index):
                layers.append(self._layer(name, here))
                here[name] = self.derived[name].output, self.derived[name].gradient
                known[name] = index, *here[name]
            at = index if self.strategy.pipelined and self.mesh.axis_size("stage") > 1 else None
            stages.append(
                Stage(index, tuple(layers), tuple(entries), batches, at, self.strategy.alive[index])
            )
        return tuple(stages), inputs

    def _layer(self, name: str, here: Mapping[str, Sequence[Layout]]) -> LayerPlan:
        derived, stage, sources = self.derived[name], self.stage[name], self.sources[name]
        exchanges = []
        for value, needed, left in zip(sources, derived.inputs, derived.leaves, strict=True):
            layout, wanted = here[value]
            same = layout == needed and (left == wanted or not self.differentiable[value])
            move = layout, needed, left, wanted
            exchanges.append(None if same else self._exchange(value, name, stage, move))
        if not self.strategy.options.sync_batch_norm:
            derived = replace(derived, statistics=())
        plan = LayerPlan(
            name=name,
            layer=self.layers[name],
            stage=stage,
            inputs=tuple(sources),
            exchanges=tuple(exchanges),
            shapes=tuple(self.shapes[v] for v in sources),
            out_shape=self.shapes[name],
            derived=derived,
            differentiable=tuple(self.differentiable[v] for v in sources),
            backward=self.differentiable[name],
            update=self.strategy.updates.get(name, "all"),
            tag=self.tag,
        )
        self.tag += SUMS * self.counts[stage] * len(plan.norms)
        return plan

    def _exchange(self, value: str, layer: str, origin: int, layouts: Sequence[Layout]) -> Exchange:
        stage, tag = self.stage[layer], self.tag
        count, theirs = self.counts[stage], self.counts[origin]
        if theirs not in (1, count):
            raise InputError(
                f"stage {stage} takes {value} in {count} micro-batches, but stage {origin} has {theirs}: expected as "
                "many there, or 1"
            )
        self.tag += 2 * count
        flows = self.differentiable[value], theirs != count
        return Exchange(value, layer, origin, stage, *layouts, self.shapes[value], *flows, tag)
