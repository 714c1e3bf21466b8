"""Finding where the first number that is not finite came from."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import array_module
from ..errors import InputError


class NonFiniteError(InputError, ArithmeticError):
    """The loss is not a finite number; the message names the step and the layer."""


def diagnose(executor: Any, images: Any, labels: np.ndarray) -> NonFiniteError:
    """The error to raise, the same on every rank.

    The weights are looked at first, then the outputs of the layers in a forward pass without dropout.
    """
    names = [layer.name for layer in executor.plan.layers]
    place = len(names)
    what = "loss"
    for name, p in executor.replica.parameters.items():
        layer = name.rpartition(".")[0]
        if names.index(layer) < place and not _finite(p.data):
            place, what = names.index(layer), "weights"
    if place == len(names):
        place, what = _first_output(executor, images, labels, names)
    found = np.array([place, what == "weights"], np.int64)
    everyone = executor.comm.exchange(found)
    first = everyone[everyone[:, 0].argmin()]
    step = executor.iteration
    if first[0] >= len(names):
        return NonFiniteError(
            f"step {step}: the loss is not finite, though every layer's output is: dropout or the labels"
        )
    kind = "weights" if first[1] else "output"
    return NonFiniteError(
        f"step {step}: the loss is not finite; the first non-finite value is in the {kind} of layer "
        f"{names[first[0]]!r}: lower the learning rate, or check the input"
    )


def _first_output(executor: Any, images: Any, labels: np.ndarray, names: list[str]) -> tuple[int, str]:
    seen: list[str] = []
    original = executor._layer

    def watched(step, layer, *rest):
        y = original(step, layer, *rest)
        if y.data.size and not _finite(y.data):
            seen.append(layer.name)
        return y

    executor._layer = watched
    try:
        executor.evaluate(images, labels)
    finally:
        del executor._layer
    return (names.index(seen[0]) if seen else len(names)), "output"


def _finite(x: Any) -> bool:
    return bool(array_module(x).isfinite(x).all())
