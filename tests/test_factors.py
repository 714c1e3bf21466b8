"""Gradients that stay factors until they are asked for: the same numbers, without the array."""

import numpy as np
import pytest

from minidnn import functional as F
from minidnn import nn
from minidnn.backend import kernels
from minidnn.functional import factors
from minidnn.functional.factors import Factors
from minidnn.optim import SGD
from minidnn.tensor import Tape, Tensor


@pytest.fixture(autouse=True)
def no_matrix_is_too_small(monkeypatch):
    monkeypatch.setattr(factors, "LEAST", 1)
    with kernels.use_fast(True):
        yield


def layer(seed=0):
    return nn.Sequential(nn.Linear(40, 30)).init(seed, dtype=np.float64)["linear1"]


def data(rows=3, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_normal((rows, 40)), random.standard_normal((rows, 30))


def backward(fc, x, gy):
    with Tape() as tape:
        y = fc(Tensor(x))
    tape.backward(y, gy)


def test_the_gradient_is_there_when_it_is_asked_for():
    fc, (x, gy) = layer(), data()
    backward(fc, x, gy)
    assert isinstance(fc.W.factors, Factors)
    np.testing.assert_allclose(fc.W.grad, x.T @ gy)
    assert fc.W.factors is None
    assert fc.W.grad is fc.W.grad


def test_the_input_may_change_before_the_gradient_is_used():
    fc, (x, gy) = layer(), data()
    expected = x.T @ gy
    backward(fc, x, gy)
    x[...] = 0
    np.testing.assert_allclose(fc.W.grad, expected)


def test_gradients_add_up_however_they_are_kept():
    fc, (x, gy) = layer(), data()
    whole = x.T @ gy
    backward(fc, x, gy)
    backward(fc, x, 2 * gy)
    assert fc.W.factors.x.shape == (6, 40)  # rows below rows
    np.testing.assert_allclose(fc.W.grad, 3 * whole)
    backward(fc, x, gy)  # to an array
    assert fc.W.factors is None
    np.testing.assert_allclose(fc.W.grad, 4 * whole)


def test_too_many_rows_become_an_array():
    fc, (x, gy) = layer(), data(5)
    backward(fc, x, gy)
    assert fc.W.factors is not None
    backward(fc, x, gy)
    assert fc.W.factors is None
    np.testing.assert_allclose(fc.W.grad, 2 * x.T @ gy)
    fc.W.zero_grad()
    backward(fc, *data(40))
    assert fc.W.factors is None and fc.W.grad is not None


def test_used_twice_in_one_tape():
    fc, (x, gy) = layer(), data()
    with Tape() as tape:
        first, second = fc(Tensor(x)), fc(Tensor(-x))
    tape.backward([first, second], [gy, 3 * gy])
    np.testing.assert_allclose(fc.W.grad, -2 * x.T @ gy)


def test_a_buffer_is_filled_at_once():
    fc, (x, gy) = layer(), data()
    fc.W.grad_buffer = np.empty((40, 30))
    backward(fc, x, gy)
    assert fc.W.factors is None and fc.W.grad is fc.W.grad_buffer
    np.testing.assert_allclose(fc.W.grad_buffer, x.T @ gy)


def test_zero_grad_and_assignment_forget_the_factors():
    fc, (x, gy) = layer(), data()
    backward(fc, x, gy)
    fc.W.zero_grad()
    assert fc.W.factors is None and fc.W.grad is None
    backward(fc, x, gy)
    fc.W.grad = np.ones((40, 30))
    np.testing.assert_array_equal(fc.W.grad, 1)


def test_other_leaves_and_the_plain_kernels_get_arrays():
    x, gy = data()
    W = Tensor(np.ones((40, 30)), requires_grad=True)
    with Tape() as tape:
        y = F.linear(Tensor(x), W)
    tape.backward(y, gy)
    np.testing.assert_allclose(W.grad, x.T @ gy)
    fc = layer()
    with kernels.use_fast(False):
        backward(fc, x, gy)
    assert fc.W.factors is None


@pytest.mark.parametrize(
    "options", [{"momentum": 0.9}, {}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}]
)
def test_updates_are_the_same(options):
    both = []
    for ask in (False, True):
        fc = layer()
        optimiser = SGD(list(fc.parameters()), lr=0.1, **options)
        for step in range(3):
            backward(fc, *data(seed=step))
            if ask:
                assert fc.W.grad is not None
            assert (fc.W.factors is None) is ask
            optimiser.step()
            for parameter in fc.parameters():
                parameter.zero_grad()
        both.append((fc.W.data, fc.b.data, *optimiser.state_dict()["velocity"].values()))
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


def test_weight_gradients_deferred_to_the_end_of_the_tape():
    fc, (x, gy) = layer(), data()
    with Tape() as tape:
        y = fc(Tensor(x))
    tape.backward(y, gy, defer_weights=True)
    assert fc.W.grad is None
    ready = []
    tape.backward_weights(on_ready=ready.append)
    assert fc.W in ready and fc.W.factors is not None
    np.testing.assert_allclose(fc.W.grad, x.T @ gy)


def test_the_gradient_handed_in_may_change_before_it_is_used():
    fc, (x, gy) = layer(), data()
    g = gy.copy()
    y = fc(F.relu(Tensor(x, requires_grad=True)))
    y.backward(g)
    g[...] = 0
    assert fc.W.factors is not None
    np.testing.assert_allclose(fc.W.grad, np.maximum(x, 0).T @ gy)
