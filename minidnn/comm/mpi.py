"""Ranks as processes under MPI, by mpi4py's buffer calls.

Waiting.  An MPI library waits by spinning, which takes the core from whoever could use it: from the threads
that prepare the next batch and, with more ranks than cores, from the very rank that is waited for.  So
waiting here means testing: for 2 ms with no more than an offer of the core to others in between (sched_yield
comes back at once where nobody wants it), then with sleeps from 20 microseconds to a millisecond.  Messages that
come at once are as fast as MPI's own wait makes them, and with more ranks than cores a large message, which
takes several handshakes, does not pay a sleep for each (1 MiB summed directly over 4 ranks on 2 cores: 9 ms without
the yielding, 1 ms with it).

Device arrays.  The MPI libraries on PyPI cannot read device memory, and one that cannot dies when it is
asked to; so unless the library says that it can (or ``MINIDNN_CUDA_AWARE=1``), device arrays go through
host memory.  Either way the stream is synchronised first: MPI knows nothing of streams.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Sequence

import numpy as np

from minidnn._blas import cores
from minidnn.backend import array_module, is_array
from minidnn.errors import InputError

from .communicator import LAST_TAG, CommunicationError, Communicator, Engine, Note, StallError
from .ledger import Ledger

#: Set by the launchers of MPICH and its kin, Open MPI, Slurm with PMIx, and PALS.
LAUNCHED = ("PMI_RANK", "PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "PALS_RANKID")
PIECE = 1 << 30  # bytes: longer messages are cut, since many an MPI counts in 32 bits
YIELD = 2e-3  # seconds of waiting without a sleep
LOOK = 1.0  # seconds of waiting after which, again and again, a rank looks whether others have finished
SLICE = 4 << 20  # bytes: what the library's own all_reduce is given at a time, see library_all_reduce


def launched() -> bool:
    """Whether this process was started by mpirun or its like."""
    return any(name in os.environ for name in LAUNCHED)


def world() -> Communicator:
    """All ranks of the run: those of MPI under mpirun, else a world of one rank, which needs no MPI.

    Raises
    ------
    InputError
        Under mpirun, but without mpi4py.
    """
    if not launched():
        from .threads import Hub, world_of

        return world_of(Hub(1), 0)
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise InputError(f'running under mpirun needs mpi4py: pip install "minidnn[mpi]" ({error})') from None
    return MPICommunicator.world(MPI.COMM_WORLD)


class Request:
    """A send or receive under way; holds on to its array until it is complete.

    ``peer`` is the world rank at the other end (None: a collective of the library).
    """

    __slots__ = ("arrays", "done", "handles", "note", "peer", "then")

    def __init__(self, handles, arrays, then: Callable[[], None] | None = None):
        self.handles, self.arrays, self.then = handles, arrays, then
        self.done, self.note, self.peer = False, None, None

    def finish(self):
        self.done = True
        if self.then is not None:
            self.then()
        self.arrays = self.then = None


class MPICommunicator(Communicator):
    """A group of MPI processes."""

    def __init__(self, comm, ranks: Sequence[int], nodes: Sequence[int], engine: Engine | None = None):
        from mpi4py import MPI

        super().__init__(comm.Get_rank(), ranks, nodes, engine)
        self.mpi, self.comm, self._device = MPI, comm, None
        self.engine.groups.append(self)
        here = sum(node == self.nodes[self.rank] for node in self.nodes)
        # all members alike, though one host may have fewer cores: they call the same function of the library
        self.crowded = comm.allreduce(here > cores(), MPI.LOR)

    @classmethod
    def world(cls, world) -> MPICommunicator:
        """From an mpi4py communicator, which is duplicated so that no message of others can get in."""
        from mpi4py import MPI

        if (tags := world.Get_attr(MPI.TAG_UB)) < LAST_TAG:
            raise InputError(f"this MPI library has tags up to {tags}; minidnn needs them up to {LAST_TAG}")
        comm = world.Dup()
        on_node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        leaders = comm.allgather(on_node.bcast(comm.Get_rank()))
        on_node.Free()
        order = list(dict.fromkeys(leaders))
        self = cls(comm, range(comm.Get_size()), [order.index(leader) for leader in leaders])
        self.ledger = Ledger(self.rank, self.size)
        return self

    # -- messages ----------------------------------------------------------------------------------------

    def _isend(self, array, dest, tag):
        if not isinstance(array, np.ndarray) and is_array(array):
            request = self.device.isend(array, dest, tag)
        else:
            request = Request([self.comm.Isend(part, dest, tag) for part in self.parts(array)], array)
        request.peer = self.ranks[dest]
        return request

    def _irecv(self, array, source, tag):
        if not isinstance(array, np.ndarray) and is_array(array):
            request = self.device.irecv(array, source, tag)
        else:
            request = Request([self.comm.Irecv(part, source, tag) for part in self.parts(array)], array)
        request.peer = self.ranks[source]
        return request

    def parts(self, array) -> list:
        """The array as buffers of bytes (so that any dtype can travel), none longer than an MPI can count."""
        if array.nbytes <= PIECE:
            return [(array, self.mpi.BYTE)]
        flat = array.reshape(-1).view(array_module(array).uint8)
        return [(flat[i : i + PIECE], self.mpi.BYTE) for i in range(0, flat.size, PIECE)]

    @property
    def device(self):
        """How device arrays are sent, made when the first one is."""
        if self._device is None:
            from .staging import DeviceMessages

            self._device = DeviceMessages(self)
        return self._device

    # -- waiting -----------------------------------------------------------------------------------------

    def _test(self, requests):
        open_requests = [request for request in requests if not request.done]
        if open_requests:
            handles = [handle for request in open_requests for handle in request.handles]
            if not self.mpi.Request.Testall(handles):
                return False
            for request in open_requests:
                request.finish()
        return True

    def _wait_any(self, groups):
        begin, pause, look = time.perf_counter(), 20e-6, LOOK
        while True:
            ready = [i for i, group in enumerate(groups) if self._test(group)]
            if ready:
                return ready
            waited = time.perf_counter() - begin
            if waited < YIELD:
                _yield()
            else:
                time.sleep(pause)
                pause = min(2 * pause, 1e-3)
            if waited > look:
                look += LOOK
                self._look_for_departed(groups)
            if time.monotonic() > self.engine.deadline:
                self._give_up(groups)

    def _look_for_departed(self, groups):
        """Fail if this rank waits for one that has finished, and did so at the last look already."""
        before = set(self.engine.departed)
        self.engine.find_departed()
        for request in (request for group in groups for request in group if not request.done):
            if request.peer in before:
                raise CommunicationError(
                    f"rank {self.ranks[self.rank]} waits for rank {request.peer}, which has finished "
                    f"({request.note})"
                )

    def _give_up(self, groups):
        """Say for what this rank has waited until the guard's time was over."""
        open_requests = [request for group in groups for request in group if not request.done]
        told = dict.fromkeys(
            f"{'the others' if r.peer is None else f'rank {r.peer}'} ({r.note})" for r in open_requests
        )
        raise StallError(f"rank {self.ranks[self.rank]} has waited too long for {', '.join(told)}")

    # -- the rest ----------------------------------------------------------------------------------------

    def left_over(self) -> list[str]:
        """What was sent to this rank and never received, in words; asked when all ranks have finished."""
        found, status = [], self.mpi.Status()
        for group in self.engine.groups:
            # more than once: a probe also moves on what is still on its way
            if any(group.comm.Iprobe(self.mpi.ANY_SOURCE, self.mpi.ANY_TAG, status) for _ in range(10)):
                source, size = group.ranks[status.source], status.Get_count(self.mpi.BYTE)
                found.append(f"rank {self.ranks[self.rank]} never received {size} bytes from rank {source}")
        return found

    def abort(self, code=1):
        self.comm.Abort(code)
        os._exit(code)  # MPI_Abort may come back while the launcher is still killing the others

    def _part(self, color, members, sequence):
        part = self.comm.Split(self.mpi.UNDEFINED if color is None else color, _place(members, self.rank))
        if color is None:
            return None
        ranks, nodes = [self.ranks[m] for m in members], [self.nodes[m] for m in members]
        return MPICommunicator(part, ranks, nodes, self.engine)

    def library_all_reduce(self, flat) -> Generator:
        """The steps of the MPI library's own all_reduce, in place.

        It is given the array in slices of 4 MiB: in one call it spends most of a large all_reduce on page
        faults in temporary buffers (100 MB over two ranks: 52 ms whole, 14 ms in slices of 2 to 8 MB).
        """
        host = flat if isinstance(flat, np.ndarray) else self.device.to_host(flat)
        kind = self.mpi.LOR if host.dtype == bool else self.mpi.SUM
        step = max(1, SLICE // host.itemsize)
        slices = [host[start : start + step] for start in range(0, host.size, step)]
        if not self.crowded:
            for part in slices:
                self.comm.Allreduce(self.mpi.IN_PLACE, part, kind)
        else:
            # Slower, but it can be waited for without taking the core from the others. All are posted at once: the
            # library pairs calls by their order, and what is posted later may come after another collective's.
            request = Request([self.comm.Iallreduce(self.mpi.IN_PLACE, part, kind) for part in slices], host)
            request.note = Note("all_reduce", "mpi", self.ledger.labels)
            yield [request]
        if host is not flat:
            self.device.to_device(host, flat)


_yield = getattr(os, "sched_yield", lambda: time.sleep(0))  # Windows has no sched_yield


def _place(members, rank):
    return members.index(rank) if rank in members else 0
