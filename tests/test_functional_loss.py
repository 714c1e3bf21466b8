"""Losses against their formulas, at extreme values, and split over ranks."""

import math

import numpy as np
import pytest

from minidnn import functional as F
from minidnn.tensor import Tensor


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_softmax_cross_entropy_by_the_formula():
    logits, labels = normal(4, 3), [2, 0, 1, 1]
    loss = 0.0
    gradient = np.zeros((4, 3))
    for n, label in enumerate(labels):
        e = [math.exp(v) for v in logits[n]]
        loss -= math.log(e[label] / sum(e)) / 4
        for c in range(3):
            gradient[n, c] = (e[c] / sum(e) - (c == label)) / 4
    x = Tensor(logits, requires_grad=True)
    got = F.softmax_cross_entropy(x, labels)
    assert got.shape == ()
    assert got.item() == pytest.approx(loss, rel=1e-14)
    got.backward()
    np.testing.assert_allclose(x.grad, gradient, rtol=1e-13)


def test_probabilities_generalise_labels():
    logits, labels = normal(5, 3), np.array([2, 0, 1, 1, 2])
    x, y = (Tensor(logits, requires_grad=True) for _ in range(2))
    a, b = F.softmax_cross_entropy(x, labels), F.softmax_cross_entropy(y, np.eye(3)[labels])
    assert a.item() == pytest.approx(b.item(), rel=1e-14)
    a.backward()
    b.backward()
    np.testing.assert_allclose(x.grad, y.grad, atol=1e-16)
    mixed = np.random.default_rng(1).dirichlet(np.ones(3), 5)
    expected = -(mixed * np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))).sum() / 5
    assert F.softmax_cross_entropy(logits, Tensor(mixed)).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("error")
def test_extreme_logits_overflow_nowhere(dtype):
    logits = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4], [3e4, 3e4, 3e4]], dtype)
    x = Tensor(logits, requires_grad=True)
    loss = F.softmax_cross_entropy(x, [1, 1, 2])
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx((2e4 + math.log(2) + math.log(3)) / 3, rel=1e-6)
    loss.backward()
    expected = np.array([[1, -1, 0], [0, -0.5, 0.5], [1 / 3, 1 / 3, -2 / 3]]) / 3
    np.testing.assert_allclose(x.grad, expected, atol=1e-7)
    y = Tensor(np.array([1e4, -1e4, 1e4, -1e4], dtype), requires_grad=True)
    loss = F.binary_cross_entropy(y, np.array([1, 0, 0, 1], dtype), from_logits=True)
    assert loss.item() == pytest.approx(5e3, rel=1e-6)
    loss.backward()
    np.testing.assert_array_equal(y.grad, [0, 0, 0.25, -0.25])
    z = Tensor(np.array([0.0, 1.0], dtype), requires_grad=True)
    loss = F.binary_cross_entropy(z, np.array([1, 0], dtype))
    loss.backward()
    assert np.isfinite(loss.item()) and np.isfinite(z.grad).all() and z.grad[0] < 0 < z.grad[1]
    for f in (F.sigmoid, F.softmax, F.log_softmax, F.tanh):
        assert np.isfinite(f(logits).data).all()


def test_binary_cross_entropy_is_equation_2_6():
    p, t = np.array([0.9, 0.2, 0.6]), np.array([1.0, 0.0, 0.0])
    expected = -(math.log(0.9) + math.log(0.8) + math.log(0.4)) / 3
    assert F.binary_cross_entropy(p, t).item() == pytest.approx(expected, rel=1e-14)
    logits = np.log(p / (1 - p))
    assert F.binary_cross_entropy(logits, t, from_logits=True).item() == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(F.sigmoid(logits).data, p, rtol=1e-14)


def test_mean_squared_error_is_equation_2_1():
    y, t = np.array([1.0, 2, 4]), np.array([1.5, 2, 2])
    assert F.mean_squared_error(y, t).item() == pytest.approx((0.25 + 0 + 4) / 3)
    x = Tensor(normal(4, 5), requires_grad=True)
    loss = F.mean_squared_error(x, np.ones((4, 5)))
    assert loss.item() == pytest.approx(((x.data - 1) ** 2).mean(), rel=1e-14)
    loss.backward()
    np.testing.assert_allclose(x.grad, 2 * (x.data - 1) / 20, rtol=1e-14)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, rows, total: F.softmax_cross_entropy(x, np.arange(7)[rows] % 3, total),
        lambda x, rows, total: F.mean_squared_error(x, np.ones((7, 3))[rows], total),
        lambda x, rows, total: F.binary_cross_entropy(
            x, np.full((7, 3), 0.25)[rows], total, from_logits=True
        ),
    ],
)
def test_with_the_global_total_parts_add_up_to_the_whole(loss):
    logits = normal(7, 3)
    whole = Tensor(logits, requires_grad=True)
    loss(whole, slice(None), None).backward()
    value, gradients = 0.0, []
    for rows in (slice(0, 4), slice(4, 4), slice(4, 5), slice(5, 7)):
        part = Tensor(logits[rows], requires_grad=True)
        result = loss(part, rows, 7)
        result.backward()
        value += result.item()
        gradients.append(part.grad)
    assert value == pytest.approx(loss(whole, slice(None), None).item(), rel=1e-13)
    np.testing.assert_allclose(np.concatenate(gradients), whole.grad, rtol=1e-13)


def test_a_large_total_does_not_widen_float32():
    x = Tensor(normal(4, 3).astype(np.float32), requires_grad=True)
    loss = F.softmax_cross_entropy(x, [0, 1, 2, 0], total=np.int64(1000))
    loss.backward()
    assert loss.dtype == x.grad.dtype == np.float32


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x: F.softmax_cross_entropy(x, [0, 3]), ValueError, r"label 3 outside 0 \.\.\. 2"),
        (lambda x: F.softmax_cross_entropy(x, [0, -1]), ValueError, "label -1 outside"),
        (
            lambda x: F.softmax_cross_entropy(x, [0, 1, 2]),
            ValueError,
            r"labels \(3,\), expected labels \(2,\)",
        ),
        (
            lambda x: F.softmax_cross_entropy(x, np.ones((2, 4))),
            ValueError,
            r"target \(2, 4\), expected target \(2, 3\)",
        ),
        (lambda x: F.softmax_cross_entropy(x, np.ones((2, 3), "f")), TypeError, "float32 for float64"),
        (
            lambda x: F.softmax_cross_entropy(x[0], [0]),
            ValueError,
            r"logits \(3,\), expected logits \(n, c\)",
        ),
        (lambda x: F.softmax_cross_entropy(x, [0, 1], total=0), ValueError, "total=0"),
        (lambda x: F.mean_squared_error(x, np.ones(2)), ValueError, r"mean_squared_error: got target \(2,\)"),
        (lambda x: F.binary_cross_entropy(x, np.ones((2, 3), "f")), TypeError, "target of dtype float32"),
    ],
)
def test_bad_targets_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(Tensor(normal(2, 3)))
