"""Clipping the norm of all gradients (Pascanu et al. 2013), in parts that can be put together over ranks:

>>> squares = sum_of_squares(parameters)  # of each rank's own part; then summed over the ranks
>>> scale_gradients(parameters, min(1, max_norm / squares**0.5))
"""

from collections.abc import Iterable

import numpy as np

from minidnn.backend import array_module
from minidnn.optim.update import BLOCK, _blocks
from minidnn.tensor import Tensor


def sum_of_squares(parameters: Iterable[Tensor]) -> float:
    """Of all gradients, in float64; a parameter without one adds nothing."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    wide = (
        part.astype(np.float64)
        for g in gradients
        for (part,) in _blocks([g], BLOCK[array_module(g).__name__])
    )
    return float(sum((w * w).sum() for w in wide))


def scale_gradients(parameters: Iterable[Tensor], factor: float) -> None:
    """Multiply all gradients, in place."""
    for parameter in parameters:
        if parameter.grad is not None and factor != 1:
            parameter.grad *= factor


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients down together so that their norm is at most `max_norm`; the norm that they had."""
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm: max_norm must be positive, got {max_norm}")
    parameters = list(parameters)
    norm = sum_of_squares(parameters) ** 0.5
    scale_gradients(parameters, min(1.0, max_norm / (norm + 1e-6)))
    return norm
