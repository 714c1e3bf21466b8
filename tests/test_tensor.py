"""Tensors, recording of operations, backward from a tensor, and the errors a user meets."""

import gc
import threading
import weakref

import numpy as np
import pytest

from minidnn import functional as F
from minidnn.functional.math import Mul
from minidnn.tensor import Function, Tape, Tensor, is_grad_enabled, no_grad


def leaf(*shape, dtype=np.float64, seed=0, name=None):
    values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return Tensor(values, requires_grad=True, name=name)


def test_a_tensor_shares_an_array_and_converts_the_rest():
    array = np.arange(6.0).reshape(2, 3)
    x = Tensor(array)
    assert x.data is array and x.numpy() is array
    assert (x.shape, x.ndim, x.size, x.dtype, len(x)) == ((2, 3), 2, 6, np.float64, 2)
    assert Tensor([[1.0, 2.0]]).shape == (1, 2)
    assert Tensor(2.5).item() == 2.5
    assert "requires_grad" in repr(Tensor([1.0], requires_grad=True, name="w")) and "'w'" in repr(
        Tensor([1], name="w")
    )


def test_polynomial_by_hand():
    x = Tensor(3.0, requires_grad=True)
    y = 2 * x**3 - x / 4 + 1 - (-x)
    y.backward()
    assert y.item() == 2 * 27 - 0.75 + 1 + 3
    assert x.grad == 6 * 9 - 0.25 + 1
    assert x.grad.shape == ()


def test_operators_with_arrays_and_numbers_on_either_side():
    x = leaf(2, 3)
    a = np.arange(1.0, 7.0).reshape(2, 3)
    for y, expected in (
        (a + x, a + x.data),
        (a - x, a - x.data),
        (a * x, a * x.data),
        (a / x, a / x.data),
        (x - a, x.data - a),
        (1 - x, 1 - x.data),
        (1 / x, 1 / x.data),
        (a.T @ x, a.T @ x.data),
        (x @ a.T, x.data @ a.T),
        (x.T, x.data.T),
        (x[1:, ::2], x.data[1:, ::2]),
        (x.reshape(3, 2), x.data.reshape(3, 2)),
        (x.reshape((-1,)), x.data.reshape(-1)),
        (x.transpose(1, 0), x.data.T),
        (x.sum(axis=0), x.data.sum(axis=0)),
        (x.mean(), x.data.mean()),
        (x.max(axis=1), x.data.max(axis=1)),
        (x.exp(), np.exp(x.data)),
        ((x * x).sqrt(), abs(x.data)),
        ((x * x).log(), np.log(x.data**2)),
    ):
        assert isinstance(y, Tensor) and y.requires_grad
        np.testing.assert_allclose(y.data, expected, rtol=1e-14)


def test_a_tensor_used_twice_collects_both_gradients():
    x = leaf(3)
    y = x * x + x
    (y * y + x).sum().backward()
    v = x.data
    np.testing.assert_allclose(x.grad, 2 * (v * v + v) * (2 * v + 1) + 1, rtol=1e-14)


def test_gradients_add_up_over_backward_until_zero_grad():
    x = leaf(3)
    (x * 2).sum().backward()
    first = x.grad
    (x * 3).sum().backward()
    np.testing.assert_array_equal(x.grad, [5, 5, 5])
    assert x.grad is first
    x.zero_grad()
    assert x.grad is None
    (x * 4).sum().backward()
    np.testing.assert_array_equal(x.grad, [4, 4, 4])


def test_leaves_do_not_share_their_gradient_arrays():
    x, y = leaf(3), leaf(3, seed=1)
    seed = np.ones(3)
    (x + y).backward(seed)
    assert x.grad is not y.grad and not np.shares_memory(x.grad, y.grad)
    assert not np.shares_memory(x.grad, seed)
    z = leaf(2, 3)
    z.reshape(6).backward(gradient := np.ones(6))
    assert not np.shares_memory(z.grad, gradient)
    assert z.grad.flags.writeable
    leaf_sum = leaf(4)
    leaf_sum.sum().backward()
    leaf_sum.grad += 1  # the sum's backward broadcasts one number: the leaf must have its own array
    np.testing.assert_array_equal(leaf_sum.grad, [2, 2, 2, 2])


def test_the_first_gradient_is_written_into_the_buffer():
    flat = np.full(7, np.nan)
    W, b = leaf(2, 3), leaf(1, seed=1)
    W.grad_buffer, b.grad_buffer = flat[:6].reshape(2, 3), flat[6:]
    x = np.arange(8.0).reshape(4, 2)
    for count in (1, 2):
        (F.linear(Tensor(x), W) + b).sum().backward()
        assert W.grad is W.grad_buffer and b.grad is b.grad_buffer
        np.testing.assert_array_equal(flat, count * np.array([12, 12, 12, 16, 16, 16, 12.0]))
    W.zero_grad()
    F.linear(Tensor(x), W).sum().backward()
    np.testing.assert_array_equal(flat[:6], [12, 12, 12, 16, 16, 16])


