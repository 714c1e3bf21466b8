"""Tests of operations and networks run a second time where what is rarely seen would show: `no_blas`.

There every fast kernel takes arrays of any size, BLAS's own symbols are hidden, as on a NumPy built with another
library, and each array that is allocated without values is full of NaN (integers: of a large number): who reads it
before writing it is found out.
"""

import importlib
import pkgutil
from collections import defaultdict

import numpy as np
import pytest

from minidnn import fast
from minidnn.backend import kernels, openblas, workers
from minidnn.functional import factors

FAST_MODULES = [
    importlib.import_module(f"minidnn.fast.{module.name}") for module in pkgutil.iter_modules(fast.__path__)
]
#: Modules of tests that run in both modes.
BOTH = ("test_against_torch", "test_factors", "test_fast_paths", "test_functional", "test_gradcheck")
BOTH += ("test_layers", "test_models", "test_networks", "test_nn", "test_tape", "test_tensor")
#: What the fast kernels are cut by: here no array is too small for them, and parts are a few rows.
SIZES = {"SMALL": 1, "TAP_CHANNELS": 4} | dict.fromkeys(("PART", "ROWS", "GRADIENT_ROWS", "WEIGHT_ROWS"), 40)


def pytest_generate_tests(metafunc):
    if metafunc.module.__name__.startswith(BOTH):
        metafunc.parametrize("mode", ["", "no_blas"], indirect=True, ids=["as_is", "no_blas"])


@pytest.fixture(autouse=True)
def mode(request, monkeypatch):
    """The mode of a test."""
    if getattr(request, "param", ""):
        request.getfixturevalue("poisoned")
        request.getfixturevalue("forced")
        monkeypatch.setattr(openblas, "_library", lambda: None)
        functions = (openblas._functions, openblas._additions)
        for cached in functions:
            cached.cache_clear()
        workers.set_threads(None)
        yield
        for cached in functions:
            cached.cache_clear()
        workers.set_threads(None)
    else:
        yield


@pytest.fixture
def forced(monkeypatch):
    """No array is too small for the fast kernels, and parts are a few rows."""
    for module in FAST_MODULES:
        for name, value in SIZES.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(kernels, "SMALL", defaultdict(lambda: 1))
    monkeypatch.setattr(factors, "LEAST", 1)
    with kernels.use_fast(True):
        yield


@pytest.fixture
def poisoned(monkeypatch):
    """No memory is empty by chance."""

    def poisoning(allocate):
        def empty(*args, **options):
            array = allocate(*args, **options)
            array[...] = np.nan if array.dtype.kind in "fc" else np.array(0x5A).astype(array.dtype)
            return array

        return empty

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(np, name, poisoning(getattr(np, name)))
