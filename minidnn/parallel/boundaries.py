"""What passes between segments: activations forward, their gradients backward, chunk by chunk."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import array_module
from ..comm.communicator import Communicator
from ..tensor import Tensor
from .move import move
from .step import Step

BOUNDARY_TAGS = 100  # messages of boundaries between two ranks have tags from here on


class Boundaries:
    """Starts and finishes the transfers of boundaries within a model group."""

    def __init__(self, row: Communicator, dtype: np.dtype, xp: Any) -> None:
        self.row, self.member, self.ledger = row, row.rank, row.ledger
        self.dtype, self.xp = dtype, xp

    def start(self, step: Step, index: int, number: int, direction: str) -> None:
        """Post the messages of a boundary for one chunk."""
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
                # two ranks share one boundary at most, so a tag need not say which
                place = i * len(step.chunks[index + 1]) + number
                tag = BOUNDARY_TAGS + 2 * place + (direction == "backward")
                empty = self.xp.empty(0, self.dtype)
                with self.ledger.scope(tensor=name):
                    flying.append(self.row.start(move(self.row, transfer, x, empty, tag)))
        step.flying[index, number, direction] = [p for p in flying if p is not None]
        if direction == "backward":
            step.inputs.pop((index + 1, number), None)

    def _outgoing(self, step: Step, index: int, number: int, name: str) -> Tensor:
        """The value that a chunk of the next segment takes from this one: the same chunk, or rows of the only one."""
        before, after = step.chunks[index], step.chunks[index + 1]
        if len(before) == len(after):
            return step.outputs[index, number][name]
        y = step.outputs[index, 0][name]
        low, high = self._rows_of(step, index, number)
        return Tensor(y.data[low:high])

    def _rows_of(self, step: Step, index: int, number: int) -> tuple[int, int]:
        first = step.chunks[index][0].parts[self.member][0]
        low, high = step.chunks[index + 1][number].parts[self.member]
        return low - first, high - first

    def _outgoing_gradient(self, step: Step, index: int, number: int, name: str, transfer) -> Any:
        leaf = step.inputs[index + 1, number][name]
        gradient = leaf.grad
        if gradient is None:
            return self.xp.zeros(transfer.local_shape(transfer.src, self.member), self.dtype)
        if step.sub_steps:  # the loss was averaged over the chunk; the convolutions see the whole batch
            gradient *= self.dtype.type(step.averaged_over(number) / len(step.labels))
        return gradient

    def finish(self, step: Step, index: int, number: int, direction: str) -> None:
        """Wait for them, and put what arrived where the schedule will look for it."""
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
