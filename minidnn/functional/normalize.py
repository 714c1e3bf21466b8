"""Local response normalisation and batch normalisation; channels are the last axis.

The kernels of the former are plain functions on raw arrays: `lrn` and `lrn_gradient`.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from minidnn.backend import array_module
from minidnn.backend.kernels import kernel
from minidnn.functional.errors import count, floating, wrong_shape
from minidnn.graph import Function, Tensor


def channel_sums(a: Any, before: int, after: int, groups: int) -> Any:
    """s_i = sum of a_j for i - before <= j <= i + after, j in the channel group of i. `a` (..., c)."""
    shape = a.shape
    a = a.reshape(*shape[:-1], groups, shape[-1] // groups)
    s = a.copy()
    for d in range(1, min(before, a.shape[-1] - 1) + 1):
        s[..., d:] += a[..., :-d]
    for d in range(1, min(after, a.shape[-1] - 1) + 1):
        s[..., :-d] += a[..., d:]
    return s.reshape(shape)


def inverse_power(s: Any, beta: float) -> Any:
    """s^-beta; for the usual 0.75 by two square roots, several times faster than a power."""
    if beta != 0.75:
        return s**-beta
    xp = array_module(s)
    r = xp.sqrt(s)
    r *= xp.sqrt(r)
    return xp.divide(1, r, out=r)


@kernel("normalize", small=1 << 16)
def lrn(x: Any, size: int, alpha: float, beta: float, k: float, groups: int) -> tuple[Any, Any]:
    """y = x s^-beta and s = k + alpha (sum of x^2 over `size` neighbouring channels)."""
    s = channel_sums(x * x, size // 2, (size - 1) // 2, groups)
    s *= alpha
    s += k
    y = inverse_power(s, beta)
    y *= x
    return y, s


@kernel("normalize", small=1 << 16)
def lrn_gradient(gy: Any, x: Any, s: Any, size: int, alpha: float, beta: float, groups: int) -> Any:
    """gx_j = gy_j s_j^-beta - 2 alpha beta x_j sum_i gy_i x_i s_i^(-beta - 1)     i: has neighbour j"""
    gx = inverse_power(s, beta)
    gx *= gy
    r = gx * x
    r /= s
    r = channel_sums(r, (size - 1) // 2, size // 2, groups)
    r *= x
    r *= 2 * alpha * beta
    gx -= r
    return gx


class LocalResponseNorm(Function):
    """y_i = x_i / (k + alpha sum_j x_j^2)^beta        x, y (..., c)   j: `size` channels around i"""

    def __init__(self, size: int, alpha: float, beta: float, k: float, groups: int) -> None:
        self.size, self.alpha, self.beta, self.k, self.groups = size, alpha, beta, k, groups

    def forward(self, x: Any) -> Any:
        if x.shape[-1] % self.groups:
            expected = f"channels divisible by groups={self.groups}"
            raise wrong_shape("local_response_norm", f"x {x.shape}", expected)
        self.x = floating("local_response_norm", x)
        y, self.s = lrn(x, self.size, self.alpha, self.beta, self.k, self.groups)
        return y

    def backward(self, gy: Any) -> Any:
        return lrn_gradient(gy, self.x, self.s, self.size, self.alpha, self.beta, self.groups)


class BatchNorm(Function):
    """y = gamma (x - mean) / sqrt(var + eps) + beta        x, y (..., c)   gamma, beta, mean, var (c,)

    gx = gamma / sqrt(var + eps) (gy - mean of gy - xhat (mean of gy xhat)), means over all rows of all ranks.
    """

    def __init__(self, eps: float, all_sum: Callable[[Any], Any] | None) -> None:
        self.eps, self.all_sum = eps, all_sum
        self.collective = all_sum is not None  # the other ranks wait for this one's sums

    def forward(self, x: Any, gamma: Any, beta: Any) -> Any:
        c = x.shape[-1]
        if gamma.shape != (c,) or beta.shape != (c,):
            got = f"x {x.shape}, gamma {gamma.shape}, beta {beta.shape}"
            raise wrong_shape("batch_norm", got, f"gamma, beta ({c},)")
        xp = array_module(floating("batch_norm", x))
        axes = tuple(range(x.ndim - 1))
        self.count = prod(x.shape[:-1])
        # statistics in float64: a sum over a million float32 values is exact to the last digit that is kept
        sums = x.sum(axis=axes, dtype=np.float64)
        if self.all_sum is not None:
            sums = self.all_sum(xp.concatenate((sums, xp.asarray([float(self.count)]))))
            sums, self.count = sums[:-1], float(sums[-1])
        self.mean = sums / max(self.count, 1)
        centred = x - self.mean.astype(x.dtype)
        # from the mean of all ranks: the difference of large sums of squares would keep no digit of a small variance
        squares = (centred * centred).sum(axis=axes, dtype=np.float64)
        if self.all_sum is not None:
            squares = self.all_sum(squares)
        self.var = squares / max(self.count, 1)
        self.scale = (1 / xp.sqrt(self.var + self.eps)).astype(x.dtype)
        self.gamma = gamma
        centred *= self.scale
        self.xhat = centred
        return centred * gamma + beta

    def backward_input(self, gy: Any) -> tuple:
        xhat = self.xhat
        if gy is None:
            gy = array_module(xhat).zeros_like(xhat)
        axes = tuple(range(gy.ndim - 1))
        self.gbeta = gy.sum(axis=axes, dtype=np.float64)
        self.ggamma = (gy * xhat).sum(axis=axes, dtype=np.float64)
        sums = array_module(gy).concatenate((self.gbeta, self.ggamma))
        if self.all_sum is not None:
            sums = self.all_sum(sums)
        if not self.needs[0]:
            return (None,)
        g, gx_hat = (sums / max(self.count, 1)).astype(gy.dtype).reshape(2, -1)
        gx = gy - g
        gx -= xhat * gx_hat
        gx *= self.gamma * self.scale
        return (gx,)

    def backward_weight(self, gy: Any) -> tuple:
        dtype = self.gamma.dtype  # this rank's part only: gradients are summed over ranks like all others
        return self.ggamma.astype(dtype), self.gbeta.astype(dtype)


class BatchNormInference(Function):
    """y = gamma (x - mean) / sqrt(var + eps) + beta        with given mean and var (c,)"""

    def __init__(self, mean: Any, var: Any, eps: float) -> None:
        self.mean, self.var, self.eps = mean, var, eps

    def forward(self, x: Any, gamma: Any, beta: Any) -> Any:
        if not gamma.shape == beta.shape == self.mean.shape == self.var.shape == x.shape[-1:]:
            got = f"x {x.shape}, gamma {gamma.shape}"
            raise wrong_shape("batch_norm", got, f"all statistics {x.shape[-1:]}")
        self.scale = (1 / array_module(x).sqrt(self.var + self.eps)).astype(floating("batch_norm", x).dtype)
        self.xhat = (x - self.mean.astype(x.dtype)) * self.scale
        self.gamma = gamma
        return self.xhat * gamma + beta

    def backward(self, gy: Any) -> tuple:
        axes = tuple(range(gy.ndim - 1))
        gx = gy * (self.gamma * self.scale) if self.needs[0] else None
        return gx, (gy * self.xhat).sum(axis=axes), gy.sum(axis=axes)


def local_response_norm(
    x: Any, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, groups: int = 1
) -> Tensor:
    """Local response normalisation with the constants of Krizhevsky et al. 2012, section 3.3.

    Each value is divided by (k + alpha * sum of squares)^beta, the sum over `size` channels around its own:
    alpha is not divided by `size`, as it is in PyTorch. For an even size the extra neighbour is the lower
    one.

    Parameters
    ----------
    x : Tensor (..., c)
    groups : int
        Neighbours stay within a group of c / groups channels (the two halves of the two-GPU network).

    Returns
    -------
    Tensor (..., c)
    """
    size, groups = (count(v, n, "local_response_norm") for n, v in (("size", size), ("groups", groups)))
    return LocalResponseNorm(size, float(alpha), float(beta), float(k), groups)(x)


def batch_norm(
    x: Any, gamma: Any, beta: Any, eps: float = 1e-5, all_sum: Callable[[Any], Any] | None = None
) -> tuple[Tensor, Any, Any]:
    """Batch normalisation with the statistics of the batch (Ioffe and Szegedy 2015, algorithm 1).

    Parameters
    ----------
    x : Tensor (..., c)
        All axes but the last are rows.
    gamma, beta : Tensor (c,)
    all_sum : callable, optional
        Takes a float64 vector and returns its sum over the ranks that share the batch; called in forward with
        the sums and the number of rows (c + 1 elements), then with the squared deviations (c), and once in
        backward (2 c). With it the node is collective.

    Returns
    -------
    y : Tensor (..., c)
    mean, var : float64 arrays (c,), or None
        Of all rows, the variance biased (divided by their number). Plain arrays: no gradient passes through
        them here; that of `y` accounts for them. None where no rank has a row.
    """
    node = BatchNorm(eps, all_sum)
    y = node(x, gamma, beta)
    return (y, node.mean, node.var) if node.count else (y, None, None)


def batch_norm_inference(x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float = 1e-5) -> Tensor:
    """Batch normalisation with given statistics: arrays `mean` and `var` (c,), as collected in training."""
    return BatchNormInference(mean, var, eps)(x, gamma, beta)
