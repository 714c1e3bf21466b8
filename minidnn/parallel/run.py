"""One step, carried out: each event of a rank in turn.

Every layer runs on every micro-batch on a tape of its own. Its inputs arrive as leaves, from the layer before, from
another rank, or from a slice of what this rank has; backward, their gradients go back the way that the adjoint
transfers say.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np

from .. import functional as F
from .. import nn
from ..comm import collectives
from ..tensor import Function, Tape, Tensor
from .events import Compute, Event, Metrics, Post, PostSum, Share, Step, Wait
from .messages import SMALL, statistics_tag
from .nonfinite import diagnose
from .placement import MicroBatch, Region, Replicate
from .plan import Plan
from .planned import Exchange, LayerPlan

# stage, micro-batch, and the name of a value, or the tag of the move that made it for a layer
Key = tuple[int, int, str | int]


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
    """What is alive in a running step of one rank."""

    def __init__(
        self, executor: Any, plan: Plan, images: dict[str, Any], labels: np.ndarray, training: bool
    ) -> None:
        self.executor, self.plan, self.images, self.labels = executor, plan, images, labels
        self.training, self.rank, self.comm = training, executor.rank, executor.comm
        self.xp, self.dtype, self.ledger = executor.xp, executor.dtype, executor.ledger
        self.empty = self.xp.empty(0, self.dtype)
        self.values: dict[Key, Any] = {}  # outputs of layers, what has arrived, the model's inputs
        self.uses: dict[Key, int] = {}  # that are still to come
        self.gradients: dict[Key, Any] = {}  # summed over the uses so far
        # by layer and micro-batch: the tape, the gradients of the inputs once they are there, and the output
        self.tapes: dict[tuple[str, int], tuple[Tape, list[list], Tensor]] = {}
        self.flying: dict[
            int, Any
        ] = {}  # moves under way, by tag; where nothing is sent, the result in a tuple
        self.loss, self.correct, self.samples = 0.0, 0, 0
        self.result = Result(0.0, 0, 0)

    def do(self, event: Event) -> None:
        """Carry out one event."""
        match event:
            case Compute(layer, phase, micro_batch):
                (self._forward if phase == "forward" else self._backward)(layer, micro_batch, phase)
                self.comm.progress()
            case Post():
                self._post(event)
            case Wait(Post() as post):
                self._wait(post)
            case PostSum(bucket):
                self.executor.sums[bucket.index].start()
            case Wait(PostSum(bucket)):
                self.executor.sums[bucket.index].finish()
            case Step(group, micro_batch):
                self._update(group, micro_batch)
            case Share(bucket):
                self.executor.sums[bucket.index].share_weights()
            case Metrics(tag):
                self._sum_metrics(tag)

    def settle(self) -> None:
        """Wait for the sends, and, where the step is given up, the sums, that nothing has waited for."""
        for pending in self.flying.values():
            if not isinstance(pending, tuple):
                pending.wait()
        for owned in self.executor.sums:
            if owned.pending is not None:
                owned.finish()

    def _averaged_over(self, micro_batch: int) -> int:
        """Over how many samples its loss is averaged: the whole batch, or the micro-batch alone if that is a step."""
        alone = self.executor.sub_steps and self.training
        return self.plan.stages[-1].micro_batches[micro_batch].size if alone else len(self.labels)

    def _batch(self, stage: int, micro_batch: int) -> MicroBatch:
        return self.plan.stages[stage].micro_batches[micro_batch]

    def _begin(self, layer: LayerPlan, micro_batch: int, phase: str) -> tuple[np.ndarray, tuple]:
        """Let the ledger know that a layer computes; the numbers of its samples, and the state of the ledger before."""
        samples = self.plan.layer_samples(layer, self.rank, micro_batch)
        flops = self.executor.replica.flops(layer.name, len(samples), phase)
        return samples, self.ledger.state("compute", flops=flops)

    def _inputs(self, layer: LayerPlan, micro_batch: int) -> list[Key]:
        """Where the inputs of a layer lie: what a move has made, or the value as it is."""
        pairs = zip(layer.inputs, layer.exchanges, strict=True)
        return [self._target(e, micro_batch) if e else (layer.stage, micro_batch, v) for v, e in pairs]

    def _target(self, e: Exchange, micro_batch: int) -> Key:
        """Where a move puts a value: within a stage for a single layer, between stages for all that take it."""
        return e.stage, micro_batch, e.tag if e.origin == e.stage else e.value

    def _forward(self, layer: LayerPlan, micro_batch: int, phase: str) -> None:
        taped = self.training and layer.backward
        arrays = [self._take(key) for key in self._inputs(layer, micro_batch)]
        kept: list[list] = [[] for _ in arrays]
        with Tape() as tape, self.ledger.scope(phase=phase, layer=layer.name, micro_batch=micro_batch):
            samples, before = self._begin(layer, micro_batch, phase)
            self._synchronise(layer, micro_batch)
            tape.layer = layer.name
            flows = [self.training and d for d in layer.differentiable]
            inputs = [Arrive(x, k)() if f else Tensor(x) for x, k, f in zip(arrays, kept, flows, strict=True)]
            del arrays
            with nn.context(samples=samples):
                local = self.executor.replica.layers.get(layer.name)
                y = local(*inputs) if local is not None else self._loss(layer, *inputs, samples, micro_batch)
            self.ledger.restore(before)
        if self.executor.watch is not None:
            self.executor.watch(layer.name, y.data)
        if layer.layer is not None:
            self.values[layer.stage, micro_batch, layer.name] = y.data
            if taped:  # a tensor of this shape that holds nothing: whoever needs y saved it
                y.data = _hollow(self.xp, y.data.shape, y.data.dtype)
        if taped:
            self.tapes[layer.name, micro_batch] = tape, kept, y

    def _loss(self, layer: LayerPlan, logits: Tensor, samples: np.ndarray, micro_batch: int) -> Tensor:
        """The mean over the whole batch of the cross-entropy of the samples held here."""
        target = self.xp.asarray(self.labels[samples])
        each, averaged = int(np.prod(self.labels.shape[1:])), self._averaged_over(micro_batch)
        loss = F.softmax_cross_entropy(logits, target, total=max(1, averaged * each))
        places = zip(layer.layout, self.plan.mesh.coordinates[self.rank], strict=True)
        if not any(at for p, at in places if p == Replicate()):  # of equal copies, one counts
            self.loss += float(loss.data) * averaged / len(self.labels)
            self.correct += int((logits.data.argmax(axis=-1) == target).sum())
            self.samples += len(samples) * each
        return loss

    def _backward(self, layer: LayerPlan, micro_batch: int, phase: str) -> None:
        tape, kept, y = self.tapes[layer.name, micro_batch]
        with self.ledger.scope(phase="backward", layer=layer.name, micro_batch=micro_batch):
            _, before = self._begin(layer, micro_batch, phase)
            if phase == "weight":
                tape.backward_weights()
            else:
                gy = self.gradients.pop((layer.stage, micro_batch, layer.name), None)
                if gy is None and layer.layer is not None:
                    gy = self.xp.zeros(y.data.shape, self.dtype)
                if y.requires_grad:
                    tape.backward([y], [gy], defer_weights=phase == "input")
                for key, gradient in zip(self._inputs(layer, micro_batch), kept, strict=True):
                    if gradient:
                        self._accumulate(key, gradient.pop())
            self.ledger.restore(before)
        if phase != "input":
            del self.tapes[layer.name, micro_batch]

    def _accumulate(self, key: Key, gradient: Any) -> None:
        held = self.gradients.get(key)
        self.gradients[key] = gradient if held is None else held + gradient

    def _synchronise(self, layer: LayerPlan, micro_batch: int) -> None:
        """Let the layer's batch norms sum their statistics, under the tags of this micro-batch."""
        for i, norm in enumerate(self.executor.replica.norms[layer.name] if layer.norms else ()):
            group = self.executor.groups[layer.derived.statistics]
            tags = count(statistics_tag(layer, micro_batch, i))
            norm.all_sum = lambda v, group=group, tags=tags: self._sum(group, v, next(tags))

    def _sum(self, group: Any, values: Any, tag: int) -> Any:
        return group.start(collectives.all_reduce.steps(group, values, SMALL), tag).wait()

    def _take(self, key: Key) -> Any:
        """A value, for one of its uses; it is forgotten after the last one."""
        stage, micro_batch, name = key
        if key not in self.values and name in self.plan.inputs:  # of those loaded, the micro-batch's
            given, images = self.plan.inputs[name], self.images[name]
            rows = self.plan.samples(given.layout, self.rank, self._batch(stage, micro_batch))
            if images is None:
                images = self.xp.empty((0, *given.shape), self.dtype)
            self.values[key] = images[_span(rows - self.plan.input_rows(self.rank)[0])]
        value = self.values.get(key)
        self.uses[key] = self.uses.get(key, self.plan.use_counts.get((stage, name), 1)) - 1
        if not self.uses[key]:
            self.values.pop(key, None)
        return value

    def _post(self, post: Post) -> None:
        """Begin to move a value or a gradient."""
        e, i, direction = post.exchange, post.micro_batch, post.direction
        tag, pending = e.tag_of(i, direction), None
        with self.ledger.scope(phase=direction, layer=e.layer, micro_batch=i, cause=e.layer, tensor=e.value):
            region = self.plan.region(e.layouts(direction)[0], e.shape, self.rank)
            outgoing = self._value if direction == "forward" else self._gradient
            x = outgoing(e, i, region) if region else None
            for transfer in post.transfers:
                x = pending.wait() if pending else x
                group = self.executor.groups[transfer.axes]
                pending = group.start(transfer.steps(group, x, self.empty), tag)
        self.flying[tag] = pending or (x,)  # where nothing moves, what is here is used as it is

    def _value(self, e: Exchange, micro_batch: int, region: Region) -> Any:
        """What this rank has of a value; of a stage that ran the whole batch at once, the rows of the micro-batch."""
        x = self._take((e.origin, 0 if e.at_once else micro_batch, e.value))
        return x[self._rows(e, micro_batch, region)] if e.at_once else x

    def _gradient(self, e: Exchange, micro_batch: int, region: Region) -> Any:
        gradient = self.gradients.pop(self._target(e, micro_batch), None)
        if gradient is None:
            return self.xp.zeros(self._batch(e.stage, micro_batch).shape(region), self.dtype)
        share = self._averaged_over(micro_batch) / len(self.labels)
        # where a micro-batch is a step, the loss was averaged over it; the stages before see the whole batch
        return gradient if share == 1 or e.origin == e.stage else gradient * self.dtype.type(share)

    def _rows(self, e: Exchange, micro_batch: int, region: Region) -> slice | np.ndarray:
        """Where the rows of a micro-batch lie in what this rank has of the whole batch."""
        whole, part = self._batch(e.origin, 0), self._batch(e.stage, micro_batch)
        return _span(np.flatnonzero(np.isin(whole.samples(region.blocks), part.samples(region.blocks))))

    def _wait(self, post: Post) -> None:
        """Wait for a move, and put what arrived where it will be looked for."""
        e, i = post.exchange, post.micro_batch
        pending = self.flying.pop(e.tag_of(i, post.direction))
        y = pending[0] if isinstance(pending, tuple) else pending.wait()
        region = self.plan.region(e.layouts(post.direction)[1], e.shape, self.rank)
        if region is None:
            return
        if post.direction == "forward":
            self.values[self._target(e, i)] = y
        elif not e.at_once:
            self._accumulate((e.origin, i, e.value), y)
        else:
            key = e.origin, 0, e.value
            if key not in self.gradients:
                self.gradients[key] = self.xp.zeros(self._batch(e.origin, 0).shape(region), y.dtype)
            self.gradients[key][self._rows(e, i, region)] += y

    def _sum_metrics(self, tag: int) -> None:
        """Sum loss, correct answers and samples over all ranks; raise where the loss is not finite."""
        mine = np.array([self.loss, self.correct, self.samples], np.float64)
        if self.comm.size > 1:
            with self.ledger.scope(phase="metrics", layer="loss", cause="loss and accuracy"):
                mine = self._sum(self.comm, mine, tag)
        self.result = Result(float(mine[0]), int(mine[1]), int(mine[2]))
        if self.training and not np.isfinite(self.result.loss):
            self.settle()
            raise diagnose(self.executor, self.images, self.labels)

    def _update(self, group: str, micro_batch: int | None) -> None:
        groups = self.executor.update_groups
        if micro_batch is None or self._averaged_over(micro_batch):  # no samples, no step
            with self.ledger.scope(phase="update", layer=group), self.ledger.during("compute"):
                self.executor.optimiser.update_group(list(groups).index(group))
        for p in groups[group]:
            p.grad = None


def _span(rows: np.ndarray) -> slice | np.ndarray:
    """Row numbers as a slice where they are consecutive: a view in place of a copy."""
    if not len(rows):
        return slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1) if rows[-1] - rows[0] + 1 == len(rows) else rows


@lru_cache(maxsize=1024)
def _hollow(xp: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """An array of a shape and dtype that takes no memory."""
    return xp.broadcast_to(xp.empty((), dtype), shape)
