"""What the launchers of MPI programs tell each rank in the environment: the one place that knows them."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from minidnn.errors import InputError


class Launcher(NamedTuple):
    """The variables in which a launcher says rank, number of ranks and ranks on this machine; how it unpins them."""

    name: str
    rank: str
    size: str
    local_size: str
    unpin: str


#: The first whose ``size`` is set counts: an mpirun inside a Slurm step comes before srun.
LAUNCHERS = [
    Launcher(*line.split(" | "))
    for line in """\
Open MPI's mpirun | OMPI_COMM_WORLD_RANK | OMPI_COMM_WORLD_SIZE | OMPI_COMM_WORLD_LOCAL_SIZE | mpirun --bind-to none
MVAPICH's mpirun | MV2_COMM_WORLD_RANK | MV2_COMM_WORLD_SIZE | MV2_COMM_WORLD_LOCAL_SIZE | MV2_ENABLE_AFFINITY=0
MPICH's or Intel's mpirun | PMI_RANK | PMI_SIZE | MPI_LOCALNRANKS | mpirun -bind-to none, with Intel's I_MPI_PIN=0
PALS | PALS_RANKID | PALS_SIZE | PALS_LOCAL_SIZE | mpiexec --cpu-bind none
srun | SLURM_PROCID | SLURM_STEP_NUM_TASKS | SLURM_STEP_TASKS_PER_NODE | srun -c CORES_PER_RANK""".splitlines()
]
NO_SIZE = (
    "PMIX_RANK",
    "PALS_RANKID",
)  # where one of these is set there is a launcher, though it tells no size


def launcher() -> Launcher | None:
    """The launcher that started this process, as far as its variables tell."""
    return next((one for one in LAUNCHERS if _number(one.size) is not None), None)


def launched() -> bool:
    """Whether this process was started by mpirun or its like; a step of one task of srun is a plain program."""
    found = launcher()
    if found is None or (found.name == "srun" and _number(found.size) == 1):
        return any(name in os.environ for name in NO_SIZE)
    return True


def rank() -> int:
    """This process's rank, as the launcher says; 0 without one."""
    found = launcher()
    return (_number(found.rank if found else "PMIX_RANK")) or 0


def local_ranks() -> int:
    """Ranks of this run on this machine, as the launcher says; 1 without a launcher."""
    for one in LAUNCHERS:
        if one.name != "srun" and _number(one.local_size):
            return _number(one.local_size)
    # "2(x3),1": two tasks on each of three nodes, one on the next
    counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    nodes = [int(tasks) for tasks, times in counts for _ in range(int(times or 1))]
    node = _number("SLURM_NODEID") or 0
    return max(1, nodes[node]) if node < len(nodes) else 1


def check(library: str, size: int | None = None) -> None:
    """Refuse a world of one rank where the launcher started several: they would train one by one.

    Called with the MPI library that mpi4py has loaded, before MPI is up, when a library may not stand another's
    mpirun, and with the size of the world when it is.

    Raises
    ------
    InputError
        On rank 0: names the library, the launcher and the remedy.  The others, which find the same, exit with code
        2 without a word.
    """
    found = launcher()
    wanted = _number(found.size) if found else None
    kin = any(name in library for name in ("MPICH", "MVAPICH", "Intel MPI"))  # they end in another's mpirun
    foreign = kin and found is not None and "Open MPI" in found.name
    if not wanted or wanted == 1 or size not in (None, 1) or (size is None and not foreign):
        return
    if rank() > 0:
        raise SystemExit(2)
    remedy = f"use the mpirun of {library}, or an mpi4py with the MPI of this launcher"
    if any(name.startswith("SLURM_STEP") for name in os.environ):
        remedy = "use srun --mpi=pmi2 or --mpi=pmix (srun --mpi=list shows which there are)"
    raise InputError(
        f"{found.name} started {wanted} ranks, but {library}, which mpi4py has loaded, sees each alone: {remedy}"
    )


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() and text.isascii() else None
