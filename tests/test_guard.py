"""Every way for a rank of a real MPI run to end: the run ends with it, within seconds, and says why once."""

import subprocess
import sys

import pytest
from mpi import LIBRARY, ROOT, ended_with, mpirun

pytest.importorskip("mpi4py")

# The stall is in line 24, as the watchdog will say.
PROGRAM = """
import sys, time
import numpy as np
from minidnn.comm import collectives
from minidnn.launch import launch
from minidnn.errors import InputError

def main(comm, case, who):
    if comm.rank in who:
        if case == "raise":
            raise KeyError("lost")
        if case == "raise with a message under way":
            collectives.all_reduce.start(comm, np.ones(4))
            raise KeyError("lost")
        if case == "exit":
            sys.exit(3)
        if case == "text":
            sys.exit("nothing to do")
        if case in ("return", "return while others compute"):
            return
        if case == "input":
            raise InputError("no such folder: photos")
        if case == "stall":
            time.sleep(60)
    if case == "return while others compute":
        time.sleep(60)
    comm.ledger.labels = comm.ledger.labels._replace(layer="fc6")
    collectives.all_reduce(comm, np.ones(4))
    print("done")

case, who = sys.argv[1], [int(rank) for rank in sys.argv[2].split(",") if rank]
leave = 0.9 if case == "return while others compute" else 20
launch(main, case, who, leave=leave, stall=1.0 if case == "stall" else None)
"""


@pytest.mark.parametrize(
    "case, who, code, said",
    [
        ("nothing", "", 0, ""),
        ("raise", "1", 1, "[rank 1] KeyError: 'lost'"),
        ("raise", "0,1", 1, "[rank 0] KeyError: 'lost'"),
        ("raise with a message under way", "0,1", 1, "[rank 0] KeyError: 'lost'"),
        ("exit", "1", 3, ""),
        ("text", "0,1", 1, "nothing to do\n"),
        (
            "return",
            "1",
            1,
            "rank 0 waits for rank 1, which has finished (all_reduce ring round 1/2, layer fc6)",
        ),
        ("return while others compute", "1", 86, "rank 1 finished, but other ranks did not within 0.9 s\n"),
        ("input", "0,1", 2, "error: no such folder: photos\n"),
        ("input", "1", 2, "error: no such folder: photos\n"),
        ("stall", "1", 1, "line 24 in main"),
    ],
)
def test_the_run_ends(case, who, code, said):
    run = mpirun(2, PROGRAM, case, who, timeout=30)
    aborts = who == "1" or "under way" in case
    assert ended_with(run, code) if aborts else run.returncode == code, run.stderr
    assert run.stdout.count("done") == (2 if code == 0 else 0)
    assert run.stderr.count(said) == 1 or not said
    if case == "input":
        assert "Traceback" not in run.stderr
    if case in ("input", "text") and who == "0,1":
        assert run.stderr == said or LIBRARY == "Open MPI"  # not even a word from MPI
    if case.startswith("raise"):
        assert run.stderr.count("Traceback") == 1 and f"[rank {who[0]}] Traceback" in run.stderr


@pytest.mark.parametrize(
    "case, code, said", [("raise", 1, "KeyError: 'lost'"), ("input", 2, "error: no such")]
)
def test_a_run_without_mpi_ends_alike(case, code, said):
    command = [sys.executable, "-c", PROGRAM, case, "0"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert run.returncode == code and said in run.stderr and "[rank" not in run.stderr


def test_missing_mpi4py_names_the_extra():
    program = """
        import sys
        sys.modules["mpi4py"] = None  # as if it were not installed
        from minidnn.launch import launch
        launch(print)
    """
    run = mpirun(1, program, timeout=30)
    assert run.returncode == 2
    assert run.stderr.startswith('error: running under mpirun needs mpi4py: pip install "minidnn[mpi]"')
    assert len(run.stderr.splitlines()) == 1


def test_blas_threads_are_shared_out_before_numpy_starts_them():
    program = """
        from minidnn.launch import launchers, threads
        import os
        assert launchers.local_ranks() == 2
        share = threads.cores() // 2 or 1
        os.write(1, f"{os.environ['OPENBLAS_NUM_THREADS']} {share} {threads.status()}\\n".encode())
    """
    run = mpirun(2, program, timeout=30, env={"OPENBLAS_NUM_THREADS": ""})
    for line in run.stdout.splitlines():
        threads, share, *status = line.split()
        assert threads == share and status[:3] == [share, "BLAS", "threads"]
    assert len(run.stdout.splitlines()) == 2, run.stderr
    kept = mpirun(2, program, timeout=30, env={"OPENBLAS_NUM_THREADS": "5"})
    assert kept.stdout.count("5 BLAS threads (OPENBLAS_NUM_THREADS)") == 2


def test_blas_threads_are_shared_out_when_numpy_is_there_already():
    program = """
        import os
        import numpy
        from minidnn.launch.threads import cores, status
        from minidnn.backend import openblas
        os.write(1, f"{status()}; {openblas.get_threads()} of {cores()}\\n".encode())
    """
    run = mpirun(2, program, timeout=30, env={"OPENBLAS_NUM_THREADS": ""})
    assert len(run.stdout.splitlines()) == 2, run.stderr
    for line in run.stdout.splitlines():
        said, found = line.split("; ")
        threads, _, cores = found.partition(" of ")
        if threads == "None":  # a BLAS that cannot be told
            assert said.startswith("BLAS threads not limited")
        else:
            assert int(threads) == max(1, int(cores) // 2) and said.startswith(
                f"{threads} BLAS threads a rank"
            )


def test_progress_of_one_rank_keeps_the_waiting_ones_alive():
    program = """
        import time
        from minidnn.data.progress import ProgressBar
        from minidnn.launch import launch

        def main(comm):
            begin, bar, done = time.monotonic(), ProgressBar("decoding", None, False), 0
            while comm.rank == 1 and time.monotonic() < begin + 7:
                time.sleep(0.01)
                bar.update(done := done + 1)
            comm.barrier()
            print("done")

        launch(main, stall=3)
    """
    run = mpirun(3, program, timeout=60)
    assert (run.returncode, run.stdout.count("done")) == (0, 3), run.stderr
