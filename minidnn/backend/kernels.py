"""Which implementation of a kernel runs: the plain one, or a faster one with the same results.

The plain kernels, in ``functional`` and ``optim``, are for reading; they are also what runs on a GPU. On NumPy
arrays each has a fast counterpart of the same name in a module of ``minidnn.fast`` (parts that fit the cache, one
thread per core, skipped zeros), which its decorator names: ``@kernel("conv")``. This module is the only place that
chooses:

``MINIDNN_FAST=0`` in the environment runs the plain ones.
"""

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minidnn.backend.memory import keep_freed_memory

#: Kernel -> module of ``minidnn.fast`` that has the fast function of this name.
FAST: dict[str, str] = {}

#: Kernel -> elements of its first argument that are not worth more than one thread: the plain one does fewer.
SMALL: dict[str, int] = {}

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


def kernel(module: str, small: int = 0) -> Callable[[Callable], Callable]:
    """Decorator of a plain kernel: its namesake in ``minidnn.fast.<module>`` runs instead on NumPy arrays.

    Of those, arrays of fewer than `small` elements are left to the plain one; the fast one may call `plain` for what
    is too small or too unusual in another way.
    """

    def decorate(function: Callable) -> Callable:
        name, fast = function.__name__, None
        FAST[name], SMALL[name], _plain[name] = module, small, function

        @functools.wraps(function)
        def chosen(first: Any, *rest: Any) -> Any:
            nonlocal fast
            if not _use_fast or type(first) is not np.ndarray or first.size < SMALL[name]:
                return function(first, *rest)
            if fast is None:  # found once, at the first call: the fast kernels are built on the plain ones
                keep_freed_memory()
                fast = getattr(importlib.import_module(f"minidnn.fast.{module}"), name)
            return fast(first, *rest)

        chosen.__doc__ = f"{function.__doc__}\n\nOn NumPy arrays `minidnn.fast.{module}.{name}` runs instead."
        return chosen

    return decorate


def plain(name: str) -> Callable:
    """The plain kernel of this name."""
    return _plain[name]
