"""Rows of a table, looked up by number."""

from typing import Any

import numpy as np

from minidnn.functional.errors import place
from minidnn.functional.shape import getitem
from minidnn.graph import Tensor, as_tensor


def embedding(x: Any, W: Any) -> Tensor:
    """y[...] = W[x[...]], a row for each number        x (...) integers   W (count, features)   y (..., features)

    TypeError, ValueError: no integers; a number outside 0 ... count - 1, looked for where `x` is in host memory.
    """
    x, W = as_tensor(x), as_tensor(W)
    if x.dtype.kind not in "iu":
        raise TypeError(f"{place('embedding')}: numbers of dtype {x.dtype}, expected integers")
    if isinstance(x.data, np.ndarray):
        wrong = x.data[(x.data < 0) | (x.data >= len(W))]
        if wrong.size:
            raise ValueError(f"{place('embedding')}: number {wrong[0]} outside 0 ... {len(W) - 1}")
    return getitem(W, x)
