"""Dropout with a mask made from given random bits, so that a mask does not depend on who computes it."""

from typing import Any

from minidnn.backend import masked
from minidnn.functional.errors import floating, place, wrong_shape
from minidnn.graph import Function, Tensor


class Dropout(Function):
    """y = x m / (1 - p)        m = 1 where bits >= 65536 p, else 0"""

    saves_inputs = False

    def __init__(self, p: float, bits: Any) -> None:
        self.threshold = min(round(p * 65536), 65535)
        self.bits = bits

    def forward(self, x: Any) -> Any:
        if self.bits.shape != x.shape:
            raise wrong_shape("dropout", f"bits {self.bits.shape}", f"bits {x.shape}, as x")
        floating("dropout", x)
        self.mask = self.bits >= self.threshold
        del self.bits
        y = masked(x, self.mask)
        y *= self.scale
        return y

    @property
    def scale(self) -> float:
        """1 / (the share of 16-bit numbers that are kept): the expectation of y is x exactly."""
        return 65536 / (65536 - self.threshold)

    def backward(self, gy: Any) -> Any:
        gx = masked(gy, self.mask)
        gx *= self.scale
        return gx


def dropout(x: Any, p: float, bits: Any) -> Tensor:
    """Set each value to 0 with probability `p`, scale the others by 1 / (1 - p).

    Parameters
    ----------
    x : Tensor
    p : float
        0 <= p < 1, in effect a multiple of 1/65536, at most 65535 of them.
    bits : uint16 array of the shape of `x`
        From `minidnn.random.random_bits`.
    """
    if not 0 <= p < 1:
        raise ValueError(f"{place('dropout')}: p={p!r}, expected 0 <= p < 1")
    return Dropout(p, bits)(x)
