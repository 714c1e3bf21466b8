"""The multilayer perceptron."""

import math
from collections.abc import Sequence

from minidnn.errors import InputError
from minidnn.nn.activations import ReLU, Sigmoid, Tanh
from minidnn.nn.init import glorot_uniform, he_normal
from minidnn.nn.layers import Flatten, Linear
from minidnn.nn.sequential import Sequential

_ACTIVATIONS = {"relu": ReLU, "sigmoid": Sigmoid, "tanh": Tanh}


def mlp(
    features: int | Sequence[int] = 784,
    hidden: Sequence[int] = (128,),
    classes: int = 10,
    activation: str = "relu",
) -> Sequential:
    """fc1, activation, fc2, activation, ...: ``hidden`` layers, then one of ``classes`` logits.

    Parameters
    ----------
    features : int or shape
        Inputs per sample; a shape such as (28, 28, 1) puts a Flatten in front.
    hidden : sequence of int
        Widths of the hidden layers; empty leaves a linear classifier.
    activation : "relu" (He initialisation), "sigmoid" or "tanh" (Glorot's)

    Raises
    ------
    InputError
        Unknown activation.
    """
    if activation not in _ACTIVATIONS:
        raise InputError(f"unknown activation {activation!r}; known: {', '.join(_ACTIVATIONS)}")
    layers = {} if isinstance(features, int) else {"flatten": Flatten()}
    widths = [features if isinstance(features, int) else math.prod(features), *hidden, classes]
    W_init = he_normal if activation == "relu" else glorot_uniform
    for number in range(1, len(widths)):
        layers[f"fc{number}"] = Linear(widths[number - 1], widths[number], W_init=W_init)
        if number < len(widths) - 1:
            layers[f"{activation}{number}"] = _ACTIVATIONS[activation]()
    return Sequential(layers)
