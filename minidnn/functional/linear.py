"""Matrix products and the fully connected layer."""

from math import prod
from typing import Any

from minidnn.functional.arrange import expand_dims, squeeze
from minidnn.functional.errors import wrong_shape
from minidnn.functional.factors import Factors, may_stay_factored
from minidnn.functional.math import unbroadcast
from minidnn.functional.products import Affine, product, product_input_gradient, product_weight_gradient
from minidnn.functional.shape import reshape
from minidnn.graph import Function, Tensor, as_tensor


class MatMul(Function):
    """z = x y        x (..., n, k)   y (..., k, m)   z (..., n, m)"""

    def forward(self, x: Any, y: Any) -> Any:
        if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-2]:
            raise wrong_shape("matmul", f"{x.shape} @ {y.shape}", "(..., n, k) @ (..., k, m)")
        self.x, self.y = x, y
        return x @ y

    def backward(self, gz: Any) -> tuple:
        x, y = self.x, self.y
        gx = unbroadcast(gz @ y.swapaxes(-1, -2), x.shape) if self.needs[0] else None
        return gx, unbroadcast(x.swapaxes(-1, -2) @ gz, y.shape) if self.needs[1] else None


class Linear(Affine):
    """y = x W + b        x (n, i)   W (i, o)   b (o,)   y (n, o)"""

    operation = "linear"

    def product(self, x: Any, W: Any) -> Any:
        if x.ndim != 2 or W.ndim != 2 or x.shape[1] != W.shape[0]:
            raise wrong_shape("linear", f"x {x.shape}, W {W.shape}", "x (..., i), W (i, o)")
        return product(x, W)

    def backward_input(self, gy: Any) -> tuple:
        return (product_input_gradient(gy, self.W) if self.needs[0] else None,)

    def weight_gradient(self, gy: Any) -> Any:
        if may_stay_factored(self.leaf(1), self.x, gy):
            return Factors(self.x.copy(), gy)  # x may be changed before the gradient is used
        return product_weight_gradient(self.x, gy, self.out_buffer(1))


def matmul(x: Any, y: Any) -> Tensor:
    """Matrix product of the last two axes; the axes before broadcast. A vector is a row on the left, a column
    on the right, and has no such axis in the result.
    """
    x, y = as_tensor(x), as_tensor(y)
    if x.ndim != 1 and y.ndim != 1:
        return MatMul()(x, y)
    row, column = x.ndim == 1, y.ndim == 1
    z = MatMul()(expand_dims(x, 0) if row else x, expand_dims(y, 1) if column else y)
    return squeeze(z, (-2,) * row + (-1,) * column)


def linear(x: Any, W: Any, b: Any = None) -> Tensor:
    """Fully connected layer, on the last axis of x; rows on several axes are laid flat and put back.

    Parameters
    ----------
    x : Tensor (..., i)
    W : Tensor (i, o)
    b : Tensor (o,), optional

    Returns
    -------
    Tensor (..., o)
    """
    x, W = as_tensor(x), as_tensor(W)
    if x.data.ndim != 2 and W.data.ndim == 2 and x.shape[-1:] == W.shape[:1]:
        y = linear(reshape(x, (prod(x.shape[:-1]), W.shape[0])), W, b)
        return reshape(y, (*x.shape[:-1], W.shape[1]))
    return Linear().of(x, W, b)
