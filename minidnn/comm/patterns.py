"""The communication patterns that the algorithms are made of.

Every function returns the rounds of member ``i`` of ``m``, as lists of moves (empty ones are dropped by the caller).
``edges`` are the borders of the chunks, by default one chunk per member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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


def split_counts(n: int, parts: int) -> tuple[int, ...]:
    """Cut ``n`` elements as ``numpy.array_split`` does: the first ``n % parts`` parts get one more."""
    quotient, rest = divmod(n, parts)
    return (quotient + 1,) * rest + (quotient,) * (parts - rest)


def edges_of(counts: Sequence[int]) -> list[int]:
    """Where consecutive blocks of the given lengths begin and end: ``[0, counts[0], ...]``."""
    edges = [0]
    for count in counts:
        edges.append(edges[-1] + count)
    return edges


def _send(peer: int, edges: Sequence[int], chunk: int = 0) -> Move:
    return Move("send", peer, edges[chunk], edges[chunk + 1])


def _recv(peer: int, edges: Sequence[int], chunk: int = 0, reduce: bool = False) -> Move:
    return Move("recv", peer, edges[chunk], edges[chunk + 1], reduce)


def undone(rounds, reduce=False):
    """The rounds backwards, every message the other way; with ``reduce`` what comes is added.

    So a broadcast becomes a reduce, a scatter a gather, and a reduce_scatter by halves an all_gather.
    """
    other = {"send": ("recv", reduce), "recv": ("send", False)}
    return [
        [Move(other[m.kind][0], m.peer, m.start, m.stop, other[m.kind][1]) for m in moves]
        for moves in reversed(rounds)
    ]


def _among(members, rank, pattern, *args, start=0):
    """The rounds of a rank where a pattern runs among some of the ranks, on the elements from ``start`` on."""
    inside = rank in members
    rounds = pattern(len(members), members.index(rank) if inside else 0, *args)
    return [
        [Move(m.kind, members[m.peer], start + m.start, start + m.stop, m.reduce) for m in moves if inside]
        for moves in rounds
    ]


def ring(m, i, edges, first, reduce=False):
    """Chunks travel round the ring: in step s member i sends chunk (i + first - s) % m to its right.

    With ``reduce`` each member adds its own part to what passes, and ends with the whole sum of chunk
    (i + first + 1) % m, made in ring order, another order for each chunk; else it ends with all chunks.
    """
    chunks = [(i + first - s) % m for s in range(m)]
    return [
        [_recv((i - 1) % m, edges, into, reduce), _send((i + 1) % m, edges, out)]
        for out, into in zip(chunks, chunks[1:], strict=False)
    ]


def direct(m, i, edges, reduce=False):
    """One round: all get everybody's chunk; with ``reduce`` its owner gets it from all, and adds in ring order."""
    others = [(i + k) % m for k in range(1, m)]
    received = [_recv(j, edges, i if reduce else j, reduce) for j in others]
    return [received + [_send(j, edges, j if reduce else i) for j in others]]


def tree(m, i, root, n):
    """Binomial broadcast: the holders double in every round; from the root, v receives from v less its lowest bit."""
    v, built = (i - root) % m, []
    for k in reversed(range((m - 1).bit_length())):
        distance, moves = 1 << k, []
        if v % (2 * distance) == 0 and v + distance < m:
            moves.append(_send((i + distance) % m, (0, n)))
        elif v % (2 * distance) == distance:
            moves.append(_recv((i - distance) % m, (0, n)))
        built.append(moves)
    return built


def chain(m, i, root, edges):
    """A pipeline: the pieces between ``edges`` go down the chain one behind the other."""
    v, pieces, built = (i - root) % m, len(edges) - 1, []
    for t in range(m - 2 + pieces):
        moves = []
        if v > 0 and 0 <= t - v + 1 < pieces:
            moves.append(_recv((i - 1) % m, edges, t - v + 1))
        if v < m - 1 and 0 <= t - v < pieces:
            moves.append(_send((i + 1) % m, edges, t - v))
        built.append(moves)
    return built


def from_root(m, i, root, edges):
    """One message from the root to each other member, all at once."""
    return [[_send(j, edges, j) for j in range(m) if j != root] if i == root else [_recv(root, edges, i)]]


def all_to_all(m, i, counts, pairwise):
    """Block j of the send buffer goes to member j: all at once, or to i + s and from i - s in round s."""
    out, into = edges_of(counts[i]), edges_of([row[i] for row in counts])
    pairs = [((i + s) % m, (i - s) % m) for s in range(1, m)]
    built = [[_recv(source, into, source), _send(to, out, to)] for to, source in pairs]
    return built if pairwise else [[move for moves in built for move in moves]]


