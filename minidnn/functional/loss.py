"""Losses. Each is a sum over rows divided by `total`, the number of rows of the GLOBAL batch (default: the
rows given): summed over any split of the rows, losses and gradients are those of the whole batch.
"""

from typing import Any

import numpy as np

from minidnn.backend import array_module, is_array, to_host
from minidnn.functional.activation import sigmoid_array
from minidnn.functional.errors import place, wrong_shape
from minidnn.graph import Function, Tensor, as_tensor


class SoftmaxCrossEntropy(Function):
    """L = -1/total sum_n sum_c t[n, c] ln softmax(x)[n, c]        x (n, c)   t (n, c), or labels (n,)"""

    saves_inputs = False

    def __init__(self, target: Any, total: float) -> None:
        self.target, self.total = target, total

    def forward(self, x: Any) -> Any:
        xp = array_module(x)
        t = self.target
        z = x - x.max(axis=1, keepdims=True)
        p = xp.exp(z)
        s = p.sum(axis=1, keepdims=True)
        p /= s
        self.p = p
        if t.ndim == 2:
            loss = (xp.log(s) * t.sum(axis=1, keepdims=True)).sum() - (xp.where(t == 0, t, z) * t).sum()
        else:
            self.rows = xp.arange(len(t))
            loss = xp.log(s).sum() - z[self.rows, t].sum()
        return loss / self.total

    def backward(self, gy: Any) -> Any:
        gx, t = self.p, self.target
        if t.ndim == 2:
            gx *= t.sum(axis=1, keepdims=True)
            gx -= t
        else:
            gx[self.rows, t] -= 1
        gx *= gy / self.total
        return gx


class BinaryCrossEntropy(Function):
    """L = -1/total sum (t ln p + (1 - t) ln(1 - p))        p, t of one shape; p kept eps away from 0 and 1"""

    saves_inputs = False

    def __init__(self, target: Any, total: float) -> None:
        self.target, self.total = target, total

    def forward(self, p: Any) -> Any:
        xp = array_module(p)
        eps = float(np.finfo(p.dtype).eps)
        self.p = p = xp.clip(p, eps, 1 - eps)
        t = self.target
        return -(t * xp.log(p) + (1 - t) * xp.log1p(-p)).sum() / self.total

    def backward(self, gy: Any) -> Any:
        p = self.p
        return (p - self.target) / (p * (1 - p)) * (gy / self.total)


class BinaryCrossEntropyWithLogits(Function):
    """L = 1/total sum (w |x| + ln(1 + e^-|x|))        w = 1 - t where x > 0, else t: that of sigmoid(x), stable"""

    def __init__(self, target: Any, total: float) -> None:
        self.target, self.total = target, total

    def forward(self, x: Any) -> Any:
        xp = array_module(x)
        self.x, size = x, abs(x)
        w = xp.where(x > 0, 1 - self.target, self.target)
        return (xp.where(w == 0, w, size) * w + xp.log1p(xp.exp(-size))).sum() / self.total

    def backward(self, gy: Any) -> Any:
        return (sigmoid_array(self.x) - self.target) * (gy / self.total)


