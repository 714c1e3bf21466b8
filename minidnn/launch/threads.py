"""BLAS threads: as many as this rank's share of the cores.

NumPy's BLAS starts one thread per core in every process.  With several ranks on a machine that is ranks x
cores threads, and MPI ranks that wait keep their core busy: steps become up to 70 times slower.  So the
number is set twice: when minidnn is imported, by what the launcher says, in the environment where NumPy is yet
to be imported, else in the BLAS that it has loaded; and again by :func:`share_out` when MPI is up and the ranks
of a machine know each other's cores.  Setting ``OPENBLAS_NUM_THREADS`` or another of :data:`VARIABLES` oneself
takes precedence.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from . import launchers

VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def affinity() -> set[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def quota() -> int:
    """Cores' worth of time that this process's control group gets; very many where there is no limit."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            time, period = file.read().split()
        return max(1, int(time) // int(period))
    except (OSError, ValueError):  # no control groups, or "max"
        return 1 << 20


def cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group if it has one."""
    return min(len(affinity()), quota())


def share(own: set[int], node: Sequence[set[int]]) -> int:
    """Threads of a rank with the cores ``own`` where the ranks of its machine, itself included, have ``node``.

    Cores of one's own are used whole; cores that ranks share are divided among all of them.
    """
    union = set().union(*node)
    alone = sum(bool(own & other) for other in node) == 1
    return max(1, min(len(own) if alone else len(union) // len(node), quota() // len(node)))


class _Threads:
    """What holds now, and whether the user wants it so."""

    def __init__(self) -> None:
        self.status = ""
        self.users = next((name for name in VARIABLES if os.environ.get(name)), None)

    def before_mpi(self) -> None:
        """Set the number by what the launcher says."""
        if self.users:
            self.status = f"{os.environ[self.users]} BLAS threads ({self.users})"
            return
        ranks, pinned = launchers.local_ranks(), len(affinity()) < (os.cpu_count() or 1)
        if ranks == 1:
            # Nothing to set: it is the default, and a variable set here would pass for the user's in child
            # processes.
            where = f"pinned to {cores()} of {os.cpu_count()} cores" if pinned else "all cores"
            self.status = f"{cores()} BLAS threads ({where})"
            return
        self._set(cores() if pinned else max(1, cores() // ranks), f"{cores()} cores, {ranks} ranks")

    def share_out(self, node: Sequence[set[int]]) -> None:
        """Set the number by the cores of all ranks on this machine."""
        if self.users:
            return
        union, machine = set().union(*node), os.cpu_count() or 1
        where = f"{min(len(union), quota())} cores, {len(node)} ranks"
        if len(union) < machine:
            found = launchers.launcher()
            where = f"pinned to {len(affinity())} of {machine} cores" + (f": {found.unpin}" if found else "")
        self._set(share(affinity(), node), where)

    def _set(self, threads: int, where: str) -> None:
        self.status = f"{threads} BLAS threads a rank ({where})"
        if "numpy" in sys.modules:  # it has read the variables already: tell its BLAS, if it can be told
            from minidnn.backend import openblas, workers

            if not openblas.set_threads(threads):
                self.status = (
                    f"BLAS threads not limited: NumPy was imported first; set {VARIABLES[0]}={threads}"
                )
                return
            workers.set_threads(None)  # it takes the number from BLAS
        for name in VARIABLES:
            os.environ[name] = str(threads)


_threads = _Threads()
_threads.before_mpi()
share_out = _threads.share_out


def status() -> str:
    """The number of BLAS threads and where it comes from, for a program to print."""
    return _threads.status
