"""Activations: layers without parameters, each one function."""

from collections.abc import Callable

from minidnn import functional as F
from minidnn.nn.module import Module
from minidnn.tensor import Tensor


class Activation(Module):
    """A function of one tensor, by default element by element."""

    dims = "... -> ..."
    function: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return type(self).function(x)


class Identity(Activation):
    """y = x"""

    function = staticmethod(lambda x: x)


class ReLU(Activation):
    """max(x, 0)"""

    function = staticmethod(F.relu)


class Sigmoid(Activation):
    """1 / (1 + exp(-x))"""

    function = staticmethod(F.sigmoid)


class Tanh(Activation):
    """tanh(x)"""

    function = staticmethod(F.tanh)


class SiLU(Activation):
    """x / (1 + exp(-x))"""

    function = staticmethod(F.silu)


class GELU(Activation):
    """x (1 + erf(x / sqrt 2)) / 2"""

    function = staticmethod(F.gelu)


class Softmax(Activation):
    """exp(x) / sum exp(x) over the last axis; to train, use ``softmax_cross_entropy`` on logits."""

    dims = "n ... k -> n ... k"
    whole = "k"
    function = staticmethod(F.softmax)


class LeakyReLU(Activation):
    """x where it is positive, else slope x"""

    def __init__(self, slope: float = 0.01) -> None:
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope)
