"""Models by name: each builder returns a `Sequential` without values; ``.init(seed)`` draws them."""

from collections.abc import Callable

from minidnn.errors import InputError
from minidnn.nn.models.alexnet import alexnet
from minidnn.nn.models.lenet import lenet
from minidnn.nn.models.mlp import mlp
from minidnn.nn.models.regression import linear_regression, logistic_regression
from minidnn.nn.sequential import Sequential

MODELS: dict[str, Callable[..., Sequential]] = {
    "alexnet": alexnet,
    "lenet": lenet,
    "mlp": mlp,
    "linear_regression": linear_regression,
    "logistic_regression": logistic_regression,
}


def build(name: str, **options) -> Sequential:
    """The model of that name; InputError lists the known names.

    >>> len(build("alexnet", image=128, classes=2))
    23
    """
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    return MODELS[name](**options)


__all__ = ["MODELS", "alexnet", "build", "lenet", "linear_regression", "logistic_regression", "mlp"]
