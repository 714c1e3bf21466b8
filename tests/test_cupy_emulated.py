"""The device path on the real CuPy, whose kernels are executed on the CPU, against NumPy in float32.

Emulated: it shows the numbers, types and copies of the CuPy path, and nothing of its speed. Without the
emulation beside the checkout, CuPy and g++ it is skipped (see `emulation`).
"""

import json
from pathlib import Path

import numpy as np
import pytest
from emulation import folder_or_skip, run
from mpi import mpirun

PROGRAMS = Path(__file__).with_name("emulated_programs.py")
TIME_LIMIT = 300  # of the first run, which compiles every kernel, on a busy machine
# The sums of matrix products and reductions are in another order than NumPy's: float32 has 1.2e-7 of each.
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def emulated():
    """Runs one of the programs and gives what it printed."""
    folder_or_skip()
    return lambda name: json.loads(run(PROGRAMS, name, timeout=TIME_LIMIT))


def compare(found):
    """A training's losses and weights on NumPy and on CuPy."""
    ours, theirs = found["losses"]
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=TOLERANCE)
    assert found["weights"] < TOLERANCE
    assert len(set(ours)) == len(ours)  # it did train


def test_every_operation(emulated):
    found = emulated("operations")
    assert len(found) > 100
    assert {name: d for name, d in found.items() if not d < TOLERANCE} == {}


def test_lenet_trains_as_on_numpy(emulated):
    compare(emulated("lenet"))


def test_strategies_on_two_ranks(emulated):
    found = emulated("parallel")
    assert {name.split()[0] for name in found} == {"data", "owt", "layer_split", "tensor", "spatial"}
    for training in found.values():
        compare(training)


JOB = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
import fakecuda
fakecuda.install()
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_main_job_equals_its_twin_on_the_host():
    pytest.importorskip("mpi4py")
    options = (
        "--device gpu --model lenet --image 20 --classes 4 --images 64 --validation 32 --steps 3 --epochs 1"
    )
    script = ["examples/alexnet_owt.py", *options.split(), "--check"]
    job = mpirun(2, JOB, folder_or_skip(), *script, timeout=TIME_LIMIT)
    assert job.returncode == 0, job.stdout + job.stderr
    assert job.stdout.splitlines()[0].endswith("gpu")
    assert job.stdout.splitlines()[-1].startswith("check: ") and job.stdout.rstrip().endswith(" ok")
