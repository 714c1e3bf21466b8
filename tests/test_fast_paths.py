"""The fast kernels give what the plain ones give, for shapes that exercise every way through them."""

import copy
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

import minidnn.fast.conv
from minidnn import functional as F
from minidnn.backend import kernels, openblas, workers
from minidnn.functional.activation import rectify, rectify_gradient
from minidnn.functional.conv import convolve, convolve_input_gradient, convolve_weight_gradient
from minidnn.functional.elementwise import erf_array
from minidnn.functional.geometry import windows
from minidnn.functional.normalize import lrn, lrn_gradient
from minidnn.functional.pool import max_pool, max_pool_gradient, pool_windows
from minidnn.functional.products import (
    add_bias,
    product,
    product_input_gradient,
    product_weight_gradient,
    sum_rows,
)
from minidnn.optim.update import adaptive_update, factored_update, momentum_update
from minidnn.tensor import Tensor


@pytest.fixture(params=[1, 2, 3])
def cores(request, forced, poisoned):
    """Everything goes to the fast kernels, cut into parts, on so many threads."""
    workers.set_threads(request.param)
    yield request.param
    workers.set_threads(None)


def both(f, *args, **options):
    """What f gives with the plain kernels, and with the fast ones."""
    with kernels.use_fast(False):
        expected = f(*copy.deepcopy(args), **copy.deepcopy(options))
    with kernels.use_fast(True):
        return expected, f(*copy.deepcopy(args), **copy.deepcopy(options))


def same(f, *args, **options):
    expected, got = both(f, *args, **options)
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (expected, got)), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        scale = np.abs(a).max(initial=0) or 1
        tolerance = {np.float64: 1e-12, np.float32: 2e-5, np.float16: 2e-2}.get(a.dtype.type, 0)
        np.testing.assert_allclose(b / scale, a / scale, rtol=0, atol=tolerance)


