"""The choice of array module, and what importing the package brings in."""

import ast
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

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
from minidnn.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


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
    with pytest.raises(InputError, match="unknown device 'tpu'"):
        get_array_module("tpu")


def python(*arguments):
    """A Python of its own, with the path of this one."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.skipif(cupy_available(), reason="there is a GPU")
def test_without_a_gpu():
    hint = "finds no CUDA device" if find_spec("cupy") else r'pip install "minidnn\[gpu\]"'
    with pytest.raises(InputError, match=hint):
        get_array_module("gpu")
    run = python("examples/alexnet_owt.py", "--device", "gpu")
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith('error: device "gpu"') and run.stderr.count("\n") == 1


IMPORT_EVERYTHING = """
import pkgutil, sys
import minidnn
for module in pkgutil.walk_packages(minidnn.__path__, "minidnn."):
    if module.name != "minidnn.__main__":
        __import__(module.name)
print("cupy" in sys.modules)
import numpy as np
from minidnn import functional as F
from minidnn.nn.models import lenet
from minidnn.optim import SGD
from minidnn.tensor import Tensor
model = lenet().init(0)
F.softmax_cross_entropy(model(Tensor(np.ones((2, 28, 28, 1), np.float32))), np.array([1, 2])).backward()
SGD(model.parameters(), lr=0.1, momentum=0.9).step()
print("trained")
"""


def test_importing_everything_does_not_import_cupy():
    run = python("-c", IMPORT_EVERYTHING)
    assert run.stdout.split() == ["False", "trained"], run.stderr


@pytest.mark.skipif(cupy_available() or find_spec("cupy") is None, reason="needs CuPy and no GPU")
def test_importing_everything_beside_cupy_touches_no_device():
    run = python("-c", "import cupy" + IMPORT_EVERYTHING)  # which raises if anything does, without a driver
    assert run.stdout.split() == ["True", "trained"], run.stderr


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
