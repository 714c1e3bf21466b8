"""What would be lost or wrong without a word: values changed behind the tape, gradients between tapes and threads."""

import threading

import numpy as np
import pytest

from minidnn import functional as F
from minidnn.tensor import Function, Tape, Tensor, is_grad_enabled, no_grad


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.reshape(3),
        lambda x: x.T,
        lambda x: x[0],
        lambda x: x.detach(),
        lambda x: x[0].detach().reshape(1, 3).flatten(),
    ],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_a_change_in_place_is_seen_through_views(view, recorded):
    x = Tensor(np.ones((1, 3)), requires_grad=recorded)
    w = Tensor(np.ones(()), requires_grad=True)
    y = view(x)
    z = (y * w).sum()
    x.assign(np.full((1, 3), 5.0))
    with pytest.raises(RuntimeError, match="changed in place"):
        z.backward()


def test_a_change_of_a_transposed_weight_is_seen():
    W = Tensor(np.ones((2, 3)), requires_grad=True)
    x = Tensor(np.ones((4, 3)), requires_grad=True)
    z = (x @ W.T).sum()
    W.assign(np.zeros((2, 3)))
    with pytest.raises(RuntimeError, match="changed in place"):
        z.backward()


def test_a_change_through_a_view_is_seen_by_the_whole():
    x, w = Tensor(np.ones((1, 3))), Tensor(np.ones(()), requires_grad=True)
    z = (x * w).sum()
    x.reshape(3).assign(np.zeros(3))
    with pytest.raises(RuntimeError, match="changed in place"):
        z.backward()


def test_results_cannot_be_changed_through_views_either():
    y = Tensor(np.ones(3), requires_grad=True).exp()
    with no_grad():
        view = y.reshape(1, 3)
    for tensor in (y, y.detach(), view, y.detach().reshape(3, 1)):
        with pytest.raises(RuntimeError, match="result of an operation"):
            tensor.assign(np.zeros(tensor.shape))


def test_copies_may_be_changed():
    x = Tensor(np.arange(4.0).reshape(2, 2), requires_grad=True)
    y = x.T.reshape(4)  # no view: the order of its elements is another one
    z = (y * y).sum()
    x.assign(np.zeros((2, 2)))
    z.backward()
    np.testing.assert_array_equal(x.grad, [[0, 2], [4, 6]])


def test_one_instance_is_one_node():
    class Double(Function):
        def forward(self, x):
            return 2 * x

        def backward(self, gy):
            return 2 * gy

    double = Double()
    y = double(Tensor(np.ones(2), requires_grad=True))
    with pytest.raises(RuntimeError, match="Double: .*node of the graph already"):
        double(Tensor(np.ones(2), requires_grad=True))
    with pytest.raises(RuntimeError, match="node of the graph already"), no_grad():
        double(Tensor(np.ones(2)))
    y.sum().backward()


def test_backward_of_a_tensor_goes_through_all_tapes():
    def program(x, inner, outer):
        with outer:
            y = x * x
            with inner:
                z = y * 3
            u = z + y
        with inner:
            return (u * u).sum()

    x = Tensor(np.array([1.0, -2.0]), requires_grad=True)
    tapes = [Tape() for _ in range(4)]  # kept: their nodes have another backward to wait for
    program(x, *tapes[:2]).backward()
    np.testing.assert_allclose(x.grad, 64 * x.data**3)  # of (4 x^2)^2
    x.zero_grad()
    with Tape() as third:
        y = x * x
    with Tape():
        z = (y * y).sum()
    z.backward(np.ones(()))
    third.backward([])  # finds its nodes used up, and no gradient
    np.testing.assert_allclose(x.grad, 4 * x.data**3)


def test_backward_of_a_tape_goes_through_what_no_block_recorded():
    x = Tensor(np.array([1.0, -2.0]), requires_grad=True)
    y = x * x
    with Tape() as tape:
        z = y.sum()
    tape.backward(z)
    np.testing.assert_allclose(x.grad, 2 * x.data)


def test_no_grad_is_of_each_thread():
    shared, states = no_grad(), {}
    first_inside, second_inside, first_left = (threading.Event() for _ in range(3))

    @shared
    def recorded():
        first_inside.set()
        assert second_inside.wait(30)

    def first():
        recorded()
        states["first"] = is_grad_enabled()
        first_left.set()

    @no_grad()
    def second():
        assert first_inside.wait(30)
        with shared:
            second_inside.set()
            assert first_left.wait(30)

    threads = [threading.Thread(target=f) for f in (second, first)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert states == {"first": True} and is_grad_enabled()


def test_the_gradient_handed_in_stays_its_owner_s_while_it_waits_for_the_weights():
    W = Tensor(np.ones((3, 4)), requires_grad=True)
    g = np.ones((2, 4))
    with Tape() as tape:
        y = F.linear(Tensor(np.ones((2, 3)), requires_grad=True), W)
    tape.backward(y, g, defer_weights=True)
    g[...] = 0
    tape.backward_weights()
    np.testing.assert_array_equal(W.grad, np.full((3, 4), 2.0))


def test_the_gradient_handed_in_stays_its_owner_s_while_it_waits_on_another_tape():
    x, g = Tensor(np.ones(3), requires_grad=True), np.ones(3)
    with Tape() as first:
        h = x * 2.0
    with Tape() as second:
        y = h + 1.0
    second.backward(y, g)
    g[...] = 0
    first.backward([])
    np.testing.assert_array_equal(x.grad, np.full(3, 2.0))


def test_a_backward_that_failed_leaves_nothing_behind():
    x = Tensor(np.ones(3), requires_grad=True)
    z = (x.exp() * x).sum()
    x.assign(np.zeros(3))
    with pytest.raises(RuntimeError, match="changed in place"):
        z.backward()
    (x * 2.0).sum().backward()
    np.testing.assert_array_equal(x.grad, [2, 2, 2])
