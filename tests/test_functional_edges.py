"""Operations on input that is seldom tried: infinities and NaN, integers, NumPy's own numbers, lists, nothing."""

from functools import partial

import numpy as np
import pytest

from minidnn import functional as F
from minidnn import nn
from minidnn.backend import masked
from minidnn.comm import collectives, threads
from minidnn.tensor import Tensor

INF, NAN = np.inf, np.nan


def gradient(f, values, gy=None):
    """Of f at a tensor of these values."""
    x = Tensor(np.array(values, dtype=float), requires_grad=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = f(x)
        y.backward(np.ones(y.shape) if gy is None else np.array(gy, dtype=float))
    return x.grad


def images(values, dtype=float):
    return np.array(values, dtype=dtype).reshape(1, 1, -1, 1)


# -- what is masked is 0 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_masked(dtype):
    a = np.array([1, INF, NAN, -2, -INF, NAN], dtype)
    mask = np.array([True, False, False, True, True, True])
    for values in (a, np.repeat(a, 2)[::2], a.reshape(2, 3).T):
        where = mask if values.ndim == 1 else mask.reshape(2, 3).T
        np.testing.assert_array_equal(masked(values, where), np.where(where, values, 0))
        out = np.full(values.shape, NAN, dtype)
        masked(values, where, out)
        np.testing.assert_array_equal(out, np.where(where, values, 0))
    assert masked(a, mask).dtype == dtype


@pytest.mark.parametrize("f", [F.log, F.sqrt, lambda x: x**-1.0])
def test_an_infinite_gradient_stops_at_a_relu(f):
    np.testing.assert_array_equal(gradient(lambda x: f(x.relu()), [-1.0])[0], 0)


def test_an_infinite_gradient_stops_at_what_dropout_dropped():
    bits = np.array([0, 65535], np.uint16)
    np.testing.assert_array_equal(gradient(lambda x: F.dropout(x, 0.5, bits), [1, 1], [INF, 3]), [0, 6])
    y = F.dropout(Tensor(np.array([INF, 3])), 0.5, bits)
    np.testing.assert_array_equal(y.data, [0, 6])


def test_an_infinite_gradient_goes_to_the_largest_only():
    np.testing.assert_array_equal(gradient(lambda x: x.max(), [1, 3, 2], INF), [0, INF, 0])
    pooled = gradient(lambda x: F.max_pool2d(x, (1, 2), (1, 1)), images([1, 3, 2]), images([INF, -INF]))
    np.testing.assert_array_equal(pooled.ravel(), [0, NAN, 0])
    pooled = gradient(lambda x: F.max_pool2d(x, (1, 2)), images([1, 3]), images([INF]))
    np.testing.assert_array_equal(pooled.ravel(), [0, INF])


# -- max pooling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, expected",
    [([1, NAN], [0, 1]), ([NAN, 1], [1, 0]), ([-INF, -INF], [1, 0]), ([NAN, -INF], [1, 0])],
)
def test_a_window_without_an_ordinary_maximum_passes_its_gradient_on(values, expected):
    got = gradient(lambda x: F.max_pool2d(x, (1, 2)), images(values))
    np.testing.assert_array_equal(got.ravel(), expected)


@pytest.mark.parametrize("padding", [((0, 0), (1, 0)), ((0, 0), (0, 1)), ((1, 0), (0, 0)), 1])
@pytest.mark.parametrize("value", [-INF, NAN, 3.0])
def test_padding_gets_no_gradient(padding, value):
    f = lambda x: F.max_pool2d(x, 2, 1, padding)  # noqa: E731
    x = images([value]) if padding == 1 else np.full((1, 2, 2, 1), value)
    assert gradient(f, x).sum() == f(Tensor(x)).size


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.float16])
def test_pooling_of_any_dtype(dtype):
    info = np.iinfo(dtype) if dtype != np.float16 else np.finfo(dtype)
    x = (
        np.random.default_rng(0)
        .integers(max(info.min, -1000), min(info.max, 1000), (2, 5, 6, 3))
        .astype(dtype)
    )
    y = F.max_pool2d(Tensor(x), 3, 2, 1).data
    padded = np.full((2, 7, 8, 3), info.min, dtype)
    padded[:, 1:-1, 1:-1] = x
    expected = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2].max((-1, -2))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, expected)
    assert F.max_pool2d(Tensor(images([-5], np.int8)), 3, 1, 1).data.item() == -5


