"""Launchers and cores: what the environment says, what the ranks of a machine find out, and what does not fit."""

import os
import subprocess
import sys

import pytest
from mpi import LIBRARY, ROOT, mpirun, needs_mpi

from minidnn.launch import launchers, threads

VARIABLES = [getattr(one, field) for one in launchers.LAUNCHERS for field in ("rank", "size", "local_size")]


@pytest.fixture
def environment(monkeypatch):
    """No launcher, but for what a test says."""
    for name in [*VARIABLES, *launchers.NO_SIZE, "SLURM_NODEID"]:
        monkeypatch.delenv(name, raising=False)
    return lambda **variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


BATCH_SCRIPT = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "8", "SLURM_PROCID": "0"}
STEP = {"SLURM_STEP_NUM_TASKS": "7", "SLURM_PROCID": "6", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}


@pytest.mark.parametrize(
    ("variables", "launched", "rank", "local"),
    [
        ({}, False, 0, 1),
        (BATCH_SCRIPT, False, 0, 1),
        (STEP | {"SLURM_NODEID": "3"}, True, 6, 1),
        (STEP | {"SLURM_NODEID": "1", "SLURM_PROCID": "3"}, True, 3, 2),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}, False, 0, 1),
        ({"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALNRANKS": "2"}, True, 3, 2),
        # an mpirun that starts one process a node by srun
        ({"PMI_SIZE": "4", "PMI_RANK": "1", "MPI_LOCALNRANKS": "2"} | STEP, True, 1, 2),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, True, 1, 1),
        ({"PMIX_RANK": "0"}, True, 0, 1),
        ({"PMI_SIZE": "x", "PMI_RANK": "²"}, False, 0, 1),
    ],
)
def test_what_the_launcher_says(environment, variables, launched, rank, local):
    environment(**variables)
    assert (launchers.launched(), launchers.rank(), launchers.local_ranks()) == (launched, rank, local)


@pytest.mark.parametrize(
    ("own", "node", "threads_of_a_rank"),
    [
        (range(8), [range(8), range(8, 16), range(16, 24), range(24, 32)], 8),  # pinned: whole
        (range(32), [range(32)] * 4, 8),  # shared
        (range(16), [range(16)] * 2 + [range(16, 32)] * 2, 8),  # by socket
        (range(1), [range(1)] * 2, 1),  # more ranks than cores
        (range(1), [range(1), range(1, 8)], 1),
        (range(32), [range(32)], 32),
    ],
)
def test_threads_of_a_rank(monkeypatch, own, node, threads_of_a_rank):
    monkeypatch.setattr(threads, "quota", lambda: 1 << 20)
    assert threads.share(set(own), [set(cores) for cores in node]) == threads_of_a_rank


def test_a_quota_is_shared_too(monkeypatch):
    monkeypatch.setattr(threads, "quota", lambda: 4)
    assert threads.share(set(range(8)), [set(range(8)), set(range(8, 16))]) == 2


@pytest.mark.parametrize("own", [range(8), range(32)])
def test_before_mpi_is_up_pinned_cores_are_not_divided_again(monkeypatch, environment, own):
    environment(PMI_SIZE="4", PMI_RANK="0", MPI_LOCALNRANKS="4", **dict.fromkeys(threads.VARIABLES, ""))
    monkeypatch.setattr(threads, "quota", lambda: 1 << 20)
    monkeypatch.setattr(os, "cpu_count", lambda: 32)
    monkeypatch.setattr(threads, "affinity", lambda: set(own))
    found, told = threads._Threads(), []
    monkeypatch.setattr(found, "_set", lambda number, where: told.append(number))
    found.before_mpi()
    assert told == [8]


PINNED = """
import os, sys
from minidnn.launch import launch, launchers
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[launchers.rank() if sys.argv[1] == "own" else 0]})
from minidnn.backend import openblas
from minidnn.launch import threads

def main(comm):
    os.write(1, f"{openblas.get_threads()} {comm.crowded} {threads.status()}\\n".encode())

launch(main)
"""


@needs_mpi
@pytest.mark.skipif(len(threads.affinity()) < 2, reason="needs two cores")
@pytest.mark.parametrize(("cores", "crowded"), [("own", "False"), ("one", "True")])
def test_pinned_ranks(cores, crowded):
    flags = {"MPICH": ["-bind-to", "none"], "Open MPI": ["--bind-to", "none"], "Intel MPI": []}[LIBRARY]
    run = mpirun(
        2, PINNED, cores, env=dict.fromkeys(threads.VARIABLES, "") | {"I_MPI_PIN": "0"}, launcher=flags
    )
    assert run.returncode == 0, run.stderr
    for line in run.stdout.splitlines():
        found, is_crowded, status = line.split(" ", 2)
        assert found in ("1", "None") and is_crowded == crowded
        assert "all cores" not in status
        if found == "1" and (cores == "one" or os.cpu_count() > 2):
            assert f"pinned to 1 of {os.cpu_count()} cores" in status
    assert len(run.stdout.splitlines()) == 2


ONE_RANK = "from minidnn.launch import launch\nlaunch(lambda comm: print('trained alone'))\n"


def alone(**variables):
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    command = [sys.executable, "-W", "ignore", "-c", ONE_RANK]
    return subprocess.run(
        command, env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )


@needs_mpi
@pytest.mark.skipif(
    LIBRARY == "Open MPI", reason="Open MPI ends by itself where it finds a part of Slurm's variables"
)
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
            ["srun started 2 ranks", "sees each alone", "srun --mpi=pmi2 or --mpi=pmix"],
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
            ["Open MPI's mpirun started 2 ranks", "sees each alone", "use the mpirun of"],
        ),
    ],
)
def test_ranks_that_see_one_another_not_are_an_error(variables, words):
    run = alone(**variables)
    assert run.returncode == 2 and "trained" not in run.stdout
    assert len(run.stderr.splitlines()) == 1 and run.stderr.startswith("error: ")
    assert all(word in run.stderr for word in [*words, LIBRARY]), run.stderr
    others = alone(**{name: value.replace("0", "1") for name, value in variables.items()})
    assert (others.returncode, others.stdout, others.stderr) == (2, "", "")


def test_a_serial_program_in_a_batch_script_of_many_tasks_is_one():
    run = alone(**BATCH_SCRIPT)
    assert (run.returncode, run.stdout) == (0, "trained alone\n"), run.stderr


@needs_mpi
@pytest.mark.parametrize("text", ["abc", "0", "-1", "nan"])
def test_seconds_that_are_none(text):
    run = alone(MINIDNN_LEAVE=text)
    assert (run.returncode, run.stderr) == (
        2,
        f"error: MINIDNN_LEAVE={text}: expected a number of seconds above 0\n",
    )


def test_mpi4py_without_a_library_names_the_sites():
    program = """
        import sys, types
        class NoLibrary(types.ModuleType):
            rc = types.SimpleNamespace()
            def __getattr__(self, name):
                raise RuntimeError("cannot load MPI library")
        sys.modules["mpi4py"] = NoLibrary("mpi4py")
        from minidnn.launch import launch
        launch(print)
    """
    run = mpirun(1, program, timeout=30)
    assert run.returncode == 2 and len([line for line in run.stderr.splitlines() if "error: " in line]) == 1
    assert "load the MPI of this machine" in run.stderr and "MPI4PY_MPIABI" in run.stderr
