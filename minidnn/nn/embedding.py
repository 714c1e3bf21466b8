"""A table of features, one row for each number: words, classes, positions."""

from minidnn import functional as F
from minidnn.nn import init
from minidnn.nn.layers import _positive
from minidnn.nn.module import Module, Shape
from minidnn.nn.parameter import Parameter
from minidnn.tensor import Tensor


class Embedding(Module):
    """y[...] = W[x[...]]        x (n, ...) integers in 0 ... count - 1   W (count, features)   y (n, ..., features)"""

    dims = "n ..., v d -> n ... d"
    whole = "v"

    def __init__(self, count: int, features: int, W_init: init.Initializer | None = None) -> None:
        _positive(self, count=count, features=features)
        self.count, self.features = count, features
        self.W = Parameter((count, features), W_init or init.normal(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.W)

    def output_shape(self, shape: Shape) -> Shape:
        return (*shape, self.features)
