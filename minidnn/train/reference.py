"""What one process computes in a step, value by value: the twin, layer by layer.

Each layer runs on a tape of its own, so all activations, the gradient of every use of them, and the gradients
of all weights remain at hand; :mod:`.comparison` holds them against what is sent.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np

from .. import functional as F
from .. import nn
from ..nn.sequential import INPUT
from ..parallel import Executor
from ..parallel.planned import LayerPlan
from ..tensor import Tape, Tensor
from .twin import Twin


class Reference(Twin):
    """The twin, with the values of its last step.

    Parameters
    ----------
    executor : Executor
        Its plans say which layer takes what.
    *args
        Those of `Twin`.

    Attributes
    ----------
    values : dict
        Outputs of the layers by name, of the whole batch; and the images as "input".
    uses : dict
        ``uses[layer, i]``, the gradient of the loss for input i of a layer.
    weights : dict
        For each parameter a list of (gradient, weights after the update): one, or one for each micro-batch that
        is an update of its own.
    """

    def __init__(self, executor: Executor, *args: Any) -> None:
        super().__init__(*args)
        self.executor = executor

    def step(self, images: np.ndarray, labels: np.ndarray) -> float:
        """One training step on the whole batch, to the same bits as `Twin.step`; returns the mean loss."""
        self.plan, self.labels = self.executor.plan_for(len(labels), training=True), labels
        self.values: dict[Hashable, np.ndarray] = {INPUT: images}
        self.uses: dict[Hashable, np.ndarray] = {}
        self.weights: dict[str, list] = {name: [] for name, _ in self.model.named_parameters()}
        self.model.zero_grad()
        rows = np.arange(len(labels))
        run = self._forward(self.plan.stages[0].layers if self.split else self.plan.layers, rows)
        if self.split:
            loss = sum(self._fc_step(rows) for rows in self.fc_rows(len(labels)))
            self._backward(run, rows)
            self.optimiser.update_group(0)
            self.optimiser.advance()
        else:
            loss = run[-1][-1].item()
            self._backward(run, rows)
            self.optimiser.step()
        self._keep(self.conv if self.split else self.model)
        return loss

    def _fc_step(self, rows: np.ndarray) -> float:
        """A step of the fully connected layers on one micro-batch, none if it is empty; its share of the loss."""
        self.fc.zero_grad()
        loss, n = 0.0, len(self.labels)
        if len(rows):
            run = self._forward(self.plan.stages[1].layers, rows)
            self._backward(run, rows, self.dtype.type(len(rows) / n))
            self.optimiser.update_group(1)
            loss = run[-1][-1].item() * len(rows) / n
        self._keep(self.fc)
        return loss

    def _forward(self, layers: Iterable[LayerPlan], rows: np.ndarray) -> list[tuple]:
        run = []
        for layer in layers:
            inputs = [
                Tensor(self._take(self.values[v], rows), requires_grad=v != INPUT) for v in layer.inputs
            ]
            step = self.optimiser.iteration
            with Tape() as tape, nn.context(training=True, seed=self.seed, step=step, samples=rows):
                if layer.layer is None:
                    y = F.softmax_cross_entropy(*inputs, self.labels[rows])
                else:
                    y = self.model[layer.name](*inputs)
                    self._put(self.values, layer.name, rows, y.data)
            run.append((layer, tape, inputs, y))
        return run

    def _backward(self, run: list[tuple], rows: np.ndarray, share: Any = None) -> None:
        """`share` is what the loss of a micro-batch counts in that of the batch, which the layers before see."""
        inside = {layer.name for layer, *_ in run}
        for layer, tape, inputs, y in reversed(run):
            gradient = None if layer.layer is None else self.gradient(layer.name)
            if y.requires_grad and (layer.layer is None or gradient is not None):
                tape.backward(y, gradient if gradient is None else self._take(gradient, rows))
            for i, (value, x) in enumerate(zip(layer.inputs, inputs, strict=True)):
                if x.grad is not None:
                    scaled = x.grad if share is None or value in inside else x.grad * share
                    self._put(self.uses, (layer.name, i), rows, scaled)

    def gradient(self, value: str, stage: int | None = None) -> np.ndarray | None:
        """The gradient of a value, summed over its uses, in one stage or in all."""
        total = None
        for layer in reversed(self.plan.layers):
            for i, name in enumerate(layer.inputs):
                here = name == value and stage in (None, layer.stage)
                use = self.uses.get((layer.name, i)) if here else None
                if use is not None:
                    total = use if total is None else total + use
        return total

    def _take(self, array: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return array if len(rows) == len(array) else array[rows]

    def _put(self, store: dict, key: Hashable, rows: np.ndarray, array: np.ndarray) -> None:
        n = len(self.labels)
        if len(rows) == n:
            store[key] = array
        else:
            store.setdefault(key, np.zeros((n, *array.shape[1:]), array.dtype))[rows] = array

    def _keep(self, model: nn.Sequential) -> None:
        """Note gradients and weights after an update; of the layers that have several, copies."""
        for name, p in model.named_parameters():
            gradient = np.zeros_like(p.data) if p.grad is None else p.grad
            self.weights[name].append((gradient, p.data.copy() if self.split else p.data))