def normal(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


CONVOLUTIONS = {
    "AlexNet's conv1: stride 4": ((5, 23, 27, 3), (11, 11, 3, 8), {"stride": 4}),
    "5x5, same": ((6, 6, 7, 4), (5, 5, 4, 8), {"padding": "same"}),
    "3x3 on 3x3": ((4, 3, 3, 4), (3, 3, 4, 6), {"padding": "same"}),
    "3x3 on 1x2: taps that meet nothing": ((3, 1, 2, 4), (3, 3, 4, 6), {"padding": 1}),
    "valid": ((3, 7, 8, 4), (3, 2, 4, 6), {}),
    "full padding": ((3, 4, 5, 4), (3, 3, 4, 6), {"padding": 2}),
    "more padding than kernel": ((2, 4, 5, 4), (2, 2, 4, 6), {"padding": 3}),
    "one side": ((3, 4, 5, 4), (3, 4, 4, 6), {"padding": ((2, 0), (0, 3))}),
    "groups": ((4, 6, 5, 4), (3, 3, 2, 6), {"padding": "same", "groups": 2}),
    "groups, stride": ((4, 9, 9, 4), (3, 3, 2, 6), {"padding": "same", "groups": 2, "stride": 2}),
    "dilation": ((3, 9, 8, 4), (3, 3, 4, 6), {"padding": "same", "dilation": 2}),
    "1x1": ((3, 4, 5, 4), (1, 1, 4, 6), {}),
    "one filter": ((4, 6, 7, 8), (5, 5, 8, 1), {"padding": "same"}),
    "depthwise": ((4, 6, 7, 4), (3, 3, 1, 4), {"padding": 1, "groups": 4}),
    "depthwise, stride": ((4, 6, 7, 4), (3, 3, 1, 4), {"padding": 1, "groups": 4, "stride": 2}),
    "no rows but padding": ((2, 0, 4, 3), (3, 3, 3, 5), {"padding": 2}),
    "no image": ((0, 4, 5, 4), (3, 3, 4, 6), {"padding": 1}),
    "no filter": ((2, 4, 5, 4), (3, 3, 4, 0), {"padding": 1}),
}


@pytest.mark.parametrize("deep", [False, True], ids=["kernel rows", "taps"])
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_convolution(case, deep, cores, monkeypatch):
    monkeypatch.setattr(minidnn.fast.conv, "TAP_CHANNELS", 1 if deep else 1000)
    x_shape, W_shape, options = case
    groups = options.get("groups", 1)
    window = windows("test", x_shape[1:3], W_shape[:2], **{k: v for k, v in options.items() if k != "groups"})
    for dtype in (np.float64, np.float32, np.float16):
        x, W = normal(*x_shape, dtype=dtype), normal(*W_shape, dtype=dtype, seed=1)
        gy = normal(x_shape[0], *window.out, W_shape[3], dtype=dtype, seed=2)
        same(convolve, x, W, window, groups)
        same(convolve_input_gradient, gy, W, window, groups)
        same(convolve_weight_gradient, x, gy, W, window, groups)
        out = np.full(W.shape, np.nan, dtype)
        with kernels.use_fast(True):
            assert convolve_weight_gradient(x, gy, W, window, groups, out) is out
        with kernels.use_fast(False):
            expected = convolve_weight_gradient(x, gy, W, window, groups)
        tolerance = 1e-1 if dtype == np.float16 else 1e-4
        np.testing.assert_allclose(out, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_convolution_by_weights_of_any_layout_and_of_integers(case, cores):
    x_shape, W_shape, options = case
    groups = options.get("groups", 1)
    window = windows("test", x_shape[1:3], W_shape[:2], **{k: v for k, v in options.items() if k != "groups"})
    W = normal(*W_shape, seed=1)
    for layout in (W[::-1, ::-1], np.asfortranarray(W), np.repeat(W, 2, axis=3)[..., ::2]):
        x, gy = normal(*x_shape), normal(x_shape[0], *window.out, W_shape[3], seed=2)
        with kernels.use_fast(False):
            expected = (
                convolve(x, layout, window, groups),
                convolve_input_gradient(gy, layout, window, groups),
            )
        np.testing.assert_allclose(convolve(x, layout, window, groups), expected[0], atol=1e-12)
        np.testing.assert_allclose(
            convolve_input_gradient(gy, layout, window, groups), expected[1], atol=1e-12
        )
    same(convolve, (9 * x).astype(int), (9 * W).astype(int), window, groups)


@pytest.mark.parametrize("n", [1, 3, 70])
def test_products(n, cores):
    for dtype in (np.float64, np.float32):
        x, W, gy = normal(n, 50, dtype=dtype), normal(50, 31, dtype=dtype), normal(n, 31, dtype=dtype)
        same(product, x, W)
        same(product_input_gradient, gy, W)
        same(product_weight_gradient, x, gy)
        same(product_weight_gradient, x, gy, np.empty((50, 31), dtype))
        same(sum_rows, gy)
        same(sum_rows, gy, np.empty(31, dtype))
        same(sum_rows, gy.reshape(n, 1, 31))
        same(add_bias, gy.copy(), W[0])


def test_rectifier(cores):
    x, gy = normal(7, 5, 9), normal(7, 5, 9, seed=1)
    x[0] = 0
    x[1] = np.nan
    for a in (x, x[:, ::2]):
        same(rectify, np.nan_to_num(a))
        expected, got = both(rectify, a)
        np.testing.assert_array_equal(got, expected)
        same(rectify_gradient, gy[:, : a.shape[1]], np.nan_to_num(a))


@pytest.mark.parametrize(
    "size, stride, padding, ceil_mode",
    [(3, 2, "same", False), (3, 2, 0, True), (2, 2, 0, False), ((3, 2), (1, 3), ((2, 1), (0, 1)), False)],
)
def test_max_pooling(size, stride, padding, ceil_mode, cores):
    window = pool_windows("test", (7, 6), size, stride, padding, ceil_mode)
    x = np.random.default_rng(0).integers(-2, 2, (5, 7, 6, 3)).astype(float)  # many equal values
    x[0] = -np.inf
    x[1, 2] = np.nan
    (y, tap), (fast_y, fast_tap) = both(max_pool, x, window)
    np.testing.assert_array_equal(fast_y, y)
    np.testing.assert_array_equal(fast_tap, tap)
    gy = normal(*y.shape)
    same(max_pool_gradient, gy, tap, window)


@pytest.mark.parametrize("size, beta, groups", [(5, 0.75, 1), (5, 0.75, 2), (4, 0.6, 1), (3, 0.75, 4)])
def test_local_response_normalisation(size, beta, groups, cores):
    x, gy = 3 * normal(4, 3, 3, 8), normal(4, 3, 3, 8, seed=1)
    same(lrn, x, size, 0.1, beta, 2.0, groups)
    with kernels.use_fast(False):
        _, s = lrn(x, size, 0.1, beta, 2.0, groups)
    same(lrn_gradient, gy, x, s, size, 0.1, beta, groups)


@pytest.mark.parametrize(
    "momentum, nesterov, decay", [(0.9, False, 0.0), (0.9, True, 0.1), (0.0, False, 0.1)]
)
def test_update(momentum, nesterov, decay, cores):
    for transpose in (False, True):

        def update(transpose=transpose):
            w, g, v = (normal(30, 20, seed=s) for s in range(3))
            if transpose:
                g = np.asfortranarray(g)
            momentum_update(w, g, v if momentum else None, 0.1, momentum, nesterov, decay)
            return w, v

        same(update)


@pytest.mark.parametrize(
    "momentum, nesterov, decay", [(0.9, False, 0.0), (0.9, True, 0.1), (0.0, False, 0.1)]
)
def test_update_with_a_gradient_in_factors(momentum, nesterov, decay, cores):
    def update():
        w, x, gy, v = normal(30, 20), normal(4, 30, seed=1), normal(4, 20, seed=2), normal(30, 20, seed=3)
        factored_update(w, x, gy, v if momentum else None, 0.1, momentum, nesterov, decay)
        return w, v

    same(update)


@pytest.mark.parametrize("mean", [True, False])
def test_adaptive_update(mean, cores):
    def update():
        w, g, m = (normal(30, 20, seed=i) for i in range(3))
        v = abs(normal(30, 20, seed=3))
        for rows in (slice(None), (slice(None), slice(1, 9))):  # contiguous, and not
            part = w[rows], g[rows], m[rows] if mean else None, v[rows]
            adaptive_update(*part, 0.1, 0.01, False, 0.9 if mean else 0.0, 0.99, 1e-8, 0.1, 0.01)
        return w, m, v

    same(update)


def test_error_function(cores):
    for dtype in (np.float64, np.float32):
        x = 3 * normal(37, 20, dtype=dtype)
        same(erf_array, x)
        same(erf_array, x[:, ::3])
        same(erf_array, np.array(0.5, dtype))


def test_every_kernel_has_both_implementations():
    assert len(kernels.FAST) >= 16
    for name, module in kernels.FAST.items():
        assert kernels.plain(name).__name__ == name
        assert callable(getattr(getattr(minidnn.fast, module), name))


@pytest.mark.parametrize("value, expected", [("0", "False"), ("1", "True"), (None, "True")])
def test_the_environment_chooses(value, expected):
    code = "from minidnn.backend import kernels; print(kernels.fast_in_use())"
    environment = {k: v for k, v in os.environ.items() if k != "MINIDNN_FAST"}
    if value is not None:
        environment["MINIDNN_FAST"] = value
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == expected


def test_training_is_the_same_step_for_step(cores):
    """A small network with every layer that has a fast kernel, in both."""

    def train():
        params = [
            normal(3, 3, 2, 4),
            normal(4),
            normal(3, 3, 4, 4),
            normal(4),
            normal(36, 5) * 0.1,
            normal(5),
        ]
        tensors = [Tensor(p.copy(), requires_grad=True) for p in params]
        velocities = [np.zeros_like(p) for p in params]
        for step in range(3):
            W1, b1, W2, b2, W3, b3 = tensors
            y = F.relu(F.conv2d(Tensor(normal(4, 6, 6, 2, seed=step)), W1, b1, padding="same"))
            y = F.max_pool2d(F.local_response_norm(y), 3, 2, padding="same")
            y = F.linear(F.flatten(F.relu(F.conv2d(y, W2, b2, padding="same"))), W3, b3)
            F.softmax_cross_entropy(y, np.arange(4)).backward()
            for t, v in zip(tensors, velocities, strict=True):
                momentum_update(t.data, t.grad, v, 0.01, 0.9, False, 0.0)
                t.zero_grad()
        return tuple(t.data for t in tensors)

    same(train)


# -- additions by BLAS -----------------------------------------------------------------------------------------


def layouts(a):
    """The same matrix in memory row by row, column by column, as a part of a larger one, and with holes."""
    wide = np.zeros((a.shape[0], a.shape[1] + 3), a.dtype)
    wide[:, 1:-2] = a
    holes = np.zeros((a.shape[0], 2 * a.shape[1]), a.dtype)
    holes[:, ::2] = a
    return [a.copy(), np.asfortranarray(a), wide[:, 1:-2], holes[:, ::2]]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.longdouble])
