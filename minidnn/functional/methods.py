"""The operators and methods of `Tensor`, each a function of this package: ``x + y`` is ``add(x, y)``."""

from typing import Any

from minidnn.functional import activation, math, shape
from minidnn.functional.linear import matmul
from minidnn.tensor import Tensor

METHODS: dict[str, Any] = {
    "__add__": math.add,
    "__radd__": lambda x, y: math.add(y, x),
    "__sub__": math.sub,
    "__rsub__": lambda x, y: math.sub(y, x),
    "__mul__": math.mul,
    "__rmul__": lambda x, y: math.mul(y, x),
    "__truediv__": math.div,
    "__rtruediv__": lambda x, y: math.div(y, x),
    "__pow__": math.power,
    "__matmul__": matmul,
    "__rmatmul__": lambda x, y: matmul(y, x),
    "__neg__": math.neg,
    "__getitem__": shape.getitem,
    "T": property(shape.transpose),
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "sum": shape.sum,
    "mean": shape.mean,
    "max": shape.max,
    "reshape": shape.reshape,
    "transpose": shape.transpose,
    "flatten": shape.flatten,
    "relu": activation.relu,
    "sigmoid": activation.sigmoid,
    "tanh": activation.tanh,
    "softmax": activation.softmax,
    "log_softmax": activation.log_softmax,
}

for _name, _method in METHODS.items():
    setattr(Tensor, _name, _method)
