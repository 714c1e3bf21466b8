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


ARITHMETIC = {
    "add": ("+", math.add),
    "sub": ("-", math.sub),
    "mul": ("*", math.mul),
    "truediv": ("/", math.div),
    "pow": ("**", math.power),
    "matmul": ("@", matmul),
}
SAME_NAME = {
    elementwise: "abs exp log sqrt tanh clip astype",
    shape: "sum mean max min reshape transpose flatten",
    statistics: "var std",
    arrange: "squeeze",
    activation: "relu sigmoid softmax log_softmax",
}
METHODS: dict[str, Any] = {
    "__neg__": math.neg,
    "__abs__": elementwise.abs,
    "__getitem__": shape.getitem,
    "__bool__": lambda x: bool(x.data),
    "__float__": lambda x: float(x.item()),
    "__int__": lambda x: int(x.item()),
    "__format__": _format,
    "__array__": _array,
    "__iter__": _iterate,
    "T": property(shape.transpose),
    "argmax": lambda x, axis=None: x.data.argmax(axis),
    "argmin": lambda x, axis=None: x.data.argmin(axis),
}
METHODS |= {name: getattr(module, name) for module, names in SAME_NAME.items() for name in names.split()}
METHODS |= {f"__{name}__": _comparison(getattr(operator, name)) for name in ("lt", "le", "gt", "ge")}
for _name, (_symbol, _function) in ARITHMETIC.items():
    METHODS[f"__{_name}__"] = _function
    METHODS[f"__r{_name}__"] = lambda x, y, function=_function: function(y, x)
    METHODS[f"__i{_name}__"] = _refused(_symbol)

for _name, _method in METHODS.items():
    setattr(Tensor, _name, _method)
