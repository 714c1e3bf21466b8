"""Communication as differentiable functions: backward is the adjoint operation.

For a linear map F over ranks, the gradient that belongs to x, when gy belongs to y = F x, is F* gy, with F*
given by <F x, gy> = <x, F* gy>, the inner products being summed over all ranks.  That one identity gives
the whole table, which is data: :data:`.algorithms.OPERATIONS`.  One value used p times has p gradients to
be added up (broadcast and reduce, all_gather and reduce_scatter); what only changes places is put back
(scatter and gather, all_to_all, a message).

If the result of an all_reduce feeds p separate losses, whose sum is the objective, each input is used p times
and the gradient is the sum of the p gradients: all_reduce.  If instead the p copies stand for one replicated
value, and the loss is computed alike on all ranks but counted once, the two halves come apart (Megatron's f
and g; Shoeybi et al., arXiv 1909.08053, section 3):

- ``copy_to``: forward identity, backward all_reduce: a replicated value enters work that is split;
- ``reduce_from``: forward all_reduce, backward identity: the parts of a sum become one replicated value.

All of them take part in backward even when no gradient reached their output: they send zeros, since the
peers wait for their message.  Every rank must call the same functions in the same order, with gradients
enabled on all or on none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from minidnn.backend import array_module
from minidnn.tensor import Function, Tensor, as_tensor

from . import collectives
from .algorithms import OPERATIONS, split_counts
from .communicator import Communicator
from .operation import Operation, axis_length, steps, with_axis


class Communicate(Function):
    """y = what the operation makes of x        gx = what its adjoint makes of gy"""

    collective = True
    saves_inputs = False

    def __init__(self, comm: Communicator, operation: Operation):
        self.comm, self.operation = comm, operation

    def forward(self, x):
        self.empty = array_module(x).empty(0, x.dtype)
        y = self.comm.start(steps(self.comm, self.operation, x)).wait()
        return self.empty if y is None else y

    def backward(self, gy):
        adjoint = self.operation.adjoint
        shape = adjoint.before(self.comm.rank)
        if shape is None or gy is None:  # nothing to bring, or zeros for peers that wait
            gy = array_module(self.empty).zeros(shape or 0, self.empty.dtype)
        gx = self.comm.start(steps(self.comm, adjoint, gy)).wait()
        return gx if self.needs[0] else None


class Messages(Function):
    """y = what the peers send        gx = the gradients that come back from them"""

    collective = True
    saves_inputs = False

    def __init__(self, comm: Communicator, peers, shapes, dtype, tag, xp):
        self.comm, self.peers, self.shapes = comm, peers, shapes
        self.dtype, self.tag, self.xp = dtype, tag, xp

    def forward(self, *xs):
        if xs:
            self.dtype, self.xp = xs[0].dtype, array_module(xs[0])
        blocks = dict(zip(self.peers, xs, strict=True))
        self.sent = {peer: x.shape for peer, x in blocks.items()}
        return self._run(blocks, self.shapes) or self.xp.empty(0, self.dtype)

    def backward(self, *gys):
        pairs = zip(self.shapes.items(), gys, strict=False)
        zeros = self.xp.zeros
        back = {peer: zeros(shape, self.dtype) if gy is None else gy for (peer, shape), gy in pairs}
        gxs = self._run(back, self.sent)
        return tuple(gx if need else None for gx, need in zip(gxs, self.needs, strict=False))

    def _run(self, blocks, shapes):
        options = self.dtype, self.tag, self.xp
        return tuple(collectives.sendrecv(self.comm, blocks, shapes, *options).values())


def sendrecv(
    comm: Communicator, blocks: Mapping[int, Tensor], shapes: Mapping, dtype=None, tag: int = 0, xp=np
) -> dict[int, Tensor]:
    """Send each peer its tensor, and receive one of the given shape from each, all at once: a halo exchange.

    Send and receive cannot block each other here, as :func:`send` and then :func:`recv` on both ranks may.  ``dtype``
    and ``xp`` are needed where nothing is sent.
    """
    shapes = {peer: tuple(shape) for peer, shape in shapes.items()}
    received = Messages(comm, tuple(blocks), shapes, dtype, tag, xp)(*blocks.values())
    return dict(zip(shapes, received, strict=True)) if shapes else {}


def send(comm: Communicator, x: Tensor, dest: int, tag: int = 0) -> Tensor:
    """Send x to rank ``dest``, which calls :func:`recv`; returns an empty tensor, which nothing need use.

    A rank whose last word is a send ends with ``tape.backward(())``.
    """
    return Messages(comm, (dest,), {}, None, tag, np)(x)


def recv(comm: Communicator, shape: Sequence[int], dtype, source: int, tag: int = 0, xp=np) -> Tensor:
    """The tensor that rank ``source`` sends; ``xp`` is the array module that holds it here."""
    return sendrecv(comm, {}, {source: shape}, dtype, tag, xp)[source]


def broadcast(comm: Communicator, x: Tensor, root: int = 0, algorithm: str = "binomial") -> Tensor:
    """The root's x on every rank; on the others x gives shape and dtype only."""
    return _apply(comm, x, "broadcast", root=root, algorithm=algorithm)


