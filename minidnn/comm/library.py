"""The MPI library's own all_reduce: ``--all-reduce mpi``."""

from __future__ import annotations

import zlib
from collections.abc import Generator
from typing import Any

import numpy as np

from .communicator import Note, ProtocolError
from .staging import Request

SLICE = 4 << 20  # bytes: what a call that blocks is given at a time


def all_reduce(comm: Any, flat) -> Generator:
    """The steps of the MPI library's own all_reduce, in place.

    Blocking calls are given the array in slices of 4 MiB: in one call a library spends most of a large
    all_reduce on page faults in temporary buffers (100 MiB over two ranks, whole and in slices: MPICH 36 and
    9 ms, Open MPI 36 and 8, Intel MPI 69 and 18).  Calls that do not block move on only when they are tested,
    all together, so there one is best (64 MiB over four ranks on two cores, whole and in slices: 31 and 157
    ms, 68 and 60, 74 and 191).  Eight bytes go ahead to compare size and dtype: 32 bits and their complement,
    of which the ranks' AND is one's own only if all are alike.
    """
    host = flat if isinstance(flat, np.ndarray) else comm.device.to_host(flat)
    native = host.astype(host.dtype.newbyteorder("="), copy=False)  # MPI knows no other byte order
    kind = comm.mpi.LOR if host.dtype == bool else comm.mpi.SUM
    digest = zlib.crc32(f"{host.dtype.str} {host.size}".encode())
    own = np.array([digest | (~digest & 0xFFFFFFFF) << 32], np.uint64)
    together = own.copy()
    step = max(1, host.size if comm.crowded else SLICE // host.itemsize)
    parts = [native[start : start + step] for start in range(0, host.size, step)]
    calls = [(together, comm.mpi.BAND), *((part, kind) for part in parts)]
    note = Note("all_reduce", "mpi", comm.ledger.labels)
    if comm.crowded:
        # Slower, but it can be waited for without taking the core from the others. Both are posted at once: the
        # library pairs calls by their order, and what is posted later may come after another collective's.
        requests = [
            Request([comm.comm.Iallreduce(comm.mpi.IN_PLACE, part, kind)], part) for part, kind in calls
        ]
        for request in requests:
            request.note = note
        yield requests[:1]
    else:
        comm.comm.Allreduce(comm.mpi.IN_PLACE, *calls[0])
    if together != own:
        raise ProtocolError(
            f"rank {comm._me} sums {host.size} {host.dtype} ({note}), other ranks another number or dtype"
        )
    if comm.crowded:
        yield requests[1:]
    else:
        for part, kind in calls[1:]:
            comm.comm.Allreduce(comm.mpi.IN_PLACE, part, kind)
    if native is not host:
        host[...] = native
    if host is not flat:
        comm.device.to_device(host, flat)
