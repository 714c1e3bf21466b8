"""What callers hand over, checked in constant time before anything is sent: a mistake gives the same error on every
transport, where MPI by itself would read what it cannot use in its own way, or end the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from reprlib import repr as short
from typing import Any

import numpy as np

from minidnn.backend import is_array
from minidnn.tensor import Tensor


def check_array(what: str, x: Any) -> None:
    """Raise a TypeError unless x is a NumPy or CuPy array (or a NumPy number) of plain values."""
    if not isinstance(x, np.ndarray | np.generic) and not is_array(x):
        hint = f"np.asarray({short(x)})"
        if isinstance(x, Tensor):
            hint = "tensor.data, or minidnn.comm.functions, through which gradients flow"
        raise TypeError(f"{what}: expected an array, got {short(x)} ({type(x).__name__}); use {hint}")
    if x.dtype.hasobject:
        raise TypeError(f"{what}: expected an array of numbers, got dtype {x.dtype}")


def check_message(what: str, array: Any, peer: Any, size: int, tag: int, tags: int) -> None:
    """Raise a TypeError or ValueError unless this is a contiguous array of numbers, to or from a rank of the group,
    with a tag below ``tags``."""
    if isinstance(array, np.generic):
        kind = type(array).__name__
        raise TypeError(f"{what}: expected an array, got a number of type {kind}; use np.asarray")
    check_array(what, array)
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{what}: the array of shape {array.shape} and strides {array.strides} is not contiguous; "
            "use a contiguous one (np.ascontiguousarray makes a copy)"
        )
    if not (isinstance(peer, int | np.integer) and 0 <= peer < size):
        raise ValueError(f"{what}: rank {peer!r}, expected one of 0 ... {size - 1}")
    if not 0 <= tag < tags:
        expected = f"one of 0 ... {tags - 1} (higher ones are the collectives')"
        raise ValueError(f"{what}: tag {tag}, expected {expected}")


def check_requests(what: str, requests: Any) -> None:
    """Raise a TypeError unless this is a list (or another sequence) of requests."""
    if not isinstance(requests, Sequence):
        hint = f"write comm.{what}([request])"
        raise TypeError(f"{what}: expected a list of requests, got {short(requests)}; {hint}")
