"""A collective on a tensor that is split along axes, and its adjoint: as data, and executed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from minidnn.backend import array_module

from . import collectives
from .algorithms import ALGORITHMS, BLOCKED, LIBRARY, OPERATIONS, Rounds, edges_of, rounds
from .communicator import Communicator


@dataclass(frozen=True)
class Operation:
    """What happens to a tensor; planned, executed (:func:`steps`) and taken back (:attr:`adjoint`).

    Attributes
    ----------
    op, shape : str, tuple of int
        One of :data:`.algorithms.OPERATIONS`, and the shape of the whole tensor.
    axis, counts : int, tuple of int
        Where the operation cuts or joins blocks, and each member's length there.  An all_to_all cuts here;
    join_axis, joined : int, tuple of int
        and each member brings its block along this axis, and gets it whole.

    Raises
    ------
    ValueError
        No such axis, or counts that do not add up to its length.
    """

    op: str
    shape: tuple[int, ...]
    axis: int = 0
    counts: tuple[int, ...] = ()
    join_axis: int = 0
    joined: tuple[int, ...] = ()
    root: int = 0  # the member that alone brings or gets the whole
    algorithm: str | None = None  # by default the first of the collective

    def __post_init__(self):
        pairs = [(self.axis, self.counts)] if "block" in OPERATIONS[self.op] else []
        pairs += [(self.join_axis, self.joined)] if self.op == "all_to_all" else []
        for axis, counts in pairs:
            if sum(counts) != axis_length(self.shape, axis):
                raise ValueError(
                    f"counts {counts} do not add up to {self.shape[axis]}, axis {axis} of shape {self.shape}"
                )

    @property
    def collective(self) -> str:
        """The collective that does it."""
        return "all_reduce" if self.op == "reduce_from" else self.op

    @property
    def adjoint(self) -> Operation:
        """What takes the gradient of the result back to a gradient of the tensor."""
        back = replace(self, op=OPERATIONS[self.op].adjoint)
        if self.op == "all_to_all":
            ways = {"axis": self.join_axis, "counts": self.joined}
            ways |= {"join_axis": self.axis, "joined": self.counts}
            back = replace(back, **ways)
        known = ALGORITHMS.get(back.collective, ())
        return back if self.algorithm in (*known, "auto", LIBRARY) else replace(back, algorithm=None)

    def before(self, member: int) -> tuple[int, ...] | None:
        """The shape of what a member brings; None: nothing."""
        if self.op == "all_to_all":
            return with_axis(self.shape, self.join_axis, self.joined[member])
        return self._held(OPERATIONS[self.op].before, member)

    def after(self, member: int) -> tuple[int, ...] | None:
        """The shape of what a member gets; None: nothing."""
        return self._held(OPERATIONS[self.op].after, member)

    def _held(self, what, member):
        if what == "block":
            return with_axis(self.shape, self.axis, self.counts[member])
        return self.shape if what == "whole" or member == self.root else None

    def elements(self) -> Any:
        """The counts of the flat collective, as :func:`.algorithms.rounds` takes them."""
        if self.op == "all_to_all":
            inner = prod(with_axis(with_axis(self.shape, self.axis, 1), self.join_axis, 1))
            return tuple(tuple(inner * mine * count for count in self.counts) for mine in self.joined)
        if self.op in BLOCKED:
            inner = prod(with_axis(self.shape, self.axis, 1))
            return tuple(inner * count for count in self.counts)
        return prod(self.shape)

    def rounds(self, size: int, member: int, nodes: Sequence[int] | None = None) -> Rounds:
        """The messages of one member."""
        if self.op == "copy_to" or size == 1:
            return ()
        algorithm = self.algorithm or ALGORITHMS[self.collective][0]
        return rounds(self.collective, algorithm, size, member, self.elements(), self.root, nodes=nodes)


def steps(comm: Communicator, operation: Operation, x: Any) -> Generator:
    """The steps of an operation on this member.

    ``x`` is what it brings; where it brings nothing, any array of the dtype and device.  Returns what the member
    gets, or None.  ValueError where x does not have the shape of what the member brings.
    """
    op, me, xp = operation.op, comm.rank, array_module(x)
    before, after, held = operation.before(me), operation.after(me), OPERATIONS[op]
    if before is not None and x.shape != before:
        raise ValueError(f"{op}: rank {me} brings shape {x.shape}, expected {before}")
    if op == "copy_to":
        return x
    if before is None:
        flat = x.reshape(-1)[:0] if op in BLOCKED else xp.empty(prod(after), x.dtype)
    elif held.after == "block":  # the buffer whose slices are sent: the blocks, one after the other
        flat = cut(x, operation.axis, operation.counts)
    else:
        flat = xp.ascontiguousarray(x).reshape(-1)
    counts = operation.elements()
    if op == "all_to_all":
        algorithm = operation.algorithm or ALGORITHMS[op][0]
        flat = yield from collectives.all_to_all.steps(comm, flat, counts, algorithm)
        return join(flat, after, operation.join_axis, operation.joined)
    counts = counts if op in BLOCKED else None
    flat = yield from collectives.run(
        comm, operation.collective, flat, counts, operation.root, operation.algorithm
    )
    if flat is None:
        return None
    return (
        join(flat, after, operation.axis, operation.counts) if held.before == "block" else flat.reshape(after)
    )


def cut(x: Any, axis: int, counts: Sequence[int]) -> Any:
    """The blocks of x along an axis (``counts`` entries each), flat, one after the other.

    Along axis 0 that is x itself, seen flat; along another it is a copy.
    """
    xp, axis = array_module(x), axis % x.ndim
    if prod(x.shape[:axis]) == 1:
        return xp.ascontiguousarray(x).reshape(-1)
    return xp.concatenate([block.reshape(-1) for block in xp.split(x, edges_of(counts)[1:-1], axis)])


def join(flat: Any, shape: Sequence[int], axis: int, counts: Sequence[int]) -> Any:
    """The inverse of :func:`cut`: the array of the given shape whose blocks the buffer holds."""
    xp, axis = array_module(flat), axis % len(shape)
    if prod(shape[:axis]) == 1:
        return flat.reshape(shape)
    whole, at = xp.empty(shape, flat.dtype), 0
    for block in xp.split(whole, edges_of(counts)[1:-1], axis):  # views
        block[...] = flat[at : at + block.size].reshape(block.shape)
        at += block.size
    return whole


def with_axis(shape: Sequence[int], axis: int, length: int) -> tuple[int, ...]:
    """The shape with one axis of another length."""
    shape = list(shape)
    shape[axis] = length
    return tuple(shape)


def axis_length(shape: Sequence[int], axis: int) -> int:
    """The length of an axis; ValueError if there is none."""
    if not -len(shape) <= axis < len(shape):
        hint = "" if shape else "; reshape(1) gives it axis 0"
        raise ValueError(f"a tensor of shape {tuple(shape)} has no axis {axis} to split or join{hint}")
    return shape[axis]
