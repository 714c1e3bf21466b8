"""Local response normalisation, batch normalisation and dropout."""

from functools import partial

import numpy as np
import pytest

from minidnn import functional as F
from minidnn.comm import collectives, threads
from minidnn.random import random_bits
from minidnn.tensor import Tensor


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def lrn_by_loops(x, gy, size, alpha, beta, k, groups):
    """Krizhevsky et al. 2012, section 3.3, and its derivative, one channel at a time."""
    c = x.shape[-1]
    y, gx = np.zeros_like(x), np.zeros_like(x)
    for i in range(c):
        group = i // (c // groups)
        first, last = group * (c // groups), (group + 1) * (c // groups) - 1
        neighbours = range(max(first, i - size // 2), min(last, i + (size - 1) // 2) + 1)
        s = k + alpha * sum(x[..., j] ** 2 for j in neighbours)
        y[..., i] = x[..., i] / s**beta
        gx[..., i] += gy[..., i] / s**beta
        for j in neighbours:
            gx[..., j] -= gy[..., i] * x[..., i] * beta * s ** (-beta - 1) * alpha * 2 * x[..., j]
    return y, gx


@pytest.mark.parametrize(
    "shape, size, alpha, beta, k, groups",
    [
        ((2, 3, 3, 8), 5, 1e-4, 0.75, 2.0, 1),
        ((2, 3, 3, 8), 5, 0.7, 0.75, 2.0, 2),
        ((2, 3, 3, 9), 3, 0.7, 0.5, 1.0, 3),
        ((4, 7), 4, 0.7, 0.75, 2.0, 1),
        ((4, 3), 9, 0.7, 0.6, 2.0, 1),
        ((4, 6), 1, 0.7, 1.0, 2.0, 6),
    ],
)
def test_lrn_equals_the_definition(shape, size, alpha, beta, k, groups):
    values, gy = normal(*shape), normal(*shape, seed=1)
    y, gx = lrn_by_loops(values, gy, size, alpha, beta, k, groups)
    x = Tensor(values, requires_grad=True)
    got = F.local_response_norm(x, size, alpha, beta, k, groups)
    np.testing.assert_allclose(got.data, y, rtol=1e-12)
    got.backward(gy)
    np.testing.assert_allclose(x.grad, gx, rtol=1e-12, atol=1e-14)


def test_lrn_defaults_are_those_of_the_paper():
    x = normal(2, 12) * 30
    y, _ = lrn_by_loops(x, x, 5, 1e-4, 0.75, 2.0, 1)
    np.testing.assert_allclose(F.local_response_norm(x).data, y, rtol=1e-13)


def test_lrn_in_float32_is_exact_to_its_precision():
    x = (normal(4, 5, 5, 96) * 100).astype(np.float32)  # activations far larger than usual
    y, gx = lrn_by_loops(x.astype(float), np.ones(x.shape), 5, 1e-4, 0.75, 2.0, 2)
    t = Tensor(x, requires_grad=True)
    got = F.local_response_norm(t, groups=2)
    got.sum().backward()
    assert got.dtype == t.grad.dtype == np.float32
    np.testing.assert_allclose(got.data, y, rtol=2e-6)
    np.testing.assert_allclose(t.grad, gx, atol=2e-6)


@pytest.mark.parametrize(
    "options, message", [({"groups": 3}, "divisible by groups=3"), ({"size": 0}, "size=0")]
)
def test_lrn_errors(options, message):
    with pytest.raises(ValueError, match=f"local_response_norm: .*{message}"):
        F.local_response_norm(normal(2, 8), **options)


def batch_norm_by_definition(x, gamma, beta, gy, eps):
    """Ioffe and Szegedy 2015, algorithm 1 and its gradients as the paper writes them, feature by feature."""
    rows, g = x.reshape(-1, x.shape[-1]), gy.reshape(-1, x.shape[-1])
    m = len(rows)
    y, gx = np.zeros_like(rows), np.zeros_like(rows)
    for f in range(rows.shape[1]):
        mean = sum(rows[:, f]) / m
        var = sum((rows[:, f] - mean) ** 2) / m
        xhat = (rows[:, f] - mean) / np.sqrt(var + eps)
        y[:, f] = gamma[f] * xhat + beta[f]
        gxhat = g[:, f] * gamma[f]
        gvar = sum(gxhat * (rows[:, f] - mean)) * -0.5 * (var + eps) ** -1.5
        gmean = -sum(gxhat) / np.sqrt(var + eps) - 2 * gvar * sum(rows[:, f] - mean) / m
        gx[:, f] = gxhat / np.sqrt(var + eps) + gvar * 2 * (rows[:, f] - mean) / m + gmean / m
    xhat = (y - beta) / gamma
    return y.reshape(x.shape), gx.reshape(x.shape), (g * xhat).sum(0), g.sum(0)


@pytest.mark.parametrize("shape", [(7, 3), (2, 3, 4, 5), (1, 2, 1)])
def test_batch_norm_equals_the_definition(shape):
    c = shape[-1]
    arrays = normal(*shape) * 3 + 5, normal(c, seed=1), normal(c, seed=2)
    gy = normal(*shape, seed=3)
    expected = batch_norm_by_definition(*arrays, gy, 1e-3)
    x, gamma, beta = (Tensor(a, requires_grad=True) for a in arrays)
    y, mean, var = F.batch_norm(x, gamma, beta, eps=1e-3)
    axes = tuple(range(len(shape) - 1))
    np.testing.assert_allclose(mean, arrays[0].mean(axes), rtol=1e-13)
    np.testing.assert_allclose(var, arrays[0].var(axes), rtol=1e-13)
    assert mean.dtype == var.dtype == np.float64
    y.backward(gy)
    for got, want in zip((y.data, x.grad, gamma.grad, beta.grad), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rows", [(4, 4), (5, 2, 1), (3, 0, 5)])
def test_batch_norm_over_ranks_equals_the_whole_batch(rows):
    values, gamma, beta = normal(sum(rows), 2, 3) * 2 + 7, normal(3, seed=1), normal(3, seed=2)
    gy = normal(*values.shape, seed=3)
    bounds = np.cumsum([0, *rows])

    def rank_main(comm):
        mine = slice(bounds[comm.rank], bounds[comm.rank + 1])
        x, g, b = (Tensor(a, requires_grad=True) for a in (values[mine], gamma, beta))
        y, mean, var = F.batch_norm(x, g, b, all_sum=partial(collectives.all_reduce, comm))
        y.backward(gy[mine])
        return y.data, mean, var, x.grad, g.grad, b.grad

    results = threads.run(len(rows), rank_main)

    x, g, b = (Tensor(a, requires_grad=True) for a in (values, gamma, beta))
    y, mean, var = F.batch_norm(x, g, b)
    y.backward(gy)
    np.testing.assert_allclose(np.concatenate([r[0] for r in results]), y.data, rtol=1e-11)
    np.testing.assert_allclose(np.concatenate([r[3] for r in results]), x.grad, rtol=1e-10, atol=1e-12)
    for r in results:
        np.testing.assert_allclose(r[1], mean, rtol=1e-12)
        np.testing.assert_allclose(r[2], var, rtol=1e-11)
    np.testing.assert_allclose(
        sum(r[4] for r in results), g.grad, rtol=1e-11
    )  # summed with the others' later
    np.testing.assert_allclose(sum(r[5] for r in results), b.grad, rtol=1e-11)


def test_batch_norm_statistics_of_large_float32_values():
    x = (normal(4000, 2) + 1000).astype(np.float32)
    _, mean, var = F.batch_norm(x, np.ones(2, np.float32), np.zeros(2, np.float32))
    np.testing.assert_allclose(mean, x.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(var, x.astype(float).var(0), rtol=1e-5)


def test_batch_norm_with_given_statistics():
    x, gamma, beta = (
        Tensor(a, requires_grad=True) for a in (normal(4, 3), normal(3, seed=1), normal(3, seed=2))
    )
    mean, var, gy = np.array([0.5, 0, -1]), np.array([1.0, 2, 3]), normal(4, 3, seed=3)
    y = F.batch_norm_inference(x, gamma, beta, mean, var, eps=0.1)
    xhat = (x.data - mean) / np.sqrt(var + 0.1)
    np.testing.assert_allclose(y.data, gamma.data * xhat + beta.data, rtol=1e-13)
    y.backward(gy)
    np.testing.assert_allclose(x.grad, gy * gamma.data / np.sqrt(var + 0.1), rtol=1e-13)
    np.testing.assert_allclose(gamma.grad, (gy * xhat).sum(0), rtol=1e-12)
    np.testing.assert_allclose(beta.grad, gy.sum(0), rtol=1e-13)


@pytest.mark.parametrize("all_sum", [None, lambda sums: sums])
def test_batch_norm_of_no_rows_and_of_no_channels(all_sum):
    """As a rank has them of a batch smaller than there are ranks, of a layer with fewer channels than ranks."""
    for shape in ((0, 2, 3), (4, 0)):
        x, gamma = Tensor(np.zeros(shape), requires_grad=True), Tensor(np.ones(shape[-1]), requires_grad=True)
        y, mean, var = F.batch_norm(x, gamma, np.zeros(shape[-1]), all_sum=all_sum)
        y.backward(np.zeros(shape))
        assert y.shape == x.grad.shape == shape and not gamma.grad.any()
        if shape[0]:
            assert mean.shape == var.shape == (0,)
        else:
            assert mean is None and var is None


def test_batch_norm_errors():
    with pytest.raises(ValueError, match=r"gamma \(2,\).*expected gamma, beta \(3,\)"):
        F.batch_norm(normal(4, 3), normal(2), normal(3))
    with pytest.raises(ValueError, match=r"expected all statistics \(3,\)"):
        F.batch_norm_inference(normal(4, 3), normal(3), normal(3), normal(2), normal(3))


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 0.9])
def test_dropout(p):
    x = Tensor(1 + abs(normal(100, 300)), requires_grad=True)
    bits = random_bits(0, "drop6", 0, np.arange(100), (300,))
    y = F.dropout(x, p, bits)
    kept = bits >= p * 65536
    np.testing.assert_allclose(y.data, np.where(kept, x.data / (1 - p), 0), rtol=1e-4)
    assert abs(kept.mean() - (1 - p)) < 0.01
    y.backward(np.ones(x.shape))
    np.testing.assert_allclose(x.grad, y.data / x.data, rtol=1e-14)


def test_dropout_without_loss_of_expectation():
    """p = 0.3 is no multiple of 1/65536: the scale belongs to the share that is really kept."""
    every = np.arange(65536, dtype=np.uint16)
    np.testing.assert_allclose(F.dropout(np.ones(65536), 0.3, every).data.mean(), 1, rtol=1e-13)


def test_dropout_errors():
    bits = np.zeros((2, 3), np.uint16)
    with pytest.raises(ValueError, match="p=1.0"):
        F.dropout(normal(2, 3), 1.0, bits)
    with pytest.raises(ValueError, match=r"dropout: got bits \(2, 3\), expected bits \(2, 4\)"):
        F.dropout(normal(2, 4), 0.5, bits)
