"""What each layer costs on this machine, for balancing the stages of a layer split."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from .. import nn
from ..tensor import Tape, Tensor


def measured_costs(model: nn.Sequential, shape: tuple[int, ...], batch: int, repeats: int = 3) -> list[float]:
    """Seconds of forward and backward of each layer, the least of `repeats` runs.

    The model gets weights here; give it one that is not trained afterwards.
    """
    model.init(0)
    rng = np.random.default_rng(0)
    costs = []
    for _, layer, inputs, _ in model.shapes(shape):
        values = [rng.standard_normal((batch, *s)).astype(np.float32) for s in inputs]
        times = []
        for _ in range(repeats):
            tensors = [Tensor(v, requires_grad=True) for v in values]
            begin = perf_counter()
            with nn.context(training=True, seed=0, step=0, samples=np.arange(batch)), Tape() as tape:
                y = layer(*tensors)
            tape.backward(y, np.ones_like(y.data))
            times.append(perf_counter() - begin)
        costs.append(min(times))
    return costs
