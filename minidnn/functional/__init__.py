"""Differentiable operations, by theme. Images are (n, h, w, c); features come last, in weights too."""

from minidnn.functional import methods  # noqa: F401 - gives Tensor its operators
from minidnn.functional.activation import log_softmax, relu, sigmoid, softmax, tanh
from minidnn.functional.conv import conv2d
from minidnn.functional.dropout import dropout
from minidnn.functional.linear import linear, matmul
from minidnn.functional.loss import binary_cross_entropy, mean_squared_error, softmax_cross_entropy
from minidnn.functional.math import abs, add, div, exp, log, mul, neg, power, sqrt, sub
from minidnn.functional.normalize import batch_norm, batch_norm_inference, local_response_norm
from minidnn.functional.pool import avg_pool2d, max_pool2d
from minidnn.functional.shape import concatenate, flatten, getitem, max, mean, reshape, sum, transpose

__all__ = [
    "abs",
    "add",
    "avg_pool2d",
    "batch_norm",
    "batch_norm_inference",
    "binary_cross_entropy",
    "concatenate",
    "conv2d",
    "div",
    "dropout",
    "exp",
    "flatten",
    "getitem",
    "linear",
    "local_response_norm",
    "log",
    "log_softmax",
    "matmul",
    "max",
    "max_pool2d",
    "mean",
    "mean_squared_error",
    "mul",
    "neg",
    "power",
    "relu",
    "reshape",
    "sigmoid",
    "softmax",
    "softmax_cross_entropy",
    "sqrt",
    "sub",
    "sum",
    "tanh",
    "transpose",
]
