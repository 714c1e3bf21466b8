"""The MPI transport on real ranks: the same results and counts as on threads."""

import pytest
from mpi import mpirun

from minidnn.report import trace

pytest.importorskip("mpi4py")

COLLECTIVES = """
import hashlib, sys
import numpy as np
from mpi4py import MPI
from minidnn.comm import collectives as c, mpi, tuning
from minidnn.comm.algorithms import ALGORITHMS
from minidnn.launch import launch
sys.path.insert(0, "tests")
from closed_forms import closed_form
from transport import Transport

def main(comm):
    p, r = comm.size, comm.rank
    comm.debug = True
    transport, hidden = Transport(comm), np.zeros(4, int)
    digest = hashlib.sha256()  # of all results: must come out alike on all ranks
    for n in (0, 1, p - 1, 1000, 300_001):
        for dtype in (np.float64, np.float32, np.int32, bool) if n == 1000 else (np.float32,):
            xs = [(np.random.default_rng([k, n]).standard_normal(n) * 4).astype(dtype) for k in range(p)]
            for name in (*ALGORITHMS["all_reduce"], "mpi", "auto"):
                before = transport.totals(), comm.ledger.totals()
                y = c.all_reduce(comm, xs[r], name)
                assert y.dtype == dtype
                np.testing.assert_allclose(y, sum(xs[1:], xs[0]), rtol=0, atol=1e-5)
                digest.update(y.tobytes())
                if name != "auto":
                    cost = closed_form("all_reduce", name, p, r, n, nodes=comm.nodes)
                    seen, counted = np.subtract((transport.totals(), comm.ledger.totals()), before)
                    hidden += counted if name == "mpi" else 0  # nobody sees the library's own messages
                    sent = (counted if name == "mpi" else seen)[:2].tolist()
                    assert sent == [cost.messages, cost.elements * y.itemsize], (name, sent, cost)
        counts = [n // (k + 1) for k in range(p)]
        part = np.arange(counts[r]) + 100 * r
        full = np.concatenate([np.arange(m) + 100 * k for k, m in enumerate(counts)])
        np.testing.assert_array_equal(c.all_gather(comm, part, counts), full)
        np.testing.assert_array_equal(c.broadcast(comm, full + r, p - 1, "chain"), full + p - 1)
        start = sum(counts[:r])
        own = p * full[start : start + counts[r]]
        np.testing.assert_array_equal(c.reduce_scatter(comm, full, counts), own)
    assert len(set(MPI.COMM_WORLD.allgather(digest.hexdigest()))) == 1
    matrix = np.arange(p * p).reshape(p, p)
    x = np.repeat(np.arange(p) + 10 * r, matrix[r])
    want = np.concatenate([np.full(matrix[k, r], 10 * k + r) for k in range(p)])
    np.testing.assert_array_equal(c.all_to_all(comm, x, matrix), want)
    assert comm.ledger.totals() == tuple(hidden + transport.totals())

    mpi.PIECE = 64  # bytes: messages are cut
    # many in flight, over two communicators, waited for in different orders
    half = comm.split(r % 2, -r)
    assert half.ranks == tuple(k for k in reversed(range(p)) if k % 2 == r % 2)
    names = ALGORITHMS["all_reduce"]
    flying = [c.all_reduce.start((comm, half)[k % 2], np.full(20 * k + 1, 1.0), names[k % 6]) for k in range(12)]
    for k in np.random.default_rng(r).permutation(12):
        assert (flying[k].wait() == (comm, half)[k % 2].size).all()
    assert comm.nodes == (0,) * p

    mpi.PIECE = 1 << 30
    link = tuning.measure(comm)
    assert min(link) > 0
    print("fine")

launch(main)
"""

TRACED = """
import sys, time
import numpy as np
from minidnn.comm import collectives as c, trace_files
from minidnn.launch import launch

def main(comm):
    run = trace_files.prepare(comm, sys.argv[1])
    comm.ledger.trace()
    for step in range(1, 4):
        comm.ledger.begin_step(step)
        with comm.ledger.scope(phase="gradient sync", layer="fc6"):
            for name in ("ring", "mpi"):
                c.all_reduce(comm, np.ones(10_000, np.float32), name)
        comm.ledger.end_step(loss=1.0, images=8)
    trace_files.write(comm, sys.argv[1], run, {"strategy": "data"})
    if comm.rank == 0:
        print(*comm.ledger.totals())

launch(main)
"""


