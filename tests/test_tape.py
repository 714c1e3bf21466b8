"""The tape: order, deferred weight gradients, callbacks, collective nodes."""

import weakref

import numpy as np
import pytest

from minidnn import functional as F
from minidnn.tensor import Function, Tape, Tensor, no_grad


def parameters(seed=0):
    random = np.random.default_rng(seed)
    shapes = {"W1": (4, 5), "b1": (5,), "W2": (5, 3), "b2": (3,)}
    return {
        name: Tensor(random.standard_normal(s), requires_grad=True, name=name) for name, s in shapes.items()
    }


def network(p, x):
    h = F.relu(F.linear(x, p["W1"], p["b1"]))
    return F.mean_squared_error(F.linear(h, p["W2"], p["b2"]), np.ones((len(x), 3)))


X = np.random.default_rng(9).standard_normal((6, 4))


def reference():
    """Gradients by the chain rule written out."""
    p = {name: t.data for name, t in parameters().items()}
    a = X @ p["W1"] + p["b1"]
    h = np.maximum(a, 0)
    gy = 2 * (h @ p["W2"] + p["b2"] - 1) / 18
    ga = (gy @ p["W2"].T) * (a > 0)
    return {"W1": X.T @ ga, "b1": ga.sum(0), "W2": h.T @ gy, "b2": gy.sum(0)}


def assert_gradients(p, scale=1.0):
    for name, gradient in reference().items():
        np.testing.assert_allclose(p[name].grad, scale * gradient, rtol=1e-12, atol=1e-14, err_msg=name)


def test_backward_equals_the_chain_rule():
    p = parameters()
    with Tape() as tape:
        loss = network(p, Tensor(X))
    assert [type(n).__name__ for n in tape.nodes] == ["Linear", "ReLU", "Linear", "MeanSquaredError"]
    tape.backward(loss)
    assert_gradients(p)
    assert not tape.nodes


def test_deferred_weights_equal_the_normal_backward():
    p, x = parameters(), Tensor(X, requires_grad=True)
    ready, late = [], []
    with Tape() as tape:
        loss = network(p, x)
    tape.backward(loss, defer_weights=True, on_ready=lambda t: ready.append(t.name or "x"))
    assert ready == ["x"] and x.grad is not None
    assert all(t.grad is None for t in p.values())
    seen = []
    tape.backward_weights(
        on_ready=lambda t: late.append(t.name), observer=lambda n: seen.append(type(n).__name__)
    )
    assert late == ["W2", "b2", "W1", "b1"] and seen == ["Linear", "Linear"]
    assert_gradients(p)
    tape.backward_weights()  # nothing left
    assert_gradients(p)
    whole = Tensor(X, requires_grad=True)
    network(parameters(), whole).backward()
    np.testing.assert_array_equal(x.grad, whole.grad)


def test_deferred_weights_of_an_input_that_needs_no_gradient():
    p = parameters()
    with Tape() as tape:
        loss = network(p, Tensor(X))
    tape.backward(loss, defer_weights=True)
    tape.backward_weights()
    assert_gradients(p)


def test_a_leaf_of_split_and_whole_operations_is_ready_after_the_last():
    p, order = parameters(), []
    with Tape() as tape:
        loss = network(p, Tensor(X)) + (p["W1"] * p["W1"]).sum() * 0
    tape.backward(loss, defer_weights=True, on_ready=lambda t: order.append(("now", t.name)))
    tape.backward_weights(on_ready=lambda t: order.append(("later", t.name)))
    assert order == [("later", n) for n in ("W2", "b2", "W1", "b1")]
    assert_gradients(p)


def test_on_ready_reports_each_leaf_once_when_its_gradient_is_whole():
    p, seen = parameters(), []
    with Tape() as tape:
        loss = network(p, Tensor(X)) + network(p, Tensor(X))  # every leaf is used twice
    tape.backward(loss, on_ready=lambda t: seen.append((t.name, t.grad.copy())))
    assert [name for name, _ in seen] == ["W2", "b2", "W1", "b1"]
    for name, gradient in seen:
        np.testing.assert_array_equal(gradient, p[name].grad)
    assert_gradients(p, scale=2)


def test_on_ready_reports_leaves_that_no_gradient_reached():
    p, unused, seen = parameters(), Tensor(np.ones(2), requires_grad=True, name="unused"), []
    with Tape() as tape:
        loss = network(p, Tensor(X))
        unused * 2
    tape.backward(loss, on_ready=lambda t: seen.append(t.name))
    assert seen == ["unused", "W2", "b2", "W1", "b1"] and unused.grad is None


def test_observer_sees_nodes_with_their_layers_before_their_backward():
    p, seen = parameters(), []
    with Tape() as tape:
        tape.layer = "fc1"
        h = F.relu(F.linear(Tensor(X), p["W1"], p["b1"]))
        tape.layer = "fc2"
        y = F.linear(h, p["W2"], p["b2"])
        tape.layer = None
        loss = F.mean_squared_error(y, np.ones((6, 3)))
    tape.backward(loss, observer=lambda n: seen.append((n.layer, type(n).__name__, p["W1"].grad is None)))
    assert seen == [
        (None, "MeanSquaredError", True),
        ("fc2", "Linear", True),
        ("fc1", "ReLU", True),
        ("fc1", "Linear", True),
    ]


def test_errors_name_the_layer():
    with Tape() as tape:
        tape.layer = "fc6"
        with pytest.raises(ValueError, match=r"fc6 \(linear\): got x \(6, 4\), W \(5, 3\), expected"):
            F.linear(Tensor(X), parameters()["W2"])


