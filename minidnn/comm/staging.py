"""Messages under way over MPI, and device arrays in them: directly where the library can, else by pinned memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import partial

import numpy as np


def cuda_aware(mpi) -> bool:
    """Whether this MPI library can be given pointers to device memory.

    ``MINIDNN_CUDA_AWARE=0`` or ``1`` decides; else the memory kinds that MPI 4.1 libraries tell, else what
    MPICH's and Open MPI's own query functions say, else no.  Never by trying: a library that cannot dies.
    """
    forced = os.environ.get("MINIDNN_CUDA_AWARE")
    if forced in ("0", "1"):
        return forced == "1"
    if "cuda" in (mpi.COMM_WORLD.Get_info().Get("mpi_memory_alloc_kinds") or ""):
        return True
    with open("/proc/self/maps") as maps:
        paths = {line.split()[-1] for line in maps if "libmpi" in line}
    for path in sorted(paths):
        library = ctypes.CDLL(path)
        if hasattr(library, "MPIX_Query_cuda_support"):
            return bool(library.MPIX_Query_cuda_support())
    return False


class Request:
    """A send or receive under way; holds on to its array until it is complete.

    ``peer`` is the world rank at the other end (None: a collective of the library); ``expected`` is what a receive
    is for: the communicator, the rank in it, the tag and the array.
    """

    __slots__ = ("arrays", "done", "expected", "handles", "note", "peer", "then")

    def __init__(self, handles, arrays, then: Callable[[], None] | None = None):
        self.handles, self.arrays, self.then = handles, arrays, then
        self.done, self.note, self.peer, self.expected = False, None, None, None

    def finish(self):
        self.done = True
        if self.then is not None:
            self.then()
        self.arrays = self.then = self.expected = None


class DeviceMessages:
    """Sends and receives CuPy arrays for an :class:`.mpi.MPICommunicator`."""

    def __init__(self, comm):
        self.comm, self.direct = comm, cuda_aware(comm.mpi)
        self.pool: dict[int, list] = {}

    def post(self, call, array, peer, tag) -> Request:
        """Send or receive by ``call``."""
        if self.direct:
            self._synchronise()  # also what is still to read the old contents must have done so
            return Request([call((array, self.comm.mpi.BYTE), peer, tag)], array)
        if call == self.comm.comm.Isend:
            host = self.to_host(array)
            then = partial(self._give_back, host)
        else:
            host = self._pinned(array)
            then = partial(self.to_device, host, array)
        return Request([call(part, peer, tag) for part in self.comm.parts(host)], (host, array), then)

    def to_host(self, array) -> np.ndarray:
        """A copy in pinned host memory, complete on return."""
        host = self._pinned(array)
        array.get(out=host)
        return host

    def to_device(self, host: np.ndarray, array) -> None:
        """Copy what :meth:`to_host` or a receive left in host memory, whose buffer is then used again."""
        array.set(host)
        self._synchronise()
        self._give_back(host)

    def _synchronise(self):
        import cupy

        cupy.cuda.get_current_stream().synchronize()

    def _pinned(self, array) -> np.ndarray:
        """A pinned host array like the given one, on a buffer used before if one fits."""
        import cupyx

        size = 1 << max(12, (array.nbytes - 1).bit_length())
        kept = self.pool.setdefault(size, [])
        buffer = kept.pop() if kept else cupyx.empty_pinned(size, np.uint8)
        return buffer[: array.nbytes].view(array.dtype).reshape(array.shape)

    def _give_back(self, host):
        buffer = host
        while buffer.base is not None and isinstance(buffer.base, np.ndarray):
            buffer = buffer.base
        self.pool.setdefault(buffer.nbytes, []).append(buffer)
