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

    The first layer is looked for whose weights are wrong, and the first whose output is, in a forward pass without
    dropout. The earlier one is to blame: wrong weights further on may come from it, where layers have been
    updated since (One Weird Trick with an update after every micro-batch).
    """
    names = [layer.name for layer in executor.plan.layers]
    weights = wrong_weights(executor)
    output = _least(executor, _first_output(executor, images, labels, names))
    place, kind = (weights, "weights") if weights <= output else (output, "output")
    step = executor.iteration
    if place == len(names):
        return NonFiniteError(
            f"step {step}: the loss is not finite, though every layer's output is: dropout or the labels"
        )
    return NonFiniteError(
        f"step {step}: the loss is not finite; the first non-finite value is in the {kind} of layer "
        f"{names[place]!r}: lower the learning rate, or check the input"
    )


def wrong_weights(executor: Any) -> int:
    """Where in the plan the first layer is whose weights are not finite on some rank; the number of layers if none."""
    names = [layer.name for layer in executor.plan.layers]
    held, variables = executor.plan.held[executor.rank], executor.replica.variables
    wrong = [p.layer for p in held if not p.buffer and not _finite(variables[p.name].data)]
    return _least(executor, min(map(names.index, wrong), default=len(names)))


def _least(executor: Any, place: int) -> int:
    return int(executor.comm.exchange(np.array([place])).min())


def _first_output(executor: Any, images: Any, labels: np.ndarray, names: list[str]) -> int:
    seen: list[str] = []

    def watch(name: str, y: Any) -> None:
        if y.size and not _finite(y):
            seen.append(name)

    tracing, executor.ledger.tracing = executor.ledger.tracing, False  # these messages are not the step's
    executor.watch = watch
    try:
        executor.evaluate(images, labels)
    finally:
        executor.watch, executor.ledger.tracing = None, tracing
    return names.index(seen[0]) if seen else len(names)


def _finite(x: Any) -> bool:
    return bool(array_module(x).isfinite(x).all())
