"""Clipping the norm of all gradients (Pascanu et al. 2013), in parts that can be put together over ranks.

>>> squares = sum_of_squares(parameters)           # of each rank's own part; then summed over the ranks
>>> scale_gradients(parameters, clipping_factor(squares, max_norm))
"""

from collections.abc import Iterable

import numpy as np

from minidnn.tensor import Tensor


def sum_of_squares(parameters: Iterable[Tensor]) -> float:
    """The sum of the squares of all gradients, in float64; a parameter without one adds nothing."""
    gradients = (parameter.grad for parameter in parameters)
    return float(sum((g.astype(np.float64) ** 2).sum() for g in gradients if g is not None))


def clipping_factor(squares: float, max_norm: float) -> float:
    """What gradients are multiplied with so that their norm, the root of `squares`, is at most `max_norm`."""
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    return min(1.0, max_norm / (squares**0.5 + 1e-6))


def scale_gradients(parameters: Iterable[Tensor], factor: float) -> None:
    """Multiply all gradients, in place."""
    for parameter in parameters:
        if parameter.grad is not None and factor != 1:
            parameter.grad *= factor


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients down together so that their norm is at most `max_norm`; the norm they had."""
    parameters = list(parameters)
    squares = sum_of_squares(parameters)
    scale_gradients(parameters, clipping_factor(squares, max_norm))
    return squares**0.5
