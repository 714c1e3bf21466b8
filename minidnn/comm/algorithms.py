"""Collective algorithms as data: which rank sends which elements to whom, in which round.

A collective over ``p`` ranks is, for each rank, a tuple of *rounds*; a round is a tuple of :class:`Move`,
each a send or a receive of a slice ``[start, stop)`` of one flat buffer.  There are no arrays and no MPI
here, so the same data is executed (:mod:`.collectives`), counted by the planner and drawn
(:mod:`minidnn.report.collective`).

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
from functools import lru_cache
from typing import Any, NamedTuple

from minidnn.errors import InputError

from . import patterns
from .patterns import Move, edges_of, split_counts

Rounds = tuple[tuple[Move, ...], ...]


def default_segments(n: int) -> int:
    """Pieces of a pipelined chain broadcast: one per 32,768 elements, at least 1 and at most 32."""
    return max(1, min(32, n // 32768))


class _Call(NamedTuple):
    """What a pattern is asked for; parameters of :func:`rounds`."""

    counts: Any
    root: int
    nodes: tuple[int, ...]
    segments: int | None


def _sum(pattern):
    return lambda p, i, c: pattern(p, i, c.counts, c.nodes)


def _broadcast(p, i, c):
    return patterns.tree(p, i, c.root, c.counts)


def _scatter(p, i, c):
    return patterns.from_root(p, i, c.root, edges_of(c.counts))


def _pipeline(p, i, c):
    pieces = default_segments(c.counts) if c.segments is None else c.segments
    return patterns.chain(p, i, c.root, edges_of(split_counts(c.counts, pieces)))


#: The all_reduce of the transport itself: not for every transport, and so not among ALGORITHMS.
LIBRARY = "mpi"
_PATTERNS = {
    "all_reduce": {
        "ring": _sum(patterns.ring_sum),
        "doubling": _sum(patterns.doubling_sum),
        "halving": _sum(patterns.halving_sum),
        "tree": _sum(patterns.tree_sum),
        "direct": _sum(patterns.direct_sum),
        "hierarchical": _sum(patterns.hierarchical_sum),
        LIBRARY: _sum(patterns.library_sum),
    },
    "reduce_scatter": {
        "ring": lambda p, i, c: patterns.ring(p, i, edges_of(c.counts), -1, reduce=True),
        "direct": lambda p, i, c: patterns.direct(p, i, edges_of(c.counts), reduce=True),
    },
    "all_gather": {
        "ring": lambda p, i, c: patterns.ring(p, i, edges_of(c.counts), 0),
        "direct": lambda p, i, c: patterns.direct(p, i, edges_of(c.counts)),
    },
    "broadcast": {"binomial": _broadcast, "chain": _pipeline},
    "reduce": {"binomial": lambda *call: patterns.undone(_broadcast(*call), reduce=True)},
    "scatter": {"direct": _scatter},
    "gather": {"direct": lambda *call: patterns.undone(_scatter(*call))},
    "all_to_all": {
        "direct": lambda p, i, c: patterns.all_to_all(p, i, c.counts, pairwise=False),
        "pairwise": lambda p, i, c: patterns.all_to_all(p, i, c.counts, pairwise=True),
    },
}

#: What can be chosen for each operation; the first is the default.
ALGORITHMS = {op: tuple(name for name in names if name != LIBRARY) for op, names in _PATTERNS.items()}


class Held(NamedTuple):
    """What a member brings to an operation and what it gets: "whole", its own "block", or, at the "root" only, the
    whole; and the operation that takes the gradient back."""

    before: str
    after: str
    adjoint: str


#: The adjoint brings what the operation gets.  A value summed over all (from "whole") is one that each used.
OPERATIONS = {
    "broadcast": Held("root", "whole", "reduce"),
    "reduce": Held("whole", "root", "broadcast"),
    "scatter": Held("root", "block", "gather"),
    "gather": Held("block", "root", "scatter"),
    "all_gather": Held("block", "whole", "reduce_scatter"),
    "reduce_scatter": Held("whole", "block", "all_gather"),
    "all_to_all": Held("block", "block", "all_to_all"),  # blocks along two axes
    "all_reduce": Held("whole", "whole", "all_reduce"),  # each copy is a variable of its own
    "reduce_from": Held("whole", "whole", "copy_to"),  # an all_reduce whose copies are one value
    "copy_to": Held("whole", "whole", "reduce_from"),  # no message: one value enters work that is split
}

#: Operations whose buffer is cut into one block per rank (``counts``); the others take a length ``n``.
BLOCKED = frozenset(op for op, (*held, _) in OPERATIONS.items() if held.count("block") == 1)


def normalise(op: str, algorithm: str, p: int, counts):
    """Check the choice and return ``counts`` in the form the algorithm takes (a hashable one)."""
    if op not in ALGORITHMS:
        raise InputError(f"unknown collective {op!r}; known: {', '.join(ALGORITHMS)}")
    if algorithm not in _PATTERNS[op]:
        raise InputError(f"{op} has no algorithm {algorithm!r}; known: {', '.join(ALGORITHMS[op])}")
    if op in BLOCKED:
        counts = split_counts(counts, p) if isinstance(counts, int) else tuple(map(int, counts))
        fits, expected = len(counts) == p and min(counts) >= 0, f"over {p} ranks needs {p} counts"
    elif op == "all_to_all":  # by default every rank cuts its elements evenly
        matrix = (split_counts(counts, p),) * p if isinstance(counts, int) else counts
        counts = tuple(tuple(map(int, row)) for row in matrix)
        fits = len(counts) == p and all(len(row) == p and min(row) >= 0 for row in counts)
        expected = f"over {p} ranks needs a {p} x {p} matrix of counts"
    else:
        counts = int(counts)
        fits, expected = counts >= 0, "needs a length"
    if not fits:
        raise InputError(f"{op} {expected} >= 0, got {counts}")
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
) -> Rounds:
    """The rounds of one rank in one collective.

    Parameters
    ----------
    op, algorithm : str
        See :data:`ALGORITHMS`; also "all_reduce" by :data:`LIBRARY`.
    p, rank : int
        Number of ranks, and whose rounds.
    counts : int or sequence
        The length n; of operations in :data:`BLOCKED` the elements of each rank's block (an int is split evenly);
        of ``all_to_all`` the matrix whose entry ``[i][j]`` is what rank i sends to rank j.
    nodes : sequence of int, optional
        For "hierarchical": the node id of each rank (default: all on one node).
    segments : int, optional
        For "chain": the number of pieces that travel one behind the other (default: :func:`default_segments`).

    Returns
    -------
    tuple of rounds
        Offsets count elements of the buffer of ``sum(counts)`` (or n) elements.  For ``all_to_all`` a send's
        offsets are in the send buffer (blocks in order of destination), a receive's in the receive buffer
        (blocks in order of source); a rank's block for itself is copied, not sent.

    InputError: unknown operation or algorithm, or counts that do not fit.
    """
    counts = normalise(op, algorithm, p, counts)
    if not 0 <= rank < p or not 0 <= root < p:
        raise InputError(f"rank {rank} and root {root} must be in 0..{p - 1}")
    nodes = (0,) * p if nodes is None else tuple(nodes)
    if len(nodes) != p:
        raise InputError(f"nodes has {len(nodes)} entries for {p} ranks")
    return _rounds(op, algorithm, p, rank, counts, root, nodes, segments)


@lru_cache(maxsize=4096)
def _rounds(op, algorithm, p, rank, *call) -> Rounds:
    built = _PATTERNS[op][algorithm](p, rank, _Call(*call)) if p > 1 else ()
    # receives first: a message that finds its receive posted need not be buffered
    return tuple(tuple(sorted((m for m in moves if m.elements), key=lambda m: m.kind)) for moves in built)
