"""The process beside each rank of a run of several that ends it when it cannot end itself.

A rank that is killed says nothing; one that is stopped, or hangs in the MPI library, cannot look at a clock; and
not every launcher ends the others.  So each rank starts a witness before it imports MPI (:class:`Witness`),
a small process of the standard library alone: this file, run as a script.  The rank tells it in lines how far it is:

- ``start S RANK``: the others are waited for until MPI is up, S seconds at most;
- ``run S RANK``: main runs; ends if no rank of the run gives a sign of life (``beat``) for S seconds;
- ``leave S``, then ``end CODE S``: main is over; the process must be gone within S seconds.

The witnesses know one another by TCP, all with that of rank 0, the centre.  When a rank is gone before its
``end``, or ends with a code, all are told: the earliest of what happened within a moment is what went wrong, and
rank 0's witness says so, unless that rank has spoken itself.  The other ranks then have :data:`GRACE` seconds to
end by themselves before their witnesses end them.  A connection that breaks is a witness that is gone, with its
machine.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time

GRACE = 8.0  # seconds to end in after another rank has failed; the guard's own waits add up to less
LOOK = (
    2.0  # seconds for a rank that waits for a message to say for which, and then for any to say where it is
)
MOMENT = 0.3  # seconds in which the ends of several ranks are one event
TICK = 0.5  # seconds after which a witness looks whether its rank is still there
ROOM = 1 << 16


class Witness:
    """The rank's end: starts the process and tells it how far the rank is."""

    def __init__(self) -> None:
        self.socket, other = socket.socketpair()
        os.dup(self.socket.fileno())  # open to the very end of the process, after Python's own
        with other:
            fd = other.fileno()
            # without site and user's packages it starts in 15 ms; in a session of its own, what ends the ranks'
            # process groups leaves it the moment that it needs
            command = [sys.executable, "-I", "-S", __file__, str(fd), str(os.getpid())]
            nowhere = subprocess.DEVNULL
            self.process = subprocess.Popen(
                command, pass_fds=[fd], stdin=nowhere, stdout=nowhere, start_new_session=True
            )

    def tell(self, *words: object, pass_on: socket.socket | None = None) -> None:
        line = (" ".join(map(str, words)) + "\n").encode()
        try:
            socket.send_fds(self.socket, [line], [pass_on.fileno()] if pass_on else [])
        except OSError:  # it was killed: its connections tell the others
            os.write(2, b"a rank's witness is gone, so the rank ends\n")
            os._exit(1)

    def heard(self) -> bool:
        """Whether the witness has said that the whole run stands still."""
        try:
            return bool(self.socket.recv(ROOM, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False

    def meet(self, control) -> None:
        """Connect the witnesses of all ranks; ``control`` is an mpi4py communicator of them."""
        rank, size = control.Get_rank(), control.Get_size()
        server, offer = None, None
        if rank == 0:
            server, key = socket.create_server(("", 0), backlog=size), os.urandom(16)
            offer = _addresses(), server.getsockname()[1], key
        addresses, port, key = control.bcast(offer)
        peer = _connect(addresses, port) if rank else None
        if peer:
            peer.sendall(key)
        if any(control.allgather(rank > 0 and peer is None)):  # no TCP between the ranks
            if rank == 0:
                sys.stderr.write(
                    "note: no TCP connection to rank 0: a lost rank is noticed by the launcher only\n"
                )
        elif rank:
            self.tell("peer", pass_on=peer)
        else:
            met = 0
            while met < size - 1:
                with server.accept()[0] as peer:
                    if _key(peer) == key:  # not one of another run
                        self.tell("peer", pass_on=peer)
                        met += 1
        for end in (server, peer):
            if end is not None:
                end.close()


def _key(peer: socket.socket) -> bytes:
    peer.settimeout(1)
    try:
        return peer.recv(16)
    except OSError:
        return b""


def _connect(addresses: list[str], port: int) -> socket.socket | None:
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=2)
        except OSError:
            continue
    return None


def _addresses() -> list[str]:
    """This machine's addresses: those of its network interfaces first, then its own loopback."""
    import fcntl

    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:  # SIOCGIFADDR of netdevice(7)
                answer = fcntl.ioctl(probe, 0x8915, name.encode()[:15].ljust(40, b"\0"))
                found.append(socket.inet_ntoa(answer[20:24]))
            except OSError:
                pass  # an interface without an address
    return sorted(found, key=lambda address: address.startswith("127."))


class _Watch:
    """The witness itself."""

    def __init__(self, rank_socket: socket.socket, pid: int) -> None:
        self.rank_socket, self.pid, self.host = rank_socket, pid, socket.gethostname()
        self.name, self.phase, self.limit = "", "", float("inf")
        self.deadline = self.decision = float("inf")
        self.asked = False  # the run stands still, and the rank has been told
        self.centre = False
        self.failed = False  # some rank has, and all know
        self.told_beat = 0.0
        self.events: list[tuple[float, str]] = []
        self.buffers: dict[socket.socket, bytes] = {}
        self.peers: list[socket.socket] = []
        self.done: set[socket.socket] = set()  # peers whose ranks have ended well
        self.selector = selectors.DefaultSelector()
        self._listen(rank_socket)

    def _listen(self, end: socket.socket) -> None:
        self.buffers[end] = b""
        self.selector.register(end, selectors.EVENT_READ)

    def run(self) -> None:
        while True:
            now = time.monotonic()
            for key, _ in self.selector.select(max(0.0, min(TICK, self.deadline - now, self.decision - now))):
                self._read(key.fileobj)
            now = time.monotonic()
            if now > self.decision:
                self._decide()
            if self.rank_socket in self.buffers and os.getppid() != self.pid:
                self._gone()
            elif now > self.deadline:
                self._expire()

    def _read(self, end: socket.socket) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(end, ROOM, 1)
        except OSError:
            data, fds = b"", []
        if not data:
            if end is self.rank_socket:
                self._gone()
            else:
                self._lost(end)
            return
        *lines, self.buffers[end] = (self.buffers[end] + data).split(b"\n")
        for line in lines:
            word, *rest = line.decode(errors="replace").split(" ", 2)
            if end is self.rank_socket:
                self._hear_rank(word, rest, fds)
            else:
                self._hear_peer(end, word, rest)

    # -- what is heard

    def _hear_rank(self, word: str, rest: list[str], fds: list[int]) -> None:
        if word == "peer":
            peer = socket.socket(fileno=fds.pop())
            peer.settimeout(1)
            self.peers.append(peer)
            self._listen(peer)
            return
        if word == "beat":
            self._alive()
            return
        self.phase = word
        seconds = float(rest[-1]) if word == "end" else float(rest[0])
        if word in ("start", "run"):
            self.name, self.centre = f"rank {rest[1]}", rest[1] == "0"
        if word == "end" and rest[0] != "0":
            self._event(time.time(), "")
        self.limit = seconds
        self.deadline = min(self.deadline if self.failed else float("inf"), time.monotonic() + seconds)

    def _hear_peer(self, end: socket.socket, word: str, rest: list[str]) -> None:
        if word == "beat":
            self._alive(end)
        elif word == "stall":
            self._stall(end)
        elif word == "done":
            self.done.add(end)
        elif word == "event":
            self._event(float(rest[0]), rest[1])
        elif word == "fail":
            self._fail()

    def _alive(self, source: socket.socket | None = None) -> None:
        """A sign of life: passed on, by the centre to all, once in a while."""
        now = time.monotonic()
        if self.phase == "run" and not self.failed:
            self.deadline, self.asked = now + self.limit, False
        if (self.centre or source is None) and now > self.told_beat + min(1.0, self.limit / 8):
            self.told_beat = now
            self._tell_peers("beat", but=source)

    def _tell_peers(self, line: str, but: socket.socket | None = None) -> None:
        for peer in self.peers:
            if peer is not but:
                try:
                    peer.sendall(f"{line}\n".encode())
                except OSError:
                    pass  # gone, as reading it will tell

    # -- what goes wrong

    def _event(self, when: float, text: str) -> None:
        """Something has ended the run; ``text`` is empty where the rank has said why, or is about to."""
        if self.peers and not self.centre:
            self._tell_peers(f"event {when} {text}")
            self._fail()
            return
        if not self.failed:
            self.decision = time.monotonic() + MOMENT
            self._tell_peers("fail")
            self._fail()
        self.events.append((when, text))

    def _fail(self) -> None:
        self.failed = True
        self.deadline = min(self.deadline, time.monotonic() + GRACE)

    def _decide(self) -> None:
        _say(min(self.events)[1])
        self.decision = float("inf")
        if self.rank_socket not in self.buffers:
            os._exit(0)

    def _lost(self, end: socket.socket) -> None:
        """The connection to another witness is gone."""
        self.selector.unregister(end)
        del self.buffers[end]
        self.peers.remove(end)
        if end not in self.done and self.phase == "run" and not self.failed:
            who = "another rank" if self.centre else "rank 0"
            self._event(time.time(), f"{self.name} on {self.host} has lost the connection to {who}")

    def _gone(self) -> None:
        """This witness's rank has ended."""
        self.selector.unregister(self.rank_socket)
        del self.buffers[self.rank_socket]
        if self.phase == "end":
            self._tell_peers("done")
        elif self.phase in ("run", "leave"):
            if os.getppid() == self.pid:  # it has become another program, which knows nothing of the others
                os.kill(self.pid, signal.SIGKILL)
            how = "is gone without a word: killed by a signal, or ended by os._exit"
            self._event(time.time(), f"{self._who()} {how}")
        self.deadline = float("inf")
        if self.decision == float("inf"):
            os._exit(0)

    def _stall(self, source: socket.socket | None = None) -> None:
        """The run stands still: all ranks are asked, those first that wait for a message, which they read here."""
        if self.phase == "run" and not self.failed and not self.asked:
            self.asked, self.deadline = True, time.monotonic() + LOOK
            self.rank_socket.sendall(b"?")
        if self.centre or source is None:
            self._tell_peers("stall", but=source)

    def _expire(self) -> None:
        """The time is over: ask, then kill."""
        if self.phase == "run" and not self.failed and not self.asked:
            self._stall()
            return
        if self.asked and self.phase == "run":
            _say(f"{self._who()} has not gone on for {self.limit:g} s{self._stopped()}")
            self._event(time.time(), "")
            self.asked, self.deadline = False, time.monotonic() + LOOK
            os.kill(self.pid, signal.SIGQUIT)  # by which it says where it is
            return
        if not self.failed:
            if self.phase == "start":
                why = "the other ranks have not started within"
                _say(f"{self._who()} ends: {why} {self.limit:g} s (MINIDNN_START), or one has failed")
            else:
                _say(f"{self._who()} has left main, and not ended within {self.limit:g} s{self._stopped()}")
            self._event(time.time(), "")
        self.phase = "end"
        self.deadline = float("inf")
        os.kill(self.pid, signal.SIGKILL)

    def _who(self) -> str:
        return f"{self.name} (process {self.pid} on {self.host})"

    def _stopped(self) -> str:
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                return ": it is stopped" * (file.read().rpartition(")")[2].split()[0] in "Tt")
        except OSError:
            return ""


def _say(text: str) -> None:
    if text:
        try:
            os.write(2, f"{text}\n".encode())
        except OSError:
            pass  # nobody reads it any more


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _Watch(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])).run()
