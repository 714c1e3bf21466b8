"""The process beside each rank of a run of several that ends it when it cannot end itself.

A rank that is killed says nothing; one that is stopped, or hangs in the MPI library, cannot look at a clock; and
not every launcher ends the others.  So each rank starts a witness before it imports MPI (:mod:`.witness`),
a small process of the standard library alone: this file, run as a script.  The rank tells it in lines how far it is:

- ``start S RANK``: the others are waited for until MPI is up, S seconds at most;
- ``run S RANK``: main runs; ends if no rank of the run gives a sign of life (``beat``) for S seconds;
- ``leave S``, then ``end S CODE``: main is over; the process must be gone within S seconds;
- ``said``: a rank that fails has said why, or another has for it.

The witnesses know one another by TCP, all with that of rank 0, the centre, which passes on what it hears.  When a rank
is gone before its ``end``, or fails, all are told, and have :data:`GRACE` seconds to end by themselves before their
witnesses end them.  Of a rank that is gone without a word its witness speaks, unless somebody has spoken: then it was
ended like the others.  A connection that breaks is a witness that is gone, with its machine.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress
from math import inf

GRACE = 8.0  # seconds to end in after another rank has failed; the guard's own waits add up to less
LOOK = 2.0  # seconds for a rank that waits for a message to say so, and again for any to say where it is
TICK = 0.5  # seconds after which a witness looks whether its rank is still there


class _Watch:
    """A witness; ``rank`` is the socket that leads to its rank, whose process is ``pid``."""

    def __init__(self, rank: socket.socket, pid: int) -> None:
        self.rank, self.pid = rank, pid
        self.name, self.phase, self.limit, self.centre = "", "", inf, False
        self.deadline = inf  # of the phase
        self.asked = False  # the run stands still, and the rank has been told
        self.failed = False  # some rank has, and all know
        self.silent = False  # this rank would be gone without a word
        self.said = False  # it has been said why the run ends
        self.next_beat = 0.0
        self.rests = {rank: b""}  # what has been read of a line, by open connection
        self.done: set[socket.socket] = set()  # connections to witnesses whose ranks have ended well
        self.selector = selectors.DefaultSelector()
        self.selector.register(rank, selectors.EVENT_READ)

    def run(self) -> None:
        while self.rank in self.rests:
            for key, _ in self.selector.select(max(0.0, min(TICK, self.deadline - time.monotonic()))):
                self.read(key.fileobj)
            if self.rank in self.rests and os.getppid() != self.pid:
                self.close(self.rank)
            elif time.monotonic() > self.deadline:
                self.expire()

    def read(self, end: socket.socket) -> None:
        data, fds = b"", []
        with suppress(OSError):
            data, fds, _, _ = socket.recv_fds(end, 1 << 16, 1)
        if not data:
            self.close(end)
            return
        *lines, self.rests[end] = (self.rests[end] + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word in ("start", "run", "leave", "end"):
                self.enter(word, *rest.split(" "))
            elif word == "peer":
                peer = socket.socket(fileno=fds.pop())
                peer.settimeout(1)
                self.rests[peer] = b""
                self.selector.register(peer, selectors.EVENT_READ)
            elif word == "beat":
                self.alive(end)
            elif word == "stall":
                self.stall(end)
            elif word == "fail":
                self.fail(end)
            elif word == "said":
                self.silent &= end is not self.rank
                self.say("", end)
            elif word == "done":
                self.done.add(end)

    def tell(self, line: str, but: socket.socket | None = None) -> None:
        """Tell the other witnesses."""
        for peer in self.rests.keys() - {self.rank, but}:
            with suppress(OSError):  # gone, as reading it will show
                peer.sendall(f"{line}\n".encode())

    def enter(self, phase: str, seconds: str, detail: str = "") -> None:
        self.phase, self.limit = phase, float(seconds)
        if phase in ("start", "run"):
            self.name, self.centre = f"rank {detail}", detail == "0"
        self.silent = phase != "start" and (phase, detail) != ("end", "0")
        if phase == "end" and self.silent:
            self.fail(self.rank)
        self.deadline = min(self.deadline if self.failed else inf, time.monotonic() + self.limit)

    def alive(self, source: socket.socket) -> None:
        """A sign of life, of this rank or, by the centre, of another; passed on once in a while."""
        now = time.monotonic()
        if self.phase == "run" and not self.failed and not self.asked:
            self.deadline = now + self.limit
        if (self.centre or source is self.rank) and now > self.next_beat:
            self.next_beat = now + min(1.0, self.limit / 8)
            self.tell("beat", but=source)

    def stall(self, source: socket.socket) -> None:
        """The run stands still.  The ranks that wait for a message read it here, and say for which."""
        if self.phase == "run" and not self.failed and not self.asked:
            self.asked, self.deadline = True, time.monotonic() + LOOK
            self.rank.sendall(b"?")
        if self.centre or source is self.rank:
            self.tell("stall", but=source)

    def say(self, text: str, source: socket.socket | None = None) -> None:
        """It is said, here or where ``source`` leads, why the run ends."""
        if text:
            with suppress(OSError):  # where nobody reads it any more
                os.write(2, f"{self.name} (process {self.pid} on {socket.gethostname()}) {text}\n".encode())
        if not self.said and (self.centre or source in (None, self.rank)):
            self.tell("said", but=source)
        self.said = True
        self.fail(source or self.rank)

    def fail(self, source: socket.socket) -> None:
        """All ranks must end, by themselves or by their witnesses."""
        if not self.failed and (self.centre or source is self.rank):
            self.tell("fail", but=source)
        self.failed, self.deadline = True, min(self.deadline, time.monotonic() + GRACE)

    def close(self, end: socket.socket) -> None:
        """A rank, or another witness, is gone."""
        self.selector.unregister(end)
        del self.rests[end]
        if end is not self.rank:
            if end not in self.done and self.phase == "run" and not self.failed:
                self.say(f"has lost the connection to {'another rank' if self.centre else 'rank 0'}")
            return
        if self.phase == "end":
            self.tell("done")
        if self.silent:
            if os.getppid() == self.pid:  # it has become another program, which knows nothing of the others
                os.kill(self.pid, signal.SIGKILL)
            if not self.said:
                self.say("is gone without a word: killed by a signal, or ended by os._exit")

    def expire(self) -> None:
        """The time is over: ask, then kill."""
        if self.phase == "run" and not self.failed and not self.asked:
            self.stall(self.rank)
            return
        if self.phase == "run" and self.asked:
            self.say(f"has not gone on for {self.limit:g} s{self.stopped()}")
            self.silent = False
            self.asked, self.deadline = False, time.monotonic() + LOOK
            os.kill(self.pid, signal.SIGQUIT)  # by which it says where it is
            return
        if not self.failed:
            why = f"has left main, and not ended within {self.limit:g} s{self.stopped()}"
            if self.phase == "start":
                why = f"ends: the other ranks have not started within {self.limit:g} s (MINIDNN_START)"
            self.say(why)
        self.phase, self.silent, self.deadline = "end", False, inf
        os.kill(self.pid, signal.SIGKILL)

    def stopped(self) -> str:
        with suppress(OSError), open(f"/proc/{self.pid}/stat") as file:
            return ": it is stopped" * (file.read().rpartition(")")[2].split()[0] in "Tt")
        return ""


if __name__ == "__main__":
    for number in (signal.SIGHUP, signal.SIGTERM):  # for the rank: its witness ends after it
        signal.signal(number, signal.SIG_IGN)
    _Watch(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])).run()
