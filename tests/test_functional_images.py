"""Transposed convolution, means with padding, and normalisation within a sample, by naive references."""

import numpy as np
import pytest

from minidnn import functional as F
from minidnn.tensor import Tensor


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def naive_transposed(x, W, stride, padding, more, dilation, groups):
    """Every pixel times every tap, added where it goes."""
    (n, h, w, _), (kh, kw, ig, o) = x.shape, W.shape
    (sh, sw), (dh, dw), ((t, b), (left, r)) = stride, dilation, padding
    y = np.zeros(
        (n, (h - 1) * sh + (kh - 1) * dh + 1 + more[0], (w - 1) * sw + (kw - 1) * dw + 1 + more[1], o)
    )
    for g in range(groups):
        of, to = slice(g * ig, (g + 1) * ig), slice(g * o // groups, (g + 1) * o // groups)
        for p, q, a, c in np.ndindex(h, w, kh, kw):
            y[:, p * sh + a * dh, q * sw + c * dw, to] += x[:, p, q, of] @ W[a, c, :, to]
    return y[:, t : y.shape[1] - b, left : y.shape[2] - r]


@pytest.mark.parametrize(
    "stride, padding, more, dilation, groups",
    [
        ((1, 1), ((0, 0), (0, 0)), (0, 0), (1, 1), 1),
        ((2, 3), ((1, 0), (0, 2)), (1, 2), (1, 1), 1),
        ((2, 1), ((0, 1), (1, 1)), (0, 0), (2, 1), 2),
        ((4, 4), ((0, 0), (0, 0)), (3, 0), (1, 1), 1),
    ],
)
def test_transposed_convolution(stride, padding, more, dilation, groups):
    x, W, b = normal(2, 3, 4, 4), normal(3, 2, 4 // groups, 6, seed=1), normal(6, seed=2)
    y = F.conv_transpose2d(x, W, b, stride, padding, more, dilation, groups)
    np.testing.assert_allclose(
        y.data, naive_transposed(x, W, stride, padding, more, dilation, groups) + b, atol=1e-12
    )


def test_transposed_convolution_is_the_adjoint_of_the_convolution():
    for padding in ("same", "valid", 1):
        W, z = normal(3, 3, 2, 5), normal(2, 8, 6, 2, seed=1)
        y = F.conv2d(z, W, stride=2, padding=padding)
        x = normal(*y.shape, seed=2)
        more = 1 if padding == 1 else (1, 1) if padding == "valid" else 0
        back = F.conv_transpose2d(x, W.transpose(0, 1, 3, 2), stride=2, padding=padding, output_padding=more)
        assert back.shape == z.shape
        assert (back.data * z).sum() == pytest.approx((x * y.data).sum(), rel=1e-12)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"output_padding": 2, "stride": 2}, r"output_padding=2, expected less than the stride \(2, 2\)"),
        ({"padding": "same", "output_padding": 1, "stride": 2}, "and 0 with padding='same'"),
        ({"groups": 3}, r"got x \(1, 4, 4, 2\), W \(3, 3, 2, 4\), groups 3"),
        ({"groups": 0}, "groups=0, expected an int >= 1"),
        ({"b": np.zeros(2)}, r"got b \(2,\), expected b \(4,\)"),
        ({"padding": 9}, "padding=9 leaves no pixel of the result"),
    ],
)
def test_transposed_convolutions_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        F.conv_transpose2d(normal(1, 4, 4, 2), normal(3, 3, 2, 4), **options)


def test_padding_is_part_of_a_mean_if_asked_for():
    x = np.ones((1, 5, 5, 1))
    y = F.avg_pool2d(x, 3, 2, 1, count_include_pad=True)
    np.testing.assert_allclose(y.data[0, :, :, 0], np.outer([2, 3, 2], [2, 3, 2]) / 9)
    assert (F.avg_pool2d(x, 3, 2, 1).data == 1).all()
    # what ceil_mode adds beyond the padding is no part of it: 4 = 5 + 1 + 1 - 3, and two rows of three are there
    y = F.avg_pool2d(np.ones((1, 6, 6, 1)), 3, 2, 1, ceil_mode=True, count_include_pad=True)
    np.testing.assert_allclose(y.data[0, 0, :, 0] * 9, [4, 6, 6, 3])


@pytest.mark.parametrize("dtype, limit", [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_norms_within_a_sample_by_the_formula(dtype, limit):
    x, gamma, beta = (a.astype(dtype) for a in (normal(3, 4, 2, 6) + 5, normal(6, seed=1), normal(6, seed=2)))
    wide = x.astype(float)
    for groups in (1, 2, 6):
        parts = wide.reshape(3, 8, groups, -1)
        mean, var = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
        expected = ((parts - mean) / np.sqrt(var + 1e-3)).reshape(x.shape) * gamma + beta
        y = F.group_norm(x, gamma, beta, groups, eps=1e-3)
        assert y.dtype == dtype
        np.testing.assert_allclose(y.data, expected, atol=limit)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(
        wide.var(-1, keepdims=True) + 1e-5
    ) * gamma + beta
    np.testing.assert_allclose(F.layer_norm(x, gamma, beta).data, expected, atol=limit)


def test_norms_of_values_far_from_zero():
    """With the mean of the squares in float32, the variance of these would be lost."""
    x = (3000 + normal(1, 40, 40, 4)).astype(np.float32)
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    y = F.group_norm(x, one, zero, 2).data
    assert abs(y.mean()) < 1e-3 and abs(y.var() - 1) < 1e-2


def test_norms_of_no_sample_and_of_channels_that_do_not_divide():
    x = Tensor(np.zeros((0, 2, 2, 4)), requires_grad=True)
    y = F.group_norm(x, np.ones(4), np.zeros(4), 2)
    y.backward(np.zeros(y.shape))
    assert x.grad.shape == x.shape
    with pytest.raises(ValueError, match=r"group_norm: got x \(1, 4\), gamma \(4,\), beta \(4,\), groups 3"):
        F.group_norm(np.ones((1, 4)), np.ones(4), np.zeros(4), 3)