def test_adding_a_product(dtype):
    a, b, c = normal(5, 4, dtype=dtype), normal(4, 6, dtype=dtype), normal(5, 6, dtype=dtype)
    expected = 0.5 * c + a @ b
    for x, y, k in itertools.product(layouts(a), layouts(b), range(4)):
        z = layouts(c)[k]
        openblas.add_product(x, y, z, keep=0.5)
        np.testing.assert_allclose(z, expected, rtol=0, atol=1e-5 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64])
def test_nothing_of_what_was_there_is_kept(dtype):
    a, b = (3 * normal(5, 4)).astype(dtype), (3 * normal(4, 1)).astype(dtype)
    anything = np.nan if np.dtype(dtype).kind == "f" else 90
    for x, y, z in itertools.product(layouts(a), layouts(b), layouts(np.full((5, 1), anything, dtype))):
        openblas.add_product(x, y, z, keep=0.0)
        np.testing.assert_allclose(z, a @ b, rtol=1e-2 if dtype == np.float16 else 1e-5)
    for z in layouts(np.full((5, 4), anything, dtype)):
        openblas.add_scaled(a, z, 2.0, keep=0.0)
        np.testing.assert_array_equal(z, 2 * a)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (1, 1, 1)])
def test_adding_a_product_of_any_size(shape):
    m, k, n = shape
    c = np.ones((m, n))
    openblas.add_product(normal(m, k), normal(k, n), c, keep=2.0)
    np.testing.assert_allclose(c, 2 + normal(m, k) @ normal(k, n))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.longdouble])
def test_adding_a_scaled_array(dtype):
    x, y = normal(3, 7, dtype=dtype), normal(3, 7, dtype=dtype, seed=1)
    expected = 0.5 * y - 2 * x
    for a, k in itertools.product(layouts(x), range(4)):
        b = layouts(y)[k]
        openblas.add_scaled(a, b, -2.0, keep=0.5)
        np.testing.assert_allclose(b, expected, rtol=0, atol=1e-6 if dtype == np.float32 else 1e-14)
