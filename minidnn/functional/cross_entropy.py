"""Softmax cross-entropy, of labels or probabilities, with weights of classes, ignored rows and smoothing."""

from math import prod
from typing import Any

import numpy as np

from minidnn.backend import array_module, is_array
from minidnn.functional.errors import place, wrong_shape
from minidnn.functional.loss import Loss, Reduction, beside, divisor, rows_of, target_for
from minidnn.functional.shape import reshape
from minidnn.graph import Tensor


class SoftmaxCrossEntropy(Loss):
    """l[n] = -sum_c t[n, c] ln softmax(x)[n, c]        x (n, c)   t (n, c), or labels (n,)"""

    def values(self, x: Any) -> Any:
        xp = array_module(x)
        t = self.target
        z = x - x.max(axis=1, keepdims=True)
        p = xp.exp(z)
        s = p.sum(axis=1, keepdims=True)
        p /= s
        self.p = p
        if t.ndim == 2:
            z[t == 0] = 0  # where a logit is -inf, too
            z *= t
            return xp.log(s)[:, 0] * t.sum(axis=1) - z.sum(axis=1)
        self.rows = xp.arange(len(t))
        return xp.log(s)[:, 0] - z[self.rows, t]

    def backward(self, gy: Any) -> Any:
        gx, t = self.p, self.target
        if t.ndim == 2:
            gx *= t.sum(axis=1, keepdims=True)
            gx -= t
        else:
            gx[self.rows, t] -= 1
        gx *= gy[:, None] if self.divisor is None else gy / self.divisor
        return gx


def softmax_cross_entropy(
    logits: Any,
    labels: Any,
    total: float | None = None,
    weights: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of softmax(logits), stable: each row is shifted by its own maximum.

    Parameters
    ----------
    logits : Tensor (..., c)
        All axes but the last are rows.
    labels : int array (...) of classes, or array (..., c) of probabilities in the dtype of `logits`
        No gradient goes to them. Labels in host memory are checked and moved to the logits' device.
    total : float, optional
        Rows of the global batch, counted as below; those of this batch if None.
    weights : array (c,), optional
        Of the classes: what the loss of a row of each class is multiplied with, and counts in `total`.
    ignore_index : int, optional
        A label whose rows have no loss, and are not counted in `total`.
    label_smoothing : float
        The share s of every target that goes to all classes alike (Szegedy et al. 2016, sec. 7).
    reduction : "mean", "sum" or "none"
        Divided by `total`, added up, or each row's own.

    Returns
    -------
    Tensor (), or (...) for "none"

    Raises
    ------
    ValueError, TypeError
        Wrong shapes or dtypes, an option out of range, or a label outside 0 ... c - 1.
    """
    operation = "softmax_cross_entropy"
    logits = rows_of(operation, logits)
    if logits.ndim < 2:
        raise wrong_shape(operation, f"logits {logits.shape}", "logits (n, c) or (n, ..., c)")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{place(operation)}: label_smoothing={label_smoothing}, expected 0 ... 1")
    *rows, c = logits.shape
    n = counted = prod(rows)
    labels = labels.data if isinstance(labels, Tensor) else labels if is_array(labels) else np.asarray(labels)
    if labels.dtype.kind in "iu" or labels.ndim == len(rows):
        target = _labels(operation, labels, logits, ignore_index)
    else:
        target = target_for(operation, labels, logits).reshape(n, c)
    if weights is not None or ignore_index is not None or label_smoothing:
        alike = Tensor(array_module(logits.data).ones(c, logits.dtype))
        weights = alike.data if weights is None else target_for(operation, weights, alike, "weights")
        target, counted = _weighted(target, weights, ignore_index, label_smoothing)
    flat = logits if len(rows) == 1 else reshape(logits, (n, c))
    loss = SoftmaxCrossEntropy(target, divisor(reduction, total, counted))(flat)
    return reshape(loss, rows) if reduction == "none" else loss


def _labels(operation: str, labels: Any, logits: Tensor, ignore_index: int | None) -> Any:
    """Labels as a vector beside the logits, checked where they are in host memory."""
    *rows, c = logits.shape
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{place(operation)}: labels of dtype {labels.dtype}, expected integers")
    if labels.shape != tuple(rows):
        raise wrong_shape(operation, f"labels {labels.shape}", f"labels {tuple(rows)}")
    if isinstance(labels, np.ndarray):
        wrong = (labels < 0) | (labels >= c)
        if ignore_index is not None:
            wrong &= labels != ignore_index
        if wrong.any():
            raise ValueError(f"{place(operation)}: label {labels[wrong][0]} outside 0 ... {c - 1}")
    return beside(labels, logits).reshape(-1)


def _weighted(target: Any, weights: Any, ignore_index: int | None, smoothing: float) -> tuple[Any, float]:
    """Labels (n,) or probabilities (n, c), as probabilities smoothed and weighted, and how many rows they count."""
    xp = array_module(weights)
    kept, counted = xp.ones((len(target), 1), bool), len(target)
    if target.ndim == 1:
        if ignore_index is not None:
            kept = (target != ignore_index)[:, None]
        target = ((target[:, None] == xp.arange(len(weights))) & kept).astype(weights.dtype)
        counted = float((target * weights).sum())
    return (target * (1 - smoothing) + smoothing / len(weights)) * weights * kept, counted
