"""Normalisation within a sample: by groups of channels, or each row for itself; channels are the last axis."""

from math import prod
from typing import Any

import numpy as np

from minidnn.backend import array_module
from minidnn.functional.errors import wrong_shape
from minidnn.functional.shape import reshape
from minidnn.graph import Function, Tensor, as_tensor


def means(a: Any) -> Any:
    """Of each sample and group of `a` (n, pixels, groups, channels): (n, 1, groups, 1); summed in float64."""
    first, second = (1, 3) if a.shape[1] > a.shape[3] else (3, 1)  # the longer axis first: that is faster
    m = a.mean(axis=first, keepdims=True, dtype=np.float64).mean(axis=second, keepdims=True)
    return m.astype(a.dtype)


class GroupNorm(Function):
    """y = gamma xhat + beta        xhat = (x - mean) / sqrt(var + eps)        x, y (n, ..., c)   gamma, beta (c,)

    Mean and variance are those of a sample and group: n x `groups` of them.
    gx = (g - mean of g - xhat (mean of g xhat)) / sqrt(var + eps) with g = gamma gy.
    """

    def __init__(self, groups: int, eps: float) -> None:
        self.groups, self.eps = groups, eps

    def forward(self, x: Any, gamma: Any, beta: Any) -> Any:
        n, *rest, c = x.shape
        if gamma.shape != (c,) or beta.shape != (c,) or c % self.groups:
            got = f"x {x.shape}, gamma {gamma.shape}, beta {beta.shape}, groups {self.groups}"
            raise wrong_shape("group_norm", got, "x (n, ..., c), gamma, beta (c,), groups that divide c")
        self.parts = n, prod(rest), self.groups, c // self.groups
        xhat = x.reshape(self.parts)
        xhat = xhat - means(xhat)
        var = means(xhat * xhat)
        var += self.eps
        self.scale = 1 / array_module(x).sqrt(var)
        xhat *= self.scale
        self.xhat, self.gamma = xhat.reshape(x.shape), gamma
        y = self.xhat * gamma
        y += beta
        return y

    def backward_input(self, gy: Any) -> tuple:
        if not self.needs[0]:
            return (None,)
        g, xhat = (gy * self.gamma).reshape(self.parts), self.xhat.reshape(self.parts)
        product = g * xhat
        share = means(product)
        g -= means(g)
        g -= array_module(gy).multiply(xhat, share, out=product)
        g *= self.scale
        return (g.reshape(gy.shape),)

    def backward_weight(self, gy: Any) -> tuple:
        rows = tuple(range(gy.ndim - 1))
        return (gy * self.xhat).sum(axis=rows), gy.sum(axis=rows)


def group_norm(x: Any, gamma: Any, beta: Any, groups: int, eps: float = 1e-5) -> Tensor:
    """Normalise each sample of x (n, ..., c) by groups of c / groups channels, over all pixels (Wu and He 2018).

    The result is scaled by `gamma` and shifted by `beta`, both (c,).
    """
    return GroupNorm(groups, eps)(x, gamma, beta)


def layer_norm(x: Any, gamma: Any, beta: Any, eps: float = 1e-5) -> Tensor:
    """Normalise each row of x (..., c) by the mean and variance of its own c features (Ba et al. 2016).

    The result is scaled by `gamma` and shifted by `beta`, both (c,).
    """
    x = as_tensor(x)
    y = group_norm(reshape(x, (prod(x.shape[:-1]), x.shape[-1])), gamma, beta, 1, eps)
    return reshape(y, x.shape)
