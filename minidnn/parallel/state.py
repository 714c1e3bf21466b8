"""The whole model's weights, put together from the parts that the ranks hold."""

from __future__ import annotations

import hashlib

import numpy as np

from ..backend import to_host
from ..comm.communicator import STATE
from .executor import Executor
from .placement import Replicate
from .shard import localise


def gather_weights(executor: Executor) -> dict[str, np.ndarray] | None:
    """All parameters, whole, by name, on rank 0; None on the other ranks.

    These messages are no part of training: no ledger counts them.
    """
    plan, comm, grid = executor.plan, executor.comm, executor.plan.grid
    own = executor.weights()
    if comm.rank >= grid.mp:
        return None
    if comm.rank > 0:
        for p in plan.parameters[comm.rank]:
            if p.placement != Replicate() and p.size:
                comm.wait([comm.isend(np.ascontiguousarray(own[p.name]).reshape(-1), 0, STATE)])
        return None
    whole = {
        name: np.zeros(p.full_shape, plan.dtype)
        for layer in plan.layers
        if layer.layer is not None
        for name, p in layer.layer.named_parameters()
    }
    for member in range(grid.mp):
        slices = _slices(executor, member)
        for p in plan.parameters[member]:
            if member == 0:
                whole[p.name][slices[p.name]] = own[p.name]
            elif p.placement != Replicate() and p.size:
                part = np.empty(p.size, plan.dtype)
                comm.wait([comm.irecv(part, member, STATE)])
                whole[p.name][slices[p.name]] = part.reshape(p.shape)
    return whole


def _slices(executor: Executor, member: int) -> dict[str, tuple[slice, ...]]:
    """Which part of each parameter a member of the first model group holds."""
    found = {}
    for layer in executor.plan.layers:
        if layer.layer is None:
            continue
        local = localise(layer.layer, layer.placement, executor.plan.grid.mp, member, layer.in_shape)
        if local is not None:
            found |= {name: p.slices for name, p in local.named_parameters()}
    return found


def replicas_equal(executor: Executor) -> bool:
    """Whether all ranks that hold the same part of a parameter hold the same bits; the same answer on every rank."""
    names = [
        name
        for layer in executor.plan.layers
        if layer.layer is not None
        for name, _ in layer.layer.named_parameters()
    ]
    mine = np.zeros((len(names), 2), np.int64)
    for i, name in enumerate(names):
        p = executor.replica.parameters.get(name)
        if p is not None:
            mine[i] = _digest(repr(p.slices).encode()), _digest(to_host(p.data).tobytes())
    everyone = executor.comm.exchange(mine)
    for i in range(len(names)):
        seen: dict[int, int] = {}
        for part, digest in everyone[:, i]:
            if part and seen.setdefault(int(part), int(digest)) != digest:
                return False
    return True


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)
