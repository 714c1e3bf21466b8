"""Differentiable operations, by theme. Images are (n, h, w, c); features come last, in weights too."""

from minidnn.functional import methods  # noqa: F401 - gives Tensor its operators
from minidnn.functional.activation import gelu, leaky_relu, log_softmax, relu, sigmoid, silu, softmax
from minidnn.functional.arrange import expand_dims, pad, split, squeeze, stack
from minidnn.functional.conv import conv2d
from minidnn.functional.conv_transpose import conv_transpose2d
from minidnn.functional.cross_entropy import softmax_cross_entropy
from minidnn.functional.dropout import dropout
from minidnn.functional.einsum import einsum
from minidnn.functional.elementwise import (
    abs,
    astype,
    clip,
    cos,
    erf,
    exp,
    expm1,
    log,
    log1p,
    maximum,
    minimum,
    sign,
    sin,
    sqrt,
    tanh,
    where,
)
from minidnn.functional.embedding import embedding
from minidnn.functional.group_norm import group_norm, layer_norm
from minidnn.functional.linear import linear, matmul
from minidnn.functional.loss import binary_cross_entropy, huber, mean_absolute_error, mean_squared_error
from minidnn.functional.math import add, div, mul, neg, power, sub
from minidnn.functional.normalize import batch_norm, batch_norm_inference, local_response_norm
from minidnn.functional.pool import avg_pool2d, max_pool2d
from minidnn.functional.shape import concatenate, flatten, getitem, max, mean, min, reshape, sum, transpose
from minidnn.functional.statistics import logsumexp, std, var

__all__ = [
    "abs", "add", "astype", "avg_pool2d", "batch_norm", "batch_norm_inference", "binary_cross_entropy",
    "clip", "concatenate", "conv2d", "conv_transpose2d", "cos", "div", "dropout", "einsum", "embedding",
    "erf", "exp", "expand_dims", "expm1", "flatten", "gelu", "getitem", "group_norm", "huber", "layer_norm",
    "leaky_relu", "linear", "local_response_norm", "log", "log1p", "log_softmax", "logsumexp", "matmul",
    "max", "max_pool2d", "maximum", "mean", "mean_absolute_error", "mean_squared_error", "min", "minimum",
    "mul", "neg", "pad", "power", "relu", "reshape", "sigmoid", "sign", "silu", "sin", "softmax",
    "softmax_cross_entropy", "split", "sqrt", "squeeze", "stack", "std", "sub", "sum", "tanh", "transpose",
    "var", "where",
]  # fmt: skip
