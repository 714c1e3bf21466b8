"""Device arrays between ranks, on the emulated device: through host memory, and given to MPI directly."""

import pytest
from emulation import folder_or_skip
from mpi import mpirun

pytest.importorskip("mpi4py")

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import fakecuda
fakecuda.install()
import cupy
import numpy as np
from minidnn.comm import collectives as c
from minidnn.comm.algorithms import ALGORITHMS, rounds
from minidnn.launch import launch

def main(comm, direct):
    r, p = comm.rank, comm.size
    for name in (*ALGORITHMS["all_reduce"], "mpi"):
        x = cupy.arange(1000, dtype=np.float32).reshape(10, 100) * (r + 1)
        y = c.all_reduce(comm, x, name)
        assert isinstance(y, cupy.ndarray) and y.dtype == np.float32
        np.testing.assert_array_equal(y.get(), np.arange(1000).reshape(10, 100) * p * (p + 1) / 2)
    parts = c.all_gather(comm, cupy.full(3 + r, float(r)), [3 + k for k in range(p)])
    np.testing.assert_array_equal(parts.get(), np.repeat(np.arange(p), [3 + k for k in range(p)]))
    flying = [c.all_reduce.start(comm, cupy.ones(50), name) for name in ALGORITHMS["all_reduce"]]
    assert all((pending.wait().get() == p).all() for pending in flying)
    calls = [("all_reduce", name, 1000, 4) for name in (*ALGORITHMS["all_reduce"], "mpi")]
    calls += [("all_reduce", name, 50, 8) for name in ALGORITHMS["all_reduce"]]
    calls.append(("all_gather", "ring", [3 + k for k in range(p)], 8))
    moves = [(m, size) for op, name, n, size in calls for ms in rounds(op, name, p, r, n) for m in ms]
    sent = [m.elements * size for m, size in moves if m.kind == "send"]
    assert comm.ledger.totals()[:2] == (len(sent), sum(sent))
    assert comm.device.direct is direct
    print("fine")

launch(main, sys.argv[2] == "1")
"""


@pytest.mark.parametrize("direct", [0, 1])
def test_device_arrays_travel(direct):
    folder = folder_or_skip()
    run = mpirun(2, PROGRAM, folder, direct, timeout=120, env={"MINIDNN_CUDA_AWARE": str(direct)})
    assert run.returncode == 0 and run.stdout.count("fine") == 2, run.stderr
