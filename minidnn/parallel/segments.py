"""Forward and backward of a segment's layers on one chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import functional as F
from .. import nn
from ..comm.communicator import Communicator
from ..tensor import Tape, Tensor
from .gradients import GradientSync
from .move import Redistribute
from .placement import Shard
from .plan import Chunk, LayerPlan
from .planner import INPUT
from .replica import Replica
from .step import Step


class Segments:
    """Runs segments: layers on chunks, each (segment, chunk) on a tape of its own.

    Attributes
    ----------
    watch : callable, optional
        Called with the name and the output of every layer that has run forward.
    """

    def __init__(
        self,
        comm: Communicator,
        row: Communicator,
        replica: Replica,
        sync: GradientSync,
        shape: tuple[int, ...],
        dtype: np.dtype,
        xp: Any,
    ) -> None:
        self.comm, self.row, self.member, self.ledger = comm, row, row.rank, comm.ledger
        self.replica, self.sync = replica, sync
        self.shape, self.dtype, self.xp = shape, dtype, xp
        self.watch: Callable[[str, Tensor], None] | None = None

    def forward(self, step: Step, segment: int, number: int) -> None:
        """Run a segment's layers on one chunk."""
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
                    values[layer.name] = y = self._layer(step, layer, values, chunk, number, samples)
                if self.watch is not None:
                    self.watch(layer.name, y)
                self.comm.progress()
            ledger.restore(before)
        if step.training:
            step.tapes[segment, number] = tape
        wanted = step.plan.boundaries[segment].values if segment < len(step.plan.boundaries) else ("loss",)
        step.outputs[segment, number] = {name: values[name] for name in wanted}

    def _layer(
        self, step: Step, layer: LayerPlan, values: dict, chunk: Chunk, number: int, samples: dict
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

    def _loss(self, step: Step, layer: LayerPlan, logits: Tensor, chunk: Chunk, number: int) -> Tensor:
        """The mean over the whole batch of the cross-entropy of the rows held here."""
        rows = chunk.held(layer.placement, self.member)
        start, _ = step.plan.samples(self.comm.rank)
        labels = step.labels[start + rows]
        if not self._holds(layer):
            return Tensor(self.xp.empty(0, self.dtype))
        self.ledger.state("compute")
        target = self.xp.asarray(labels)
        total = step.averaged_over(number)
        loss = F.softmax_cross_entropy(logits, target, total=max(1, total))
        if self._counts(layer):
            step.loss += float(loss.data) * total / len(step.labels)
            step.correct += int((logits.data.argmax(axis=-1) == target).sum())
            step.samples += len(rows)
        return loss

    def _holds(self, layer: LayerPlan) -> bool:
        rank = getattr(layer.placement, "rank", None)
        return rank is None or rank == self.member

    def _counts(self, layer: LayerPlan) -> bool:
        """Whether this member's loss counts: of a replicated one, one member's does."""
        return layer.placement == Shard(0) or hasattr(layer.placement, "rank") or self.member == 0

    def _images(self, step: Step, chunk: Chunk) -> Tensor:
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

    def _samples(self, step: Step, chunk: Chunk) -> dict[bool, np.ndarray]:
        """Numbers, in the whole batch, of the own rows (True) and of all rows (False) of a chunk."""
        start, _ = step.plan.samples(self.comm.rank)
        return {True: start + chunk.held(Shard(0), self.member), False: start + chunk.rows}

    def backward(self, step: Step, segment: int, number: int, defer_weights: bool = False) -> None:
        """Run a segment's tape in reverse for one chunk; `defer_weights` leaves out the weight gradients."""
        tape = step.tapes[segment, number]
        outputs = step.outputs.pop((segment, number))
        gradients = step.gradients.pop((segment, number), {})
        pairs = [(y, gradients.get(name)) for name, y in outputs.items()]
        if segment == len(step.plan.segments) - 1:
            pairs = [(y, None) for y, _ in pairs if y.data.size and y.requires_grad]
        else:
            pairs = [(y, g) for y, g in pairs if g is not None and y.requires_grad]
        last = number == len(step.chunks[segment]) - 1 or (step.sub_steps and segment > 0)
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

    def backward_weights(self, step: Step, segment: int, number: int) -> None:
        """The weight gradients that `backward` put off."""
        tape = step.tapes.pop((segment, number))
        last = number == len(step.chunks[segment]) - 1
        with self.ledger.scope(phase="backward", chunk=number):
            before = self.ledger.state("compute")
            tape.backward_weights(
                on_ready=self.sync.ready if last else None, observer=self._observer(step, segment, number)
            )
            self.ledger.restore(before)

    def _observer(self, step: Step, segment: int, number: int) -> Callable:
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
