"""Further activations, and the layer that does nothing."""

from minidnn import functional as F
from minidnn.nn.module import Module
from minidnn.tensor import Tensor


class Identity(Module):
    """y = x"""

    dims = "... -> ..."

    def forward(self, x: Tensor) -> Tensor:
        """The input itself."""
        return x


class LeakyReLU(Module):
    """x where it is positive, else slope x"""

    dims = "... -> ..."

    def __init__(self, slope: float = 0.01) -> None:
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return F.leaky_relu(x, self.slope)


class SiLU(Module):
    """x / (1 + exp(-x))"""

    dims = "... -> ..."

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return F.silu(x)


class GELU(Module):
    """x (1 + erf(x / sqrt 2)) / 2"""

    dims = "... -> ..."

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return F.gelu(x)