def test_large_pictures_of_bytes_are_pooled():
    x = np.random.default_rng(0).integers(0, 256, (1, 512, 512, 1), dtype=np.uint8)
    y = F.max_pool2d(Tensor(x), 2).data
    np.testing.assert_array_equal(y[0, ..., 0], x.reshape(256, 2, 256, 2).max((1, 3)))


# -- losses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [np.array([1]), np.array([[0.0, 1.0]])])
def test_cross_entropy_of_an_impossible_class_that_is_not_asked_for(target):
    x = Tensor(np.array([[-INF, 0.0]]), requires_grad=True)
    loss = F.softmax_cross_entropy(x, target)
    loss.backward()
    assert loss.item() == 0
    np.testing.assert_array_equal(x.grad, [[0, 0]])


def test_binary_cross_entropy_of_infinite_logits():
    x = Tensor(np.array([[-INF, INF]]), requires_grad=True)
    loss = F.binary_cross_entropy(x, np.array([[0.0, 1.0]]), from_logits=True)
    loss.backward()
    assert loss.item() == 0
    np.testing.assert_array_equal(x.grad, [[0, 0]])
    wrong = F.binary_cross_entropy(x, np.array([[1.0, 0.0]]), from_logits=True)
    assert wrong.item() == INF


def test_labels_are_integers():
    with pytest.raises(TypeError, match="labels of dtype float64, expected integers"):
        F.softmax_cross_entropy(Tensor(np.zeros((2, 3))), np.array([0.0, 1.0]))


# -- batch normalisation over ranks ----------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1.0, 1e-3])
@pytest.mark.parametrize("rows", [(1, 1), (3, 0, 5)])
def test_the_variance_over_ranks_is_exact_far_from_zero(rows, spread):
    values = 1e8 + spread * np.random.default_rng(0).standard_normal((sum(rows), 2))
    bounds = np.cumsum([0, *rows])

    def rank_main(comm):
        x = Tensor(values[bounds[comm.rank] : bounds[comm.rank + 1]])
        return F.batch_norm(x, np.ones(2), np.zeros(2), all_sum=partial(collectives.all_reduce, comm))[2]

    for var in threads.run(len(rows), rank_main):
        np.testing.assert_allclose(var, values.var(axis=0), rtol=1e-6)


# -- numbers of other types ------------------------------------------------------------------------------------


def float32(*shape):
    return Tensor(
        np.linspace(0.1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape), requires_grad=True
    )


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x ** np.float64(2),
        lambda x: x ** np.int64(2),
        lambda x: x ** np.float32(0.5),
        lambda x: F.local_response_norm(x, 5, 1e-4, np.float64(0.5)),
        lambda x: F.local_response_norm(x, np.int64(5), np.float64(1e-4), 0.75, np.float64(2)),
        lambda x: F.dropout(x, np.float64(0.5), np.full(x.shape, 65535, np.uint16)),
        lambda x: F.batch_norm(x, np.ones(4, np.float32), np.zeros(4, np.float32), np.float64(1e-3))[0],
        lambda x: F.mean_squared_error(x, x.data, total=np.float64(2)),
        lambda x: x * np.float64(2) - np.float64(1) / (x + np.int64(2)),
        lambda x: x.mean(np.int64(1)),
    ],
)
def test_numbers_of_numpy_do_not_widen_the_result(f):
    x = float32(2, 2, 3, 4)
    y = f(x)
    assert y.dtype == np.float32
    y.sum().backward()
    assert x.grad.dtype == np.float32


@pytest.mark.parametrize("reduce", [F.sum, F.mean, F.max])
@pytest.mark.parametrize("axis", [np.int64(1), np.int32(-1), (np.int64(0), 2)])
def test_axes_of_numpy_s_integers(reduce, axis):
    a, b = float32(2, 3, 4), float32(2, 3, 4)
    reduce(a, axis).sum().backward()
    reduce(b, tuple(map(int, axis)) if isinstance(axis, tuple) else int(axis)).sum().backward()
    np.testing.assert_array_equal(a.grad, b.grad)


