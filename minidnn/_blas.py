"""BLAS threads: as many as this rank's share of the cores.

NumPy's BLAS starts one thread per core in every process.  With several ranks on a machine that is ranks x
cores threads, and MPI ranks that wait keep their core busy: steps become up to 70 times slower.  So the
number is set to cores // (ranks on this machine): in the environment where NumPy is yet to be imported, else
in the BLAS that it has loaded.  Setting ``OPENBLAS_NUM_THREADS`` or another of :data:`VARIABLES` oneself takes
precedence.
"""

from __future__ import annotations

import os
import sys

VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
#: What the launchers tell each rank: ranks on this machine (MPICH and its kin, Open MPI, Slurm, ...).
LOCAL_RANKS = (
    *("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"),
    *("PALS_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
)


def cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group if it has one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no control groups: the affinity is all there is
    return count


def local_ranks() -> int:
    """Ranks of this run on this machine, as the launcher says in the environment; 1 without a launcher."""
    for name in LOCAL_RANKS:
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return 1


def limit_blas_threads() -> str:
    """Set the number of BLAS threads for this rank.

    Returns
    -------
    str
        What holds now, for a program to print: the number and where it comes from.
    """
    for name in VARIABLES:
        if os.environ.get(name):
            return f"{os.environ[name]} BLAS threads ({name})"
    ranks = local_ranks()
    share = max(1, cores() // ranks)
    if ranks == 1:
        # Nothing to set: it is the default, and a variable set here would pass for the user's in child
        # processes.
        return f"{share} BLAS threads (all cores)"
    if "numpy" in sys.modules:  # it has read the variables already: tell its BLAS, if it can be told
        from .backend import openblas

        if not openblas.set_threads(share):
            return f"BLAS threads not limited: NumPy was imported before minidnn; set {VARIABLES[0]}={share}"
    for name in VARIABLES:
        os.environ[name] = str(share)
    return f"{share} BLAS threads a rank ({cores()} cores, {ranks} ranks)"


#: What :func:`limit_blas_threads` found or set when minidnn was imported.
STATUS = limit_blas_threads()
