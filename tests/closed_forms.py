"""How many messages and elements each rank sends in a collective, by formula.

Written from the formulas of the literature, extended to uneven chunks and to ranks that send nothing, and
apart from the rounds of :mod:`minidnn.comm.patterns`: the tests hold the two equal.  With n divisible by p the formulas
are the well-known ones (Thakur, Rabenseifner and Gropp 2005, table of costs), for one rank and n elements:

==============================  =========================  =======================
all_reduce                      messages sent              elements sent
==============================  =========================  =======================
ring                            2 (p - 1)                  2 n (p - 1) / p
direct                          2 (p - 1)                  2 n (p - 1) / p
doubling, p = 2^k               k                          k n
halving, p = 2^k                2 k                        2 n (p - 1) / p
tree, over all ranks            2 (p - 1)                  2 n (p - 1)
hierarchical, g a node, N nodes 2 (g - 1) + 2 (N - 1)      2 n (g - 1) / g + 2 (n / g) (N - 1) / N
==============================  =========================  =======================

No all_reduce can send fewer than 2 n (p - 1) / p elements per rank, averaged (Patarasuk and Yuan 2009,
theorem 1).
"""

from __future__ import annotations

from typing import NamedTuple

from minidnn.comm.algorithms import default_segments, normalise, rounds


class Cost(NamedTuple):
    """What one rank sends: number of messages, and of elements in them."""

    messages: int
    elements: int

    def __add__(self, other):
        return Cost(self.messages + other[0], self.elements + other[1])


def closed_form(op, algorithm, p, rank, counts, root=0, *, nodes=None, segments=None) -> Cost:
    """Messages and elements that ``rank`` sends; the parameters are those of :func:`minidnn.comm.algorithms.rounds`.

    ``all_reduce`` by "mpi" (the library's own, whose messages cannot be seen) counts as one message with
    the elements that the ring would send.
    """
    if op == "all_reduce" and algorithm == "mpi":
        n = int(counts)
        return Cost(min(n, p - 1, 1), _ring(p, rank, n).elements)
    counts = normalise(op, algorithm, p, counts)
    if p == 1:
        return Cost(0, 0)
    if op == "all_reduce":
        return _ALL_REDUCE[algorithm](p, rank, counts, (0,) * p if nodes is None else tuple(nodes))
    if op == "reduce_scatter":  # every chunk but the own one leaves this rank, once
        return _without(counts, rank)
    if op == "all_gather" and algorithm == "ring":  # everything passes on but what the right neighbour owns
        return _without(counts, (rank + 1) % p)
    if op == "all_gather":
        return _times(p - 1, counts[rank])
    if op == "broadcast" and algorithm == "chain":
        pieces = default_segments(counts) if segments is None else segments
        last = (rank - root) % p == p - 1
        return Cost(0, 0) if last else Cost(min(counts, pieces), counts)
    if op == "broadcast":
        return _times(_children(p, (rank - root) % p), counts)
    if op == "reduce":
        return _times(rank != root, counts)
    if op == "scatter":
        return _without(counts, root) if rank == root else Cost(0, 0)
    if op == "gather":
        return _times(rank != root, counts[rank])
    return _without(counts[rank], rank)


def total(op, algorithm, p, counts, root=0, **options) -> Cost:
    """Messages and elements sent by all ranks together."""
    costs = (closed_form(op, algorithm, p, rank, counts, root, **options) for rank in range(p))
    return sum(costs, Cost(0, 0))


def _times(messages, n) -> Cost:
    """The given number of messages of n elements each; of no elements, none is sent."""
    return Cost(messages, messages * n) if n else Cost(0, 0)


def _without(blocks, index) -> Cost:
    """One message for each block that is not empty, but for the one at ``index``."""
    others = [block for k, block in enumerate(blocks) if k != index and block]
    return Cost(len(others), sum(others))


def _chunk(n, p, c) -> int:
    return n // p + (c % p < n % p)


def _ring(p, rank, n, nodes=None) -> Cost:
    """All chunks but one in each half: the first keeps chunk rank + 1, the second never sends rank + 2."""
    kept, last = _chunk(n, p, rank + 1), _chunk(n, p, rank + 2)
    filled = min(n, p)  # chunks that are not empty
    return Cost(2 * filled - bool(kept) - bool(last), 2 * n - kept - last)


def _direct(p, rank, n, nodes=None) -> Cost:
    own = _chunk(n, p, rank)
    return Cost(min(n, p) - bool(own), n - own) + _times(p - 1, own)


def _tree(p, rank, n, nodes=None) -> Cost:
    return _times((rank != 0) + _children(p, rank), n)


def _children(p, v) -> int:
    """Children of v in the binomial tree over p: powers of two below v's lowest set bit that stay inside."""
    reach = (v & -v) if v else p
    room = p - 1 - v
    return min((reach - 1).bit_length(), room.bit_length())


def _core(p, rank):
    """Folding: (power of two, place among the ranks that go on or None, messages of n that it adds)."""
    power = 1 << (p.bit_length() - 1)
    rest = p - power
    if rank >= 2 * rest:
        return power, rank - rest, 0
    return power, (rank // 2 if rank % 2 else None), 1


def _doubling(p, rank, n, nodes=None) -> Cost:
    power, place, folding = _core(p, rank)
    return _times(folding + (0 if place is None else power.bit_length() - 1), n)


def _halving(p, rank, n, nodes=None) -> Cost:
    power, place, folding = _core(p, rank)
    cost = _times(folding, n)
    if place is None:
        return cost
    for level in range(power.bit_length() - 1):
        own = place >> level << level  # the aligned block of 2^level chunks that holds the own one
        cost += _times(1, _span(n, power, own ^ (1 << level), level)) + _times(1, _span(n, power, own, level))
    return cost


def _span(n, p, first, level) -> int:
    """Elements of the 2^level chunks from ``first`` on, of n elements cut into p."""
    size = 1 << level
    return size * (n // p) + min(max(n % p - first, 0), size)


def _hierarchical(p, rank, n, nodes) -> Cost:
    order = list(dict.fromkeys(nodes))
    sizes = [nodes.count(node) for node in order]
    here = order.index(nodes[rank])
    place = nodes[:rank].count(nodes[rank])
    if len(set(sizes)) > 1:
        children = _children(sizes[here], place)
        inside = _times((place != 0) + children, n)
        return inside + _ring(len(order), here, n) if place == 0 and len(order) > 1 else inside
    g = sizes[0]
    chunks = [_chunk(n, g, c) for c in range(g)]
    inside = _without(chunks, place) + _without(chunks, (place + 1) % g) if g > 1 else Cost(0, 0)
    return inside + _ring(len(order), here, chunks[place]) if len(order) > 1 else inside


_ALL_REDUCE = {
    "ring": _ring,
    "direct": _direct,
    "tree": _tree,
    "doubling": _doubling,
    "halving": _halving,
    "hierarchical": _hierarchical,
}


def messages(op, algorithm, p, rank, counts, root=0, **options) -> list[tuple]:
    """(round from 1, number of rounds, peer, elements, kind) of each message of a rank, as the package has them."""
    own = rounds(op, algorithm, p, rank, counts, root, **options)
    return [(k, len(own), m.peer, m.elements, m.kind) for k, moves in enumerate(own, 1) for m in moves]
