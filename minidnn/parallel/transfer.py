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
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from ..backend import array_module
from ..comm import collectives, operation
from ..comm.algorithms import Move, Rounds
from ..comm.communicator import Communicator
from ..comm.operation import Operation
from .mesh import Mesh
from .placement import (
    At,
    Blocks,
    Halo,
    Layout,
    MicroBatch,
    Partial,
    Region,
    Replicate,
    Shard,
    pieces,
)

# By the placements along the axes that differ: what the messages are called. Those of OPERATIONS are run as collectives
# of `minidnn.comm`; of the others each rank sends every piece to where it is needed, in one round.
_NAMES = {
    (Shard, Replicate): "all_gather",
    (Partial, Replicate): "all_reduce",
    (Partial, Shard): "reduce_scatter",
    (Partial, At): "reduce",
    (At, Replicate): "broadcast",
    (Shard, Shard): "all_to_all",
    (Shard, At): "gather",
    (At, Shard): "scatter",
    (At, At): "send",
    (Shard, Halo): "halo",
    (Halo, Shard): "halo",
    (Replicate, Shard): "slice",
    (Replicate, Halo): "slice",
    (Replicate, At): "keep",
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


@dataclass(frozen=True)
class Piece:
    """A rectangle that member `source` of the group gives to member `target`, maybe itself."""

    source: int
    target: int
    region: Region


@dataclass(frozen=True)
class Transfer:
    """One collective, or one round of messages, among the ranks of a group.

    Attributes
    ----------
    op : str
    axes : tuple of str
        Of the mesh: those along which the group lies.
    ranks : tuple of int
        The world ranks of its members.
    sources, targets : tuple of Region or None
        What each member holds before and after.
    operation : Operation or None
        The collective; None: plain messages.
    pieces : tuple of Piece
        Of plain messages: all that is given.
    adds : bool
        Of plain messages: pieces that meet are added.
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

    def source_shape(self, rank: int) -> tuple[int, ...] | None:
        """The shape of what a rank holds before; None where it holds nothing."""
        region = self.sources[self.ranks.index(rank)]
        return None if region is None else self.micro_batch.shape(region)

    def concerns(self, rank: int) -> bool:
        """Whether a rank holds anything before or after."""
        member = self.ranks.index(rank)
        return self.sources[member] is not None or self.targets[member] is not None

    def given(self, member: int, by: str) -> dict[int, list[Piece]]:
        """What a member gives to others (`by` "source") or gets from them ("target"), by the other member, in order."""
        size, other = len(self.ranks), "target" if by == "source" else "source"
        found: dict[int, list[Piece]] = {}
        for p in self.pieces:
            if getattr(p, by) == member != getattr(p, other):
                found.setdefault(getattr(p, other), []).append(p)
        return dict(sorted(found.items(), key=lambda item: (item[0] - member) % size))

    def rounds(self, member: int, nodes: Sequence[int] | None = None) -> Rounds:
        """The rounds of messages of a member, as `minidnn.comm.algorithms` gives them."""
        if self.operation:
            return self.operation.rounds(len(self.ranks), member, nodes)
        moves = []
        for kind, by in (("recv", "target"), ("send", "source")):
            at = 0
            for peer, own in self.given(member, by).items():
                n = self.micro_batch.elements(*(p.region for p in own))
                moves.append(Move(kind, peer, at, at + n))
                at += n
        return (tuple(moves),) if moves else ()

    def meets(self, rank: int) -> tuple[int, ...]:
        """The other ranks that have to come to this transfer before `rank` can leave it."""
        member = self.ranks.index(rank)
        if self.operation:
            return tuple(r for r in self.ranks if r != rank) if self.rounds(member) else ()
        peers = {*self.given(member, "source"), *self.given(member, "target")}
        return tuple(self.ranks[p] for p in sorted(peers))

    # -- carrying it out

    def steps(self, comm: Communicator, x: Any, empty: Any) -> Generator:
        """The steps of this transfer on one member, as those of a collective: for `Communicator.start`.

        Parameters
        ----------
        comm : Communicator
            Of the group.
        x : array or None
            What this rank holds before; None where it holds nothing.
        empty : array
            Any array of the dtype and device, to make others like it.

        Returns
        -------
        array or None
            What it holds after.
        """
        me, batch = comm.rank, self.micro_batch
        source, target = self.sources[me], self.targets[me]
        if self.operation:
            y = yield from operation.steps(comm, self.operation, empty if x is None else x)
            return array_module(empty).empty(batch.shape(target), empty.dtype) if y is None and target else y
        mine = [p for p in self.pieces if p.target == me]
        alone = len(mine) == 1 and mine[0].region == target and not self.adds  # one piece is all there is
        send, get = self.given(me, "source"), self.given(me, "target")
        arrived: dict[Piece, Any] = {}
        if send or get:
            blocks = {
                peer: _packed(x, [batch.index(p.region, source) for p in own]) for peer, own in send.items()
            }
            counts = {peer: (batch.elements(*(p.region for p in own)),) for peer, own in get.items()}
            xp = array_module(empty)
            got = yield from collectives.sendrecv.steps(comm, blocks, counts, empty.dtype, xp=xp, op=self.op)
            for peer, own in get.items():
                edges = np.cumsum([0, *(batch.elements(p.region) for p in own)])
                for p, a, b in zip(own, edges, edges[1:], strict=False):
                    arrived[p] = got[peer][a:b].reshape(batch.shape(p.region))
        if target is None:
            return None
        blocks = {p: arrived[p] if p in arrived else x[batch.index(p.region, source)] for p in mine}
        if alone:
            return blocks[mine[0]]
        xp = array_module(empty)
        y = (xp.zeros if self.adds else xp.empty)(batch.shape(target), empty.dtype)
        for p, block in blocks.items():  # in the order of the givers
            place = batch.index(p.region, target)
            y[place] = y[place] + block if self.adds else block
        return y

    def expected(self, whole: np.ndarray, member: int) -> np.ndarray:
        """The flat buffer whose slices `member` sends, out of the micro-batch's whole value: as it is once all is
        summed."""
        rows = self.micro_batch.rows
        starts = np.cumsum((0, *rows))

        def cut(region: Region) -> np.ndarray:
            own = [np.arange(starts[k], starts[k] + rows[k]) for k in region.blocks]
            return whole[np.concatenate([np.arange(0), *own])][:, *(slice(*x) for x in region.box)]

        if self.operation:
            summed = self.op in ("all_reduce", "reduce_scatter", "reduce")
            held = cut((self.sources if summed else self.targets)[member])
            gathers = self.op in ("all_gather", "reduce_scatter")
            return (
                operation.cut(held, self.operation.axis, self.operation.counts)
                if gathers
                else held.reshape(-1)
            )
        own = [cut(p.region).reshape(-1) for pieces in self.given(member, "source").values() for p in pieces]
        return np.concatenate([np.empty(0, whole.dtype), *own])


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
    moved = [i for i, n in enumerate(mesh.sizes) if n > 1 and source[i] != target[i]]
    shifted = {
        (i, p.axis) for i in moved for p in (source[i], target[i]) if isinstance(p, Shard | Halo) and p.axis
    }
    inner = (
        i
        for i, p in enumerate(target)
        if isinstance(p, Shard) and any(i > j and p.axis == d for j, d in shifted)
    )
    return sorted({*moved, *(i for i in inner if mesh.sizes[i] > 1)})


def transfers(
    source: Layout,
    target: Layout,
    shape: tuple[int, ...],
    micro_batch: MicroBatch,
    blocks: Blocks,
    rank: int,
    chosen: Algorithms = Algorithms(),
) -> tuple[Transfer, ...]:
    """What `rank` takes part in so that a value, of `shape` a sample, gets from one layout to the other: 0 to 2
    transfers."""
    found = (
        _transfer(a, b, shape, micro_batch, blocks, axes, blocks.mesh.group(rank, axes), chosen)
        for a, b, axes in steps(source, target, blocks.mesh)
    )
    return tuple(t for t in found if t is not None and t.concerns(rank))


@lru_cache(maxsize=16384)
def _transfer(
    source: Layout,
    target: Layout,
    shape: tuple[int, ...],
    micro_batch: MicroBatch,
    blocks: Blocks,
    axes: tuple[str, ...],
    ranks: tuple[int, ...],
    chosen: Algorithms,
) -> Transfer | None:
    """The transfer of one group."""
    sources = tuple(blocks.region(source, shape, r) for r in ranks)
    targets = tuple(blocks.region(target, shape, r) for r in ranks)
    pairs = [(source[i], target[i]) for i, name in enumerate(blocks.mesh.names) if name in axes]
    kinds = {(type(a), type(b)) for a, b in pairs}
    split = all(kind in (Shard, Halo) for pair in kinds for kind in pair)
    if not any(sources) or (split and sources == targets):
        return None
    op = _NAMES.get(next(iter(kinds)), "exchange") if len(kinds) == 1 else "exchange"
    if any(b == Partial() for _, b in pairs):
        op = "pad"  # what the others have is zero here
    common = axes, ranks, sources, targets, micro_batch
    if op in COLLECTIVES:
        found = _collective(op, pairs, *common[1:], chosen)
        if found is not None:
            return Transfer(found.op, *common, operation=found)
        op = "exchange"
    given = tuple(_pieces(pairs, blocks, *common))
    adds = any(isinstance(a, Partial | Halo) for a, _ in pairs) or op == "pad"
    return Transfer(op, *common, pieces=given, adds=adds)


def _collective(
    op: str, pairs, ranks, sources, targets, micro_batch: MicroBatch, chosen: Algorithms
) -> Operation | None:
    """The collective; None where the members' parts do not lie in their order."""
    counts, axis, root = (), 0, 0
    summed = op in ("all_reduce", "reduce_scatter", "reduce")
    whole = next(r for r in (sources if summed else targets) if r is not None)
    shape = micro_batch.shape(whole)
    if op in ("reduce", "broadcast"):
        root = next(i for i, r in enumerate(targets if summed else sources) if r is not None)
    elif op != "all_reduce":
        parts = targets if summed else sources
        cut = {(b if summed else a).axis for a, b in pairs}
        axis = cut.pop() % (len(whole.box) + 1)
        counts = tuple(micro_batch.shape(r)[axis] for r in parts)
        if cut or not _in_order(parts, whole, axis):
            return None
        holders = [i for i, n in enumerate(counts) if n]
        if (
            axis == 0 and len(holders) == 1
        ):  # gathering what one member has all of, or summing for it (OWT's scheme b)
            op, root, counts = "reduce" if summed else "broadcast", holders[0], ()
    return Operation(op, shape, axis, counts, root=root, algorithm=getattr(chosen, op))


def _in_order(parts: Sequence[Region], whole: Region, axis: int) -> bool:
    """Whether the parts, one after the other along an axis, are the whole."""
    if axis == 0:
        blocks = tuple(k for r in parts for k in r.blocks)
        return blocks == whole.blocks and all(r.box == whole.box for r in parts)
    edges = [r.box[axis - 1] for r in parts]
    joined = all(a[1] == b[0] for a, b in zip(edges, edges[1:], strict=False))
    return joined and (edges[0][0], edges[-1][1]) == whole.box[axis - 1]


def _pieces(pairs, blocks: Blocks, axes, ranks, sources, targets, micro_batch: MicroBatch) -> Iterator[Piece]:
    """All that is given, in order of the givers."""
    places = [[blocks.mesh.coordinate(r, axis) for axis in axes] for r in ranks]
    # what is the same everywhere, and terms of a sum, each member takes from itself
    own = [n for n, (a, b) in enumerate(pairs) if a == Replicate() or b == Partial()]
    first = [
        n for n, (a, b) in enumerate(pairs) if a == Replicate() and b == Partial()
    ]  # of equal copies, as a term
    near: dict[tuple[int, ...], list[int]] = {}
    for j, place in enumerate(places):
        near.setdefault(tuple(place[n] for n in own), []).append(j)
    for i, held in enumerate(sources):
        if held is None or any(places[i][n] for n in first):
            continue
        for j in near[tuple(places[i][n] for n in own)]:
            if targets[j] is not None:
                for region in pieces(held, targets[j], micro_batch):
                    yield Piece(i, j, region)
