"""Array modules: every operation is written once, on ``xp = array_module(x)``, for NumPy and CuPy alike.

No device is touched when this module is imported; CuPy is imported on first use only.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any

import numpy as np

from minidnn.errors import InputError

__all__ = [
    "array_module",
    "asnumpy",
    "cupy_available",
    "get_array_module",
    "is_array",
    "masked",
    "to_device",
    "to_host",
]


_BITS = {size: np.dtype(f"u{size}") for size in (2, 4, 8)}


def array_module(x: Any) -> ModuleType:
    """The module that owns array `x`: ``numpy``, or ``cupy`` for an array in device memory."""
    if isinstance(x, (np.ndarray, np.generic)) or not is_array(x):
        return np
    return sys.modules["cupy"]


def is_array(x: Any) -> bool:
    """True for a NumPy or CuPy array (not for lists or Python numbers)."""
    return isinstance(x, np.ndarray) or type(x).__module__.partition(".")[0] == "cupy"


def masked(a: Any, mask: Any, out: Any = None) -> Any:
    """`a` where `mask`, else 0: a product of its bits, as fast as that of its values, and inf and NaN vanish too."""
    bits = _BITS.get(a.itemsize)
    if bits is None:  # no integer is so long
        return np.multiply(np.where(mask, a, 0), 1, out=out)
    if out is None:
        return (a.view(bits) * mask).view(a.dtype)
    array_module(a).multiply(a.view(bits), mask, out=out.view(bits))
    return out


def to_host(x: Any) -> np.ndarray:
    """`x` as a NumPy array: a copy of a device array, the array itself (no copy) if it is NumPy's already."""
    if isinstance(x, np.ndarray):
        return x
    return x.get() if is_array(x) else np.asarray(x)


asnumpy = to_host


def to_device(x: Any, xp: ModuleType) -> Any:
    """`x` as an array of module `xp`; copied only when it lives on the other side."""
    return to_host(x) if xp is np else xp.asarray(x)


def cupy_available() -> bool:
    """True if CuPy is installed and sees at least one device."""
    if importlib.util.find_spec("cupy") is None:
        return False
    import cupy

    return bool(cupy.is_available())


def get_array_module(device: str) -> ModuleType:
    """The array module of a device named on a command line: ``"cpu"`` or ``"gpu"``.

    Raises
    ------
    InputError
        Another name; ``"gpu"`` without CuPy, or without a device that CuPy can use.
    """
    if device == "cpu":
        return np
    if device != "gpu":
        raise InputError(f"unknown device {device!r}: known are 'cpu' and 'gpu'")
    if importlib.util.find_spec("cupy") is None:
        raise InputError('device "gpu" needs CuPy: pip install "minidnn[gpu]"')
    import cupy

    if not cupy.is_available():  # never raises, and is False without a driver
        raise InputError('device "gpu": CuPy is installed but finds no CUDA device; use "cpu"')
    return cupy
