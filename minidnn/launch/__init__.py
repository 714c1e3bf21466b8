"""Starting and ending the ranks of a program.

- :mod:`.launchers`: what mpirun and its like tell each rank, the one place that knows them;
- :mod:`.threads`: BLAS threads, as many as this rank's share of the cores;
- :mod:`.guard`: what stands around main; :mod:`.watch`: the process beside each rank that ends it when it cannot
  end itself, :mod:`.witness`: the rank's line to it; :mod:`.life`: signs that this rank goes on.

Imported first of all by minidnn, so this module itself needs neither NumPy nor MPI.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .life import alive

__all__ = ["alive", "launch"]

LEAVE, STALL = 60.0, 300.0  # seconds; see launch


def launch(main: Callable, *args: Any, leave: float = LEAVE, stall: float | None = STALL) -> Any:
    """Run a program: call ``main(comm, *args)`` on every rank, inside the guard, and return its result.

    Parameters
    ----------
    leave : float
        Seconds that a rank which has returned waits for the others, and that its process may then take to
        end (``MINIDNN_LEAVE`` overrides it).  What one rank does alone at the end belongs into main, before a
        last ``comm.barrier()``.
    stall : float, optional
        Seconds without a sign of life of any rank after which the run counts as stuck (``MINIDNN_STALL``
        overrides it).  Signs of life are messages that arrive and calls of :func:`alive`.  None: no limit.
        It holds where a launcher started the ranks.

    Exits with code 1 where a rank fails, 2 on bad input.  ``MINIDNN_START`` (120) is how many seconds a rank
    waits for the others to start.
    """
    from .guard import run

    return run(main, args, leave, stall)
