"""One step, carried out: each event of a rank in turn.

Every layer runs on every micro-batch on a tape of its own. Its inputs arrive as leaves, from the layer before, from
another rank, or from a slice of what this rank has; backward, their gradients go back the way that the adjoint
transfers say.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from .. import functional as F
from .. import nn
from ..backend import array_module
from ..comm import collectives
from ..tensor import Function, Tape, Tensor
from .events import Compute, Event, Metrics, Post, PostSum, Share, Step, Wait, WaitSum
from .messages import SMALL, statistics_tag
from .placement import MicroBatch, Region, Replicate
from .plan import Plan
from .planned import Exchange, LayerPlan

Key = tuple[int, int, str]  # stage, micro-batch, name of a value


@dataclass
class Result:
    """What a step or an evaluation batch came to, over all ranks."""

    loss: float
    correct: int
    samples: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples if self.samples else float("nan")


class Arrive(Function):
    """y = an array from elsewhere, an input of a layer        its gradient is put into `kept`"""

    collective = True  # recorded, though it has no inputs
    saves_inputs = False

    def __init__(self, array: Any, kept: list) -> None:
        self.array, self.kept = array, kept

    def forward(self) -> Any:
        return self.__dict__.pop("array")

    def backward(self, gy: Any) -> tuple:
        self.kept.append(gy)
        return ()


class Run:
    """What is alive in a running step of one rank.

    Attributes
    ----------
    values : dict
        By `Key`: outputs of layers, what came from earlier stages, and the model's inputs.
    moved : dict
        By the tag of a move: the input of a layer that it has made.
    gradients : dict
        By `Key`: the gradient of a value, summed over the uses so far.
    left : dict
        By the tag of a move: the gradient of an input of a layer that it will take.
    tapes : dict
        By layer and micro-batch: the tape, the gradients of the inputs once they are there, and the output.
    """

    def __init__(
        self, executor: Any, plan: Plan, images: dict[str, Any], labels: np.ndarray, training: bool
    ) -> None:
        self.executor, self.plan, self.images, self.labels, self.training = (
            executor,
            plan,
            images,
            labels,
            training,
        )
        self.rank, self.xp, self.dtype, self.ledger = (
            executor.rank,
            executor.xp,
            executor.dtype,
            executor.ledger,
        )
        self.empty = self.xp.empty(0, self.dtype)
        self.values: dict[Key, Any] = {}
        self.moved: dict[int, Any] = {}
        self.gradients: dict[Key, Any] = {}
        self.left: dict[int, Any] = {}
        self.tapes: dict[tuple[str, int], tuple[Tape, list[list], Tensor]] = {}
        self.flying: dict[int, Any] = {}
        self.uses: dict[Key, int] = {}
        self.loss, self.correct, self.samples = 0.0, 0, 0
        self.result = Result(0.0, 0, 0)

    def do(self, event: Event) -> None:
        """Carry out one event."""
        match event:
            case Compute(layer, "forward", micro_batch):
                self._forward(layer, micro_batch)
            case Compute(layer, phase, micro_batch):
                self._backward(layer, micro_batch, phase)
            case Post():
                self._post(event)
            case Wait(post):
                self._wait(post)
            case PostSum(bucket):
                self.executor.sums[bucket.index].start()
            case WaitSum(bucket):
                self.executor.sums[bucket.index].finish()
            case Step(group, micro_batch):
                self._update(group, micro_batch)
            case Share(bucket):
                self.executor.sums[bucket.index].share_weights()
            case Metrics(tag):
                self.result = self.executor.metrics(self, tag)

    def settle(self) -> None:
        """Wait for the sends, and, where the step is given up, the sums, that nothing has waited for."""
        for pending in self.flying.values():
            if pending is not None and not isinstance(pending, tuple):
                pending.wait()
        for owned in self.executor.sums:
            owned.settle()

    def averaged_over(self, micro_batch: int) -> int:
        """Over how many samples its loss is averaged: the whole batch, or the micro-batch alone if that is a step."""
        sub_steps = self.executor.sub_steps and self.training
        return self.plan.stages[-1].micro_batches[micro_batch].size if sub_steps else len(self.labels)

    # -- computing -----------------------------------------------------------------------------------

    def _forward(self, layer: LayerPlan, micro_batch: int) -> None:
        ledger, batch = self.ledger, self.plan.stages[layer.stage].micro_batches[micro_batch]
        arrays = [self._input(layer, i, micro_batch) for i in range(len(layer.inputs))]
        samples = self.plan.samples(layer.derived.gradient, self.rank, batch)
        local, kept = self.executor.replica.layers.get(layer.name), [[] for _ in arrays]
        flops = self.executor.replica.flops(layer.name, len(samples), "forward")
        with Tape() as tape, ledger.scope(phase="forward", layer=layer.name, micro_batch=micro_batch):
            before = ledger.state("compute", flops=flops)
            self._synchronise(layer, micro_batch)
            tape.layer = layer.name
            taped = [self.training and d for d in layer.differentiable]
            inputs = [Arrive(x, k)() if t else Tensor(x) for x, k, t in zip(arrays, kept, taped, strict=True)]
            del arrays
            if layer.layer is None:
                y = self._loss(layer, inputs[0], samples, micro_batch)
            else:
                with nn.context(samples=samples):
                    y = local(*inputs)
            ledger.restore(before)
        if self.executor.watch is not None:
            self.executor.watch(layer.name, y.data)
        if layer.layer is not None:
            self.values[layer.stage, micro_batch, layer.name] = y.data
            if (
                self.training and layer.backward
            ):  # a tensor of this shape that holds nothing: whoever needs y saved it
                y.data = self.xp.broadcast_to(self.xp.empty((), y.data.dtype), y.data.shape)
        if self.training and layer.backward:
            self.tapes[layer.name, micro_batch] = tape, kept, y
        self.executor.comm.progress()

    def _loss(self, layer: LayerPlan, logits: Tensor, samples: np.ndarray, micro_batch: int) -> Tensor:
        """The mean over the whole batch of the cross-entropy of the samples held here."""
        target = self.xp.asarray(self.labels[samples])
        each, averaged = int(np.prod(self.labels.shape[1:])), self.averaged_over(micro_batch)
        loss = F.softmax_cross_entropy(logits, target, total=max(1, averaged * each))
        replicated = [
            axis for axis, p in zip(self.plan.mesh.names, layer.layout, strict=True) if p == Replicate()
        ]
        if not any(
            self.plan.mesh.coordinate(self.rank, axis) for axis in replicated
        ):  # of equal copies, one counts
            self.loss += float(loss.data) * averaged / len(self.labels)
            self.correct += int((logits.data.argmax(axis=-1) == target).sum())
            self.samples += len(samples) * each
        return loss

    def _backward(self, layer: LayerPlan, micro_batch: int, phase: str) -> None:
        tape, kept, y = self.tapes[layer.name, micro_batch]
        batch = self.plan.stages[layer.stage].micro_batches[micro_batch]
        samples, ledger = len(self.plan.samples(layer.derived.gradient, self.rank, batch)), self.ledger
        with ledger.scope(phase="backward", layer=layer.name, micro_batch=micro_batch):
            before = ledger.state("compute", flops=self.executor.replica.flops(layer.name, samples, phase))
            if phase == "weight":
                tape.backward_weights()
            else:
                gy = None
                if layer.layer is not None:
                    gy = self.gradients.pop((layer.stage, micro_batch, layer.name), None)
                    gy = self.xp.zeros(y.data.shape, self.dtype) if gy is None else gy
                if y.requires_grad:
                    tape.backward([y], [gy], defer_weights=phase == "input")
                self._hand_on(layer, kept, micro_batch)
            ledger.restore(before)
        if phase != "input":
            del self.tapes[layer.name, micro_batch]
        self.executor.comm.progress()

    def _hand_on(self, layer: LayerPlan, kept: list[list], micro_batch: int) -> None:
        """The gradients of a layer's inputs: to the transfer that takes them, or to the value itself."""
        for value, exchange, gradient in zip(layer.inputs, layer.exchanges, kept, strict=True):
            gx = gradient.pop() if gradient else None
            if gx is None:
                continue
            if exchange is None:
                self._accumulate((layer.stage, micro_batch, value), gx)
            else:
                self.left[exchange.tag_of(micro_batch, "backward")] = gx

    def _accumulate(self, key: Key, gradient: Any) -> None:
        held = self.gradients.get(key)
        self.gradients[key] = gradient if held is None else held + gradient

    def _synchronise(self, layer: LayerPlan, micro_batch: int) -> None:
        """Let the layer's batch norms sum their statistics, under the tags of this micro-batch."""
        for i, norm in enumerate(self.executor.replica.norms[layer.name] if layer.norms else ()):
            comm, tags = (
                self.executor.groups[layer.derived.statistics],
                count(statistics_tag(layer, micro_batch, i)),
            )
            norm.all_sum = lambda v, comm=comm, tags=tags: comm.start(
                collectives.all_reduce.steps(comm, v, SMALL), next(tags)
            ).wait()

    def _input(self, layer: LayerPlan, i: int, micro_batch: int) -> Any:
        """Input i of a layer: what a transfer has made, or the value as it is."""
        exchange = layer.exchanges[i]
        if exchange is not None:
            return self.moved.pop(exchange.tag_of(micro_batch, "forward"))
        return self._take((layer.stage, micro_batch, layer.inputs[i]))

    def _take(self, key: Key) -> Any:
        """A value, for one of its uses; it is forgotten after the last one."""
        stage, micro_batch, name = key
        if key not in self.values and name in self.plan.inputs:
            self.values[key] = self._load(name, self.plan.stages[stage].micro_batches[micro_batch])
        value = self.values.get(key)
        self.uses[key] = self.uses.get(key, self.plan.use_counts[stage, name]) - 1
        if not self.uses[key]:
            self.values.pop(key, None)
        return value

    def _load(self, name: str, batch: MicroBatch) -> Any:
        """The samples of a micro-batch, out of those that were loaded."""
        given, images = self.plan.inputs[name], self.images[name]
        rows = self.plan.samples(given.layout, self.rank, batch) - self.plan.input_rows(self.rank)[0]
        if images is None:
            return self.xp.empty((0, *given.shape), self.dtype)
        return images[_span(rows)]

    # -- moving --------------------------------------------------------------------------------------

    def _post(self, post: Post) -> None:
        """Begin to move a value or a gradient."""
        e, i, tag = post.exchange, post.micro_batch, post.exchange.tag_of(post.micro_batch, post.direction)
        direction = post.direction
        with self.ledger.scope(phase=direction, layer=e.layer, micro_batch=i, cause=e.layer, tensor=e.value):
            x = self._outgoing(e, i) if direction == "forward" else self._outgoing_gradient(e, i)
            pending = None
            for transfer in post.transfers:
                x = x if pending is None else pending.wait()
                group = self.executor.groups[transfer.axes]
                pending = group.start(transfer.steps(group, x, self.empty), tag)
        self.flying[tag] = (
            (x,) if pending is None else pending
        )  # where nothing moves, what is here is used as it is

    def _outgoing(self, e: Exchange, micro_batch: int) -> Any:
        """What this rank has of a value; of a stage that ran the whole batch at once, the rows of the micro-batch."""
        region = self.plan.region(e.source, e.shape, self.rank)
        if region is None:
            return None
        if self._one_for_many(e):
            return self._take((e.origin, 0, e.value))[self._rows(e, micro_batch, region)]
        return self._take((e.origin, micro_batch, e.value))

    def _outgoing_gradient(self, e: Exchange, micro_batch: int) -> Any:
        region = self.plan.region(e.leaves, e.shape, self.rank)
        if region is None:
            return None
        if e.origin == e.stage:
            gradient = self.left.pop(e.tag_of(micro_batch, "backward"), None)
        else:
            gradient = self.gradients.pop((e.stage, micro_batch, e.value), None)
        if gradient is None:
            return self.xp.zeros(
                self.plan.stages[e.stage].micro_batches[micro_batch].shape(region), self.dtype
            )
        share = self.averaged_over(micro_batch) / len(self.labels)
        # where a micro-batch is a step, the loss was averaged over it; the stages before see the whole batch
        return gradient if share == 1 or e.origin == e.stage else gradient * self.dtype.type(share)

    def _one_for_many(self, e: Exchange) -> bool:
        return len(self.plan.stages[e.origin].micro_batches) != len(self.plan.stages[e.stage].micro_batches)

    def _rows(self, e: Exchange, micro_batch: int, region: Region) -> slice | np.ndarray:
        """Where the rows of a micro-batch lie in what this rank has of the whole batch."""
        whole, part = (
            self.plan.stages[e.origin].micro_batches[0],
            self.plan.stages[e.stage].micro_batches[micro_batch],
        )
        found, start = [np.arange(0)], 0
        for k in region.blocks:
            first = whole.blocks[k][0]
            found.append(start + np.arange(part.blocks[k][0] - first, part.blocks[k][1] - first))
            start += whole.rows[k]
        return _span(np.concatenate(found))

    def _wait(self, post: Post) -> None:
        """Wait for a move, and put what arrived where it will be looked for."""
        e, i, tag = post.exchange, post.micro_batch, post.exchange.tag_of(post.micro_batch, post.direction)
        pending = self.flying.pop(tag)
        y = pending[0] if isinstance(pending, tuple) else pending.wait()
        if self.plan.region(e.layouts(post.direction)[1], (), self.rank) is None:
            return
        if post.direction == "forward":
            if e.origin == e.stage:
                self.moved[tag] = y
            else:
                self.values[e.stage, i, e.value] = y
        elif not self._one_for_many(e):
            self._accumulate((e.origin, i, e.value), y)
        else:
            key, region = (e.origin, 0, e.value), self.plan.region(e.gradient, e.shape, self.rank)
            if key not in self.gradients:
                whole = self.plan.stages[e.origin].micro_batches[0]
                self.gradients[key] = array_module(y).zeros(whole.shape(region), y.dtype)
            self.gradients[key][self._rows(e, i, region)] += y

    # -- the end of a step ---------------------------------------------------------------------------

    def _update(self, group: str, micro_batch: int | None) -> None:
        executor = self.executor
        if micro_batch is None or self.averaged_over(micro_batch):  # no samples, no step
            with self.ledger.scope(phase="update", layer=group):
                before = self.ledger.state("compute")
                executor.optimiser.update_group(list(executor.update_groups).index(group))
                self.ledger.restore(before)
        for p in executor.update_groups[group]:
            p.grad = None


def _span(rows: np.ndarray) -> slice | np.ndarray:
    """Row numbers as a slice where they are consecutive: a view in place of a copy."""
    if not len(rows):
        return slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1) if rows[-1] - rows[0] + 1 == len(rows) else rows
