"""Runs a plan: one rank's walk through its schedule.

The executor knows no strategy. It runs layers on chunks, each (segment, chunk) on a tape of its own,
moves what passes a boundary, sums buckets of gradients and lets the optimiser step, in the order that
the schedule gives. Every wait and every message is labelled with the layer and phase it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import functional as F
from .. import nn
from ..backend import array_module, to_host
from ..comm import collectives
from ..comm.communicator import Communicator, Pending
from ..optim import SGD
from ..tensor import Tape, Tensor, no_grad
from .fingerprint import check_same
from .gradients import BucketSum, GradientSync
from .messages import METRICS_ALGORITHM
from .move import Redistribute, move
from .per_rank import forward_only
from .placement import Shard
from .plan import Chunk, LayerPlan, Plan
from .planner import INPUT, make_plan
from .replica import Replica
from .schedule import (
    Backward,
    BackwardInput,
    BackwardWeight,
    Finish,
    Forward,
    Metrics,
    ReduceGradients,
    Start,
    Update,
)
from .strategy import Options, Strategy

BOUNDARY_TAGS = 100  # messages of boundaries between two ranks have tags from here on


@dataclass
class Result:
    """What a step or an evaluation batch came to, over all ranks."""

    loss: float
    correct: int
    samples: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples if self.samples else float("nan")


@dataclass
class _Step:
    """The values alive in the running step of one rank."""

    plan: Plan
    chunks: tuple[tuple[Chunk, ...], ...]
    images: Any
    labels: np.ndarray
    training: bool
    tapes: dict[tuple[int, int], Tape] = field(default_factory=dict)
    inputs: dict[tuple[int, int], dict[str, Tensor]] = field(default_factory=dict)
    outputs: dict[tuple[int, int], dict[str, Tensor]] = field(default_factory=dict)
    gradients: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    flying: dict[tuple[int, int, str], list[Pending]] = field(default_factory=dict)
    loss: float = 0.0
    correct: int = 0
    samples: int = 0


class Executor:
    """One rank's share of training a model by a strategy.

    Parameters
    ----------
    model : Sequential
        The whole model, without weights; the same on every rank.
    shape : tuple of int
        One sample, (H, W, C).
    strategy : Strategy
    comm : Communicator
        As large as the strategy's grid.
    batch : int
        Samples of the whole step.
    seed : int
        Of weights and dropout.
    optimiser : callable, optional
        ``{group: parameters} -> SGD`` whose groups are in that order.
    xp : module
        numpy or cupy.
    """

    def __init__(
        self,
        model: nn.Sequential,
        shape: tuple[int, ...],
        strategy: Strategy,
        comm: Communicator,
        batch: int,
        options: Options | None = None,
        seed: int = 0,
        optimiser: Callable[[Mapping[str, list]], SGD] | None = None,
        xp: Any = np,
        title: str = "model",
    ) -> None:
        if comm.size != strategy.grid.size:
            raise ValueError(
                f"strategy {strategy.name!r} is made for {strategy.grid.size} ranks, not {comm.size}"
            )
        self.model, self.shape, self.strategy, self.comm = model, tuple(shape), strategy, comm
        self.options, self.seed, self.xp, self.title = options or Options(), seed, xp, title
        self.dtype = np.dtype(self.options.dtype)
        self.ledger = comm.ledger
        check_same(comm, self._settings(batch))
        self.plan = make_plan(model, self.shape, strategy, batch, self.options, title)
        self._plans: dict[tuple[int, bool], Plan] = {(batch, True): self.plan}
        grid, rank = strategy.grid, comm.rank
        self.member = rank % grid.mp
        self.row = comm if grid.dp == 1 else comm.split(rank // grid.mp, rank)
        self.column = comm.split(rank % grid.mp, rank) if grid.dp > 1 else None
        self.replica = Replica(self.plan, rank, seed, xp, self.group)
        sums = [
            BucketSum(
                b,
                [self.replica.parameters[n] for n in b.names],
                self.group(b.group),
                self.options.algorithms,
                xp,
            )
            for b in self.plan.buckets[rank]
        ]
        self.sync = GradientSync(sums, overlap=self.options.bucket_mib > 0)
        self.groups = {name: self._update_parameters(name) for name in dict.fromkeys(strategy.update_groups)}
        make = optimiser or (
            lambda groups: SGD([{"params": p} for p in groups.values()], lr=0.01, momentum=0.9)
        )
        self.optimiser = make(self.groups)
        self.group_index = {name: i for i, name in enumerate(self.groups)}
        self.update_each = any(isinstance(a, Update) for a in strategy.schedule(self.member))
        self.iteration = 0

    def _settings(self, batch: int) -> dict[str, object]:
        """What must be the same on every rank."""
        placements = {name: str(p) for name, p in self.strategy.placements.items()}
        return {
            "the model": repr(self.model),
            "the image shape": self.shape,
            "the batch": batch,
            "the seed": self.seed,
            "the strategy": self.strategy.name,
            "the process grid": str(self.strategy.grid),
            "the placements": placements,
            "the cuts between segments": self.strategy.starts,
            "the number of chunks": self.strategy.chunks,
            "the options": self.options,
        }

    def group(self, name: str) -> Communicator:
        """The communicator of the group "row", "column" or "world"."""
        return {"row": self.row, "column": self.column, "world": self.comm}[name]

    def _update_parameters(self, name: str) -> list[Tensor]:
        """What the optimiser steps for an update group: parameters, or pieces where the bucket is sharded."""
        found: list[Tensor] = []
        for segment in self.plan.segments:
            if self.strategy.update_groups[segment.index] == name:
                found += [p for layer in segment.layers for p in self.replica.parameters_of(layer.name)]
        pieces: list[Tensor] = []
        for s in self.sync.sums.values():
            if s.bucket.sharded:
                own = {id(p) for p in s.parameters}
                if any(id(p) in own for p in found):
                    found = [p for p in found if id(p) not in own]
                    pieces += s.pieces
        return found + pieces

    # -- steps ---------------------------------------------------------------------------------------

    def step(self, images: Any, labels: np.ndarray) -> Result:
        """One training step.

        Parameters
        ----------
        images : array or None
            The images of `plan.input_rows(rank)`, (n, H, W, C); None where this rank needs none.
        labels : int array
            Of the whole batch.

        Raises
        ------
        NonFiniteError
            On every rank, before the update, where the loss is not a finite number.
        """
        plan = self.plan_for(len(labels), training=True)
        for p in self.replica.parameters.values():
            p.grad = None
        result = self._run(plan, plan.schedules[self.comm.rank], images, labels, training=True)
        self.optimiser.advance()
        self.iteration += 1
        return result

    def evaluate(self, images: Any, labels: np.ndarray) -> Result:
        """Loss and correct answers on a batch, without dropout."""
        plan = self.plan_for(len(labels), training=False)
        with no_grad():
            return self._run(plan, forward_only(plan, self.comm.rank), images, labels, training=False)

    def plan_for(self, batch: int, training: bool) -> Plan:
        """The plan of a batch of another size, such as the last one of an epoch."""
        key = (batch, training)
        if key not in self._plans:
            strategy = self.strategy if training else self.strategy.once()
            self._plans[key] = make_plan(
                self.model, self.shape, strategy, batch, self.options, self.title, check=False
            )
        return self._plans[key]

    def _run(self, plan: Plan, schedule, images, labels, training: bool) -> Result:
        step = _Step(plan, plan.chunks_of(self.comm.rank), images, np.asarray(labels), training)
        result = None
        with nn.context(training=training, seed=self.seed, step=self.iteration):
            for action in schedule:
                done = self._do(step, action)
                result = done or result
        self._settle(step)
        return result

    def _do(self, step: _Step, action) -> Result | None:
        match action:
            case Forward(segment, chunk):
                self._forward(step, segment, chunk)
            case Backward(segment, chunk):
                self._backward(step, segment, chunk)
            case BackwardInput(segment, chunk):
                self._backward(step, segment, chunk, defer_weights=True)
            case BackwardWeight(segment, chunk):
                self._backward_weights(step, segment, chunk)
            case Start(boundary, chunk, direction):
                self._start(step, boundary, chunk, direction)
            case Finish(boundary, chunk, direction):
                self._finish(step, boundary, chunk, direction)
            case ReduceGradients(bucket):
                self.sync.reduce(bucket)
            case Update(group, chunk):
                self._update(step, group, chunk)
            case Metrics():
                return self._metrics(step)
        return None

    def _settle(self, step: _Step) -> None:
        """Wait for the sends that nothing has waited for."""
        for pending in (p for flying in step.flying.values() for p in flying):
            pending.wait()

    # -- segments ------------------------------------------------------------------------------------

    def _forward(self, step: _Step, segment: int, number: int) -> None:
        chunk, ledger = step.chunks[segment][number], self.ledger
        values = step.inputs.setdefault((segment, number), {})
        if segment == 0:
            values[INPUT] = self._images(step, chunk)
        values = dict(values)
        samples = self._samples(step, chunk)
        with Tape() as tape, ledger.scope(phase="forward", chunk=number):
            before = ledger.state("compute")
            for layer in step.plan.segments[segment].layers:
                tape.layer = layer.name
                with ledger.scope(layer=layer.name):
                    ledger.state("compute")
                    values[layer.name] = self._layer(step, layer, values, chunk, number, samples)
                self.comm.progress()
            ledger.restore(before)
        if step.training:
            step.tapes[segment, number] = tape
        wanted = step.plan.boundaries[segment].values if segment < len(step.plan.boundaries) else ("loss",)
        step.outputs[segment, number] = {name: values[name] for name in wanted}

    def _layer(
        self, step: _Step, layer: LayerPlan, values: dict, chunk: Chunk, number: int, samples: dict
    ) -> Tensor:
        inputs = []
        for name, exchange in zip(layer.inputs, layer.exchanges, strict=True):
            x = values[name]
            inputs.append(x if exchange is None else Redistribute(self.row, exchange, chunk, name)(x))
        if layer.layer is None:
            return self._loss(step, layer, inputs[0], chunk, number)
        local = self.replica.layers.get(layer.name)
        if local is None:
            return Tensor(self.xp.empty(0, self.dtype))  # this member holds nothing of it
        held = layer.placement == Shard(0)
        n = len(samples[held])
        self.ledger.state("compute", flops=self.replica.flops(layer.name, n, "forward"))
        with nn.context(samples=samples[held]):
            return local(*inputs)

    def _loss(self, step: _Step, layer: LayerPlan, logits: Tensor, chunk: Chunk, number: int) -> Tensor:
        """The mean over the whole batch of the cross-entropy of the rows held here."""
        rows = chunk.held(layer.placement, self.member)
        start, _ = step.plan.samples(self.comm.rank)
        labels = step.labels[start + rows]
        if not self._holds(layer):
            return Tensor(self.xp.empty(0, self.dtype))
        self.ledger.state("compute")
        target = self.xp.asarray(labels)
        total = self._averaged_over(step, number)
        loss = F.softmax_cross_entropy(logits, target, total=max(1, total))
        if self._counts(layer):
            step.loss += float(loss.data) * total / len(step.labels)
            step.correct += int((logits.data.argmax(axis=-1) == target).sum())
            step.samples += len(rows)
        return loss

    def _averaged_over(self, step: _Step, number: int) -> int:
        """Over how many samples a loss is averaged: the whole batch, or the chunk where each one is a step."""
        if not (self.update_each and step.training):
            return len(step.labels)
        return sum(row[-1][number].size for row in step.plan.chunks)

    def _holds(self, layer: LayerPlan) -> bool:
        rank = getattr(layer.placement, "rank", None)
        return rank is None or rank == self.member

    def _counts(self, layer: LayerPlan) -> bool:
        """Whether this member's loss counts: of a replicated one, one member's does."""
        return layer.placement == Shard(0) or hasattr(layer.placement, "rank") or self.member == 0

    def _images(self, step: _Step, chunk: Chunk) -> Tensor:
        """The rows of the loaded images that belong to a chunk."""
        start, _ = step.plan.samples(self.comm.rank)
        first, _ = step.plan.input_rows(self.comm.rank)
        rows = start + chunk.held(step.plan.input_placement, self.member) - first
        images = step.images
        if images is None or not len(rows):
            return Tensor(self.xp.empty((0, *self.shape), self.dtype))
        if len(rows) == len(images):
            return Tensor(images)
        return Tensor(images[rows[0] : rows[-1] + 1] if rows[-1] - rows[0] + 1 == len(rows) else images[rows])

    def _samples(self, step: _Step, chunk: Chunk) -> dict[bool, np.ndarray]:
        """Numbers, in the whole batch, of the own rows (True) and of all rows (False) of a chunk."""
        start, _ = step.plan.samples(self.comm.rank)
        return {True: start + chunk.held(Shard(0), self.member), False: start + chunk.rows}

    def _backward(self, step: _Step, segment: int, number: int, defer_weights: bool = False) -> None:
        tape = step.tapes[segment, number]
        outputs = step.outputs.pop((segment, number))
        gradients = step.gradients.pop((segment, number), {})
        pairs = [(y, gradients.get(name)) for name, y in outputs.items()]
        if segment == len(step.plan.segments) - 1:
            pairs = [(y, None) for y, _ in pairs if y.data.size and y.requires_grad]
        else:
            pairs = [(y, g) for y, g in pairs if g is not None and y.requires_grad]
        last = number == len(step.chunks[segment]) - 1 or (self.update_each and segment > 0)
        with self.ledger.scope(phase="backward", chunk=number):
            before = self.ledger.state("compute")
            tape.backward(
                [y for y, _ in pairs],
                [g for _, g in pairs],
                defer_weights=defer_weights,
                on_ready=self.sync.ready if last and not defer_weights else None,
                observer=self._observer(step, segment, number),
            )
            self.ledger.restore(before)
        if not defer_weights:
            del step.tapes[segment, number]

    def _backward_weights(self, step: _Step, segment: int, number: int) -> None:
        tape = step.tapes.pop((segment, number))
        last = number == len(step.chunks[segment]) - 1
        with self.ledger.scope(phase="backward", chunk=number):
            before = self.ledger.state("compute")
            tape.backward_weights(
                on_ready=self.sync.ready if last else None, observer=self._observer(step, segment, number)
            )
            self.ledger.restore(before)

    def _observer(self, step: _Step, segment: int, number: int) -> Callable:
        """Called before each node's backward: labels what follows, and moves messages on."""
        ledger, comm, replica = self.ledger, self.comm, self.replica
        samples = self._samples(step, step.chunks[segment][number])
        held = {x.name: x.placement == Shard(0) for x in step.plan.segments[segment].layers}
        current = None

        def observe(node: Any) -> None:
            nonlocal current
            if node.layer != current:
                current = node.layer
                ledger.labels = ledger.labels._replace(layer=current)
                ledger.state("compute", flops=replica.flops(current, len(samples[held[current]]), "backward"))
                comm.progress()

        return observe

    # -- boundaries ----------------------------------------------------------------------------------

    def _start(self, step: _Step, index: int, number: int, direction: str) -> None:
        boundary = step.plan.boundaries[index]
        chunk = step.chunks[index + 1][number]
        flying = []
        with self.ledger.scope(phase=direction, layer=boundary.layer, chunk=number, cause=boundary.layer):
            for i, (name, exchange) in enumerate(zip(boundary.values, boundary.exchanges, strict=True)):
                transfer = exchange.forward(chunk) if direction == "forward" else exchange.backward(chunk)
                if transfer is None:
                    flying.append(None)
                    continue
                x = None
                if transfer.local_shape(transfer.src, self.member) is not None:
                    if direction == "forward":
                        x = self._outgoing(step, index, number, name).data
                    else:
                        x = self._outgoing_gradient(step, index, number, name, transfer)
                tag = BOUNDARY_TAGS + 2 * (index * len(boundary.values) + i) * len(step.chunks[index + 1])
                tag += 2 * number + (direction == "backward")
                empty = self.xp.empty(0, self.dtype)
                with self.ledger.scope(tensor=name):
                    flying.append(self.row.start(move(self.row, transfer, x, empty, tag)))
        step.flying[index, number, direction] = [p for p in flying if p is not None]
        if direction == "backward":
            step.inputs.pop((index + 1, number), None)

    def _outgoing(self, step: _Step, index: int, number: int, name: str) -> Tensor:
        """The value that a chunk of the next segment takes from this one: the same chunk, or rows of the only one."""
        before, after = step.chunks[index], step.chunks[index + 1]
        if len(before) == len(after):
            return step.outputs[index, number][name]
        y = step.outputs[index, 0][name]
        low, high = self._rows_of(step, index, number)
        return Tensor(y.data[low:high])

    def _rows_of(self, step: _Step, index: int, number: int) -> tuple[int, int]:
        first = step.chunks[index][0].parts[self.member][0]
        low, high = step.chunks[index + 1][number].parts[self.member]
        return low - first, high - first

    def _outgoing_gradient(self, step: _Step, index: int, number: int, name: str, transfer) -> Any:
        leaf = step.inputs[index + 1, number][name]
        gradient = leaf.grad
        if gradient is None:
            return self.xp.zeros(transfer.local_shape(transfer.src, self.member), self.dtype)
        if self.update_each:  # the loss was averaged over the chunk; the convolutions see the whole batch
            gradient *= self.dtype.type(self._averaged_over(step, number) / len(step.labels))
        return gradient

    def _finish(self, step: _Step, index: int, number: int, direction: str) -> None:
        boundary = step.plan.boundaries[index]
        results = [p.wait() for p in step.flying.pop((index, number, direction))]
        if direction == "forward":
            values = {}
            for name, exchange, y in zip(boundary.values, boundary.exchanges, results, strict=True):
                y = self.xp.empty(0, self.dtype) if y is None else y
                values[name] = Tensor(y, requires_grad=exchange.differentiable and step.training, name=name)
            step.inputs[index + 1, number] = values
            return
        names = [n for n, e in zip(boundary.values, boundary.exchanges, strict=True) if e.differentiable]
        whole = len(step.chunks[index]) == len(step.chunks[index + 1])
        held = step.gradients.setdefault((index, number if whole else 0), {})
        for name, gradient in zip(names, results, strict=True):
            if gradient is None:
                continue
            if whole:
                held[name] = gradient
            else:
                y = step.outputs[index, 0][name].data
                if name not in held:
                    held[name] = array_module(y).zeros(y.shape, y.dtype)
                low, high = self._rows_of(step, index, number)
                held[name][low:high] = gradient

    # -- the end of a step ---------------------------------------------------------------------------

    def _update(self, step: _Step, group: str, chunk: int | None) -> None:
        if chunk is None or self._averaged_over(step, chunk):  # no samples, no step
            with self.ledger.scope(phase="update", layer=group):
                before = self.ledger.state("compute")
                self.optimiser.update_group(self.group_index[group])
                self.ledger.restore(before)
        self.sync.share_weights(group)
        for p in self.groups[group]:
            p.grad = None

    def _metrics(self, step: _Step) -> Result:
        mine = np.array([step.loss, step.correct, step.samples], np.float64)
        if self.comm.size > 1:
            with self.ledger.scope(phase="metrics", layer="loss", cause="loss and accuracy"):
                mine = collectives.all_reduce(self.comm, mine, METRICS_ALGORITHM)
        result = Result(float(mine[0]), int(mine[1]), int(mine[2]))
        if step.training and not np.isfinite(result.loss):
            from .nonfinite import diagnose

            raise diagnose(self, step.images, step.labels)
        return result

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the parameters held here, on the host, by name."""
        return {name: to_host(p.data).copy() for name, p in self.replica.parameters.items()}