def test_a_buffer_is_not_written_by_two_gradients_of_one_node():
    W = leaf(3, 3)
    W.grad_buffer = np.full((3, 3), np.nan)
    F.linear(W, W).sum().backward()
    v = W.data
    np.testing.assert_allclose(W.grad, np.ones((3, 3)) @ v.T + v.T @ np.ones((3, 3)))
    assert W.grad is W.grad_buffer


def test_no_grad_detach_and_leaves_without_gradient():
    x = leaf(3)
    with no_grad():
        assert not is_grad_enabled()
        y = x * 2
    assert is_grad_enabled()
    assert not y.requires_grad and y.creator is None

    @no_grad()
    def f(t):
        with no_grad():
            t = t * 2
        return t + 1

    assert not f(x).requires_grad and is_grad_enabled()
    d = (x * 2).detach()
    assert not d.requires_grad
    (d * x).sum().backward()
    np.testing.assert_array_equal(x.grad, 2 * x.data)
    constant = Tensor(np.ones(3))
    (constant * x).sum().backward()
    assert constant.grad is None
    assert not (constant * constant).requires_grad


def test_no_grad_is_undone_by_an_exception():
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert is_grad_enabled()


def test_float32_stays_float32():
    x = leaf(2, 3, dtype=np.float32)
    y = (((x * 2.5 + np.float64(1)) / 3 - 1) ** 2).mean() + np.float64(0.5) * x.sum()
    assert y.dtype == np.float32
    y.backward()
    assert x.grad.dtype == np.float32


