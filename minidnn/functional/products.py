"""The kernels of the fully connected layer, plain functions on raw arrays; bias and its gradient serve others, too."""

from typing import Any

from minidnn.backend.kernels import kernel
from minidnn.functional.errors import wrong_shape
from minidnn.graph import Function, Tensor


@kernel("products")
def product(x: Any, W: Any) -> Any:
    """x W        x (n, i)   W (i, o)"""
    return x.dot(W)


@kernel("products")
def product_input_gradient(gy: Any, W: Any) -> Any:
    """gx = gy W^T, (n, i)"""
    return gy.dot(W.T)


@kernel("products")
def product_weight_gradient(x: Any, gy: Any, out: Any = None) -> Any:
    """gW = x^T gy, (i, o), into `out` if given"""
    return x.T.dot(gy, out)


@kernel("elementwise", small=1 << 17)
def add_bias(y: Any, b: Any) -> Any:
    """y += b along the last axis, in place; returns `y`"""
    y += b
    return y


@kernel("products", small=1 << 19)
def sum_rows(gy: Any, out: Any = None) -> Any:
    """gb: the sum of gy over all axes but the last, into `out` if given"""
    return gy.sum(axis=tuple(range(gy.ndim - 1)), out=out)


class Affine(Function):
    """y = x W + b, of whatever product `operation` names        W (..., o)   b (o,)

    A subclass writes `product` (x, W), and `weight_gradient` (gy).
    """

    operation: str

    def forward(self, x: Any, W: Any, b: Any = None) -> Any:
        self.x, self.W = x, W
        if b is not None and b.shape != W.shape[-1:]:
            raise wrong_shape(self.operation, f"b {b.shape}", f"b {W.shape[-1:]}")
        y = self.product(x, W)
        return y if b is None else add_bias(y, b)

    def backward_weight(self, gy: Any) -> tuple:
        gW = self.weight_gradient(gy) if self.needs[1] else None
        if len(self.needs) == 2:
            return (gW,)
        return gW, sum_rows(gy, self.out_buffer(2)) if self.needs[2] else None

    def of(self, x: Any, W: Any, b: Any = None) -> Tensor:
        """Called with `b` if there is one."""
        return self(x, W) if b is None else self(x, W, b)
