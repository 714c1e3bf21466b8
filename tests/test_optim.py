"""SGD against its formulas, hand-computed numbers, and the schedules."""

import math
import tracemalloc

import numpy as np
import pytest

from minidnn import nn
from minidnn.backend import workers
from minidnn.optim import SGD, constant, cosine, step, warmup
from minidnn.optim import update as update_module
from minidnn.tensor import Tensor


def parameter(values, name="w", dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True, name=name)


def reference(w, gradients, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    """The textbook update in float64, with temporaries."""
    v = np.zeros_like(w)
    for g, rate in zip(gradients, lr, strict=True):
        d = g + weight_decay * w
        v = momentum * v + d
        w = w - rate * (d + momentum * v if nesterov else v)
    return w


def test_momentum_by_hand():
    w = parameter([1.0])
    optimizer = SGD([w], lr=0.1, momentum=0.5)
    for gradient, expected in [(2.0, 0.8), (1.0, 0.6), (0.0, 0.5)]:  # v = 2, 2, 1
        w.grad = np.array([gradient])
        optimizer.step()
        assert w.data[0] == pytest.approx(expected, abs=1e-15)
    assert optimizer.iteration == 3


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("layout", ["whole", "blocks", "transposed"])
def test_update_equals_the_formula(monkeypatch, momentum, nesterov, weight_decay, layout):
    monkeypatch.setitem(update_module.BLOCK, "numpy", 1000 if layout == "whole" else 7)
    random = np.random.default_rng(0)
    start, gradients = random.standard_normal((5, 4, 3)), random.standard_normal((4, 5, 4, 3))
    w = parameter(start)
    if layout == "transposed":
        w.data = np.asfortranarray(start)
    optimizer = SGD([w], 0.05, momentum, nesterov, weight_decay)
    for gradient in gradients:
        w.grad = gradient.copy()
        optimizer.step()
        np.testing.assert_array_equal(w.grad, gradient)
    expected = reference(start, gradients, [0.05] * 4, momentum, nesterov, weight_decay)
    np.testing.assert_allclose(w.data, expected, rtol=1e-13, atol=1e-14)


def test_gradient_in_another_layout(monkeypatch):
    monkeypatch.setitem(update_module.BLOCK, "numpy", 5)
    w = parameter(np.zeros((6, 7)))
    w.grad = np.arange(42.0).reshape(7, 6).T
    SGD([w], 1.0, momentum=0.5).step()
    np.testing.assert_array_equal(w.data, -np.arange(42.0).reshape(7, 6).T)


def test_update_is_in_place_float32_and_counts_versions():
    w = parameter(np.ones((3, 3)), dtype=np.float32)
    array, version = w.data, w.version
    w.grad = np.ones((3, 3), np.float32)
    optimizer = SGD([w], np.float64(0.1), momentum=0.9, weight_decay=5e-4, decay=1e-6, schedule=cosine(10))
    optimizer.step()
    assert w.data is array and w.data.dtype == np.float32 and w.version == version + 1
    assert optimizer.state_dict()["velocity"]["w"].dtype == np.float32
    assert isinstance(optimizer.learning_rate(), float)


def test_a_step_allocates_less_than_a_megabyte_for_each_thread():
    w = parameter(np.ones((1000, 1000)), dtype=np.float32)
    w.grad = np.ones_like(w.data)
    optimizer = SGD([w], 0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    optimizer.step()
    tracemalloc.start()
    optimizer.step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6 * workers.threads()  # each has blocks of its own; the parameter is 4 MB


def test_parameters_without_gradient_stay():
    w, frozen = parameter([1.0]), parameter([1.0], "frozen")
    w.grad = np.array([1.0])
    optimizer = SGD([w, frozen], 0.5, momentum=0.9, weight_decay=0.1)
    optimizer.step()
    assert frozen.data[0] == 1.0 and frozen.version == 0
    assert list(optimizer.state_dict()["velocity"]) == ["w"]
    SGD([], 0.1).step()  # a rank may hold no parameters


def test_weight_decay_flag_of_a_parameter():
    plain, exempt = nn.Parameter((1,), nn.init.ones), nn.Parameter((1,), nn.init.ones, decay=False)
    for p in (plain, exempt):
        p.materialise(0, "p", np.float64)
        p.grad = np.zeros(1)
    SGD([plain, exempt], 0.1, weight_decay=0.5).step()
    assert plain.data[0] == pytest.approx(0.95) and exempt.data[0] == 1.0


def test_keras_decay_and_schedule():
    w = parameter([0.0])
    optimizer = SGD([w], lr=0.01, decay=0.5, schedule=step(2, 0.1))
    rates = []
    for _ in range(4):
        rates.append(optimizer.learning_rate())
        w.grad = np.array([1.0])
        optimizer.step()
    expected = [0.01, 0.01 / 1.5, 0.001 / 2, 0.001 / 2.5]
    assert rates == pytest.approx(expected, rel=1e-14)
    assert w.data[0] == pytest.approx(-sum(expected), rel=1e-14)


def test_groups_have_their_own_options_and_updates():
    conv, fc = parameter([1.0], "conv"), parameter([1.0], "fc")
    optimizer = SGD([{"params": [conv], "lr": 0.4}, {"params": [fc], "momentum": 0.5}], lr=0.1)
    conv.grad, fc.grad = np.array([1.0]), np.array([1.0])
    for _ in range(2):  # two updates of one group within one iteration
        optimizer.update_group(1)
    assert optimizer.iteration == 0 and conv.data[0] == 1.0
    assert fc.data[0] == pytest.approx(1 - 0.1 - 0.15)
    optimizer.update_group(0)
    optimizer.advance()
    assert conv.data[0] == pytest.approx(0.6) and optimizer.iteration == 1
    assert [optimizer.learning_rate(i) for i in (0, 1)] == [0.4, 0.1]


def test_state_continues_the_run_exactly():
    gradients = np.random.default_rng(1).standard_normal((6, 4))

    def run(optimizer, w, rows):
        for row in rows:
            w.grad = row.copy()
            optimizer.step()

    options = {"lr": 0.1, "momentum": 0.9, "decay": 0.1}
    w = parameter(np.ones(4))
    whole = SGD([w], **options)
    run(whole, w, gradients)
    first = parameter(np.ones(4))
    before = SGD([first], **options)
    run(before, first, gradients[:3])
    second = parameter(first.data)
    after = SGD([second], **options)
    after.load_state_dict(before.state_dict())
    assert after.iteration == 3
    run(after, second, gradients[3:])
    np.testing.assert_array_equal(second.data, w.data)


def test_state_of_the_whole_loads_into_a_shard():
    part = nn.Parameter((2, 4)).part((slice(None), slice(1, 3)))
    part.materialise(0, "fc.W", np.float32)
    optimizer = SGD([part], 0.1, momentum=0.9)
    optimizer.load_state_dict({"iteration": 5, "velocity": {"fc.W": np.arange(8.0).reshape(2, 4)}})
    velocity = optimizer.state_dict()["velocity"]["fc.W"]
    np.testing.assert_array_equal(velocity, [[1, 2], [5, 6]])
    assert velocity.dtype == np.float32


def test_state_that_does_not_fit():
    optimizer = SGD([parameter([1.0, 2.0])], 0.1, momentum=0.9)
    with pytest.raises(KeyError, match=r"unexpected \['v'\]"):
        optimizer.load_state_dict({"iteration": 1, "velocity": {"v": np.zeros(2)}})
    with pytest.raises(ValueError, match=r"w: velocity of shape \(3,\), expected \(2,\)"):
        optimizer.load_state_dict({"iteration": 1, "velocity": {"w": np.zeros(3)}})
    assert optimizer.iteration == 0
    with pytest.raises(ValueError, match="kept by parameter name, but 'w' is no name of one"):
        SGD([parameter([1.0]), parameter([1.0])], 0.1).state_dict()


@pytest.mark.parametrize(
    "params, options, error, match",
    [
        ([parameter([1.0])], {}, ValueError, "group 0: needs a learning rate of at least 0, got None"),
        ([parameter([1.0])], {"lr": -1}, ValueError, "at least 0, got -1"),
        ([parameter([1.0])], {"lr": math.nan}, ValueError, "at least 0, got nan"),
        ([parameter([1.0])], {"lr": 1, "momentum": 1}, ValueError, r"momentum must be in \[0, 1\), got 1"),
        ([parameter([1.0])], {"lr": 1, "nesterov": True}, ValueError, "Nesterov's form needs a momentum"),
        ([parameter([1.0])], {"lr": 1, "weight_decay": -1}, ValueError, "must not be negative"),
        (
            [{"params": [], "rate": 1}],
            {"lr": 1},
            ValueError,
            "expected params and any of lr, .*got params, rate",
        ),
        ([{"lr": 1}], {"lr": 1}, ValueError, "group 0: expected params"),
        (
            [np.zeros(2)],
            {"lr": 1},
            TypeError,
            r"group 0: expected tensors, as in model.parameters\(\), got ndarray",
        ),
        ([parameter([1.0])] * 2, {"lr": 1}, ValueError, "'w' is given twice"),
        # all of these can be iterated over, but not to get parameters
        (parameter([1.0]), {"lr": 1}, TypeError, r"model.parameters\(\) or \[w\], got a single Tensor"),
        (nn.Linear(2, 1), {"lr": 1}, TypeError, r"SGD: expected a list, model.parameters\(\).*Linear"),
        (nn.Sequential(nn.ReLU()), {"lr": 1}, TypeError, r"model.parameters\(\).*Sequential"),
        ({"params": []}, {"lr": 1}, TypeError, "got a single dict"),
        ([{"params": parameter([1.0])}], {"lr": 1}, TypeError, "group 0: expected a list.*Tensor"),
        (nn.Linear(2, 1).named_parameters(), {"lr": 1}, TypeError, r"model.parameters\(\), got tuple"),
        (1.0, {"lr": 1}, TypeError, "got a single float"),
    ],
)
def test_bad_options(params, options, error, match):
    with pytest.raises(error, match=match):
        SGD(params, **options)


def test_gradient_of_the_wrong_shape_is_named():
    w = parameter([1.0, 2.0])
    w.grad = np.zeros(3)
    with pytest.raises(ValueError, match=r"w: gradient of shape \(3,\), expected \(2,\)"):
        SGD([w], 0.1).step()


def test_schedules():
    assert [step(3, 0.5)(i) for i in (0, 2, 3, 6)] == [1, 1, 0.5, 0.25]
    assert [step([2, 5])(i) for i in (1, 2, 5)] == pytest.approx([1, 0.1, 0.01])
    assert [cosine(8, 0.2)(i) for i in (0, 4, 8, 100)] == pytest.approx([1, 0.6, 0.2, 0.2])
    assert [warmup(4)(i) for i in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert warmup(0, step(2))(2) == pytest.approx(0.1) and constant(9) == 1
    assert warmup(4, step(2, 0.5))(3) == 0.5
    for bad in (lambda: step(0), lambda: step([3, 0]), lambda: cosine(0), lambda: warmup(-1)):
        with pytest.raises(ValueError, match="must"):
            bad()
