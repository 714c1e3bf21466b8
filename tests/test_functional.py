"""What holds for every operation, by the table of cases; and a few operations by themselves."""

import numpy as np
import pytest

from minidnn import functional as F
from minidnn.gradcases import CASES
from minidnn.tensor import Tape, Tensor, no_grad

names = [f"{case.operation}: {case.label}" for case in CASES]
every_case = pytest.mark.parametrize("case", CASES, ids=names)


def run(case, arrays, needs=None, **backward):
    """Output, gradient given to it, and the gradients of the inputs."""
    leaves = [Tensor(a, requires_grad=needs is None or i in needs) for i, a in enumerate(arrays)]
    with Tape() as tape:
        y = case.function(*leaves)
    gy = np.random.default_rng(5).standard_normal(y.shape).astype(y.dtype)
    given = gy.copy()
    tape.backward(y, gy, **backward)
    if backward:
        tape.backward_weights()
    np.testing.assert_array_equal(gy, given, err_msg="backward changed the gradient it was given")
    return y.data, [t.grad for t in leaves]


def test_every_function_has_a_case():
    assert sorted({case.operation for case in CASES}) == sorted(F.__all__)


@every_case
def test_float32_stays_float32_and_near_float64(case):
    wide = case.inputs()
    y, gradients = run(case, wide)
    y32, gradients32 = run(case, [a.astype(np.float32) for a in wide])
    for got, want in zip([y32, *gradients32], [y, *gradients], strict=True):
        assert got.dtype == np.float32
        scale = abs(want).max(initial=1e-3)
        np.testing.assert_allclose(got, want, atol=2e-5 * scale)


@every_case
def test_inputs_are_left_alone_and_no_grad_changes_nothing(case):
    arrays = case.inputs()
    copies = [a.copy() for a in arrays]
    y, _ = run(case, arrays)
    with no_grad():
        z = case.function(*[Tensor(a, requires_grad=True) for a in arrays])
    assert z.creator is None and not z.requires_grad
    np.testing.assert_array_equal(z.data, y)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@every_case
def test_each_input_alone_gets_the_same_gradient(case):
    arrays = case.inputs()
    _, together = run(case, arrays)
    for i in range(len(arrays)):
        _, alone = run(case, arrays, needs={i})
        for j, gradient in enumerate(alone):
            if j == i:
                np.testing.assert_array_equal(gradient, together[i])
            else:
                assert gradient is None


@every_case
def test_deferred_weight_gradients_are_the_same(case):
    arrays = case.inputs()
    _, normal = run(case, arrays)
    _, deferred = run(case, arrays, defer_weights=True)
    for got, want in zip(deferred, normal, strict=True):
        np.testing.assert_array_equal(got, want)


@every_case
def test_memory_order_does_not_matter(case):
    """Inputs as views with other strides, as slices make them; so is the gradient of the output."""
    arrays = case.inputs()
    y, gradients = run(case, arrays)
    views = []
    for a in arrays:
        wide = np.full((*a.shape[:-1], 2 * a.shape[-1] + 1), np.nan) if a.ndim else np.array(np.nan)
        view = wide[..., 1::2] if a.ndim else wide
        view[...] = a
        views.append(view)
    leaves = [Tensor(v, requires_grad=True) for v in views]
    with Tape() as tape:
        z = case.function(*leaves)
    gy = np.random.default_rng(5).standard_normal(z.shape)
    tape.backward(z, np.repeat(gy, 2, axis=-1)[..., ::2] if y.ndim else np.asarray(gy))
    np.testing.assert_allclose(z.data, y, rtol=1e-12, atol=1e-14)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        np.testing.assert_allclose(leaf.grad, gradient, rtol=1e-11, atol=1e-13)


def test_softmax_against_the_formula():
    x = np.random.default_rng(0).standard_normal((4, 5))
    e = np.exp(x)
    np.testing.assert_allclose(F.softmax(x).data, e / e.sum(1, keepdims=True), rtol=1e-14)
    np.testing.assert_allclose(F.softmax(x, 0).data, e / e.sum(0), rtol=1e-14)
    np.testing.assert_allclose(F.log_softmax(x).data, np.log(e / e.sum(1, keepdims=True)), rtol=1e-13)


def test_softmax_shifts_each_row_by_its_own_maximum():
    """With one maximum for all rows, the first would underflow to 0/0."""
    x = np.array([[-2000.0, -2001], [2000, 2001]])
    e = np.exp(1)
    np.testing.assert_allclose(F.softmax(x).data, [[e / (1 + e), 1 / (1 + e)], [1 / (1 + e), e / (1 + e)]])


def test_relu_at_its_kink_and_with_nan():
    x = Tensor(np.array([-1.0, 0, 2, np.nan]), requires_grad=True)
    y = F.relu(x)
    np.testing.assert_array_equal(y.data, [0, 0, 2, np.nan])
    y.backward(np.ones(4))
    np.testing.assert_array_equal(x.grad[:3], [0, 0, 1])


def test_equal_maxima_share_the_gradient():
    x = Tensor(np.array([[1.0, 3, 3], [2, 2, 2]]), requires_grad=True)
    x.max(axis=1).backward(np.array([1.0, 3]))
    np.testing.assert_array_equal(x.grad, [[0, 0.5, 0.5], [1, 1, 1]])


def test_reductions_of_an_empty_axis():
    x = Tensor(np.zeros((0, 3)), requires_grad=True)
    x.sum(axis=0).backward(np.ones(3))
    assert x.grad.shape == (0, 3)
    assert F.flatten(np.zeros((0, 2, 3))).shape == (0, 6)


def test_a_slice_of_a_concatenation_is_the_part():
    a, b = (
        Tensor(np.random.default_rng(i).standard_normal((3, 2 + i)), requires_grad=True) for i in range(2)
    )
    y = F.concatenate([a, b], axis=-1)
    np.testing.assert_array_equal(y.data, np.concatenate([a.data, b.data], axis=1))
    (y[:, 2:] * 2).sum().backward()
    np.testing.assert_array_equal(a.grad, np.zeros((3, 2)))
    np.testing.assert_array_equal(b.grad, np.full((3, 3), 2))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda x: F.linear(x, np.zeros((4, 2))),
            ValueError,
            r"linear: got x \(2, 3\), W \(4, 2\), expected",
        ),
        (
            lambda x: F.linear(x, np.zeros((3, 2)), np.zeros(3)),
            ValueError,
            r"got b \(3,\), expected b \(2,\)",
        ),
        (lambda x: F.matmul(x, np.zeros((2, 3))), ValueError, r"matmul: got \(2, 3\) @ \(2, 3\)"),
        (lambda x: x @ np.zeros(2), ValueError, "matmul"),
        (lambda x: x ** np.zeros((4, 3)), ValueError, "broadcast"),
        (lambda x: x + np.zeros((4, 3)), ValueError, "broadcast"),
    ],
)
def test_operands_that_do_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call(Tensor(np.zeros((2, 3))))