def test_shapes_of_numpy_s_integers_and_lists():
    x = float32(2, 3, 4)
    three, four = np.int64(3), np.int64(4)
    assert x.reshape(three, -1).shape == x.reshape([three, -1]).shape == x.reshape((3, 8)).shape == (3, 8)
    assert x.transpose(np.int64(2), 0, 1).shape == x.transpose([2, 0, 1]).shape == (4, 2, 3)
    assert F.softmax(x, np.int64(1)).shape == (2, 3, 4)
    assert F.concatenate([x, x], np.int64(1)).shape == (2, 6, 4)
    assert x.reshape(np.array([6, four])).shape == (6, 4)


@pytest.mark.parametrize("two", [[2, 2], np.int64(2), (np.int64(2), np.int32(2)), np.array([2, 2])])
def test_windows_of_lists_and_numpy_s_integers(two):
    x, W = float32(1, 7, 7, 2), float32(3, 3, 2, 4)
    expected = F.conv2d(x, W, stride=2, padding=2, dilation=2).data
    np.testing.assert_array_equal(F.conv2d(x, W, stride=two, padding=two, dilation=two).data, expected)
    sides = [[1, 0], [0, np.int64(1)]]
    for pool in (F.max_pool2d, F.avg_pool2d):
        np.testing.assert_array_equal(pool(x, two, two, sides).data, pool(x, 2, 2, ((1, 0), (0, 1))).data)
    layer = nn.Conv2d(2, 4, two, two, sides, groups=np.int64(2)).init(0)
    assert layer(x).shape[1:] == layer.output_shape((7, 7, 2))
    with pytest.raises(ValueError, match=r"stride=\(2, 2, 2\), expected an int >= 1 or a pair"):
        F.conv2d(x, W, stride=[2, 2, 2])


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [F.softmax, F.log_softmax])
def test_softmax_of_nothing(f):
    with pytest.raises(ValueError, match=r"softmax: got x \(\), expected at least one value"):
        f(Tensor(np.array(1.0)))
    with pytest.raises(
        ValueError, match=r"softmax: got x \(2, 0\), expected at least one value along axis -1"
    ):
        f(Tensor(np.ones((2, 0))))
    assert f(Tensor(np.ones((0, 2)))).shape == (0, 2)


@pytest.mark.parametrize(
    "f",
    [
        F.softmax,
        F.log_softmax,
        lambda x: F.avg_pool2d(x, 2),
        F.local_response_norm,
        lambda x: F.dropout(x, 0.5, np.zeros(x.shape, np.uint16)),
        lambda x: F.batch_norm(x, np.ones(2, int), np.zeros(2, int)),
        lambda x: F.batch_norm_inference(x, np.ones(2, int), np.zeros(2, int), np.ones(2), np.ones(2)),
    ],
)
def test_integers_are_refused_where_floats_are_needed(f):
    with pytest.raises(TypeError, match=r"got dtype int64, expected floats: use x.astype\(np.float32\)"):
        f(Tensor(np.ones((1, 2, 2, 2), int)))


@pytest.mark.parametrize("f", [np.asarray, np.array, lambda t: np.concatenate([t, t]), lambda t: np.r_[t, t]])
def test_numpy_may_not_drop_the_graph(f):
    with pytest.raises(TypeError, match=r"NumPy would drop the graph of w: F.concatenate.*x.numpy\(\)"):
        f(Tensor(np.ones((2, 2)), requires_grad=True, name="w"))
    np.testing.assert_array_equal(np.asarray(Tensor(np.ones(2))), [1, 1])


@pytest.mark.parametrize("p", [0.999999, 1 - 1e-12])
def test_every_probability_below_one_can_be_used(p):
    y = F.dropout(Tensor(np.ones(2)), p, np.array([65534, 65535], np.uint16))
    np.testing.assert_array_equal(y.data, [0, 65536])
    assert nn.Dropout(p).p == p
