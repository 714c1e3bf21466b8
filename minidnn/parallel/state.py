"""The whole model's state, put together from the parts that the ranks hold."""

from __future__ import annotations

import hashlib

import numpy as np

from ..backend import to_host
from ..comm.communicator import STATE
from .executor import Executor


def gather_state(executor: Executor) -> dict[str, np.ndarray] | None:
    """All parameters and buffers, whole, by name, on rank 0; None on the other ranks.

    Of what several ranks hold the first one's is taken. These messages are no part of training: no ledger counts them.
    """
    plan, comm, variables = executor.plan, executor.comm, executor.replica.variables
    whole: dict[str, np.ndarray] = {}
    seen = set()
    for rank in range(plan.size):
        for p in plan.held[rank]:
            if (p.name, p.slices) in seen:
                continue
            seen.add((p.name, p.slices))
            part = np.empty(p.size, plan.dtype)
            if comm.rank == rank:
                part = np.ascontiguousarray(to_host(variables[p.name].data)).reshape(-1)
                if rank > 0 and p.size:
                    comm.wait([comm.isend(part, 0, STATE)])
            elif comm.rank == 0 and p.size:
                comm.wait([comm.irecv(part, rank, STATE)])
            if comm.rank == 0:
                array = whole.setdefault(p.name, np.zeros(p.full_shape, plan.dtype))
                array[tuple(slice(*x) for x in p.slices)] = part.reshape(p.shape)
    names = [name for name in plan.users if name in whole]  # in the order of the model
    return {name: whole[name] for name in names} if comm.rank == 0 else None


def gather_weights(executor: Executor) -> dict[str, np.ndarray] | None:
    """The parameters of `gather_state`, without the buffers."""
    state = gather_state(executor)
    buffers = {p.name for held in executor.plan.held.values() for p in held if p.buffer}
    return state and {name: array for name, array in state.items() if name not in buffers}


def unequal_replicas(executor: Executor) -> list[str]:
    """The parameters and buffers of which two ranks hold the same part with other bits; the same answer on every
    rank."""
    names = list(executor.plan.users)
    held = {p.name: p for p in executor.plan.held[executor.rank]}
    mine = np.zeros((len(names), 2), np.int64)
    for i, name in enumerate(names):
        if name in held:
            data = to_host(executor.replica.variables[name].data)
            mine[i] = _digest(repr(held[name].slices).encode()), _digest(np.ascontiguousarray(data).tobytes())
    everyone = executor.comm.exchange(mine)
    unequal = []
    for i, name in enumerate(names):
        bits: dict[int, set[int]] = {}
        for part, digest in everyone[:, i]:
            bits.setdefault(int(part), set()).add(int(digest))
        bits.pop(0, None)
        if any(len(found) > 1 for found in bits.values()):
            unequal.append(name)
    return unequal


def replicas_equal(executor: Executor) -> bool:
    """Whether all ranks that hold the same part of a parameter or buffer hold the same bits."""
    return not unequal_replicas(executor)


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True) or 1
