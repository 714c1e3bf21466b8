"""The choice of array module, and what importing the package brings in."""

import ast
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from minidnn.backend import (
    array_module,
    asnumpy,
    cupy_available,
    get_array_module,
    is_array,
    to_device,
    to_host,
)


def test_numpy_arrays_and_everything_else_belong_to_numpy():
    x = np.ones(3)
    assert array_module(x) is array_module(x[0]) is array_module([1.0]) is array_module(2) is np
    assert is_array(x) and not is_array([1.0]) and not is_array(2.0)


def test_host_arrays_are_not_copied():
    x = np.ones(3)
    assert to_host(x) is asnumpy(x) is to_device(x, np) is x
    np.testing.assert_array_equal(to_host([1, 2]), [1, 2])


def test_devices_by_name():
    assert get_array_module("cpu") is np
    with pytest.raises(ValueError, match="unknown device 'tpu'"):
        get_array_module("tpu")


@pytest.mark.skipif(find_spec("cupy") is not None, reason="CuPy is installed")
def test_without_cupy():
    assert not cupy_available()
    with pytest.raises(RuntimeError, match=r'pip install "minidnn\[gpu\]"'):
        get_array_module("gpu")


def test_importing_the_engine_brings_in_numpy_only():
    code = (
        "import sys, numpy, numpy.random; before = set(sys.modules)\n"
        "import minidnn.functional, minidnn.random, minidnn.backend\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "print(sorted(new))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert set(ast.literal_eval(run.stdout)) <= {"minidnn", "numpy"}
