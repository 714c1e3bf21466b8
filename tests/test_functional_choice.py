"""Choices, index arrays, moves of values and statistics, against NumPy or a formula, and where they are delicate."""

import math

import numpy as np
import pytest

from minidnn import functional as F
from minidnn.tensor import Tensor


def leaf(values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("dtype, limit", [(np.float32, 3e-7), (np.float64, 6e-15)])
def test_erf_to_rounding_everywhere(dtype, limit):
    x = np.concatenate([np.linspace(-7, 7, 4001), [1e-30, -1e-8, np.inf, -np.inf]]).astype(dtype)
    y, expected = F.erf(x).data, np.vectorize(math.erf)(x.astype(float))
    assert y.dtype == dtype
    np.testing.assert_allclose(y, expected, rtol=limit, atol=0)
    assert np.isnan(F.erf(np.array([np.nan], dtype)).data[0])


def test_activations_by_their_formulas():
    x = normal(50) * 3
    np.testing.assert_allclose(F.gelu(x).data, x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2, atol=3e-14)
    np.testing.assert_allclose(F.silu(x).data, x / (1 + np.exp(-x)), rtol=1e-13)
    np.testing.assert_allclose(F.leaky_relu(x, 0.2).data, np.where(x > 0, x, 0.2 * x), rtol=1e-15)


@pytest.mark.filterwarnings("error")
def test_sigmoid_and_silu_overflow_nowhere():
    for dtype in (np.float32, np.float64):
        x = np.array([-1e4, -100, 0, 100, 1e4], dtype)
        np.testing.assert_allclose(F.sigmoid(x).data, [0, math.exp(-100), 0.5, 1, 1], rtol=1e-6, atol=1e-38)
        assert F.silu(x).data[-1] == dtype(1e4) and F.silu(x).data[0] == 0


def test_equals_share_the_gradient_and_losers_get_none_of_an_infinite_one():
    x, y = leaf([1.0, 2, 3]), leaf([1.0, 3, 2])
    F.maximum(x, y).backward(np.array([2.0, np.inf, np.inf]))
    np.testing.assert_array_equal(x.grad, [1, 0, np.inf])
    np.testing.assert_array_equal(y.grad, [1, np.inf, 0])
    np.testing.assert_array_equal(F.minimum(x, y).data, [1, 2, 2])
    np.testing.assert_array_equal(F.maximum([1.0, np.nan], [np.nan, 0.0]).data, [np.nan, np.nan])
    with pytest.raises(TypeError, match="dtypes are never mixed"):
        F.maximum(x, np.ones(3, np.float32))
    assert F.maximum(np.float32([1.5]), 2.5).dtype == np.float32


def test_where_hands_on_only_what_was_chosen():
    x, y = leaf([1.0, 2]), leaf([3.0])
    condition = np.array([[True, False], [True, True]])
    z = F.where(condition, x, y)
    condition[...] = False  # the caller's array: backward must not see this
    z.backward(np.array([[1.0, np.nan], [2, 4]]))
    np.testing.assert_array_equal(z.data, [[1, 3], [1, 2]])
    np.testing.assert_array_equal(x.grad, [3, 4])
    np.testing.assert_array_equal(y.grad, [np.nan])
    np.testing.assert_array_equal(F.where(Tensor(np.array([True, False])), 1.0, leaf([5.0, 6])).data, [1, 6])


def test_clip_passes_the_gradient_at_its_bounds():
    x = leaf([-2.0, -1, 0, 1, 2, np.nan])
    y = x.clip(-1, 1)
    y.backward(np.full(6, np.inf))
    np.testing.assert_array_equal(y.data, [-1, -1, 0, 1, 1, np.nan])
    np.testing.assert_array_equal(x.grad, [0, np.inf, np.inf, np.inf, 0, 0])
    assert F.clip(np.array([1, 5, 9]), 2, 6).data.tolist() == [2, 5, 6]
    assert F.clip(np.ones(2, np.float32), np.float64(0.5)).dtype == np.float32


def test_power_of_tensors_at_zero():
    x, y = leaf([0.0, 0, 0, 2]), leaf([2.0, 1, 0, 3])
    with np.errstate(all="raise"):
        (x**y).backward(np.ones(4))
    np.testing.assert_array_equal(x.grad, [0, 1, 0, 12])
    np.testing.assert_allclose(y.grad, [0, 0, 0, 8 * math.log(2)])
    z = leaf([3.0])
    (2**z).backward(np.ones(1))
    np.testing.assert_allclose(z.grad, 8 * math.log(2))
    assert (Tensor(np.float32([2])) ** np.float64(2)).dtype == np.float32


def test_gradients_of_repeated_indices_add_up():
    x, numbers = leaf(normal(4, 3)), np.array([1, 1, 3, 1, -1])
    y, gy = x[numbers], normal(5, 3, seed=1)
    np.testing.assert_array_equal(y.data, x.data[numbers])
    numbers[...] = 0  # the caller's array: backward must not see this
    y.backward(gy)
    expected = np.zeros((4, 3))
    np.add.at(expected, [1, 1, 3, 1, -1], gy)
    np.testing.assert_allclose(x.grad, expected)


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_index_and_no_row(shape):
    x = leaf(normal(4, 3))
    y = x[np.zeros(shape, int)]
    y.sum().backward()
    assert y.shape == (*shape, 3) and not x.grad.any()
    z = leaf(np.zeros((3, 0)))
    z[[0, 2, 2]].backward(np.zeros((3, 0)))
    assert z.grad.shape == (3, 0) and leaf([1.0])[[]].shape == (0,)


def test_masks_and_tensors_index_as_in_numpy():
    x = normal(4, 3)
    t, mask = leaf(x), x > 0
    np.testing.assert_array_equal(t[t > 0].data, x[mask])
    t[mask].backward(x[mask])
    np.testing.assert_array_equal(t.grad, np.where(mask, x, 0))
    np.testing.assert_array_equal(t[Tensor(np.array([2, 0])), 1:].data, x[[2, 0], 1:])
    np.testing.assert_array_equal(t[:, [True, False, True]].data, x[:, [0, 2]])
    np.testing.assert_array_equal(t[t.argmax(0), np.arange(3)].data, x.max(0))
    assert t.argmin() == x.argmin()


def test_a_part_that_is_not_used_gets_a_gradient_of_zeros():
    x = leaf(normal(5, 2))
    first, middle, last = F.split(x, (1, 3))
    assert (first.shape, middle.shape, last.shape) == ((1, 2), (2, 2), (2, 2))
    middle.backward(np.ones((2, 2)))
    np.testing.assert_array_equal(x.grad[:, 0], [0, 1, 1, 0, 0])
    assert len(F.split(x, np.int64(5))) == 5
    with pytest.raises(ValueError, match="equal division"):
        F.split(x, 2)


def test_shapes_and_dtypes_as_in_numpy():
    x = normal(1, 3, 1)
    t = leaf(x)
    assert t.squeeze().shape == (3,) and t.squeeze(0).shape == (3, 1) and t.squeeze((0, -1)).shape == (3,)
    with pytest.raises(ValueError, match="size not equal to one"):
        t.squeeze(1)
    assert F.expand_dims(t, (0, -1)).shape == np.expand_dims(x, (0, -1)).shape
    np.testing.assert_array_equal(F.stack([x, x], 1).data, np.stack([x, x], 1))
    np.testing.assert_array_equal(F.pad(x, (1, 2), 3.0).data, np.pad(x, (1, 2), constant_values=3.0))
    y = t.astype(np.float32)
    assert y.dtype == np.float32 and t.astype(int).dtype.kind == "i" and not t.astype(int).requires_grad
    y.sum().backward()
    assert t.grad.dtype == np.float64
    with pytest.raises(TypeError, match="cannot require a gradient"):
        Tensor(t.astype(int).data, requires_grad=True)


def test_vectors_in_matrix_products():
    x, y, W = normal(4), normal(4, seed=1), normal(2, 4, 3)
    assert (Tensor(x) @ y).item() == pytest.approx(x @ y) and (Tensor(x) @ y).shape == ()
    np.testing.assert_allclose((Tensor(x) @ W).data, x @ W)
    np.testing.assert_allclose((W.swapaxes(1, 2) @ Tensor(y)).data, W.swapaxes(1, 2) @ y)


@pytest.mark.parametrize("axis, keepdims", [(None, False), (1, True), ((0, -1), False)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_variance_and_deviation_as_in_numpy(axis, keepdims, ddof):
    x = normal(3, 4, 2)
    options = {"axis": axis, "keepdims": keepdims, "ddof": ddof}
    np.testing.assert_allclose(F.var(x, **options).data, x.var(**options))
    np.testing.assert_allclose(Tensor(x).std(**options).data, x.std(**options))
    np.testing.assert_array_equal(Tensor(x).min(axis, keepdims).data, x.min(axis, keepdims=keepdims))


def test_the_deviation_of_equal_values_has_the_gradient_zero():
    x = leaf([[2.0, 2, 2], [1, 2, 3]])
    with np.errstate(all="raise"):
        x.std(axis=1).backward(np.ones(2))
    np.testing.assert_array_equal(x.grad[0], 0)
    assert x.grad[1].any()


def test_logsumexp_of_extreme_values():
    x = leaf([[1e4, 1e4], [-1e4, -np.inf], [-np.inf, -np.inf]])
    with np.errstate(divide="ignore"):
        y = F.logsumexp(x, axis=1)
    np.testing.assert_allclose(y.data, [1e4 + math.log(2), -1e4, -np.inf])
    y.backward(np.ones(3))
    np.testing.assert_allclose(x.grad, [[0.5, 0.5], [1, 0], [0, 0]])


@pytest.mark.parametrize(
    "subscripts, shapes",
    [
        ("ij,jk", [(2, 3), (3, 4)]),
        ("ba", [(2, 3)]),
        ("...a,...a", [(2, 1, 3), (4, 3)]),
        ("a...,a...->...", [(2, 3), (2, 4, 3)]),
        ("ii->i", [(3, 3)]),
        ("i,i,i", [(3,), (3,), (1,)]),
        (" ij , j -> i ", [(2, 0), (0,)]),
    ],
)
def test_einsum_as_numpy(subscripts, shapes):
    xs = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    leaves = [leaf(x) for x in xs]
    y = F.einsum(subscripts, *leaves)
    np.testing.assert_allclose(y.data, np.einsum(subscripts, *xs), rtol=1e-12, atol=1e-15)
    y.backward(np.ones(y.shape))
    assert [t.grad.shape for t in leaves] == shapes


def test_einsum_of_what_does_not_fit():
    with pytest.raises(ValueError, match="got 1 tensors, expected 2, for 'ij,jk'"):
        F.einsum("ij,jk", normal(2, 3))
    with pytest.raises(ValueError, match=r"got \(2, 3\) for 'ijk', expected an axis for each letter"):
        F.einsum("ijk", normal(2, 3))


def test_embedding_refuses_what_is_no_row():
    W = leaf(normal(4, 2))
    for numbers, error, message in (
        ([0, 4], ValueError, r"embedding: number 4 outside 0 \.\.\. 3"),
        ([[-1]], ValueError, "number -1 outside"),
        ([0.0], TypeError, "numbers of dtype float64, expected integers"),
    ):
        with pytest.raises(error, match=message):
            F.embedding(np.array(numbers), W)
