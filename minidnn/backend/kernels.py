"""Which implementation of a kernel runs: the plain one, or a faster one with the same results.

The plain kernels, in ``functional`` and ``optim``, are for reading; they are also what runs on a GPU. On NumPy
arrays each has a fast counterpart of the same name in ``minidnn.fast`` (parts that fit the cache, one thread
per core, skipped zeros), which `FAST` lists. This module is the only place that chooses:

``MINIDNN_FAST=0`` in the environment runs the plain ones.
"""

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

#: Kernel -> module of ``minidnn.fast`` that has a fast function of this name.
FAST = {
    "convolve": "conv",
    "convolve_input_gradient": "conv",
    "convolve_weight_gradient": "conv",
    "product": "products",
    "product_input_gradient": "products",
    "product_weight_gradient": "products",
    "sum_rows": "products",
    "add_bias": "elementwise",
    "erf_array": "elementwise",
    "rectify": "elementwise",
    "rectify_gradient": "elementwise",
    "max_pool": "pool",
    "max_pool_gradient": "pool",
    "lrn": "normalize",
    "lrn_gradient": "normalize",
    "momentum_update": "update",
    "factored_update": "update",
    "adaptive_update": "update",
}

_use_fast = os.environ.get("MINIDNN_FAST", "1") != "0"
_plain: dict[str, Callable] = {}


def fast_in_use() -> bool:
    """Whether NumPy arrays go to the fast kernels."""
    return _use_fast


@contextmanager
def use_fast(fast: bool) -> Iterator[None]:
    """Inside the block, in all threads: the fast kernels, or only the plain ones."""
    global _use_fast
    before, _use_fast = _use_fast, fast
    try:
        yield
    finally:
        _use_fast = before


@functools.cache
def _fast(name: str) -> Callable:
    from minidnn.backend.memory import keep_freed_memory

    keep_freed_memory()
    return getattr(importlib.import_module(f"minidnn.fast.{FAST[name]}"), name)


def kernel(function: Callable) -> Callable:
    """Decorator of a plain kernel: calls its fast counterpart where the first argument is a NumPy array.

    The fast one may call `plain` for what is too small or too unusual.
    """
    name = function.__name__
    if name not in FAST:
        raise ValueError(f"kernel {name} has no fast counterpart in kernels.FAST")
    _plain[name] = function

    @functools.wraps(function)
    def chosen(first: Any, *rest: Any, **options: Any) -> Any:
        if _use_fast and type(first) is np.ndarray:
            return _fast(name)(first, *rest, **options)
        return function(first, *rest, **options)

    return chosen


def plain(name: str) -> Callable:
    """The plain kernel of this name."""
    return _plain[name]