FAULT = """
import sys
from minidnn.launch import launch
sys.path.insert(0, "tests")
from test_comm_protocol import FAULTS

def main(comm):
    comm.debug = True
    FAULTS[sys.argv[1]][0](comm)

launch(main, stall=4.0)
"""

# Calls of the library's all_reduce that overlap, on ranks that test them at different moments.
LIBRARY = """
import numpy as np
from minidnn.comm import collectives as c, library
from minidnn.launch import launch

def main(comm):
    library.SLICE = 1 << 12
    random = np.random.default_rng(comm.rank)
    for comm.crowded in (True, False):
        for comm.debug in (False, True):
            for _ in range(20):
                xs = [np.full(5000 + 3000 * k, 10.0**k) for k in range(4)]
                flying = []
                for x in xs:
                    flying.append(c.all_reduce_inplace.start(comm, x, "mpi"))
                    for _ in range(random.integers(4)):
                        comm.progress()
                for pending in flying:
                    pending.wait()
                assert all((x == comm.size * 10.0**k).all() for k, x in enumerate(xs))
    print("fine")

launch(main)
"""


# What one rank sends and another expects, where both are wrong together; in no case may numbers come of it.
MISMATCH = """
import sys
import numpy as np
from minidnn.comm import collectives as c
from minidnn.launch import launch

def main(comm):
    case, r = sys.argv[1], comm.rank
    comm.crowded = case == "library, crowded"
    if case in ("short", "long"):
        array = np.full({"short": (2, 4), "long": (8, 4)}[case][r], np.nan)
        comm.wait([comm.irecv(array, 0) if r else comm.isend(array, 1)])
    elif case == "size":
        c.all_reduce(comm, np.ones(4 + 4 * r, np.float32))
    elif case == "byte order":
        c.all_reduce(comm, np.ones(4, "<f4" if r else ">f4"))
    else:
        algorithm = "mpi" if case.startswith("library") else "ring"
        c.all_reduce(comm, np.ones(4, np.float32) if r else np.ones(2, np.float64), algorithm)
    print("went on")

launch(main, stall=20)
"""

ORDERS = """
import numpy as np
from minidnn.comm import collectives as c
from minidnn.launch import launch

def main(comm):
    for comm.crowded in (False, True):
        for dtype in (">f4", ">i8", ">c16", "<f8", "f2", "?"):
            x = np.arange(5).astype(dtype)
            y = c.all_reduce(comm, x, "mpi")
            assert y.dtype == np.dtype(dtype)
            np.testing.assert_array_equal(y, x + x)
    print("fine")

launch(main)
"""

# More splits than a library has room for, of communicators that are dropped; and two held at once are two.
SPLITS = """
import numpy as np
from minidnn.comm import collectives as c
from minidnn.launch import launch

def main(comm):
    for k in range(1100):
        part = comm.split(None if comm.rank == k % 3 else 0, -comm.rank)
        if part is not None:
            assert part.ranks == tuple(r for r in (2, 1, 0) if r != k % 3)
            assert c.all_reduce(part, np.array([comm.rank]))[0] == 3 - k % 3
    a, b = comm.split(0), comm.split(0)
    right, left = (comm.rank + 1) % 3, (comm.rank - 1) % 3
    got = [np.zeros(1), np.zeros(1)]
    requests = [a.isend(np.ones(1), right), b.isend(np.full(1, 2.0), right)]
    comm.wait([*requests, b.irecv(got[1], left), a.irecv(got[0], left)])
    assert (got[0][0], got[1][0]) == (1, 2)
    print("fine")

launch(main)
"""

