"""No run hangs: what stands around the main function of every program.

Plain MPI waits for ever when one rank raises, exits or returns early while others wait for it.  Inside the
guard:

- a rank that raises prints its traceback, in one write with its rank in front, and ends the run with code 1;
- bad input (:class:`~minidnn.errors.InputError`) is one line, ``error: ...``, and code 2;
- ``sys.exit(n)`` ends the run with code n;
- a rank that waits for one that has returned says so, with the layer and the operation, and ends the run with
  code 1;
- a rank that returns waits ``leave`` seconds for the others to return, and then ends the run with code 86;
- a message that nobody received ends the run with code 1, where it is only noticed when all have returned;
- with ``stall``, a rank that has not called :meth:`guard.alive` for so many seconds says for what it waits (the
  operation, the layer, the ranks), or, if it does not wait for a message, where it is, and ends.

When all ranks fail alike, as they do on bad input, one of them speaks for all: a rank that leaves, for
whatever reason, first tells the others (a non-blocking all_reduce on a communicator of its own) and, if
they all leave too, the lowest rank that failed prints.  If they do not within half a second, it prints and
aborts.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ContextDecorator
from math import inf

import numpy as np

from minidnn.errors import InputError

from .communicator import Communicator, StallError
from .mpi import MPICommunicator, world

LEFT_EARLY = 86  # exit code: this rank finished, others did not
GOODBYE = 1  # tag of the word that a returning rank leaves for the others
PATIENCE = 0.5  # seconds that a failing rank gives the others to fail too
LOOKS = 2.0  # seconds after the limit in which a rank that waits finds out by itself


class guard(ContextDecorator):
    """Context manager or decorator around a rank's main.

    Parameters
    ----------
    comm : Communicator
        The world.
    leave : float
        Seconds to wait for the other ranks on a normal end (``MINIDNN_LEAVE`` overrides it).  What one rank
        does alone at the end belongs before a last ``comm.barrier()`` if it may take longer.
    stall : float, optional
        Seconds without :meth:`alive` after which the rank counts as stuck.

    Examples
    --------
    >>> with guard(comm, stall=120) as watch:
    ...     for step in range(steps):
    ...         train(step)
    ...         watch.alive()
    """

    def __init__(self, comm: Communicator, leave: float = 60.0, stall: float | None = None):
        self.comm, self.stall = comm, stall
        self.leave = float(os.environ.get("MINIDNN_LEAVE", leave))
        self.control = comm.comm.Dup() if isinstance(comm, MPICommunicator) else None
        if self.control is not None:
            comm.engine.find_departed = self._find_departed

    def __enter__(self):
        self.comm.engine.alive = self.alive
        self.alive()
        return self

    def alive(self) -> None:
        """This rank is not stuck: begin the stall limit anew."""
        if self.stall is not None:
            self.comm.engine.deadline = time.monotonic() + self.stall
            faulthandler.dump_traceback_later(self.stall + LOOKS, exit=True)

    def __exit__(self, kind, error, trace):
        if self.stall is not None:
            faulthandler.cancel_dump_traceback_later()
            self.comm.engine.deadline = inf
        code = exit_code(error)
        if code == 0:
            self._leave_normally()
        else:
            self._leave_failing(error, code)
        return True

    def _leave_normally(self):
        if self.control is not None:
            others = [rank for rank in range(self.comm.size) if rank != self.comm.rank]
            self._goodbyes = [self.control.Isend(b"", rank, GOODBYE) for rank in others]
        failing = self._others(failing=False, patience=self.leave)
        if failing is None:
            self._say(f"rank {self.comm.rank} finished, but other ranks did not within {self.leave:g} s\n")
            self._abort(LEFT_EARLY)
        everyone = failing == self.comm.size  # has returned, and none has failed
        if everyone and (left := self.comm.left_over()):
            self._say("".join(f"{line}\n" for line in left))
            self._abort(1)

    def _leave_failing(self, error, code):
        stalled = isinstance(error, StallError)
        if stalled:  # each says what it waits for; then one that does not wait, where it is
            self._say(f"{error}\n")
        speaker = self._others(failing=True, patience=2 * LOOKS if stalled else PATIENCE)
        if speaker is None:  # the others are stuck, or busy; the lowest of several failing ranks comes first
            time.sleep(0.1 * self.comm.rank)
        if speaker in (None, self.comm.rank) and not stalled:
            self._say(report(error, self.comm.rank, self.comm.size))
        if (
            speaker is None or self.comm.engine.pending
        ):  # messages under way would keep MPI from shutting down
            if speaker is not None:
                self._others(failing=True, patience=PATIENCE)  # until the speaker has spoken
            self._abort(code)
        raise SystemExit(code) from None

    def _find_departed(self):
        """Hear who has returned."""
        from mpi4py import MPI

        status = MPI.Status()
        while self.control.Iprobe(MPI.ANY_SOURCE, GOODBYE, status):
            self.control.Recv(bytearray(0), status.source, GOODBYE)
            self.comm.engine.departed.add(status.source)

    def _others(self, failing: bool, patience: float) -> int | None:
        """Tell the others that this rank leaves; the lowest failing rank when all do, None if they do not."""
        if self.control is None:
            return self.comm.rank
        from mpi4py import MPI

        own, lowest = np.array([self.comm.rank if failing else self.comm.size]), np.empty(1, int)
        request = self.control.Iallreduce(own, lowest, MPI.MIN)
        deadline = time.monotonic() + patience
        while not request.Test():
            if time.monotonic() > deadline:
                return None
            time.sleep(1e-3)
        self._find_departed()  # so that no word is left over when MPI shuts down
        return int(lowest[0])

    def _say(self, text: str) -> None:
        sys.stdout.flush()
        sys.stderr.write(text)  # one write, so that the lines of several ranks do not mix
        sys.stderr.flush()

    def _abort(self, code):
        if self.control is not None:
            sys.stdout.flush()
            self.comm.abort(code)
        raise SystemExit(code)


def exit_code(error: BaseException | None) -> int:
    """The exit code that an exception leaving main stands for."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, InputError) else 1


def report(error: BaseException, rank: int, size: int) -> str:
    """What to print about an exception that left main."""
    if isinstance(error, InputError):
        return f"error: {error}\n"
    if isinstance(error, SystemExit):
        return "" if isinstance(error.code, int) else f"{error.code}\n"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted\n"
    text = "".join(traceback.format_exception(error))
    return text if size == 1 else "".join(f"[rank {rank}] {line}\n" for line in text.splitlines())


def launch(main: Callable, *args, leave: float = 60.0, stall: float | None = None):
    """Run a program: ``launch(main)`` calls ``main(comm, *args)`` inside the guard and returns its result."""
    try:
        comm = world()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    with guard(comm, leave, stall):
        return main(comm, *args)
