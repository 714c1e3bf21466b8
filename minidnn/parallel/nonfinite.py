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
    wrong = [name for name, p in executor.replica.parameters.items() if not _finite(p.data)]
    places = [names.index(name.rpartition(".")[0]) for name in wrong]
    place, kind = _least(executor, min(places, default=len(names))), "weights"
    if place == len(names):  # so it is on all ranks: a forward pass communicates
        place, kind = _least(executor, _first_output(executor, images, labels, names)), "output"
    step = executor.iteration
    if place == len(names):
        return NonFiniteError(
            f"step {step}: the loss is not finite, though every layer's output is: dropout or the labels"
        )
    return NonFiniteError(
        f"step {step}: the loss is not finite; the first non-finite value is in the {kind} of layer "
        f"{names[place]!r}: lower the learning rate, or check the input"
    )


def _least(executor: Any, place: int) -> int:
    return int(executor.comm.exchange(np.array([place])).min())


def _first_output(executor: Any, images: Any, labels: np.ndarray, names: list[str]) -> int:
    seen: list[str] = []

    def watch(name: str, y: Any) -> None:
        if y.data.size and not _finite(y.data):
            seen.append(name)

    executor.segments.watch = watch
    try:
        executor.evaluate(images, labels)
    finally:
        executor.segments.watch = None
    return names.index(seen[0]) if seen else len(names)


def _finite(x: Any) -> bool:
    return bool(array_module(x).isfinite(x).all())
