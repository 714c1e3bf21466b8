"""How many threads NumPy's OpenBLAS uses, read and set while the program runs.

`pool.each` gives every core a part of the work and wants the products inside to be single-threaded. NumPy has
no function for it, but the OpenBLAS that its wheels bring along exports two. Where they are missing (another
BLAS), nothing can be set: `get_threads` is None and the pool stays out of the way.
"""

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator

import numpy as np


@functools.cache
def _functions() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """OpenBLAS's functions that get and set the number of threads."""
    try:
        # symbols of the libraries that NumPy's extension module was linked with are found through it
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)
    except (AttributeError, OSError):
        return None
    for prefix in ("scipy_openblas", "openblas"):
        for suffix in ("64_", ""):
            try:
                get = getattr(library, f"{prefix}_get_num_threads{suffix}")
                set_ = getattr(library, f"{prefix}_set_num_threads{suffix}")
            except AttributeError:
                continue
            get.argtypes, get.restype = (), ctypes.c_int
            set_.argtypes, set_.restype = (ctypes.c_int,), None
            return get, set_
    return None


def get_threads() -> int | None:
    """Threads of a matrix product; None if it cannot be known."""
    functions = _functions()
    return functions[0]() if functions else None


class _SingleThreaded(contextlib.AbstractContextManager):
    """While any thread is inside, products are single-threaded; then the number is what it was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = 1

    def __enter__(self) -> None:
        get, set_ = _functions()
        with self._lock:
            if not self._inside:
                self._before = get()
                set_(1)
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                _functions()[1](self._before)


single_threaded = _SingleThreaded()


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Inside, products use `n` threads (nothing happens where the number cannot be set)."""
    functions = _functions()
    if functions is None:
        yield
        return
    get, set_ = functions
    before = get()
    set_(n)
    try:
        yield
    finally:
        set_(before)
