"""Moving one value from one layout to another, as data: which collective that is, or which messages.

What a rank holds before and after are rectangles (`Region`), and what moves is where they meet.  Along the axes of
the mesh on which the two layouts differ the pattern often is a collective, and is run as that one, by name; any
other is plain messages between the ranks whose rectangles meet.  A sum still to be made is made first, where
something else changes, too.

The gradient of a value moves by the same function, between the layouts of the gradient: where a value is replicated for
work that is split, its gradient is `Partial`, so what an all_gather brings forward a reduce_scatter sums backward;
what a halo copies is added back.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..backend import array_module
from ..comm import collectives, operation
from ..comm.algorithms import OPERATIONS, Move, Rounds, edges_of
from ..comm.communicator import Communicator
from ..comm.operation import Operation
from .mesh import Mesh
from .placement import At, Blocks, Halo, Layout, MicroBatch, Partial, Region, Replicate, Shape, Shard, pieces

# What messages are called, by the placements before and after along the axes that differ. COLLECTIVES are run as those
# of `minidnn.comm`; of the others each rank sends every piece to where it is needed, in one round.
_NAMES = {
    Shard: {Replicate: "all_gather", Shard: "all_to_all", At: "gather", Halo: "halo"},
    Partial: {Replicate: "all_reduce", Shard: "reduce_scatter", At: "reduce"},
    At: {Replicate: "broadcast", Shard: "scatter", At: "send"},
    Replicate: {Shard: "slice", Halo: "slice", At: "keep"},
    Halo: {Shard: "halo"},
}
COLLECTIVES = ("all_gather", "all_reduce", "reduce_scatter", "reduce", "broadcast")


@dataclass(frozen=True)
class Algorithms:
    """The algorithm of each collective that has several."""

    all_reduce: str = "ring"
    all_gather: str = "ring"
    reduce_scatter: str = "ring"
    broadcast: str = "chain"
    reduce: str = "binomial"


class Piece(NamedTuple):
    """A rectangle that member `source` of the group gives to member `target`, maybe itself."""

    source: int
    target: int
    region: Region


@dataclass(frozen=True)
class Transfer:
    """One collective, or one round of messages, among the ranks of a group along axes of the mesh.

    Attributes
    ----------
    sources, targets : tuple of Region or None
        What each member holds before and after.
    operation : Operation or None
        The collective; None: plain messages.
    pieces, adds : tuple of Piece, bool
        Of plain messages: all that is given, in the order of the givers; whether pieces that meet are added.
    """

    op: str
    axes: tuple[str, ...]
    ranks: tuple[int, ...]
    sources: tuple[Region | None, ...]
    targets: tuple[Region | None, ...]
    micro_batch: MicroBatch
    operation: Operation | None = None
    pieces: tuple[Piece, ...] = ()
    adds: bool = False

    @property
    def algorithm(self) -> str:
        return self.operation.algorithm if self.operation else "direct"

    @cached_property
    def moves_data(self) -> bool:
        """Whether any member sends anything; else every rank helps itself from what it holds."""
        return self.operation is not None or any(p.source != p.target for p in self.pieces)

    def given(self, member: int, kind: str) -> dict[int, list[Region]]:
        """What a member sends to others or gets from them (`kind` "send" or "recv"), by the other one, in order."""
        found: dict[int, list[Region]] = {}
        for source, target, region in self.pieces:
            own, peer = (source, target) if kind == "send" else (target, source)
            if own == member != peer:
                found.setdefault(peer, []).append(region)
        return {peer: found[peer] for peer in sorted(found, key=lambda p: (p - member) % len(self.ranks))}

    def rounds(self, member: int, nodes: Sequence[int] | None = None) -> Rounds:
        """The rounds of messages of a member, as `minidnn.comm.algorithms` gives them."""
        if self.operation:
            return self.operation.rounds(len(self.ranks), member, nodes)
        moves: list[Move] = []
        for kind in ("recv", "send"):
            given = self.given(member, kind)
            edges = edges_of([self.micro_batch.elements(*regions) for regions in given.values()])
            moves += (Move(kind, p, a, b) for p, a, b in zip(given, edges, edges[1:], strict=False))
        return (tuple(moves),) if moves else ()

    def meets(self, rank: int) -> tuple[int, ...]:
        """The other ranks that have to come to this transfer before `rank` can leave it."""
        member = self.ranks.index(rank)
        if self.operation:
            return tuple(r for r in self.ranks if r != rank) if self.rounds(member) else ()
        peers = self.given(member, "send").keys() | self.given(member, "recv").keys()
        return tuple(self.ranks[p] for p in sorted(peers))

    def steps(self, comm: Communicator, x: Any, empty: Any) -> Generator:
        """Carry it out on a member of the group `comm`: the steps, as of a collective, for `Communicator.start`.

        x is the array that the rank holds before, and the result what it holds after; None where it holds nothing.
        `empty` is any array of the dtype and device, to make others like it.
        """
        me, batch, xp = comm.rank, self.micro_batch, array_module(empty)
        source, target = self.sources[me], self.targets[me]
        if self.operation:
            y = yield from operation.steps(comm, self.operation, empty if x is None else x)
            return xp.empty(batch.shape(target), empty.dtype) if y is None and target else y
        send, get, arrived = self.given(me, "send"), self.given(me, "recv"), {}
        if send or get:
            blocks = {to: _packed(x, [batch.index(r, source) for r in given]) for to, given in send.items()}
            counts = {by: (batch.elements(*given),) for by, given in get.items()}
            got = yield from collectives.sendrecv.steps(comm, blocks, counts, empty.dtype, xp=xp, op=self.op)
            for by, given in get.items():
                arrived[by] = iter(xp.split(got[by], edges_of(map(batch.elements, given))[1:-1]))
        if target is None:
            return None
        mine = [p for p in self.pieces if p.target == me]
        blocks = [
            x[batch.index(region, source)] if by == me else next(arrived[by]).reshape(batch.shape(region))
            for by, _, region in mine
        ]
        if len(mine) == 1 and mine[0].region == target and not self.adds:  # one piece is all there is
            return blocks[0]
        y = (xp.zeros if self.adds else xp.empty)(batch.shape(target), empty.dtype)
        for p, block in zip(mine, blocks, strict=True):
            place = batch.index(p.region, target)
            y[place] = y[place] + block if self.adds else block
        return y

    def expected(self, whole: np.ndarray, member: int) -> np.ndarray:
        """The flat buffer whose slices `member` sends, out of the value of the whole batch, as it is once all is
        summed."""

        def cut(region: Region) -> np.ndarray:
            return whole[self.micro_batch.samples(region.blocks)][:, *(slice(*x) for x in region.box)]

        if self.operation:
            held = self.sources if OPERATIONS[self.op].before == "whole" else self.targets
            value, counts = cut(held[member]), self.operation.counts
            return operation.cut(value, self.operation.axis, counts) if counts else value.reshape(-1)
        given = [cut(region).reshape(-1) for own in self.given(member, "send").values() for region in own]
        return np.concatenate([np.empty(0, whole.dtype), *given])


def _packed(x: Any, places: Sequence[tuple[slice, ...]]) -> Any:
    """The given parts of x, flat, one after the other; without a copy where one is x as it lies."""
    xp = array_module(x)
    flat = [xp.ascontiguousarray(x[place]).reshape(-1) for place in places]
    return flat[0] if len(flat) == 1 else xp.concatenate(flat)


# -- from layouts to transfers


@lru_cache(maxsize=4096)
def steps(source: Layout, target: Layout, mesh: Mesh) -> tuple[tuple[Layout, Layout, tuple[str, ...]], ...]:
    """From where to where, and along which axes of the mesh: none, one, or a sum first where something else changes,
    too."""
    moved = _moved(source, target, mesh)
    sums = [i for i in moved if source[i] == Partial()]
    if not sums or len({(type(source[i]), target[i]) for i in moved}) == 1:
        return ((source, target, tuple(mesh.names[i] for i in moved)),) if moved else ()
    for possible in (Replicate | Shard, Replicate):  # the sum as it is needed, if nothing else moves with it
        between = tuple(
            p if i not in sums else target[i] if isinstance(target[i], possible) else Replicate()
            for i, p in enumerate(source)
        )
        units = {(p.axis, p.units) for p in between if isinstance(p, Shard)}
        if _moved(source, between, mesh) == sums and len(dict(units)) == len(units):
            break
    return (source, between, tuple(mesh.names[i] for i in sums)), *steps(between, target, mesh)


def _moved(source: Layout, target: Layout, mesh: Mesh) -> list[int]:
    """The numbers of the axes along which something moves: those whose placement changes, and those that split the same
    axis of the value further in, as their parts are parts of other parts then. (Samples lie in blocks that stay.)"""
    moved, shifted = [], set()  # the axes of the value whose parts are others
    for i, (before, after) in enumerate(zip(source, target, strict=True)):
        if mesh.sizes[i] > 1 and before != after:
            moved.append(i)
            shifted |= {p.axis for p in (before, after) if isinstance(p, Shard | Halo) and p.axis}
        elif mesh.sizes[i] > 1 and isinstance(after, Shard) and after.axis in shifted:
            moved.append(i)
    return moved


def transfers(
    source: Layout, target: Layout, shape: Shape, batch: MicroBatch, blocks: Blocks, rank: int, by: Algorithms
) -> tuple[Transfer, ...]:
    """What `rank` takes part in so that a value, of `shape` a sample, gets from one layout to the other: 0 to 2
    transfers."""
    found = []
    for before, after, axes in steps(source, target, blocks.mesh):
        ranks = blocks.mesh.group(rank, axes)
        t, member = _transfer(before, after, axes, ranks, shape, batch, blocks, by), ranks.index(rank)
        if t is not None and (t.sources[member] or t.targets[member]):
            found.append(t)
    return tuple(found)


@lru_cache(maxsize=16384)
def _transfer(source, target, axes, ranks, shape, micro_batch, blocks, chosen) -> Transfer | None:
    """The transfer of one group; None where there is nothing to do."""
    sources, targets = (tuple(blocks.region(layout, shape, r) for r in ranks) for layout in (source, target))
    pairs = [(source[i], target[i]) for i, name in enumerate(blocks.mesh.names) if name in axes]
    kinds = {(type(a), type(b)) for a, b in pairs}
    if not any(sources) or (sources == targets and {*sum(kinds, ())} <= {Shard, Halo}):
        return None
    op, pads = "exchange", any(b == Partial() for _, b in pairs)
    if pads:
        op = "pad"  # what the others have is zero here
    elif len(kinds) == 1:
        (before, after), *_ = kinds
        op = _NAMES[before].get(after, op)
    move = Transfer(op, axes, ranks, sources, targets, micro_batch)
    if op in COLLECTIVES:
        found = _collective(move, pairs, chosen)
        if found is not None:
            return replace(move, op=found.op, operation=found)
        op = "exchange"
    adds = pads or any(isinstance(a, Partial | Halo) for a, _ in pairs)
    return replace(move, op=op, pieces=tuple(_pieces(move, pairs, blocks.mesh)), adds=adds)


def _collective(move: Transfer, pairs, chosen: Algorithms) -> Operation | None:
    """The collective; None where the blocks of samples that the members have do not lie in their order.

    Parts of another axis always do, as the parts of an axis of the mesh are cut again by the axes further in.
    """
    op, counts, axis, root = move.op, (), 0, 0
    summed = OPERATIONS[op].before == "whole"
    wholes, parts = (move.sources, move.targets) if summed else (move.targets, move.sources)
    whole = next(r for r in wholes if r is not None)
    if op in ("reduce", "broadcast"):
        root = next(i for i, r in enumerate(parts) if r is not None)
    elif op != "all_reduce":
        cut = {(b if summed else a).axis for a, b in pairs}
        axis = cut.pop() % (len(whole.box) + 1)
        counts = tuple(move.micro_batch.shape(r)[axis] for r in parts)
        if cut or (axis == 0 and tuple(k for r in parts for k in r.blocks) != whole.blocks):
            return None
        holders = [i for i, n in enumerate(counts) if n]
        if axis == 0 and len(holders) == 1:  # what one member has all of, or gets all of (OWT's scheme b)
            op, root, counts = "reduce" if summed else "broadcast", holders[0], ()
    shape = move.micro_batch.shape(whole)
    return Operation(op, shape, axis, counts, root=root, algorithm=getattr(chosen, op))


def _pieces(move: Transfer, pairs, mesh: Mesh) -> Iterator[Piece]:
    """All that is given, in order of the givers."""
    places = [[mesh.coordinate(r, axis) for axis in move.axes] for r in move.ranks]
    # what is the same everywhere, and terms of a sum, each member takes from itself
    own = [n for n, (a, b) in enumerate(pairs) if a == Replicate() or b == Partial()]
    # of equal copies, one is a term
    first = [n for n, (a, b) in enumerate(pairs) if a == Replicate() and b == Partial()]
    near: dict[tuple[int, ...], list[int]] = {}
    for j, place in enumerate(places):
        near.setdefault(tuple(place[n] for n in own), []).append(j)
    for i, held in enumerate(move.sources):
        if held is None or any(places[i][n] for n in first):
            continue
        for j in near[tuple(places[i][n] for n in own)]:
            if move.targets[j] is not None:
                for region in pieces(held, move.targets[j], move.micro_batch):
                    yield Piece(i, j, region)
