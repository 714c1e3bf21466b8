"""Losses. Each is a sum over rows divided by `total`, the number of rows of the GLOBAL batch (default: the
rows given): summed over any split of the rows, losses and gradients are those of the whole batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np

from minidnn.backend import array_module, is_array, to_device
from minidnn.functional.activation import sigmoid_array
from minidnn.functional.errors import place, wrong_shape
from minidnn.graph import Function, Tensor, as_tensor

Reduction = Literal["mean", "sum", "none"]


class Loss(Function):
    """L = 1/divisor sum of l, or l itself where `divisor` is None; `values` gives l, `slope` its derivative"""

    saves_inputs = False
    values: Callable[[Any], Any]
    slope: Callable[[], Any]

    def __init__(self, target: Any, divisor: float | None) -> None:
        self.target, self.divisor = target, divisor

    def forward(self, x: Any) -> Any:
        values = self.values(x)
        return values if self.divisor is None else values.sum() / self.divisor

    def backward(self, gy: Any) -> Any:
        return self.slope() * (gy if self.divisor is None else gy / self.divisor)


class BinaryCrossEntropy(Loss):
    """l = -t ln p - (1 - t) ln(1 - p)        p, t of one shape; p kept eps away from 0 and 1"""

    def values(self, p: Any) -> Any:
        xp = array_module(p)
        eps = float(np.finfo(p.dtype).eps)
        self.p = p = xp.clip(p, eps, 1 - eps)
        t = self.target
        return -(t * xp.log(p) + (1 - t) * xp.log1p(-p))

    def slope(self) -> Any:
        p = self.p
        return (p - self.target) / (p * (1 - p))


class BinaryCrossEntropyWithLogits(Loss):
    """l = w |x| + ln(1 + e^-|x|)        w = 1 - t where x > 0, else t: that of sigmoid(x), stable"""

    saves_inputs = True

    def values(self, x: Any) -> Any:
        xp = array_module(x)
        self.x, size = x, abs(x)
        w = xp.where(x > 0, 1 - self.target, self.target)
        return xp.where(w == 0, w, size) * w + xp.log1p(xp.exp(-size))

    def slope(self) -> Any:
        return sigmoid_array(self.x) - self.target


class MeanSquaredError(Loss):
    """l = (y - t)^2        y, t of one shape"""

    def values(self, y: Any) -> Any:
        self.difference = y - self.target
        return self.difference * self.difference

    def slope(self) -> Any:
        return 2 * self.difference


class MeanAbsoluteError(MeanSquaredError):
    """l = |y - t|        y, t of one shape"""

    def values(self, y: Any) -> Any:
        self.difference = y - self.target
        return abs(self.difference)

    def slope(self) -> Any:
        return array_module(self.difference).sign(self.difference)


class Huber(Loss):
    """l = d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2)        d = y - t"""

    def __init__(self, target: Any, divisor: float | None, delta: float) -> None:
        super().__init__(target, divisor)
        self.delta = delta

    def values(self, y: Any) -> Any:
        difference = y - self.target
        self.clipped = array_module(y).clip(difference, -self.delta, self.delta)
        return self.clipped * (difference - self.clipped / 2)

    def slope(self) -> Any:
        return self.clipped


def binary_cross_entropy(
    p: Any, target: Any, total: float | None = None, from_logits: bool = False, reduction: Reduction = "mean"
) -> Tensor:
    """Binary cross-entropy, eq. 2.5-2.6 of the thesis; values of a row are added up (its eq. 2.7).

    Parameters
    ----------
    p : Tensor (n, ...)
        Probabilities of class 1; with `from_logits` their logits, which is stable for any value.
    target : array of the same shape and dtype
        In 0 ... 1. No gradient goes to it.
    total : float, optional
        Rows of the global batch; n if None.
    reduction : "mean", "sum" or "none"
        Divided by `total`, added up, or each value's own.
    """
    p = rows_of("binary_cross_entropy", p)
    kind = BinaryCrossEntropyWithLogits if from_logits else BinaryCrossEntropy
    return kind(target_for("binary_cross_entropy", target, p), divisor(reduction, total, len(p)))(p)


def mean_squared_error(
    y: Any, target: Any, total: float | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Mean squared error of y (n, ...), eq. 2.1 of the thesis; the mean is over all values, of all rows.

    Other parameters as for `binary_cross_entropy`.
    """
    return _of_difference("mean_squared_error", MeanSquaredError, y, target, total, reduction)


def mean_absolute_error(
    y: Any, target: Any, total: float | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """L1 loss: |y - target|, with gradient 0 where they are equal. Parameters as for `mean_squared_error`."""
    return _of_difference("mean_absolute_error", MeanAbsoluteError, y, target, total, reduction)


def huber(
    y: Any, target: Any, delta: float = 1.0, total: float | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """d^2 / 2 for differences |d| <= `delta`, delta (|d| - delta / 2) beyond (Huber 1964).

    Other parameters as for `mean_squared_error`.
    """
    if not delta > 0:
        raise ValueError(f"{place('huber')}: delta={delta}, expected a positive number")
    return _of_difference("huber", partial(Huber, delta=float(delta)), y, target, total, reduction)


def _of_difference(operation: str, kind: Any, y: Any, target: Any, total: Any, reduction: Reduction) -> Any:
    """A loss of y - target, whose mean is over all values."""
    y = rows_of(operation, y)
    features = y.size // max(len(y), 1) or 1
    return kind(target_for(operation, target, y), divisor(reduction, total, len(y), features))(y)


def divisor(reduction: Reduction, total: float | None, rows: float, features: int = 1) -> float | None:
    """What the sum of a loss is divided by, as a Python float, which never widens the dtype; None: no sum."""
    if reduction != "mean" and (total is not None or reduction not in ("sum", "none")):
        expected = "'mean', or without a total 'sum' or 'none'"
        raise ValueError(f"{place('loss')}: reduction={reduction!r} with total={total}, expected {expected}")
    total = float(rows if total is None else total)
    if reduction == "mean" and not total > 0:
        raise ValueError(f"{place('loss')}: total={total}, expected a positive number of rows")
    return {"mean": total * features, "sum": 1.0, "none": None}[reduction]


def rows_of(operation: str, y: Any) -> Tensor:
    """What a loss is computed of, as a tensor: rows of floating-point numbers."""
    y = as_tensor(y)
    if y.dtype.kind != "f":
        raise TypeError(f"{place(operation)}: got dtype {y.dtype}, expected float32 or float64")
    if not y.shape:
        raise wrong_shape(operation, "one number, shape ()", "rows, shape (n, ...)")
    return y


def target_for(operation: str, target: Any, y: Any, name: str = "target") -> Any:
    """A target array for `y`, checked; Python lists take the dtype of `y`."""
    if isinstance(target, Tensor):
        target = target.data
    if not is_array(target):
        target = np.asarray(target, dtype=y.dtype)
    if target.shape != y.shape:
        raise wrong_shape(operation, f"{name} {target.shape}", f"{name} {y.shape}")
    if target.dtype != y.dtype:
        hint = f"use {name}.astype(np.{y.dtype})"
        raise TypeError(f"{place(operation)}: {name} of dtype {target.dtype} for {y.dtype}; {hint}")
    return beside(target, y)


def beside(array: Any, y: Any) -> Any:
    """`array` in the memory where tensor `y` is: a copy, for backward reads it, and its owner may change it."""
    xp = array_module(y.data)
    return xp.array(to_device(array, xp))
