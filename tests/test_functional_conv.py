"""Convolution and pooling against loops over every output value."""

import itertools

import numpy as np
import pytest

from minidnn import functional as F
from minidnn.functional import conv
from minidnn.functional.geometry import windows
from minidnn.tensor import Tape, Tensor, no_grad


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def geometry(n, k, s, padding, d=1, ceil_mode=False):
    """(outputs, pixels before, pixels after) along one axis, from the definitions."""
    extent = d * (k - 1) + 1
    if padding == "same":
        out = int(np.ceil(n / s))
        total = max(0, (out - 1) * s + extent - n)
        return out, total // 2, total - total // 2
    before, after = padding
    out = 0
    while True:  # window `out` covers out s ... out s + extent - 1 of the padded axis
        start, stop = out * s, out * s + extent
        whole = stop <= n + before + after
        partial = ceil_mode and start < n + before and out > 0 and stop - s < n + before + after
        if not (whole or partial):
            return out, before, after
        out += 1


def sides(padding, axis):
    if isinstance(padding, str):
        return "same" if padding == "same" else (0, 0)
    if isinstance(padding, int):
        return padding, padding
    return padding[axis] if isinstance(padding[0], tuple) else (padding[axis],) * 2


def pair(v):
    return v if isinstance(v, tuple) else (v, v)


def taps(shape, kernel, stride, padding, dilation=1, ceil_mode=False):
    """For each output pixel the (tap row, tap column, image row, image column) inside the image."""
    (h, w), k, s, d = shape, pair(kernel), pair(stride), pair(dilation)
    (oh, top, _), (ow, left, _) = (
        geometry(n, k[a], s[a], sides(padding, a), d[a], ceil_mode) for a, n in enumerate((h, w))
    )
    found = {}
    for p, q in itertools.product(range(oh), range(ow)):
        found[p, q] = [
            (i, j, p * s[0] + i * d[0] - top, q * s[1] + j * d[1] - left)
            for i, j in itertools.product(range(k[0]), range(k[1]))
            if 0 <= p * s[0] + i * d[0] - top < h and 0 <= q * s[1] + j * d[1] - left < w
        ]
    return oh, ow, found


