"""A rank's line to its witness (:mod:`.watch`), which ends it when it cannot end itself."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

SCRIPT = str(Path(__file__).with_name("watch.py"))


class Witness:
    """The rank's end: starts the process and tells it how far the rank is."""

    def __init__(self) -> None:
        self.socket, other = socket.socketpair()
        os.dup(self.socket.fileno())  # open to the very end of the process, after Python's own
        with other:
            fd = other.fileno()
            # without site and user's packages it starts in 15 ms; in a session of its own, what ends the ranks'
            # process groups leaves it the moment that it needs
            command = [sys.executable, "-I", "-S", SCRIPT, str(fd), str(os.getpid())]
            nowhere = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
            self.process = subprocess.Popen(command, pass_fds=[fd], start_new_session=True, **nowhere)

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
            return bool(self.socket.recv(64, socket.MSG_DONTWAIT))
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
        peer = _connect(addresses, port, key) if rank else None
        if any(control.allgather(rank > 0 and peer is None)):
            if rank == 0:
                sys.stderr.write(
                    "note: no TCP to rank 0: that a rank is lost, only the launcher can notice\n"
                )
        elif rank:
            self.tell("peer", pass_on=peer)
        else:
            met = 0
            while met < size - 1:
                with server.accept()[0] as caller:
                    caller.settimeout(1)
                    with suppress(OSError):
                        if caller.recv(len(key)) == key:  # not somebody else
                            self.tell("peer", pass_on=caller)
                            met += 1


def _connect(addresses: list[str], port: int, key: bytes) -> socket.socket | None:
    for address in addresses:
        with suppress(OSError):
            peer = socket.create_connection((address, port), timeout=2)
            peer.sendall(key)
            return peer
    return None


def _addresses() -> list[str]:
    """This machine's addresses: those of its network interfaces first, then its own loopback."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address; SIOCGIFADDR of netdevice(7)
                answer = fcntl.ioctl(probe, 0x8915, name.encode()[:15].ljust(40, b"\0"))
                found.append(socket.inet_ntoa(answer[20:24]))
    return sorted(found, key=lambda address: address.startswith("127."))