WAITS = """
import sys, time
from minidnn.launch import launch

def main(comm):
    if comm.rank == 1:
        time.sleep(60)
    if sys.argv[1] == "split":
        comm.split(0)
    elif sys.argv[1] == "barrier":
        comm.barrier()
    else:
        comm.exchange([1])

launch(main, stall=1)
"""


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            "short",
            "rank 1 receives 32 bytes (float64) from rank 0 (send direct round 1/1), which sent 16 bytes",
        ),
        ("long", "rank 1 receives from rank 0 (send direct round 1/1)"),
        ("size", "receives"),
        ("dtype", "receives float64 from rank 1 (all_reduce ring round 1/2), which sent float32"),
        ("byte order", "receives >f4 from rank 1 (all_reduce ring round 1/2), which sent float32"),
        ("library", "sums 2 float64 (all_reduce mpi round 1/1), other ranks another number or dtype"),
        (
            "library, crowded",
            "sums 2 float64 (all_reduce mpi round 1/1), other ranks another number or dtype",
        ),
    ],
)
def test_what_does_not_fit_is_no_number(case, words):
    run = mpirun(2, MISMATCH, case, timeout=60)
    assert run.returncode != 0 and "ProtocolError" in run.stderr and words in run.stderr, run.stderr
    assert run.stdout == "" or case in ("short", "long")  # the one who sent


def test_the_librarys_all_reduce_of_any_byte_order():
    run = mpirun(2, ORDERS, timeout=60)
    assert run.returncode == 0 and run.stdout.count("fine") == 2, run.stderr


def test_communicators_that_are_dropped_make_room():
    run = mpirun(3, SPLITS, timeout=120)
    assert run.returncode == 0 and run.stdout.count("fine") == 3, run.stderr


@pytest.mark.parametrize("what", ["split", "barrier", "exchange"])
def test_a_stall_names_the_operation(what):
    run = mpirun(2, WAITS, what, timeout=60)
    assert run.returncode != 0 and f"rank 0 has waited too long for rank 1 ({what} direct" in run.stderr, (
        run.stderr
    )


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wrong size", "differ in elements"),
        ("order of two layers", "differ in layer"),
        ("other blocks", "in blocks (3, 1, 1, 1)"),
        (
            "an early exit",
            "waits for rank 2, which has finished (all_reduce ring round 1/1, phase backward, layer fc6)",
        ),
        ("a message nobody receives", "rank 0 never received"),
        ("another tag", "rank 0 waits for rank 2, which has finished (send direct"),
        ("a receive in place of a collective", "rank 2 has waited too long for rank 0 (send direct"),
    ],
)
def test_a_broken_protocol_is_caught(fault, words):
    """Each kind of fault of test_comm_protocol.py, on real ranks."""
    run = mpirun(4, FAULT, fault, timeout=60)
    assert run.returncode != 0 and words in run.stderr, run.stderr


def test_calls_of_the_library_stay_in_order():
    run = mpirun(3, LIBRARY, timeout=60)
    assert run.returncode == 0 and run.stdout.count("fine") == 3, run.stderr


@pytest.mark.parametrize("p", [2, 3])
def test_collectives_equal_the_librarys(p, tmp_path):
    run = mpirun(p, COLLECTIVES, timeout=60, env={"XDG_CACHE_HOME": str(tmp_path)})
    assert run.returncode == 0 and run.stdout.count("fine") == p, run.stderr


def test_a_trace_of_a_real_run_is_whole(tmp_path):
    run = mpirun(3, TRACED, tmp_path / "out", timeout=60)
    assert run.returncode == 0, run.stderr
    read = trace.load(tmp_path / "out")  # raises if a message has no partner or a record is missing
    sent = [message for message in read.messages if message.source == 0]
    assert len(sent) == 3 * (4 + 1)  # a ring over three ranks; the library's own shows as one
    assert [len(sent), sum(message.bytes for message in sent)] == [int(x) for x in run.stdout.split()[:2]]
    assert read.clock_error < 0.1
    assert run.stdout.split()[2] == "15"
    assert sorted(read.steps) == [1, 2, 3] and all(len(steps) == 3 for steps in read.steps.values())
    assert all(message.done >= message.sent for message in read.messages)
