"""What the launchers of MPI programs tell each rank in the environment: the one place that knows them."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from minidnn.errors import InputError


class Launcher(NamedTuple):
    """A launcher and the variables in which it says rank, number of ranks, and ranks on this machine."""

    name: str
    rank: str
    size: str
    local_size: str
    unpin: str  # how to let the ranks use all cores


#: The first whose ``size`` is set counts: an mpirun inside a Slurm step comes before srun.
LAUNCHERS = (
    Launcher(
        "Open MPI's mpirun",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "mpirun --bind-to none",
    ),
    Launcher(
        "MVAPICH's mpirun",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_SIZE",
        "MV2_ENABLE_AFFINITY=0",
    ),
    Launcher(
        "mpirun of MPICH or its kin",
        "PMI_RANK",
        "PMI_SIZE",
        "MPI_LOCALNRANKS",
        "mpirun -bind-to none, with Intel MPI I_MPI_PIN=0",
    ),
    Launcher("PALS", "PALS_RANKID", "PALS_SIZE", "PALS_LOCAL_SIZE", "mpiexec --cpu-bind none"),
    Launcher(
        "srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "srun -c CORES_PER_RANK"
    ),
)
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


def check_size(size: int, library: str) -> None:
    """Refuse a world of one rank where the launcher started several: they would train one by one.

    Raises
    ------
    InputError
        Names the MPI library that mpi4py has loaded, the launcher, and the remedy.
    """
    found = launcher()
    wanted = _number(found.size) if found else None
    if size > 1 or not wanted or wanted == 1:
        return
    remedy = f"start with {library}'s own mpirun, or use the mpi4py of the MPI whose mpirun this is"
    if found.name == "srun" or any(name.startswith("SLURM_STEP") for name in os.environ):
        remedy = "use srun --mpi=pmi2 or --mpi=pmix (srun --mpi=list shows which there are), or " + remedy[6:]
    raise InputError(
        f"{found.name} started {wanted} ranks, but {library}, which mpi4py has loaded, sees one alone: {remedy}"
    )


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() and text.isascii() else None