# -- all_reduce: each takes (m, i, n, nodes) and leaves the same bits on every member; the reason is in each


def ring_sum(m, i, n, nodes=None):
    """Ring reduce_scatter, then ring all_gather.  Each chunk is summed once, in ring order, and copied."""
    edges = edges_of(split_counts(n, m))
    return ring(m, i, edges, 0, reduce=True) + ring(m, i, edges, 1)


def direct_sum(m, i, n, nodes=None):
    """Direct reduce_scatter, then direct all_gather.  Each chunk is summed once, at its owner, and copied."""
    edges = edges_of(split_counts(n, m))
    return direct(m, i, edges, reduce=True) + direct(m, i, edges)


def tree_sum(m, i, n, nodes=None):
    """Binomial reduce to the first member, then binomial broadcast.  One sum, made once, and copied."""
    down = tree(m, i, 0, n)
    return undone(down, reduce=True) + down


def _folded(m, i, n, pattern):
    """Run an algorithm for powers of two over any number of members, as MPICH does.

    Of the first 2 (m - 2^k) members the even ones hand their whole vector to their right neighbour, sit
    out, and get the result at the end.
    """
    rest, before = m - (1 << (m.bit_length() - 1)), []
    if i < 2 * rest:
        before = [_recv(i - 1, (0, n), reduce=True) if i % 2 else _send(i + 1, (0, n))]
    middle = _among([*range(1, 2 * rest, 2), *range(2 * rest, m)], i, pattern, n)
    return [before, *middle, *undone([before])] if rest else middle


def _doubling(m, i, n):
    peers = [i ^ (1 << k) for k in range(m.bit_length() - 1)]
    return [[_recv(peer, (0, n), reduce=True), _send(peer, (0, n))] for peer in peers]


def doubling_sum(m, i, n, nodes=None):
    """Recursive doubling: in round k everybody swaps its whole partial sum with the member at distance 2^k.

    The two partners compute a + b and b + a, which are the same bits, so by induction all members of a
    block of 2^(k+1) hold the same bits after round k.
    """
    return _folded(m, i, n, _doubling)


def _halving(m, i, n):
    edges, halve, distance = edges_of(split_counts(n, m)), [], m // 2
    while distance:
        peer, blocks, own = i ^ distance, edges[::distance], i // distance  # the block that this member keeps
        halve.append([_recv(peer, blocks, own, reduce=True), _send(peer, blocks, own ^ 1)])
        distance //= 2
    return halve + undone(halve)


def halving_sum(m, i, n, nodes=None):
    """Rabenseifner: reduce_scatter by recursive halving, then all_gather by recursive doubling.

    Each chunk is summed in one tree, at one owner, and copied.
    """
    return _folded(m, i, n, _halving)


def hierarchical_sum(m, i, n, nodes):
    """Inside the nodes, across them, and inside again: the slow links carry each byte once.

    With the same number of members on every node: ring reduce_scatter inside the node; the members with
    the same place in their nodes all-reduce their chunk across the nodes by ring; ring all_gather inside.
    With uneven nodes: binomial reduce to the first member of the node, a ring across those, binomial
    broadcast.  Either way each chunk is summed once and copied.
    """
    groups = [[j for j in range(m) if nodes[j] == node] for node in dict.fromkeys(nodes)]
    own = next(group for group in groups if i in group)
    if len({len(group) for group in groups}) == 1:
        place, edges = own.index(i), edges_of(split_counts(n, len(own)))
        start, stop = edges[place : place + 2]
        across = _among([group[place] for group in groups], i, ring_sum, stop - start, start=start)
        return _among(own, i, ring, edges, -1, True) + across + _among(own, i, ring, edges, 0)
    inside = undone(_among(own, i, tree, 0, n), reduce=True)
    inside += [[] for _ in range(max((len(group) - 1).bit_length() for group in groups) - len(inside))]
    return inside + _among([group[0] for group in groups], i, ring_sum, n) + undone(inside)


def library_sum(m, i, n, nodes=None):
    """What stands in plans and ledgers for the MPI library's all_reduce, whose messages nobody can see.

    One message to the right neighbour, of the elements that the ring sends, the least that any algorithm can.
    """

    def sent(member):
        moves = (move for moves in ring_sum(m, member, n) for move in moves)
        return sum(move.elements for move in moves if move.kind == "send")

    left, right = (i - 1) % m, (i + 1) % m
    return [[_recv(left, (0, sent(left))), _send(right, (0, sent(i)))]]