def reduce(comm: Communicator, x: Tensor, root: int = 0) -> Tensor:
    """The sum of the x on the root, an empty tensor elsewhere."""
    return _apply(comm, x, "reduce", root=root)


def scatter(comm: Communicator, x: Tensor, root: int = 0, axis: int = 0, counts=None) -> Tensor:
    """The rank's block of the root's x along an axis (default: even); x has its whole shape everywhere."""
    return _apply(comm, x, "scatter", axis, counts, root=root)


def gather(comm: Communicator, x: Tensor, root: int = 0, axis: int = 0, counts=None) -> Tensor:
    """The x joined along an axis on the root, an empty tensor elsewhere; ``counts``: each rank's length."""
    return _apply(comm, x, "gather", axis, counts, root=root)


def all_gather(comm: Communicator, x: Tensor, axis: int = 0, counts=None, algorithm: str = "ring") -> Tensor:
    """The x joined along an axis; ``counts`` is each rank's length of it (default: all alike)."""
    return _apply(comm, x, "all_gather", axis, counts, algorithm=algorithm)


def reduce_scatter(comm: Communicator, x: Tensor, axis: int = 0, counts=None, algorithm="ring") -> Tensor:
    """The rank's block along an axis of the sum of the x; ``counts`` default to even blocks."""
    return _apply(comm, x, "reduce_scatter", axis, counts, algorithm=algorithm)


def all_to_all(
    comm: Communicator, x: Tensor, split_axis: int, join_axis: int, split=None, joined=None, algorithm=None
) -> Tensor:
    """From split along ``join_axis`` to split along ``split_axis``.

    ``split``: how the first is cut over the ranks (default: evenly); ``joined``: each rank's length of the
    second (default: all alike).
    """
    x = as_tensor(x)
    joined = (axis_length(x.shape, join_axis),) * comm.size if joined is None else tuple(joined)
    shape = with_axis(x.shape, join_axis, sum(joined))
    split = split_counts(axis_length(shape, split_axis), comm.size) if split is None else tuple(split)
    operation = Operation("all_to_all", shape, split_axis, split, join_axis, joined, algorithm=algorithm)
    return Communicate(comm, operation)(x)


def all_reduce(comm: Communicator, x: Tensor, algorithm: str = "ring") -> Tensor:
    """The sum of the x; every rank's copy is a variable of its own."""
    return _apply(comm, x, "all_reduce", algorithm=algorithm)


def copy_to(comm: Communicator, x: Tensor, algorithm: str = "ring") -> Tensor:
    """x itself, a replicated value about to enter work that is split over the ranks."""
    return _apply(comm, x, "copy_to", algorithm=algorithm)


def reduce_from(comm: Communicator, x: Tensor, algorithm: str = "ring") -> Tensor:
    """The sum of the x, as one replicated value."""
    return _apply(comm, x, "reduce_from", algorithm=algorithm)


def _apply(comm, x, op, axis=None, counts=None, **options):
    """The operation on x; ``axis`` is that of its blocks, where it has such."""
    x = as_tensor(x)
    shape = x.shape
    if axis is not None:
        length, joins = axis_length(shape, axis), OPERATIONS[op].before == "block"
        if counts is None:
            counts = (length,) * comm.size if joins else split_counts(length, comm.size)
        shape = with_axis(shape, axis, sum(counts)) if joins else shape
        options |= {"axis": axis, "counts": tuple(counts)}
    return Communicate(comm, Operation(op, shape, **options))(x)
