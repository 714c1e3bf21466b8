"""What NumPy's OpenBLAS can do and NumPy has no function for, by ctypes.

- The number of threads of a product, read and set while the program runs: `workers.each` gives every core a part
  of the work and wants the products inside to be single-threaded.
- Products and vectors *added to* what is there (`add_product`, `add_scaled`): ``c += a @ b`` in NumPy writes the
  product, reads it again, and reads and writes c.

The OpenBLAS that NumPy's wheels bring along exports its functions under names of its own. Where they are missing
(another BLAS), the number of threads cannot be set: `get_threads` is None and the pool stays out of the way;
additions are written in NumPy.
"""

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator

import numpy as np

ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE = 101, 111, 112  # cblas.h


@functools.cache
def _library() -> tuple[ctypes.CDLL, str, str] | None:
    """OpenBLAS, with the prefix and suffix of its names ("64_": its integers are of 64 bits)."""
    try:
        # symbols of the libraries that NumPy's extension module was linked with are found through it
        library = ctypes.CDLL(np._core._multiarray_umath.__file__)
    except (AttributeError, OSError):
        return None
    for prefix in ("scipy_", ""):
        for suffix in ("64_", ""):
            if hasattr(library, f"{prefix}openblas_set_num_threads{suffix}"):
                return library, prefix, suffix
    return None


@functools.cache
def _functions() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """OpenBLAS's functions that get and set the number of threads."""
    if _library() is None:
        return None
    library, prefix, suffix = _library()
    get = getattr(library, f"{prefix}openblas_get_num_threads{suffix}")
    set_ = getattr(library, f"{prefix}openblas_set_num_threads{suffix}")
    get.argtypes, get.restype = (), ctypes.c_int
    set_.argtypes, set_.restype = (ctypes.c_int,), None
    return get, set_


@functools.cache
def _additions(dtype: np.dtype) -> tuple[Callable, Callable] | None:
    """cblas_?gemm and cblas_?axpby for a dtype; None where BLAS has none."""
    if dtype not in (np.float32, np.float64) or _library() is None:
        return None
    library, prefix, suffix = _library()
    letter, real = ("s", ctypes.c_float) if dtype == np.float32 else ("d", ctypes.c_double)
    integer = ctypes.c_int64 if suffix == "64_" else ctypes.c_int
    pointer, enum = ctypes.c_void_p, ctypes.c_int
    try:
        gemm = getattr(library, f"{prefix}cblas_{letter}gemm{suffix}")
        axpby = getattr(library, f"{prefix}cblas_{letter}axpby{suffix}")
    except AttributeError:
        return None
    matrix = (pointer, integer)
    gemm.argtypes = (enum, enum, enum, integer, integer, integer, real, *matrix, *matrix, real, *matrix)
    axpby.argtypes = (integer, real, *matrix, real, *matrix)
    gemm.restype = axpby.restype = None
    return gemm, axpby


def _matrix(a: np.ndarray) -> tuple[int, int, int] | None:
    """(transposed?, address, elements between rows) of a matrix whose rows or columns are contiguous."""
    rows, cols = a.strides
    for kind, step, unit, width in (
        (NO_TRANSPOSE, rows, cols, a.shape[1]),
        (TRANSPOSE, cols, rows, a.shape[0]),
    ):
        if unit == a.itemsize and step >= width * unit and step % unit == 0:
            return kind, a.__array_interface__["data"][0], step // unit
    return None


def _scale(a: np.ndarray, factor: float) -> None:
    """a <- factor a; as in BLAS, 0 overwrites: 0 times what happens to lie in memory may be NaN."""
    if factor == 0:
        a[...] = 0
    elif factor != 1:
        a *= factor


def add_product(a: np.ndarray, b: np.ndarray, c: np.ndarray, keep: float = 1.0) -> None:
    """c <- keep c + a b        a (m, k)   b (k, n)   c (m, n), which may hold anything if `keep` is 0"""
    functions = _additions(c.dtype)
    parts = [_matrix(x) for x in (a, b, c)] if functions and a.dtype == b.dtype == c.dtype else [None]
    if None in parts or parts[2][0] != NO_TRANSPOSE or not (a.size and b.size):
        _scale(c, keep)
        c += a @ b
        return
    (a_kind, *a_place), (b_kind, *b_place), (_, *c_place) = parts
    sizes = *c.shape, len(b)
    functions[0](ROW_MAJOR, a_kind, b_kind, *sizes, 1.0, *a_place, *b_place, keep, *c_place)


def add_scaled(x: np.ndarray, y: np.ndarray, scale: float = 1.0, keep: float = 1.0) -> None:
    """y <- keep y + scale x, for contiguous arrays of one shape"""
    functions = _additions(y.dtype)
    if functions is None or x.dtype != y.dtype or not (x.flags.c_contiguous and y.flags.c_contiguous):
        _scale(y, keep)
        y += x * y.dtype.type(scale)
        return
    addresses = (a.__array_interface__["data"][0] for a in (x, y))
    functions[1](y.size, scale, next(addresses), 1, keep, next(addresses), 1)


def get_threads() -> int | None:
    """Threads of a matrix product; None if it cannot be known."""
    functions = _functions()
    return functions[0]() if functions else None


def set_threads(n: int) -> bool:
    """Let products use `n` threads from now on; False if that cannot be set."""
    functions = _functions()
    if functions is not None:
        functions[1](n)
    return functions is not None


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
