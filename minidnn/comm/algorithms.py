"""Collective algorithms as data: which rank sends which elements to whom, in which round.

A collective over ``p`` ranks is, for each rank, a tuple of *rounds*; a round is a tuple of :class:`Move`,
each a send or a receive of a slice ``[start, stop)`` of one flat buffer.  There are no arrays and no MPI
here, so the same data is executed (:mod:`.collectives`), counted by the planner (:func:`messages`),
explained and drawn (:mod:`.explain`).

The meaning of a round, which everything that reads this data relies on:

1. all receives are posted, then all sends, and the rank waits until every one of them is complete;
2. then received blocks whose move says ``reduce`` are added to the buffer, in the order of the moves.

So a send always reads the buffer as it was when the round began.  Rounds are numbered alike on all ranks: a
rank that has nothing to do in a round has an empty one there.  Moves of no elements do not exist: with fewer
elements than ranks, or none at all, the messages that would be empty are not sent.

Sources: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 69
(2009), for the ring; Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in
MPICH", IJHPCA 19 (2005), for doubling, halving, the binomial trees and folding; Chan, Heimlich, Purkayastha
and van de Geijn, "Collective communication: theory, practice, and experience", CCPE 19 (2007), for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from minidnn.errors import InputError


@dataclass(frozen=True, slots=True)
class Move:
    """One message as one of its two ends sees it: ``kind`` is "send" or "recv", ``peer`` the other rank."""

    kind: str
    peer: int
    start: int
    stop: int
    reduce: bool = False

    @property
    def elements(self) -> int:
        return self.stop - self.start


Rounds = tuple[tuple[Move, ...], ...]

#: What can be chosen for each operation; the first is the default.
ALGORITHMS = {
    "all_reduce": ("ring", "doubling", "halving", "tree", "direct", "hierarchical"),
    "reduce_scatter": ("ring", "direct"),
    "all_gather": ("ring", "direct"),
    "broadcast": ("binomial", "chain"),
    "reduce": ("binomial",),
    "scatter": ("direct",),
    "gather": ("direct",),
    "all_to_all": ("direct", "pairwise"),
    "send": ("direct",),
}

#: Operations whose buffer is cut into one block per rank (``counts``); the others take a length ``n``.
BLOCKED = frozenset({"reduce_scatter", "all_gather", "scatter", "gather"})


def split_counts(n: int, parts: int) -> tuple[int, ...]:
    """Cut ``n`` elements as ``numpy.array_split`` does: the first ``n % parts`` parts get one more."""
    quotient, rest = divmod(n, parts)
    return (quotient + 1,) * rest + (quotient,) * (parts - rest)


def edges_of(counts: Sequence[int], start: int = 0) -> list[int]:
    """Where consecutive blocks of the given lengths begin and end: ``[start, start + counts[0], ...]``."""
    edges = [start]
    for count in counts:
        edges.append(edges[-1] + count)
    return edges


def default_segments(n: int) -> int:
    """Pieces of a pipelined chain broadcast: one per 32,768 elements, at least 1 and at most 32."""
    return max(1, min(32, n // 32768))


def normalise(op: str, algorithm: str, p: int, counts):
    """Check the choice and return ``counts`` in the form the algorithm takes (a hashable one)."""
    if op not in ALGORITHMS:
        raise InputError(f"unknown collective {op!r}; known: {', '.join(ALGORITHMS)}")
    if algorithm not in ALGORITHMS[op]:
        raise InputError(f"{op} has no algorithm {algorithm!r}; known: {', '.join(ALGORITHMS[op])}")
    if op in BLOCKED:
        counts = split_counts(counts, p) if isinstance(counts, int) else tuple(int(c) for c in counts)
        if len(counts) != p or min(counts) < 0:
            raise InputError(f"{op} over {p} ranks needs {p} counts >= 0, got {counts}")
    elif op == "all_to_all":
        if isinstance(counts, int):  # every rank cuts its n elements evenly
            counts = (split_counts(counts, p),) * p
        counts = tuple(tuple(int(c) for c in row) for row in counts)
        if len(counts) != p or any(len(row) != p or min(row) < 0 for row in counts):
            raise InputError(
                f"all_to_all over {p} ranks needs a {p} x {p} matrix of counts >= 0, got {counts}"
            )
    else:
        counts = int(counts)
        if counts < 0:
            raise InputError(f"{op} needs a length >= 0, got {counts}")
    return counts


def rounds(
    op: str,
    algorithm: str,
    p: int,
    rank: int,
    counts: int | Sequence,
    root: int = 0,
    *,
    nodes: Sequence[int] | None = None,
    segments: int | None = None,
    dest: int = 0,
) -> Rounds:
    """The rounds of one rank in one collective.

    Parameters
    ----------
    op, algorithm : str
        See :data:`ALGORITHMS`.
    p, rank : int
        Number of ranks, and whose rounds.
    counts : int or sequence
        ``all_reduce``, ``broadcast``, ``reduce``: the length n.  ``reduce_scatter``, ``all_gather``,
        ``scatter``, ``gather``: the elements of each rank's block (an int is split evenly).
        ``all_to_all``: the matrix whose entry ``[i][j]`` is what rank i sends to rank j.
    root : int
        The sender of ``send``; the root of ``broadcast``, ``reduce``, ``scatter``, ``gather``.
    nodes : sequence of int, optional
        For "hierarchical": the node id of each rank (default: all on one node).
    segments : int, optional
        For "chain": the number of pieces that travel one behind the other (default
        :func:`default_segments`).
    dest : int
        The receiver of ``send``.

    Returns
    -------
    tuple of rounds
        Offsets count elements of the buffer of ``sum(counts)`` (or n) elements.  For ``all_to_all`` a send's
        offsets are in the send buffer (blocks in order of destination), a receive's in the receive buffer
        (blocks in order of source); a rank's block for itself is copied, not sent.

    Raises
    ------
    InputError
        Unknown operation or algorithm, or counts that do not fit.
    """
    counts = normalise(op, algorithm, p, counts)
    if not 0 <= rank < p or not 0 <= root < p:
        raise InputError(f"rank {rank} and root {root} must be in 0..{p - 1}")
    nodes = (0,) * p if nodes is None else tuple(nodes)
    if len(nodes) != p:
        raise InputError(f"nodes has {len(nodes)} entries for {p} ranks")
    return _rounds(op, algorithm, p, rank, counts, root, nodes, segments, dest)


@lru_cache(maxsize=4096)
def _rounds(op, algorithm, p, rank, counts, root, nodes, segments, dest) -> Rounds:
    from . import patterns

    everyone = tuple(range(p))
    if op == "all_reduce":
        built = patterns.ALL_REDUCE[algorithm](everyone, rank, 0, counts, nodes)
    elif op == "reduce_scatter":
        build = patterns.ring_reduce_scatter if algorithm == "ring" else patterns.direct_reduce_scatter
        built = build(everyone, rank, edges_of(counts))
    elif op == "all_gather":
        build = patterns.ring_all_gather if algorithm == "ring" else patterns.direct_all_gather
        built = build(everyone, rank, edges_of(counts))
    elif op == "broadcast" and algorithm == "binomial":
        built = patterns.binomial_broadcast(everyone, rank, root, 0, counts)
    elif op == "broadcast":
        pieces = default_segments(counts) if segments is None else segments
        built = patterns.chain_broadcast(everyone, rank, root, split_counts(counts, pieces))
    elif op == "reduce":
        built = patterns.binomial_reduce(everyone, rank, root, 0, counts)
    elif op in ("scatter", "gather"):
        built = patterns.to_or_from_root(op, everyone, rank, root, edges_of(counts))
    elif op == "send":
        built = patterns.send_to(everyone, rank, root, dest, counts)
    else:
        built = patterns.all_to_all(everyone, rank, counts, pairwise=algorithm == "pairwise")
    # receives first: a message that finds its receive posted need not be buffered
    return tuple(
        tuple(sorted((move for move in moves if move.elements), key=lambda move: move.kind))
        for moves in built
    )


def messages(op: str, algorithm: str, p: int, rank: int, counts, root: int = 0, **options) -> list[tuple]:
    """Every message of one rank in one collective, for the planner.

    Returns
    -------
    list of (index, count, peer, elements, kind)
        ``index`` is the round, from 1, of ``count`` rounds; ``kind`` is "send" or "recv".  The library's own
        all_reduce ("mpi"), whose messages cannot be seen, counts as one message to the right neighbour with
        the elements that the ring would send.
    """
    if (op, algorithm) == ("all_reduce", "mpi"):
        from . import closed_forms

        neighbours = ((rank + 1) % p, rank, "send"), ((rank - 1) % p, (rank - 1) % p, "recv")
        sizes = [closed_forms.closed_form(op, algorithm, p, sender, counts) for _, sender, _ in neighbours]
        return [
            (1, 1, peer, size.elements, kind)
            for (peer, _, kind), size in zip(neighbours, sizes, strict=True)
            if size.elements
        ]
    own = rounds(op, algorithm, p, rank, counts, root, **options)
    return [
        (index, len(own), move.peer, move.elements, move.kind)
        for index, moves in enumerate(own, 1)
        for move in moves
    ]
