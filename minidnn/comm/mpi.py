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

What arrives is checked.  MPI tells how many bytes came.  Their dtype is part of the tag, so that an array of
another dtype is not received: a rank that has waited for a second looks whether that is why.
"""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections.abc import Generator, Sequence

import numpy as np

from minidnn.backend import array_module, is_array
from minidnn.errors import InputError
from minidnn.launch import launchers, threads

from . import library
from .communicator import LAST_TAG, CommunicationError, Communicator, Engine, ProtocolError, StallError
from .ledger import Ledger
from .staging import DeviceMessages, Request

PIECE = 1 << 30  # bytes: longer messages are cut, since many an MPI counts in 32 bits
YIELD = 2e-3  # seconds of waiting without a sleep
LOOK = 1.0  # seconds of waiting after which, again and again, a rank looks whether others have finished
#: The number of a dtype in a tag; all others, those of another byte order among them, share the last one.
DTYPES = {np.dtype(name): number for number, name in enumerate("? b h i q B H I Q e f d F D".split())}
OTHERS = len(DTYPES)
DTYPE_STEP = 1 << LAST_TAG.bit_length()  # above all tags of the communicators


def world() -> Communicator:
    """All ranks of the run: those of MPI under mpirun, else a world of one rank, which needs no MPI.

    Raises
    ------
    InputError
        Under mpirun, but without mpi4py or its MPI library, or with one that another launcher belongs to.
    """
    if not launchers.launched():
        from .threads import Hub, world_of

        return world_of(Hub(1), 0)
    try:
        import mpi4py

        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True  # not before it is known to fit the launcher
        from mpi4py import MPI
    except ImportError as error:
        raise InputError(f'running under mpirun needs mpi4py: pip install "minidnn[mpi]" ({error})') from None
    except RuntimeError as error:  # mpi4py is there, a library that it can load is not
        why = str(error).splitlines()[0]
        raise InputError(
            f"mpi4py finds no MPI library ({why}): load the MPI of this machine (module load ...), and if it is "
            "not found then, name its kind in MPI4PY_MPIABI (mpich or openmpi)"
        ) from None
    vendor, version = MPI.get_vendor()
    library = f"{vendor} {'.'.join(map(str, version))}"
    launchers.check(library)
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    launchers.check(library, MPI.COMM_WORLD.Get_size())
    return MPICommunicator.world(MPI.COMM_WORLD)


class MPICommunicator(Communicator):
    """A group of MPI processes."""

    def __init__(
        self,
        comm,
        ranks: Sequence[int],
        nodes: Sequence[int],
        engine: Engine | None = None,
        crowded: bool = False,
    ):
        from mpi4py import MPI

        super().__init__(comm.Get_rank(), ranks, nodes, engine)
        self.mpi, self.comm, self.crowded, self._device = MPI, comm, crowded, None
        self._statuses: list = []  # to be used again and again
        self._parts: list[tuple] = []  # (members, communicator that holds it, MPI's) of every split
        room = MPI.COMM_WORLD.Get_attr(MPI.TAG_UB) >= (OTHERS + 1) * DTYPE_STEP
        self._dtype_step = DTYPE_STEP if room else 0  # else dtypes go unchecked

    @classmethod
    def world(cls, world) -> MPICommunicator:
        """From an mpi4py communicator, which is duplicated so that no message of others can get in."""
        from mpi4py import MPI

        if (tags := world.Get_attr(MPI.TAG_UB)) < LAST_TAG:
            raise InputError(f"this MPI library has tags up to {tags}; minidnn needs them up to {LAST_TAG}")
        comm = world.Dup()
        on_node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        leaders = comm.allgather(on_node.bcast(comm.Get_rank()))
        affinities = on_node.allgather(threads.affinity())
        on_node.Free()
        threads.share_out(affinities)
        cores = min(len(set().union(*affinities)), threads.quota())
        # all ranks alike, though one host may have fewer cores: they call the same function of the library
        crowded = comm.allreduce(len(affinities) > cores, MPI.LOR)
        order = list(dict.fromkeys(leaders))
        nodes = [order.index(leader) for leader in leaders]
        self = cls(comm, range(comm.Get_size()), nodes, crowded=crowded)
        self.engine.groups.append((comm, self.ranks))
        self.ledger = Ledger(self.rank, self.size)
        return self

    # -- messages ----------------------------------------------------------------------------------------

    def _isend(self, array, dest, tag):
        request = self._post(self.comm.Isend, array, dest, tag)
        request.peer = self.ranks[dest]
        return request

    def _irecv(self, array, source, tag):
        request = self._post(self.comm.Irecv, array, source, tag)
        request.peer = self.ranks[source]
        request.expected = self, source, tag, array
        return request

    def _post(self, call, array, peer, tag):
        tag += self._dtype_step * DTYPES.get(array.dtype, OTHERS)
        if not isinstance(array, np.ndarray) and is_array(array):
            return self.device.post(call, array, peer, tag)
        return Request([call(part, peer, tag) for part in self.parts(array)], array)

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
            self._device = DeviceMessages(self)
        return self._device

    # -- waiting -----------------------------------------------------------------------------------------

    def _test(self, requests):
        open_requests = [request for request in requests if not request.done]
        if open_requests:
            handles = [handle for request in open_requests for handle in request.handles]
            while len(self._statuses) < len(handles):
                self._statuses.append(self.mpi.Status())
            statuses = self._statuses[: len(handles)]
            try:
                if not self.mpi.Request.Testall(handles, statuses):
                    return False
            except self.mpi.Exception as error:  # more came than there is room for
                told = ", ".join(f"rank {r.peer} ({r.note})" for r in open_requests if r.expected)
                raise ProtocolError(f"rank {self._me} receives from {told}: {error}") from None
            counts = iter(statuses)
            for request in open_requests:
                came = sum(next(counts).count for _ in request.handles)  # bytes
                if request.expected is not None and came != request.expected[3].nbytes:
                    self._say_short(request, came)
                request.finish()
        return True

    @property
    def _me(self) -> int:
        return self.ranks[self.rank]

    def _say_short(self, request, came):
        array = request.expected[3]
        raise ProtocolError(
            f"rank {self._me} receives {array.nbytes} bytes ({array.dtype}) from rank {request.peer} "
            f"({request.note}), which sent {came} bytes"
        )

    def check_dtype(self, request) -> None:
        """Fail if what has come in place of a message is the same of another dtype."""
        _, source, tag, array = request.expected
        for other in (*DTYPES, "another dtype") if self._dtype_step else ():
            number = DTYPES.get(other, OTHERS)
            if number != DTYPES.get(array.dtype, OTHERS) and self.comm.Iprobe(
                source, tag + self._dtype_step * number
            ):
                raise ProtocolError(
                    f"rank {self._me} receives {array.dtype} from rank {request.peer} ({request.note}), "
                    f"which sent {other}"
                )

    def _wait_any(self, groups):
        begin, pause, look = time.perf_counter(), 20e-6, LOOK
        while True:
            ready = [i for i, group in enumerate(groups) if self._test(group)]
            if ready:
                self.engine.alive()
                return ready
            waited = time.perf_counter() - begin
            if waited < YIELD:
                _yield()
            else:
                time.sleep(pause)
                pause = min(2 * pause, 1e-3)
            if waited > look:
                look += LOOK
                self._look([request for group in groups for request in group if not request.done])

    def _look(self, requests):
        """Fail if this rank waits in vain: for one that has finished, and had so at the last look already; for
        what has come with another dtype; or the guard says that the whole run stands still."""
        open_requests = [r for r in requests if not all(handle.Get_status() for handle in r.handles)]
        before = set(self.engine.departed)
        self.engine.find_departed()
        for request in open_requests:
            if request.peer in before:
                raise CommunicationError(
                    f"rank {self._me} waits for rank {request.peer}, which has finished ({request.note})"
                )
            if request.expected is not None:
                request.expected[0].check_dtype(request)
        if self.engine.stalled:
            told = dict.fromkeys(
                f"{'the others' if r.peer is None else f'rank {r.peer}'} ({r.note})" for r in open_requests
            )
            raise StallError(f"rank {self._me} has waited too long for {', '.join(told)}")

    # -- the rest ----------------------------------------------------------------------------------------

    def left_over(self) -> list[str]:
        """What was sent to this rank and never received, in words; asked when all ranks have finished."""
        found, status = [], self.mpi.Status()
        for comm, ranks in self.engine.groups:
            # more than once: a probe also moves on what is still on its way
            if any(comm.Iprobe(self.mpi.ANY_SOURCE, self.mpi.ANY_TAG, status) for _ in range(10)):
                source, size = ranks[status.source], status.Get_count(self.mpi.BYTE)
                found.append(f"rank {self._me} never received {size} bytes from rank {source}")
        return found

    def abort(self, code=1):
        self.comm.Abort(code)
        os._exit(code)  # MPI_Abort may come back while the launcher is still killing the others

    def _part(self, color, members, sequence):
        """MPI has room for a thousand or two communicators, so one that nobody holds any more, on no rank, is
        used again where a split has the same groups."""
        if len(self._parts) % 64 == 63:
            gc.collect()  # of executors and others that hold theirs in cycles
        free = [members == old and (ref is None or ref() is None) for old, ref, _ in self._parts]
        free_everywhere = self.exchange(np.array([*free, False]), op="split").all(axis=0)
        if free_everywhere.any():
            at = int(free_everywhere.argmax())
            part = self._parts[at][2]
        else:
            at = len(self._parts)
            color = self.mpi.UNDEFINED if color is None else color
            part = self.comm.Split(color, members.index(self.rank) if members else 0)
            self._parts.append(())
        ref, new = None, None
        if members:
            ranks, nodes = tuple(self.ranks[m] for m in members), [self.nodes[m] for m in members]
            new = MPICommunicator(part, ranks, nodes, self.engine, self.crowded)
            ref = weakref.ref(new)
            if not free_everywhere.any():
                self.engine.groups.append((part, ranks))
        self._parts[at] = members, ref, part
        return new

    def library_all_reduce(self, flat) -> Generator:
        return library.all_reduce(self, flat)


_yield = getattr(os, "sched_yield", lambda: time.sleep(0))  # Windows has no sched_yield
