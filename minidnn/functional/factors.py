"""The gradient of a large weight matrix, kept as the two factors it is the product of.

gW = x^T gy has the rank of the batch: with 16 rows, the 64 MB gradient of AlexNet's fc7 is the product of two
arrays of 256 kB ("sufficient factors": Xie et al. 2014, arXiv 1409.5705). If an update is all that it is for,
it need not exist as a whole: SGD computes it block by block, in the cache, and uses each block at once. Who asks
for ``parameter.grad`` gets the array as ever.
"""

from typing import Any

import numpy as np

from minidnn.backend import array_module, kernels
from minidnn.functional.products import product_weight_gradient

LEAST = 1 << 18  # elements of a gradient that is worth it


class Factors:
    """The gradient x^T gy, not yet computed        x (n, i)   gy (n, o)"""

    __slots__ = ("gy", "x")

    def __init__(self, x: np.ndarray, gy: np.ndarray) -> None:
        self.x, self.gy = x, gy

    @property
    def shape(self) -> tuple[int, int]:
        """(i, o)"""
        return self.x.shape[1], self.gy.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """That of the product."""
        return self.gy.dtype

    def product(self) -> np.ndarray:
        """The gradient itself."""
        return product_weight_gradient(self.x, self.gy)

    def joined(self, other: "Factors") -> "Factors":
        """The sum of two: rows below rows."""
        xp = array_module(self.x)
        return Factors(xp.concatenate((self.x, other.x)), xp.concatenate((self.gy, other.gy)))

    @property
    def worthwhile(self) -> bool:
        """Whether the factors are smaller than half their product."""
        return 2 * (self.x.size + self.gy.size) <= self.x.shape[1] * self.gy.shape[1]


def may_stay_factored(leaf: Any, x: Any, gy: Any) -> bool:
    """Whether the gradient x^T gy of `leaf` may be left as factors.

    The leaf must be one that can hold them (a `Parameter`) and has no buffer where its gradient is expected,
    such as that of a bucket that is summed over ranks. One whose factors are exchanged needs them in any case.
    """
    if getattr(leaf, "exchange_factors", False):
        return True
    return (
        x.shape[1] * gy.shape[1] >= LEAST
        and type(gy) is np.ndarray
        and kernels.fast_in_use()
        and hasattr(leaf, "add_factors")
        and leaf.grad_buffer is None
        and Factors(x, gy).worthwhile
    )
