"""The kernels of the fully connected layer, plain functions on raw arrays; bias and its gradient serve others, too."""

from typing import Any

from minidnn.backend.kernels import kernel


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
