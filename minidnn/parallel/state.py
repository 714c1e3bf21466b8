"""The whole model's state, put together from the parts that the ranks hold."""

from __future__ import annotations

import numpy as np

from ..backend import to_host
from ..comm.communicator import STATE
from .executor import Executor
from .fingerprint import digest


def gather_state(executor: Executor) -> dict[str, np.ndarray] | None:
    """All parameters and buffers, whole, by name, on rank 0; None on the other ranks.

    Of what several ranks hold the first one's is taken. These messages are no part of training: no ledger counts them.
    """
    plan, comm = executor.plan, executor.comm
    whole: dict[str, np.ndarray] = {}
    seen = set()
    for rank, p in ((rank, p) for rank, held in plan.held.items() for p in held):
        if (p.name, p.slices) in seen:
            continue
        seen.add((p.name, p.slices))
        part = np.empty(p.size, plan.dtype)
        if comm.rank == rank:
            part = _bits(executor, p.name).reshape(-1)
            if rank > 0 and p.size:
                comm.wait([comm.isend(part, 0, STATE)])
        elif comm.rank == 0 and p.size:
            comm.wait([comm.irecv(part, rank, STATE)])
        if comm.rank == 0:
            array = whole.setdefault(p.name, np.zeros(p.full_shape, plan.dtype))
            array[tuple(slice(*x) for x in p.slices)] = part.reshape(p.shape)
    return {name: whole[name] for name in plan.users if name in whole} if comm.rank == 0 else None


def gather_weights(executor: Executor) -> dict[str, np.ndarray] | None:
    """The parameters of `gather_state`, without the buffers."""
    state = gather_state(executor)
    buffers = {p.name for held in executor.plan.held.values() for p in held if p.buffer}
    return state and {name: array for name, array in state.items() if name not in buffers}


def unequal_replicas(executor: Executor) -> list[str]:
    """The parameters and buffers of which two ranks hold the same part with other bits; the same answer on every
    rank."""
    names = list(executor.plan.users)
    mine = np.zeros((len(names), 2), np.int64)  # of each the part, 0 for none, and its bits
    for p in executor.plan.held[executor.rank]:
        bits = _bits(executor, p.name).tobytes()
        mine[names.index(p.name)] = digest(repr(p.slices).encode()), digest(bits)
    everyone = executor.comm.exchange(mine)
    unequal = []
    for i, name in enumerate(names):
        found = {(part, bits) for part, bits in everyone[:, i].tolist() if part}
        if len(dict(found)) < len(found):
            unequal.append(name)
    return unequal


def replicas_equal(executor: Executor) -> bool:
    """Whether all ranks that hold the same part of a parameter or buffer hold the same bits."""
    return not unequal_replicas(executor)


def _bits(executor: Executor, name: str) -> np.ndarray:
    return np.ascontiguousarray(to_host(executor.replica.variables[name].data))
