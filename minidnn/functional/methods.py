"""The operators and methods of `Tensor`, each a function of this package: ``x + y`` is ``add(x, y)``.

What leaves the graph is here, too: ``<`` and its kin, which give raw boolean arrays (``==`` asks whether two
tensors are the same object), `argmax` and `argmin`, which give raw integers, and conversions to NumPy and
Python. In-place operators are refused: ``w -= g`` would not change the tensor but bind the name to another one.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minidnn.functional import activation, arrange, elementwise, math, shape, statistics
from minidnn.functional.linear import matmul
from minidnn.graph import Tensor


def _comparison(compare: Callable[[Any, Any], Any]) -> Callable[[Tensor, Any], Any]:
    return lambda x, y: compare(x.data, y.data if isinstance(y, Tensor) else y)


def _refused(symbol: str) -> Callable[[Tensor, Any], Tensor]:
    def refuse(x: Tensor, y: Any) -> Tensor:
        raise TypeError(
            f"{x.name or 'x'} {symbol}= ... on a tensor would make a new one: call assign(array) to change the "
            f"values in place, or write x = x {symbol} ... for the result of an operation"
        )

    return refuse


def _array(x: Tensor, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    values = x.numpy()
    if x.requires_grad:
        raise TypeError(
            f"NumPy would drop the graph of {x.name or 'a tensor'}: F.concatenate and its kin take tensors, x.data or "
            "x.numpy() has the values alone"
        )
    return np.array(values, dtype=dtype, copy=copy)


def _format(x: Tensor, spec: str) -> str:
    return format(x.item(), spec) if spec else repr(x)


def _iterate(x: Tensor) -> Iterator[Tensor]:
    return (x[i] for i in range(len(x)))


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
    "__rpow__": lambda x, y: math.power(y, x),
    "__matmul__": matmul,
    "__rmatmul__": lambda x, y: matmul(y, x),
    "__neg__": math.neg,
    "__abs__": elementwise.abs,
    "__getitem__": shape.getitem,
    "__lt__": _comparison(operator.lt),
    "__le__": _comparison(operator.le),
    "__gt__": _comparison(operator.gt),
    "__ge__": _comparison(operator.ge),
    "__bool__": lambda x: bool(x.data),
    "__float__": lambda x: float(x.item()),
    "__int__": lambda x: int(x.item()),
    "__format__": _format,
    "__array__": _array,
    "__iter__": _iterate,
    "T": property(shape.transpose),
    "abs": elementwise.abs,
    "exp": elementwise.exp,
    "log": elementwise.log,
    "sqrt": elementwise.sqrt,
    "sum": shape.sum,
    "mean": shape.mean,
    "max": shape.max,
    "min": shape.min,
    "var": statistics.var,
    "std": statistics.std,
    "argmax": lambda x, axis=None: x.data.argmax(axis),
    "argmin": lambda x, axis=None: x.data.argmin(axis),
    "clip": elementwise.clip,
    "astype": elementwise.astype,
    "squeeze": arrange.squeeze,
    "reshape": shape.reshape,
    "transpose": shape.transpose,
    "flatten": shape.flatten,
    "relu": activation.relu,
    "sigmoid": activation.sigmoid,
    "tanh": elementwise.tanh,
    "softmax": activation.softmax,
    "log_softmax": activation.log_softmax,
}

IN_PLACE = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "pow": "**", "matmul": "@"}
METHODS |= {f"__i{_name}__": _refused(_symbol) for _name, _symbol in IN_PLACE.items()}

for _name, _method in METHODS.items():
    setattr(Tensor, _name, _method)
