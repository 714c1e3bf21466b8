"""Initialisers: callables ``(rng, shape) -> float64 array`` that fill a whole parameter.

A weight has its output features last, ``(i, o)`` or ``(kh, kw, i, o)``, so the number of inputs that reach
one output, the fan-in, is the product of all axes but the last. Values are drawn in float64 and cast
afterwards: a float32 and a float64 model of one seed start from the same numbers.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

Initializer = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan-in, fan-out): kernel size times input features, and times output features."""
    receptive = math.prod(shape[:-2])
    return receptive * shape[-2] if len(shape) > 1 else 1, receptive * shape[-1]


def zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """All zeros (draws nothing)."""
    return np.zeros(shape)


def ones(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """All ones (draws nothing)."""
    return np.ones(shape)


def normal(std: float = 0.01, mean: float = 0.0) -> Initializer:
    """Gaussian of a fixed standard deviation; AlexNet's is 0.01 (Krizhevsky et al. 2012, sec. 5)."""
    return partial(_normal, std=std, mean=mean)


def uniform(limit: float) -> Initializer:
    """Uniform in [-limit, limit)."""
    return partial(_uniform, limit=limit)


def he_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Gaussian with variance 2 / fan_in: keeps the variance of ReLU layers (He et al. 2015, sec. 2.2)."""
    return _normal(rng, shape, math.sqrt(2 / fans(shape)[0]))


def he_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform with variance 2 / fan_in (He et al. 2015)."""
    return _uniform(rng, shape, math.sqrt(6 / fans(shape)[0]))


def glorot_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Gaussian with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, eq. 12)."""
    return _normal(rng, shape, math.sqrt(2 / sum(fans(shape))))


def glorot_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, eq. 16); the default of Keras."""
    return _uniform(rng, shape, math.sqrt(6 / sum(fans(shape))))


def _normal(rng: np.random.Generator, shape: tuple[int, ...], std: float, mean: float = 0.0) -> np.ndarray:
    values = rng.standard_normal(shape)  # scaled in place: fc6 of AlexNet is 302 MB in float64
    values *= std
    if mean:
        values += mean
    return values


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], limit: float) -> np.ndarray:
    values = rng.random(shape)
    values *= 2 * limit
    values -= limit
    return values
