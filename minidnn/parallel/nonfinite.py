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
    outputs: list[str] = []
    tracing, executor.ledger.tracing = executor.ledger.tracing, False  # these messages are not the step's
    executor.watch = lambda name, y: None if _finite(y) else outputs.append(name)
    try:
        executor.evaluate(images, labels)
    finally:
        executor.watch, executor.ledger.tracing = None, tracing
    in_weights, in_output = wrong_weights(executor), _first(executor, outputs)
    place = min(in_weights, in_output)
    text = f"step {executor.iteration}: the loss is not finite"
    if place == len(names):
        return NonFiniteError(f"{text}, though every layer's output is: dropout or the labels")
    return NonFiniteError(
        f"{text}; the first non-finite value is in the {'weights' if place == in_weights else 'output'} of layer "
        f"{names[place]!r}: lower the learning rate, or check the input"
    )


def wrong_weights(executor: Any) -> int:
    """Where in the plan the first layer is whose weights are not finite on some rank; the number of layers if none."""
    held, variables = executor.plan.held[executor.rank], executor.replica.variables
    return _first(executor, [p.layer for p in held if not p.buffer and not _finite(variables[p.name].data)])


def _first(executor: Any, wrong: list[str]) -> int:
    """The place of the first layer that is wrong on some rank."""
    names = [layer.name for layer in executor.plan.layers]
    place = min(map(names.index, wrong), default=len(names))
    return int(executor.comm.exchange(np.array([place])).min())


def _finite(x: Any) -> bool:
    return bool(array_module(x).isfinite(x).all())