def test_dtypes_are_never_mixed():
    x, y = leaf(3, dtype=np.float32), leaf(3)
    with pytest.raises(TypeError, match="Mul.*float32.*float64"):
        x * y
    with pytest.raises(TypeError, match="Add.*float32.*float64"):
        x + np.ones(3)
    with pytest.raises(TypeError, match="float64.*float32"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(TypeError, match="int64.*gradient"):
        Tensor([1, 2], requires_grad=True)
    with pytest.raises(TypeError, match="int64"):
        Tensor([1, 2]) * 0.5
    np.testing.assert_array_equal((Tensor([1, 2]) * 3).data, [3, 6])


def test_backward_needs_a_gradient_unless_the_tensor_is_a_scalar():
    x = leaf(2, 2)
    y = x * 2
    with pytest.raises(ValueError, match=r"shape \(2, 2\).*scalar"):
        y.backward()
    with pytest.raises(ValueError, match=r"\(3,\).*\(2, 2\)"):
        y.backward(np.ones(3))
    y.backward([[1, 2], [3, 4]])
    np.testing.assert_array_equal(x.grad, [[2, 4], [6, 8]])
    with pytest.raises(RuntimeError, match="requires a gradient"):
        Tensor(1.0).backward()


def test_backward_of_a_leaf_is_its_own_gradient():
    x = Tensor(2.0, requires_grad=True)
    x.backward()
    x.backward(np.array(3.0))
    assert x.grad == 4


def test_second_backward_is_a_clear_error():
    x = leaf(3)
    h = x * x
    loss = h.sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second backward through Sum"):
        loss.backward()
    with pytest.raises(RuntimeError, match="second backward through Mul"):
        (h * 2).sum().backward()


def test_backward_releases_saved_arrays_while_outputs_live():
    x = leaf(1000)
    h = x * x
    saved = weakref.ref(h)
    y = h * h
    loss = y.sum()
    del h
    gc.collect()
    assert saved() is None  # the graph holds arrays and nodes, not tensors
    node = y.creator
    assert "x" in vars(node)
    loss.backward()
    assert not vars(node)


def test_forward_only_code_holds_nothing():
    W = leaf(4, 4)
    seen = []
    for _ in range(3):
        y = F.linear(Tensor(np.ones((2, 4))), W)
        seen.append(weakref.ref(y.creator))
    del y
    gc.collect()
    assert [r() for r in seen] == [None] * 3


def test_changing_a_value_that_backward_needs_is_an_error():
    x, W = leaf(2, 3), leaf(3, 4, name="fc.W")
    y = F.linear(x, W).sum()
    W.assign(np.zeros((3, 4)))
    with pytest.raises(RuntimeError, match=r"Linear: fc\.W was changed in place"):
        y.backward()
    a, b = leaf(3), leaf(3)
    z = (a + b).sum()
    a.assign(np.zeros(3))  # a sum does not need its operands' values
    z.backward()
    np.testing.assert_array_equal(a.grad, [1, 1, 1])


def test_assign():
    x = leaf(2, dtype=np.float32)
    array, version = x.data, x.version
    x.assign([1, 2])
    assert x.data is array and x.version == version + 1
    np.testing.assert_array_equal(array, [1, 2])
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        x.assign(np.zeros(3, np.float32))
    with pytest.raises(TypeError, match="float64.*float32"):
        x.assign(np.zeros(2))
    with pytest.raises(RuntimeError, match="result of an operation"):
        (x * 2).assign([1, 2])


def test_getitem_by_numbers_and_slices():
    x = leaf(4, 3)
    y = x[1:3, 0] * 2 + x[-1, :2]
    y.sum().backward()
    expected = np.zeros((4, 3))
    expected[1:3, 0] += 2
    expected[-1, :2] += 1
    np.testing.assert_array_equal(x.grad, expected)
    for key in (1.0, [0.5, 1], "a", (0, np.zeros(2)), True):
        with pytest.raises(TypeError, match="integers, slices"):
            x[key]
    for key in (4, [0, 4], np.array([True, False, True]), np.ones((4, 2), bool)):
        with pytest.raises(IndexError):
            x[key]
    assert [row.shape for row in x] == [(3,)] * 4


class Split(Function):
    """Two outputs: the first and the second half."""

    saves_inputs = False

    def forward(self, x):
        self.n = len(x) // 2
        return x[: self.n], x[self.n :]

    def backward(self, ga, gb):
        self.seen = [ga is None, gb is None]
        gx = np.zeros(2 * self.n)
        if ga is not None:
            gx[: self.n] = ga
        if gb is not None:
            gx[self.n :] = gb
        return gx


def test_a_function_with_two_outputs():
    x = leaf(6)
    a, b = Split()(x)
    assert (a.index, b.index) == (0, 1) and a.creator is b.creator
    (a * 2 + b * 3).sum().backward()
    np.testing.assert_array_equal(x.grad, [2, 2, 2, 3, 3, 3])
    x.zero_grad()
    a, b = Split()(x)
    b.sum().backward()  # the other output has no gradient
    np.testing.assert_array_equal(x.grad, [0, 0, 0, 1, 1, 1])


def test_errors_in_a_function_of_ones_own():
    class TooFew(Function):
        def forward(self, x, y):
            return x * y

        def backward(self, gz):
            return gz

    class WrongShape(Function):
        def forward(self, x):
            return x * 2

        def backward(self, gy):
            return gy.sum(axis=0)

    class Nothing(Function):
        pass

    with pytest.raises(RuntimeError, match="TooFew.*1 gradients for 2 inputs"):
        TooFew()(leaf(3), leaf(3)).sum().backward()
    with pytest.raises(RuntimeError, match=r"WrongShape: gradient float64\(3,\) for w float64\(2, 3\)"):
        WrongShape()(leaf(2, 3, name="w")).sum().backward()
    with pytest.raises(TypeError, match="Nothing defines no forward"):
        Nothing()(leaf(3))


def test_a_function_takes_plain_arrays():
    W = leaf(3, 2)
    y = F.linear(np.ones((4, 3)), W)
    y.sum().backward()
    np.testing.assert_array_equal(W.grad, np.full((3, 2), 4.0))
    assert F.relu([-1.0, 2.0]).data.tolist() == [0, 2]


def test_needs_tells_which_inputs_want_a_gradient():
    node = Mul()
    node(leaf(3), Tensor(np.ones(3)))
    assert node.needs == (True, False)
    with no_grad():
        node = Mul()
        node(leaf(3), leaf(3))
    assert node.needs == (False, False)


def test_threads_record_and_switch_on_their_own():
    results = {}

    def work(i):
        x = Tensor(np.full(3, float(i)), requires_grad=True)
        with Tape() as tape:
            y = (x * x).sum()
        if i % 2:
            with no_grad():
                barrier.wait(10)
        else:
            barrier.wait(10)
            results["enabled", i] = is_grad_enabled()
        tape.backward(y)
        results[i] = x.grad

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for i in range(4):
        np.testing.assert_array_equal(results[i], np.full(3, 2.0 * i))
    assert results["enabled", 0] and results["enabled", 2]


def test_a_deep_graph_needs_no_recursion():
    x = leaf(1)
    y = x
    for _ in range(20_000):
        y = y + 1
    y.sum().backward()
    assert x.grad == 1
    del y
