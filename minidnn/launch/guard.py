"""No run hangs: what stands around the main function of every program.

Plain MPI waits for ever when one rank raises, exits or returns early while others wait for it.  Inside the
guard:

- a rank that raises prints its traceback, in one write with its rank in front, and ends the run with code 1;
- bad input (:class:`~minidnn.errors.InputError`) is one line, ``error: ...``, and code 2;
- ``sys.exit(n)`` ends the run with code n (1 where the system would make 0 of it);
- a rank that waits for one that has returned says so, with the layer and the operation, and ends the run with
  code 1;
- a rank that returns waits ``leave`` seconds for the others to return, and then ends the run with code 86;
- a message that nobody received ends the run with code 1, where it is only noticed when all have returned;
- where no rank of the run has given a sign of life for ``stall`` seconds, each says for what it waits (the
  operation, the layer, the ranks), or, if it does not wait for a message, where it is, and ends;
- what the rank cannot do itself, since it was killed or stopped, waits in the MPI library, or has not come to the
  guard yet or left it, is done by a process beside it (:mod:`.watch`).

When all ranks fail alike, as they do on bad input, one of them speaks for all: a rank that leaves, for
whatever reason, first tells the others (a non-blocking all_reduce on a communicator of its own) and, if
they all leave too, the lowest rank that failed prints.  If they do not within half a second, it prints and
aborts.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from minidnn.comm.communicator import Communicator, StallError
from minidnn.comm.mpi import MPICommunicator, world
from minidnn.errors import InputError

from . import launchers, life
from .watch import LOOK
from .witness import Witness

LEFT_EARLY = 86  # exit code: this rank finished, others did not
GOODBYE = 1  # tag of the word that a returning rank leaves for the others
PATIENCE = 0.5  # seconds that a failing rank gives the others to fail too
START = 120.0  # seconds that a rank waits for the others to start


def run(main: Callable, args: tuple, leave: float, stall: float | None) -> Any:
    """What :func:`minidnn.launch.launch` does."""
    witness = None
    try:
        leave = _seconds("MINIDNN_LEAVE", leave)
        stall = _seconds("MINIDNN_STALL", np.inf if stall is None else stall)
        start = _seconds("MINIDNN_START", START)
        if launchers.launched():
            witness = Witness()  # before MPI is imported, which waits for all ranks
            witness.tell("start", start, launchers.rank())
        comm = world()
    except InputError as error:
        _say(f"error: {error}\n")
        raise SystemExit(2) from None
    with _Guard(comm, witness, leave, stall):
        return main(comm, *args)


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name) or default
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise InputError(f"{name}={text}: expected a number of seconds above 0")
    return seconds


class _Guard:
    """Context manager around a rank's main; ``witness`` is None where no launcher started this process."""

    def __init__(self, comm: Communicator, witness: Witness | None, leave: float, stall: float):
        self.comm, self.witness, self.leave, self.stall = comm, witness, leave, stall
        self.pid, self.next_beat = os.getpid(), 0.0
        self.control = comm.comm.Dup() if isinstance(comm, MPICommunicator) else None

    def __enter__(self):
        if self.witness is not None:
            faulthandler.register(signal.SIGQUIT)  # the witness's question where it is
            self.inside = True
            for name in ("_exit", "execv", "execve"):
                setattr(os, name, self._ending(getattr(os, name)))
            self.witness.meet(self.control)
            self.comm.engine.find_departed = self._look
            self.comm.engine.alive = life.heard = self.alive
            self.witness.tell("run", self.stall, self.comm.rank)
        return self

    def _ending(self, end):
        """``end``, which ends the rank with nobody noticing, or none but the launcher.  That of MPICH may take its
        code 0, or that of another program, for the run's: so it is killed."""

        def ending(first, *others):
            if self.inside and os.getpid() == self.pid and (others or first == 0):
                os.kill(self.pid, signal.SIGKILL)
            end(first, *others)

        return ending

    def alive(self) -> None:
        """This rank is not stuck, and so the run is not."""
        now = time.monotonic()
        if now > self.next_beat:
            self.next_beat = now + min(1.0, self.stall / 8)
            self.witness.tell("beat")

    def __exit__(self, kind, error, trace):
        code = exit_code(error)
        if os.getpid() != self.pid:  # a forked child: neither MPI nor the other ranks are its own
            _say(report(error, self.comm.rank, self.comm.size))
            if code:  # but its failure is that of its rank
                os.kill(self.pid, signal.SIGKILL)
            os._exit(code)
        self.inside = False
        try:
            if code == 0:
                self._leave_normally()
            else:
                self._leave_failing(error, code)
        except SystemExit:
            raise
        except BaseException as second:  # a closed stdout, for one
            self._abort(code or 1, report(second, self.comm.rank, self.comm.size))
        return True

    def _leave_normally(self):
        sys.stdout.flush()
        self._tell("leave", self.leave + LOOK)
        if self.control is not None:
            others = [rank for rank in range(self.comm.size) if rank != self.comm.rank]
            self._goodbyes = [self.control.Isend(b"", rank, GOODBYE) for rank in others]
        failing = self._others(failing=False, patience=self.leave)
        if failing is None:
            text = f"rank {self.comm.rank} finished, but other ranks did not within {self.leave:g} s\n"
            self._abort(LEFT_EARLY, text)
        everyone = failing == self.comm.size  # has returned, and none has failed
        if everyone and (left := self.comm.left_over()):
            self._abort(1, "".join(f"{line}\n" for line in left))
        self._tell("end", self.leave, 0)

    def _leave_failing(self, error, code):
        self._tell("end", self.leave, code)
        stalled = isinstance(error, StallError)
        if stalled:  # each says what it waits for; then one that does not wait, where it is
            self._speak(f"{error}\n")
        speaker = self._others(failing=True, patience=2 * LOOK if stalled else PATIENCE)
        if speaker is None:  # the others are stuck, or busy; the lowest of several failing ranks comes first
            time.sleep(min(0.1 * self.comm.rank, 1.0))
        if not stalled:
            mine = speaker in (None, self.comm.rank)
            self._speak(report(error, self.comm.rank, self.comm.size) if mine else "")
        if speaker is None or self.comm.engine.pending:
            # messages under way would keep MPI from shutting down
            if speaker is not None:
                self._others(failing=True, patience=PATIENCE)  # until the speaker has spoken
            self._abort(code)
        raise SystemExit(code) from None

    def _tell(self, *words):
        if self.witness is not None:
            self.witness.tell(*words)

    def _look(self):
        """Hear who has returned, and whether the whole run stands still."""
        from mpi4py import MPI

        status = MPI.Status()
        while self.control.Iprobe(MPI.ANY_SOURCE, GOODBYE, status):
            self.control.Recv(bytearray(0), status.source, GOODBYE)
            self.comm.engine.departed.add(status.source)
        self.comm.engine.stalled |= self.witness.heard()

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
        self._look()  # so that no word is left over when MPI shuts down
        return int(lowest[0])

    def _speak(self, text):
        try:
            _say(text)
        finally:
            self._tell("said")

    def _abort(self, code, text=""):
        try:
            self._tell("end", self.leave, code)
            self._speak(text)
            sys.stdout.flush()
        finally:
            if self.control is not None:
                self.comm.abort(code)
            raise SystemExit(code)


def _say(text: str) -> None:
    """One write, so that the lines of several ranks do not mix."""
    try:
        sys.stdout.flush()
    finally:
        sys.stderr.write(text)
        sys.stderr.flush()


def exit_code(error: BaseException | None) -> int:
    """The exit code that an exception leaving main stands for."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        if not error.code:
            return int(error.code not in (None, 0))
        return (error.code & 0xFF or 1) if isinstance(error.code, int) else 1
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
    text = "".join(traceback.format_exception(error)) if error else ""
    return text if size == 1 else "".join(f"[rank {rank}] {line}\n" for line in text.splitlines())
