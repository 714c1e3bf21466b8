"""Communication as differentiable functions: backward is the adjoint move.

For a linear map F over ranks, the gradient that belongs to x, when gy belongs to y = F x, is F* gy, with F*
given by <F x, gy> = <x, F* gy>, the inner products being summed over all ranks.  That one identity gives
the whole table:

====================  =====================  ====================================================
forward               backward               why
====================  =====================  ====================================================
send to r             recv from r            what went there comes back as its gradient
broadcast from root   reduce to root         one value used p times: p gradients add up
reduce to root        broadcast from root    a sum hands its gradient to each term
scatter from root     gather to root         a permutation, undone
all_gather            reduce_scatter         each block is used by every rank
reduce_scatter        all_gather             each term of the sum gets the sum's gradient
all_to_all            all_to_all             a permutation, undone
all_reduce            all_reduce             each rank's result is a variable of its own
====================  =====================  ====================================================

The last line is the one that is asked about.  If the result of an all_reduce feeds p separate losses, whose
sum is the objective, each input is used p times and the gradient is the sum of the p gradients: all_reduce.
If instead the p copies stand for one replicated value, and the loss is computed alike on all ranks but
counted once, the two halves come apart (Megatron's f and g; Shoeybi et al., arXiv 1909.08053, section 3):

- ``copy_to``: forward identity, backward all_reduce: a replicated value enters work that is split;
- ``reduce_from``: forward all_reduce, backward identity: the parts of a sum become one replicated value.

All of them take part in backward even when no gradient reached their output: they send zeros, since the
peers wait for their message.  Every rank must call the same functions in the same order, with gradients
enabled on all or on none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minidnn.tensor import Tensor, as_tensor

from . import adjoints
from .algorithms import split_counts
from .communicator import Communicator


def send(comm: Communicator, x: Tensor, dest: int, tag: int = 0) -> Tensor:
    """Send x to rank ``dest``, which calls :func:`recv`.

    Returns an empty tensor, which nothing need use; a rank whose last word is a send ends with
    ``tape.backward(())``.
    """
    return adjoints.Send(comm, dest, tag)(x)


def recv(comm: Communicator, shape: Sequence[int], dtype, source: int, tag: int = 0, xp=np) -> Tensor:
    """The tensor that rank ``source`` sends; ``xp`` is the array module that holds it here."""
    return adjoints.Recv(comm, tuple(shape), dtype, source, tag, xp)()


def broadcast(comm: Communicator, x: Tensor, root: int = 0, algorithm: str = "binomial") -> Tensor:
    """The root's x on every rank; on the others x gives shape and dtype only."""
    return adjoints.Broadcast(comm, root, algorithm)(x)


def reduce(comm: Communicator, x: Tensor, root: int = 0) -> Tensor:
    """The sum of the x on the root, an empty tensor elsewhere."""
    return adjoints.Reduce(comm, root)(x)


def scatter(comm: Communicator, x: Tensor, root: int = 0, axis: int = 0, counts=None) -> Tensor:
    """The rank's block of the root's x along an axis (default: even); x has its whole shape everywhere."""
    return adjoints.Scatter(comm, root, axis, _split(comm, x, axis, counts))(x)


def gather(comm: Communicator, x: Tensor, root: int = 0, axis: int = 0, counts=None) -> Tensor:
    """The x joined along an axis on the root, an empty tensor elsewhere; ``counts``: each rank's length."""
    return adjoints.Gather(comm, root, axis, _joined(comm, x, axis, counts))(x)


def all_gather(comm: Communicator, x: Tensor, axis: int = 0, counts=None, algorithm: str = "ring") -> Tensor:
    """The x joined along an axis; ``counts`` is each rank's length of it (default: all alike)."""
    return adjoints.AllGather(comm, axis, _joined(comm, x, axis, counts), algorithm)(x)


def reduce_scatter(comm: Communicator, x: Tensor, axis: int = 0, counts=None, algorithm="ring") -> Tensor:
    """The rank's block along an axis of the sum of the x; ``counts`` default to even blocks."""
    return adjoints.ReduceScatter(comm, axis, _split(comm, x, axis, counts), algorithm)(x)


def all_to_all(
    comm: Communicator,
    x: Tensor,
    split_axis: int,
    join_axis: int,
    split=None,
    joined=None,
    algorithm="direct",
) -> Tensor:
    """From split along ``join_axis`` to split along ``split_axis``.

    ``split``: how the first is cut over the ranks (default: evenly); ``joined``: each rank's length of the
    second (default: all alike).
    """
    split, joined = _split(comm, x, split_axis, split), _joined(comm, x, join_axis, joined)
    return adjoints.AllToAll(comm, split_axis, join_axis, split, joined, algorithm)(x)


def all_reduce(comm: Communicator, x: Tensor, algorithm: str = "ring") -> Tensor:
    """The sum of the x; every rank's copy is a variable of its own."""
    return adjoints.AllReduce(comm, algorithm)(x)


def copy_to(comm: Communicator, x: Tensor, algorithm: str = "ring") -> Tensor:
    """x itself, a replicated value about to enter work that is split over the ranks."""
    return adjoints.CopyTo(comm, algorithm)(x)


def reduce_from(comm: Communicator, x: Tensor, algorithm: str = "ring") -> Tensor:
    """The sum of the x, as one replicated value."""
    return adjoints.ReduceFrom(comm, algorithm)(x)


def _split(comm, x, axis, counts):
    length = _length(x, axis)
    return split_counts(length, comm.size) if counts is None else tuple(counts)


def _joined(comm, x, axis, counts):
    length = _length(x, axis)
    return (length,) * comm.size if counts is None else tuple(counts)


def _length(x, axis):
    shape = as_tensor(x).shape
    if not -len(shape) <= axis < len(shape):
        hint = "" if shape else "; reshape(1) gives it axis 0"
        raise ValueError(f"a tensor of shape {shape} has no axis {axis} to split or join{hint}")
    return shape[axis]
