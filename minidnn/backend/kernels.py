"""Which implementation of a kernel runs: the plain one, or a faster one with the same results.

The plain kernels, in ``functional`` and ``optim``, are for reading; they are also what runs on a GPU. On NumPy
arrays each has a fast counterpart of the same name in ``minidnn.fast`` (parts that fit the cache, one thread
per core, skipped zeros), which `FAST` lists. This module is the only place that chooses:

- ``MINIDNN_FAST=0`` runs the plain kernels;
- ``MINIDNN_FAST=numpy`` the fast ones, on NumPy alone;
- ``MINIDNN_FAST=1``, the default, these, with element-wise loops compiled by Numba where it is installed.
"""

import functools
import importlib
import importlib.util
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
    "rectify": "elementwise",
    "rectify_gradient": "elementwise",
    "max_pool": "pool",
    "max_pool_gradient": "pool",
    "lrn": "normalize",
    "lrn_gradient": "normalize",
    "momentum_update": "update",
}

LEVELS = ("0", "numpy", "1")


def _from_environment() -> str:
    level = os.environ.get("MINIDNN_FAST") or "1"
    if level not in LEVELS:
        raise ValueError(f"MINIDNN_FAST={level}: expected one of {', '.join(LEVELS)}")
    return level


_level = _from_environment()
_plain: dict[str, Callable] = {}


def level() -> str:
    """What is in use: "0" plain kernels, "numpy" fast ones, "1" fast ones and Numba if it is installed."""
    return _level


@contextmanager
def use(level: str) -> Iterator[None]:
    """Use another level inside the block (in all threads)."""
    global _level
    if level not in LEVELS:
        raise ValueError(f"kernels.use({level!r}): expected one of {', '.join(LEVELS)}")
    before, _level = _level, level
    try:
        yield
    finally:
        _level = before


@functools.cache
def has_numba() -> bool:
    """Whether Numba is installed; it is imported when a compiled loop first runs."""
    return importlib.util.find_spec("numba") is not None


def compiled() -> bool:
    """Whether element-wise loops are compiled."""
    return _level == "1" and has_numba()


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
        if _level != "0" and type(first) is np.ndarray:
            return _fast(name)(first, *rest, **options)
        return function(first, *rest, **options)

    return chosen


def plain(name: str) -> Callable:
    """The plain kernel of this name."""
    return _plain[name]