class MeanSquaredError(Function):
    """L = 1/(total f) sum (y - t)^2        y, t (n, ...) of f values a row"""

    saves_inputs = False

    def __init__(self, target: Any, total: float) -> None:
        self.target, self.total = target, total

    def forward(self, y: Any) -> Any:
        self.difference = y - self.target
        self.divisor = self.total * (y.size // max(len(y), 1) or 1)
        return (self.difference * self.difference).sum() / self.divisor

    def backward(self, gy: Any) -> Any:
        return self.difference * (gy * (2 / self.divisor))


def softmax_cross_entropy(logits: Any, labels: Any, total: float | None = None) -> Tensor:
    """Cross-entropy of softmax(logits), stable: each row is shifted by its own maximum.

    Parameters
    ----------
    logits : Tensor (n, c)
    labels : int array (n,) of classes, or array (n, c) of probabilities in the dtype of `logits`
        No gradient goes to them. Labels in host memory are checked and moved to the logits' device.
    total : float, optional
        Rows of the global batch; n if None.

    Returns
    -------
    Tensor ()

    Raises
    ------
    ValueError
        Wrong shapes, or a label outside 0 ... c - 1.
    TypeError
        Probabilities of another dtype than the logits.
    """
    logits = _values("softmax_cross_entropy", logits)
    if len(logits.shape) != 2:
        raise wrong_shape("softmax_cross_entropy", f"logits {logits.shape}", "logits (n, c)")
    n, c = logits.shape
    labels = labels.data if isinstance(labels, Tensor) else labels if is_array(labels) else np.asarray(labels)
    if labels.dtype.kind in "iu":
        if labels.shape != (n,):
            raise wrong_shape("softmax_cross_entropy", f"labels {labels.shape}", f"labels ({n},)")
        if isinstance(labels, np.ndarray) and n:
            low, high = labels.min(), labels.max()
            if low < 0 or high >= c:
                bad = int(low if low < 0 else high)
                raise ValueError(f"{place('softmax_cross_entropy')}: label {bad} outside 0 ... {c - 1}")
        target = _beside(labels, logits)
    elif labels.shape == (n,):
        raise TypeError(
            f"{place('softmax_cross_entropy')}: labels of dtype {labels.dtype}, expected integers"
        )
    else:
        target = _target("softmax_cross_entropy", labels, logits)
    return SoftmaxCrossEntropy(target, _total(total, n))(logits)


def binary_cross_entropy(
    p: Any, target: Any, total: float | None = None, from_logits: bool = False
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
    """
    p = _values("binary_cross_entropy", p)
    kind = BinaryCrossEntropyWithLogits if from_logits else BinaryCrossEntropy
    return kind(_target("binary_cross_entropy", target, p), _total(total, len(p)))(p)


def mean_squared_error(y: Any, target: Any, total: float | None = None) -> Tensor:
    """Mean squared error, eq. 2.1 of the thesis; the mean is over all values, of all rows.

    Parameters
    ----------
    y : Tensor (n, ...)
    target : array of the same shape and dtype
        No gradient goes to it.
    total : float, optional
        Rows of the global batch; n if None.
    """
    y = _values("mean_squared_error", y)
    return MeanSquaredError(_target("mean_squared_error", target, y), _total(total, len(y)))(y)


def _total(total: float | None, rows: int) -> float:
    """As a Python float, which never widens the dtype of a loss."""
    total = float(rows if total is None else total)
    if not total > 0:
        raise ValueError(f"{place('loss')}: total={total}, expected a positive number of rows")
    return total


def _values(operation: str, y: Any) -> Tensor:
    """What a loss is computed of, as a tensor: rows of floating-point numbers."""
    y = as_tensor(y)
    if y.dtype.kind != "f":
        raise TypeError(f"{place(operation)}: got dtype {y.dtype}, expected float32 or float64")
    if not y.shape:
        raise wrong_shape(operation, "one number, shape ()", "rows, shape (n, ...)")
    return y


def _target(operation: str, target: Any, y: Any) -> Any:
    """A target array for `y`, checked; Python lists take the dtype of `y`."""
    if isinstance(target, Tensor):
        target = target.data
    if not is_array(target):
        target = np.asarray(target, dtype=y.dtype)
    if target.shape != y.shape:
        raise wrong_shape(operation, f"target {target.shape}", f"target {y.shape}")
    if target.dtype != y.dtype:
        raise TypeError(
            f"{place(operation)}: target of dtype {target.dtype} for {y.dtype}; use target.astype(np.{y.dtype})"
        )
    return _beside(target, y)


def _beside(array: Any, y: Any) -> Any:
    """`array` in the memory where tensor `y` is."""
    xp = array_module(y.data)
    return to_host(array) if xp is np else xp.asarray(array)