def conv_by_loops(x, W, b, gy_of, stride, padding, dilation, groups):
    """y, gx, gW, gb, one multiplication at a time over pixels and channels (vectorised over the batch)."""
    n, h, w, c = x.shape
    kh, kw, cg, o = W.shape
    oh, ow, found = taps((h, w), (kh, kw), stride, padding, dilation)
    y = np.zeros((n, oh, ow, o)) + b
    of = [(to, (to // (o // groups)) * cg + ci, ci) for to in range(o) for ci in range(cg)]
    for (p, q), inside in found.items():
        for i, j, r, t in inside:
            for to, channel, ci in of:
                y[:, p, q, to] += x[:, r, t, channel] * W[i, j, ci, to]
    gy = gy_of(y.shape)
    gx, gW = np.zeros_like(x), np.zeros_like(W)
    for (p, q), inside in found.items():
        for i, j, r, t in inside:
            for to, channel, ci in of:
                gx[:, r, t, channel] += gy[:, p, q, to] * W[i, j, ci, to]
                gW[i, j, ci, to] += gy[:, p, q, to] @ x[:, r, t, channel]
    return y, gx, gW, gy.sum((0, 1, 2))


CONVOLUTIONS = [
    # x (h, w, c), W (kh, kw, o), options
    ((5, 6, 3), (3, 3, 2), {}),
    ((5, 6, 3), (1, 1, 4), {}),
    ((5, 6, 2), (3, 2, 3), {"padding": 1}),
    ((4, 5, 2), (3, 3, 2), {"padding": 4}),
    ((5, 6, 2), (2, 4, 3), {"padding": "same"}),
    ((7, 6, 2), (3, 2, 3), {"padding": "same", "stride": 2}),
    ((11, 11, 2), (5, 5, 2), {"padding": "same", "stride": 4}),
    ((2, 3, 2), (5, 4, 2), {"padding": "same"}),
    ((8, 7, 2), (3, 3, 2), {"stride": (3, 2), "padding": "valid"}),
    ((8, 9, 2), (2, 3, 2), {"stride": (2, 4), "padding": ((1, 0), (0, 2))}),
    ((8, 9, 2), (3, 2, 2), {"dilation": (2, 3)}),
    ((8, 9, 2), (3, 2, 2), {"dilation": (2, 3), "stride": 2, "padding": "same"}),
    ((8, 9, 2), (3, 2, 2), {"dilation": 2, "padding": ((0, 1), (4, 2))}),
    ((5, 5, 4), (3, 3, 6), {"groups": 2, "padding": 1}),
    ((6, 5, 6), (3, 2, 3), {"groups": 3, "stride": 2, "padding": (1, 0)}),
    ((5, 5, 4), (3, 3, 4), {"groups": 4}),
    ((2, 2, 2), (3, 3, 2), {"stride": 5, "padding": 1}),
    ((5, 5, 2), (1, 1, 2), {"stride": 2}),
]


@pytest.mark.parametrize("shape, kernel, options", CONVOLUTIONS)
def test_conv2d_equals_loops(shape, kernel, options):
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
    *size, o = kernel
    arrays = normal(2, *shape), normal(*size, shape[2] // options["groups"], o, seed=1), normal(o, seed=2)
    expected = conv_by_loops(*arrays, lambda s: normal(*s, seed=3), **options)
    x, W, b = (Tensor(a, requires_grad=True) for a in arrays)
    y = F.conv2d(x, W, b, **options)
    y.backward(normal(*y.shape, seed=3))
    for got, want in zip((y.data, x.grad, W.grad, b.grad), expected, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_conv2d_skips_the_gradient_of_its_input_where_nobody_wants_it(monkeypatch):
    monkeypatch.setattr(conv, "convolve_input_gradient", lambda *_: pytest.fail("gx was computed"))
    W = Tensor(normal(3, 3, 2, 4), requires_grad=True)
    F.conv2d(Tensor(normal(1, 5, 5, 2)), W).sum().backward()
    assert W.grad is not None


def test_conv2d_writes_the_weight_gradient_into_its_buffer():
    x, W, b = Tensor(normal(2, 6, 6, 4)), Tensor(normal(3, 3, 2, 4), True), Tensor(normal(4), True)
    F.conv2d(x, W, b, groups=2).sum().backward()
    expected = W.grad, b.grad
    W.grad = b.grad = None
    W.grad_buffer, b.grad_buffer = np.full(W.shape, np.nan), np.full(4, np.nan)
    F.conv2d(x, W, b, groups=2).sum().backward()
    for t, gradient in zip((W, b), expected, strict=True):
        assert t.grad is t.grad_buffer
        np.testing.assert_array_equal(t.grad, gradient)


def test_conv2d_of_no_image():
    x, W = Tensor(np.zeros((0, 5, 5, 2)), True), Tensor(normal(3, 3, 2, 4), True)
    y = F.max_pool2d(F.conv2d(x, W, stride=2), 2)
    assert y.shape == (0, 1, 1, 4)
    y.sum().backward()
    assert x.grad.shape == (0, 5, 5, 2) and not W.grad.any()


def pool_by_loops(x, kind, gy_of, size, stride, padding, ceil_mode):
    oh, ow, found = taps(x.shape[1:3], size, stride, padding, 1, ceil_mode)
    y, gx = np.zeros((len(x), oh, ow, x.shape[3])), np.zeros_like(x)
    gy = gy_of(y.shape)
    for (p, q), inside in found.items():
        for image, channel in itertools.product(range(len(x)), range(x.shape[3])):
            values = [x[image, r, t, channel] for _, _, r, t in inside]
            if kind == "max":
                y[image, p, q, channel] = max(values)
                _, _, r, t = inside[values.index(max(values))]
                gx[image, r, t, channel] += gy[image, p, q, channel]
            else:
                y[image, p, q, channel] = sum(values) / len(values)
                for _, _, r, t in inside:
                    gx[image, r, t, channel] += gy[image, p, q, channel] / len(values)
    return y, gx


POOLS = [
    ((6, 8), 2, None, {}),
    ((7, 7), 3, 2, {}),
    ((6, 8), 3, 2, {}),
    ((6, 7), 3, 1, {}),
    ((6, 8), (2, 3), (3, 1), {}),
    ((6, 8), 2, 3, {}),
    ((6, 8), 3, 2, {"padding": 1}),
    ((6, 7), 3, 2, {"padding": "same"}),
    ((5, 5), 4, 1, {"padding": "same"}),
    ((6, 8), 3, 2, {"ceil_mode": True}),
    ((6, 8), 2, 3, {"ceil_mode": True}),
    ((5, 5), 3, 3, {"padding": 1, "ceil_mode": True}),
    ((6, 8), (3, 2), (2, 3), {"padding": ((0, 2), (1, 0)), "ceil_mode": True}),
    ((20, 18), 17, 3, {"padding": "same"}),
]


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("size, kernel, stride, options", POOLS)
def test_pooling_equals_loops(kind, size, kernel, stride, options):
    options = {"padding": 0, "ceil_mode": False} | options
    values = -1 - abs(normal(2, *size, 2))  # all negative: a padding of zeros would win
    y, gx = pool_by_loops(values, kind, lambda s: normal(*s, seed=1), kernel, stride or kernel, **options)
    x = Tensor(values, requires_grad=True)
    got = getattr(F, f"{kind}_pool2d")(x, kernel, stride, **options)
    assert got.shape == y.shape
    np.testing.assert_allclose(got.data, y, atol=1e-14)
    got.backward(normal(*y.shape, seed=1))
    np.testing.assert_allclose(x.grad, gx, atol=1e-14)


def test_of_equal_values_the_first_wins():
    x = Tensor(np.zeros((1, 4, 4, 1)), requires_grad=True)
    F.max_pool2d(x, 2).backward(np.arange(1.0, 5).reshape(1, 2, 2, 1))
    expected = np.zeros((4, 4))
    expected[::2, ::2] = [[1, 2], [3, 4]]
    np.testing.assert_array_equal(x.grad[0, :, :, 0], expected)


def test_max_pool_keeps_one_byte_per_output_for_backward():
    with Tape() as tape:
        F.max_pool2d(Tensor(normal(2, 8, 8, 3), requires_grad=True), 3, 2)
    (node,) = tape.nodes
    arrays = [v for v in vars(node).values() if isinstance(v, np.ndarray)]
    assert [(a.dtype, a.shape) for a in arrays] == [(np.uint8, (2, 3, 3, 3))]


def test_max_pool_lets_a_nan_through():
    x = normal(1, 4, 4, 1)
    x[0, 1, 2, 0] = np.nan
    with no_grad():
        y = F.max_pool2d(x, 2).data[0, :, :, 0]
    np.testing.assert_array_equal(np.isnan(y), [[False, True], [False, False]])


@pytest.mark.parametrize("n", range(1, 10))
def test_window_sizes(n):
    paddings = (0, 0), (1, 1), (0, 2), (2, 0), "same"
    for k, s, padding, d, ceil_mode in itertools.product(
        (1, 2, 3, 5), (1, 2, 3), paddings, (1, 2), (False, True)
    ):
        given = padding if padding == "same" else (padding, padding)
        extent = (k - 1) * d + 1
        if padding != "same" and extent > n + sum(padding):
            with pytest.raises(ValueError, match="does not fit"):
                windows("op", (n, n), k, s, given, d, ceil_mode)
            continue
        out, before, _ = geometry(n, k, s, padding, d, ceil_mode)
        window = windows("op", (n, n), k, s, given, d, ceil_mode)
        assert window.out == (out, out) and window.padding[0][0] == before, (k, s, padding, d, ceil_mode)
        assert (out - 1) * s + extent <= window.padded[0]  # the last window is inside


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda x: F.conv2d(x, np.zeros((3, 3, 4, 2))),
            r"conv2d: got x \(1, 5, 5, 2\), W \(3, 3, 4, 2\), groups 1",
        ),
        (lambda x: F.conv2d(x, np.zeros((3, 3, 1, 3)), groups=2), "o divisible by groups"),
        (lambda x: F.conv2d(x, np.zeros((3, 3, 2, 3)), np.zeros(2)), r"got b \(2,\), expected b \(3,\)"),
        (
            lambda x: F.conv2d(x, np.zeros((6, 6, 2, 3))),
            "6x6 with dilation .* does not fit in an image of 5x5",
        ),
        (lambda x: F.conv2d(x, np.zeros((3, 3, 2, 3)), dilation=3), "does not fit"),
        (lambda x: F.conv2d(x, np.zeros((3, 3, 2, 3)), stride=0), "stride=0, expected an int >= 1"),
        (lambda x: F.conv2d(x, np.zeros((3, 3, 2, 3)), padding="full"), "'same', 'valid' or numbers"),
        (lambda x: F.conv2d(x, np.zeros((3, 3, 2, 3)), padding=-1), "padding=-1"),
        (lambda x: F.conv2d(x, np.zeros((3, 3, 2, 3)), groups=0), "groups=0"),
        (lambda x: F.conv2d(x[0], np.zeros((3, 3, 2, 3))), r"x \(n, h, w, c\)"),
        (lambda x: F.max_pool2d(x, 6), "max_pool2d: a window of 6x6 .* does not fit"),
        (lambda x: F.max_pool2d(x, 2, padding=2), "leaves a window of 2 without a pixel"),
        (lambda x: F.avg_pool2d(x, 1, 3, padding=((0, 2), (0, 2))), "without a pixel"),
        (lambda x: F.avg_pool2d(x[0], 2), r"avg_pool2d: got x \(5, 5, 2\)"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(Tensor(normal(1, 5, 5, 2)))