def test_several_outputs_with_gradients_of_their_own():
    x = Tensor(np.arange(3.0), requires_grad=True)
    with Tape() as tape:
        h = x * x
        outputs = [h, (h * x).sum()]
    tape.backward(outputs, [np.array([1.0, 2, 3]), None])
    np.testing.assert_array_equal(x.grad, 2 * x.data * [1, 2, 3] + 3 * x.data**2)
    with pytest.raises(ValueError, match="1 gradients for 2 outputs"):
        tape.backward(outputs, [None])


def test_what_leads_to_no_output_is_skipped():
    x, y = (Tensor(np.ones(2), requires_grad=True) for _ in range(2))
    with Tape() as tape:
        loss = (x * 2).sum()
        (y * 3).sum()
    tape.backward(loss)
    assert y.grad is None


def test_second_backward_on_a_tape():
    p = parameters()
    with Tape() as tape:
        loss = network(p, Tensor(X))
    tape.backward(loss)
    with pytest.raises(RuntimeError, match="second backward through MeanSquaredError"):
        tape.backward(loss)


def test_tensor_backward_finds_its_tape():
    p = parameters()
    with Tape() as tape:
        loss = network(p, Tensor(X))
    loss.backward()
    assert not tape.nodes
    assert_gradients(p)


def test_tapes_nest_and_each_records_its_own():
    x = Tensor(np.ones(2), requires_grad=True)
    with Tape() as outer:
        a = x * 2
        with Tape() as inner:
            b = x * 3
        c = a * a
    assert (len(outer.nodes), len(inner.nodes)) == (2, 1)
    inner.backward(b, np.ones(2))
    outer.backward(c, np.ones(2))
    np.testing.assert_array_equal(x.grad, 3 + 8 * x.data)


def test_a_gradient_waits_at_the_border_of_two_tapes():
    p = parameters()
    with Tape() as first:
        h = F.relu(F.linear(Tensor(X), p["W1"], p["b1"]))
    with Tape() as second:
        loss = F.mean_squared_error(F.linear(h, p["W2"], p["b2"]), np.ones((6, 3)))
    second.backward(loss)
    assert p["W1"].grad is None and p["W2"].grad is not None
    first.backward([])
    assert_gradients(p)


def test_segments_joined_by_hand_equal_the_whole():
    p = parameters()
    with Tape() as first:
        h = F.relu(F.linear(Tensor(X), p["W1"], p["b1"]))
    border = Tensor(h.data, requires_grad=True)
    with Tape() as second:
        loss = F.mean_squared_error(F.linear(border, p["W2"], p["b2"]), np.ones((6, 3)))
    second.backward(loss)
    first.backward(h, border.grad)
    assert_gradients(p)


def test_a_tape_holds_its_nodes_and_nothing_holds_the_tape():
    p = parameters()
    tape = Tape()
    with tape:
        node = weakref.ref(network(p, Tensor(X)).creator)
    assert node() is not None
    gone = weakref.ref(tape)
    del tape
    assert gone() is None and node() is None  # by reference count alone: there is no cycle


class Exchange(Function):
    """A stand-in for a communication function: logs what its backward is given."""

    collective = True

    def __init__(self, log, name):
        self.log, self.name_in_log = log, name

    def forward(self, *xs):
        self.count = len(xs)
        return xs[0] * 1 if xs else np.ones(2)

    def backward(self, gy):
        self.log.append((self.name_in_log, None if gy is None else gy.tolist()))
        return (np.zeros(2) if gy is None else gy,) * self.count


@pytest.mark.parametrize("explicit", [True, False])
def test_a_collective_node_without_gradient_still_runs_backward(explicit):
    x = Tensor(np.ones(2), requires_grad=True)
    log = []

    def program():
        a = Exchange(log, "first")(x)
        Exchange(log, "dangling")(a)
        Exchange(log, "source")()  # a receive: no input at all
        Exchange(log, "constant")(Tensor(np.ones(2)))
        return (a * 2).sum()

    if explicit:
        with Tape() as tape:
            loss = program()
        tape.backward(loss)
    else:
        program().backward()
    assert log == [("constant", None), ("source", None), ("dangling", None), ("first", [2, 2])]
    np.testing.assert_array_equal(x.grad, [2, 2])


def test_a_collective_source_passes_its_gradient_on():
    log = []
    y = Exchange(log, "recv")()
    assert y.requires_grad
    (y * 3).sum().backward()
    assert log == [("recv", [3, 3])]


def test_backward_without_outputs_runs_collective_nodes():
    log = []
    with Tape() as tape:
        Exchange(log, "a")(Tensor(np.ones(2)))
        Exchange(log, "b")()
    tape.backward([])
    assert log == [("b", None), ("a", None)]


def test_collective_nodes_are_not_recorded_under_no_grad():
    log = []
    with Tape() as tape, no_grad():
        y = Exchange(log, "a")(Tensor(np.ones(2)))
    assert not tape.nodes and not y.requires_grad


def test_batch_norm_sums_over_ranks_even_without_a_gradient():
    calls = []

    def all_sum(sums):
        calls.append(sums.shape)
        return sums

    gamma, beta = (Tensor(np.ones(3), requires_grad=True) for _ in range(2))
    with Tape() as tape:
        F.batch_norm(Tensor(np.random.default_rng(0).standard_normal((4, 3))), gamma, beta, all_sum=all_sum)
    tape.backward([])
    assert calls == [(4,), (3,), (6,)]
    np.testing.assert_array_equal(gamma.grad, np.zeros(3))
