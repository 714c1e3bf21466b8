"""What each layer costs in a step, estimated or measured, for balancing the stages of a layer split."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from .. import nn
from ..optim import SGD
from ..tensor import Tape, Tensor

# Multiply-adds in the time that it takes to read a weight, and to update it: with few samples a linear layer is bound
# by memory. Measured on two CPUs: 12 to 18, and 30 to 60.
READ, UPDATE = 15, 50


def estimated_costs(
    model: nn.Sequential, shape: tuple[int, ...], batch: int, micro_batches: int = 1
) -> list[float]:
    """The cost of a step of each layer, in multiply-adds.

    Each micro-batch makes three products (y, gx, gW), of which two read the weights; then comes the update.
    """
    costs = []
    for _, layer, inputs, _ in model.shapes(shape):
        weights = sum(p.size for p in layer.parameters())
        product = batch / micro_batches * layer.macs(*inputs)
        costs.append(micro_batches * (2 * max(product, READ * weights) + product) + UPDATE * weights + 1)
    return costs


def measured_costs(
    model: nn.Sequential, shape: tuple[int, ...], batch: int, micro_batches: int = 1, repeats: int = 3
) -> list[float]:
    """Seconds of a step of each layer: forward and backward of all micro-batches, and the update.

    It is the least of `repeats` runs. The model gets weights here; give it one that is not trained afterwards.
    """
    model.init(0)
    rng, batch, costs = np.random.default_rng(0), max(1, batch // micro_batches), []
    for _, layer, inputs, _ in model.shapes(shape):
        values = [rng.standard_normal((batch, *s)).astype(np.float32) for s in inputs]
        update, times = SGD(list(layer.parameters()), lr=1e-6, momentum=0.9), []
        for _ in range(repeats):
            tensors = [Tensor(v, requires_grad=True) for v in values]
            begin = perf_counter()
            with nn.context(training=True, seed=0, step=0, samples=np.arange(batch)), Tape() as tape:
                y = layer(*tensors)
            tape.backward(y, np.ones_like(y.data))
            computed = perf_counter()
            update.step()
            times.append(micro_batches * (computed - begin) + perf_counter() - computed)
            update.zero_grad()
        costs.append(min(times))
    return costs
