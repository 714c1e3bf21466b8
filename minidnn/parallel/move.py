"""A `Transfer`, carried out: the collective that it names, on a tensor's local part.

`move` is a generator, as the collectives are, so a transfer can be waited for or be in flight while
the rank computes.  `Redistribute` is the same as a differentiable function.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from ..backend import array_module
from ..comm import collectives
from ..comm.communicator import Communicator
from ..tensor import Function
from .placement import Replicate, Shard, offsets, split
from .plan import Chunk, Exchange
from .transfer import Transfer


def move(comm: Communicator, transfer: Transfer, x: Any, empty: Any, tag: int = 0) -> Generator:
    """The steps of one transfer on this member of the group.

    Parameters
    ----------
    x : array or None
        The local part under `transfer.src`; None where this member holds nothing.
    empty : array
        Any array of the dtype and device, to make others like it.
    tag : int
        For a single send and receive, which only two members know of.

    Returns
    -------
    array or None
        The local part under `transfer.dst`.
    """
    op, me, xp = transfer.op, comm.rank, array_module(empty)
    shape = transfer.local_shape(transfer.dst, me)
    if op == "none":
        return x
    if op in ("slice", "keep"):
        part = transfer.part(transfer.dst, me)
        return None if part is None else x[part]
    if op == "pad":
        whole = xp.zeros(shape, empty.dtype)
        if x is not None and (me == 0 or transfer.src != Replicate()):  # of equal copies, one counts
            whole[transfer.part(transfer.src, me)] = x
        return whole
    if op == "send":
        if me == transfer.src.rank:
            yield from collectives.send.steps(comm, x, transfer.dst.rank, tag)
        elif me == transfer.dst.rank:
            return (yield from collectives.recv.steps(comm, shape, empty.dtype, transfer.src.rank, tag, xp))
        return None
    if op == "all_reduce":
        return (yield from collectives.all_reduce.steps(comm, x, transfer.algorithm))
    if op == "reduce":
        result = yield from collectives.reduce.steps(comm, x, transfer.root)
        return xp.empty(shape, empty.dtype) if result is None and shape is not None else result
    if op == "broadcast":
        source = x if me == transfer.root else xp.empty(shape, empty.dtype)
        return (yield from collectives.broadcast.steps(comm, source, transfer.root, transfer.algorithm))
    counts = transfer.counts()
    if op == "all_gather":
        flat = yield from collectives.all_gather.steps(comm, x, counts, transfer.algorithm)
        return _join(flat, transfer, transfer.src.axis)
    if op == "gather":
        flat = yield from collectives.gather.steps(comm, x, transfer.root, counts)
        return None if flat is None else _join(flat, transfer, transfer.src.axis)
    if op == "reduce_scatter":
        flat = _cut(x, transfer, transfer.dst.axis)
        flat = yield from collectives.reduce_scatter.steps(comm, flat, counts, transfer.algorithm)
        return flat.reshape(shape)
    if op == "scatter":
        source = _cut(x, transfer, transfer.dst.axis) if x is not None else empty
        flat = yield from collectives.scatter.steps(comm, source, transfer.root, counts)
        return flat.reshape(shape)
    return (yield from _all_to_all(comm, transfer, x, counts))


def _all_to_all(comm: Communicator, transfer: Transfer, x: Any, counts) -> Generator:
    xp, me, size = array_module(x), comm.rank, transfer.size
    features = split(transfer.shape[-1], size)
    if transfer.src == Shard(0):  # my rows of everybody's features, for everybody's rows of mine
        flat = yield from collectives.all_to_all.steps(comm, _cut_columns(x, features), counts)
        return flat.reshape(sum(transfer.rows), *transfer.shape[1:-1], features[me])
    flat = yield from collectives.all_to_all.steps(comm, x, counts)
    own = (transfer.rows[me], *transfer.shape[1:-1])
    return _join_columns(xp, flat, own, features)


def layout(whole: Any, transfer: Transfer, member: int) -> Any:
    """The flat buffer whose slices `member` sends, of the whole tensor: what it holds once nothing is partial."""
    if transfer.op == "all_to_all":
        part = whole[transfer.part(transfer.src, member)]
        return _cut(part, transfer, -1 if transfer.src == Shard(0) else 0).reshape(-1)
    if transfer.op in ("all_gather", "gather"):
        return _cut(whole, transfer, transfer.src.axis).reshape(-1)
    if transfer.op in ("reduce_scatter", "scatter"):
        return _cut(whole, transfer, transfer.dst.axis).reshape(-1)
    return whole.reshape(-1)


def _cut(x: Any, transfer: Transfer, axis: int) -> Any:
    """The flat buffer of a tensor's blocks, one for each member, in order."""
    return x if axis == 0 else _cut_columns(x, split(transfer.shape[-1], transfer.size))


def _join(flat: Any, transfer: Transfer, axis: int) -> Any:
    """The whole tensor of a flat buffer of blocks."""
    if axis == 0:
        return flat.reshape(transfer.shape)
    features = split(transfer.shape[-1], transfer.size)
    return _join_columns(array_module(flat), flat, transfer.shape[:-1], features)


def _cut_columns(x: Any, features: tuple[int, ...]) -> Any:
    xp = array_module(x)
    flat = xp.empty(x.size, x.dtype)
    rows, at = x.size // x.shape[-1] if x.shape[-1] else 0, 0
    for start, n in zip(offsets(features), features, strict=True):
        block = flat[at : at + rows * n].reshape(*x.shape[:-1], n)
        block[...] = x[..., start : start + n]
        at += rows * n
    return flat


def _join_columns(xp: Any, flat: Any, leading: tuple[int, ...], features: tuple[int, ...]) -> Any:
    whole = xp.empty((*leading, sum(features)), flat.dtype)
    rows, at = flat.size // sum(features) if sum(features) else 0, 0
    for start, n in zip(offsets(features), features, strict=True):
        whole[..., start : start + n] = flat[at : at + rows * n].reshape(*leading, n)
        at += rows * n
    return whole


class Redistribute(Function):
    """y = x, placed otherwise.  Forward runs one transfer, backward its adjoint.

    A member that holds nothing of x or of y passes a placeholder of no elements.  `value` is x's name in
    the ledger.
    """

    saves_inputs = False

    def __init__(self, comm: Communicator, exchange: Exchange, chunk: Chunk, value: str) -> None:
        self.comm, self.exchange, self.chunk, self.value = comm, exchange, chunk, value
        self.collective = exchange.differentiable

    def forward(self, x: Any) -> Any:
        self.empty = array_module(x).empty(0, x.dtype)
        y = self._run(self.exchange.forward(self.chunk), x)
        return self.empty if y is None else y

    def backward(self, gy: Any) -> Any:
        transfer = self.exchange.backward(self.chunk)
        shape = transfer.local_shape(transfer.src, self.comm.rank)
        if gy is None and shape is not None:  # no gradient came, but the peers wait for the message
            gy = array_module(self.empty).zeros(shape, self.empty.dtype)
        gx = self._run(transfer, gy)
        return gx if gx is None or self.needs[0] else None

    def _run(self, transfer: Transfer, x: Any) -> Any:
        holds = transfer.local_shape(transfer.src, self.comm.rank) is not None
        with self.comm.ledger.scope(tensor=self.value):
            return self.comm.start(move(self.comm, transfer, x if holds else None, self.empty)).wait()
