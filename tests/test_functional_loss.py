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


# ---- options of the cross-entropy, and losses of differences ----


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ignored_rows_have_no_loss_and_do_not_count(dtype):
    x, labels = Tensor(normal(5, 3).astype(dtype), requires_grad=True), np.array([0, -1, 2, -1, 1])
    loss = F.softmax_cross_entropy(x, labels, ignore_index=-1)
    kept = labels >= 0
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(F.softmax_cross_entropy(x.data[kept], labels[kept]).item(), rel=1e-6)
    loss.backward()
    assert not x.grad[~kept].any() and x.grad[kept].all()
    with pytest.raises(ValueError, match="label -1 outside"):
        F.softmax_cross_entropy(x, labels, ignore_index=7)
    with pytest.raises(ValueError, match="total=0.0, expected a positive number of rows"):
        F.softmax_cross_entropy(x, np.full(5, -1), ignore_index=-1)


def test_class_weights_and_smoothing_by_the_formula():
    x, labels, w, s = normal(5, 3), np.array([2, 0, 1, 1, 2]), np.array([1.0, 0.5, 3]), 0.3
    target = (np.eye(3)[labels] * (1 - s) + s / 3) * w
    expected = -(target * log_softmax(x)).sum() / w[labels].sum()
    got = F.softmax_cross_entropy(x, labels, weights=w, label_smoothing=s)
    assert got.item() == pytest.approx(expected, rel=1e-13)
    whole = F.softmax_cross_entropy(x, labels, weights=w, total=w[labels].sum()).item()
    parts = [
        F.softmax_cross_entropy(x[r], labels[r], w[labels].sum(), w).item() for r in (slice(2), slice(2, 5))
    ]
    assert sum(parts) == pytest.approx(whole, rel=1e-13)


def test_logits_of_more_axes_are_rows():
    x, labels = normal(2, 4, 5, 3), np.random.default_rng(0).integers(0, 3, (2, 4, 5))
    flat = F.softmax_cross_entropy(x.reshape(-1, 3), labels.reshape(-1))
    assert F.softmax_cross_entropy(x, labels).item() == pytest.approx(flat.item(), rel=1e-14)
    each = F.softmax_cross_entropy(x, labels, reduction="none")
    assert each.shape == labels.shape
    np.testing.assert_allclose(each.data, -np.take_along_axis(log_softmax(x), labels[..., None], -1)[..., 0])
    assert F.softmax_cross_entropy(x, labels, reduction="sum").item() == pytest.approx(each.data.sum())


@pytest.mark.filterwarnings("error")
def test_a_class_that_is_impossible_and_not_the_target():
    """0 times -inf is no number; here it is no loss."""
    for target in (np.array([[0.0, 1]]), np.array([1])):
        x = Tensor(np.array([[-np.inf, 0]]), requires_grad=True)
        loss = F.softmax_cross_entropy(x, target)
        assert loss.item() == 0
        loss.backward()
        np.testing.assert_array_equal(x.grad, [[0, 0]])


def test_labels_that_are_no_integers_are_named():
    with pytest.raises(TypeError, match="labels of dtype float64, expected integers"):
        F.softmax_cross_entropy(normal(2, 3), np.array([0.0, 1]))
    with pytest.raises(TypeError, match="weights of dtype float64 for float32; use weights.astype"):
        F.softmax_cross_entropy(normal(2, 3).astype("f"), [0, 1], weights=np.ones(3))
    with pytest.raises(ValueError, match=r"weights \(2,\), expected weights \(3,\)"):
        F.softmax_cross_entropy(normal(2, 3), [0, 1], weights=np.ones(2))
    with pytest.raises(ValueError, match="label_smoothing=1.5, expected 0"):
        F.softmax_cross_entropy(normal(2, 3), [0, 1], label_smoothing=1.5)


def test_absolute_and_huber_loss_by_the_formula():
    y, t = np.array([[0.0, 1, 3], [-4, 0.5, 0]]), np.zeros((2, 3))
    d = np.abs(y)
    assert F.mean_absolute_error(y, t).item() == pytest.approx(d.mean())
    expected = np.where(d <= 2, d * d / 2, 2 * (d - 1))
    np.testing.assert_allclose(F.huber(y, t, delta=2, reduction="none").data, expected)
    assert F.huber(y, t, delta=2).item() == pytest.approx(expected.mean())
    assert F.huber(y[:1], t[:1], 2, total=2).item() == pytest.approx(expected[0].sum() / 6)
    with pytest.raises(ValueError, match="huber: delta=0, expected a positive number"):
        F.huber(y, t, delta=0)


def test_a_total_divides_a_mean_only():
    y = normal(2, 3)
    for reduction in ("none", "sum", "median"):
        with pytest.raises(ValueError, match=f"reduction='{reduction}' with total=2"):
            F.mean_squared_error(y, y, total=2, reduction=reduction)
    with pytest.raises(ValueError, match="reduction='median'"):
        F.mean_squared_error(y, y, reduction="median")
