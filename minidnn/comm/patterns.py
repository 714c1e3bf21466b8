"""The communication patterns that the algorithms are made of.

Every function returns the rounds of one rank as lists of moves (empty ones are dropped by the caller).
``members`` are the ranks that take part, in order, so that a pattern can run inside a part of the ranks (the nodes
of a hierarchy, the power of two left after folding); ``rank`` is one of them.  ``edges`` are the borders of the
chunks, one chunk per member.
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


def edges_of(counts: Sequence[int], start: int = 0) -> list[int]:
    """Where consecutive blocks of the given lengths begin and end: ``[start, start + counts[0], ...]``."""
    edges = [start]
    for count in counts:
        edges.append(edges[-1] + count)
    return edges


def _send(peer: int, start: int, stop: int) -> Move:
    return Move("send", peer, start, stop)


def _recv(peer: int, start: int, stop: int, reduce: bool = False) -> Move:
    return Move("recv", peer, start, stop, reduce)


def undone(rounds, reduce=False):
    """The rounds backwards, every message the other way; with ``reduce`` what comes is added.

    So a broadcast becomes a reduce, a scatter a gather, and a reduce_scatter by halves an all_gather.
    """
    return [
        [
            _recv(m.peer, m.start, m.stop, reduce) if m.kind == "send" else _send(m.peer, m.start, m.stop)
            for m in moves
        ]
        for moves in reversed(rounds)
    ]


def ring(members, rank, edges, first, reduce=False):
    """Chunks travel round the ring: in step s member i sends chunk (i + first - s) % m to its right.

    With ``reduce`` each member adds its own part to what passes, and ends with the whole sum of chunk
    (i + first + 1) % m, made in ring order, another order for each chunk; else it ends with all chunks.
    """
    m, i = len(members), members.index(rank)
    right, left = members[(i + 1) % m], members[i - 1]
    built = []
    for s in range(m - 1):
        out, into = (i + first - s) % m, (i + first - 1 - s) % m
        built.append([_recv(left, *edges[into : into + 2], reduce), _send(right, *edges[out : out + 2])])
    return built


def direct(members, rank, edges, reduce=False):
    """One round: all get everybody's chunk; with ``reduce`` its owner gets it from all, and adds in ring order."""
    m, i = len(members), members.index(rank)
    others, own = [(i + k) % m for k in range(1, m)], edges[i : i + 2]
    if reduce:
        moves = [_recv(members[j], *own, True) for j in others]
        return [moves + [_send(members[j], *edges[j : j + 2]) for j in others]]
    return [
        [_recv(members[j], *edges[j : j + 2]) for j in others] + [_send(members[j], *own) for j in others]
    ]


def tree(members, rank, root, start, stop):
    """Binomial broadcast: the holders double in every round; from the root, v receives from v less its lowest bit."""
    m, first = len(members), members.index(root)
    v = (members.index(rank) - first) % m
    built = []
    for k in reversed(range((m - 1).bit_length())):
        distance, moves = 1 << k, []
        if v % (2 * distance) == 0 and v + distance < m:
            moves.append(_send(members[(first + v + distance) % m], start, stop))
        elif v % (2 * distance) == distance:
            moves.append(_recv(members[(first + v - distance) % m], start, stop))
        built.append(moves)
    return built


def chain(members, rank, root, pieces):
    """A pipeline: pieces go down the chain one behind the other, in m - 2 + len(pieces) rounds."""
    m, place = len(members), members.index(rank)
    v = (place - members.index(root)) % m
    edges, built = edges_of(pieces), []
    for t in range(m - 2 + len(pieces) if m > 1 else 0):
        moves = []
        if v > 0 and 0 <= (s := t - v + 1) < len(pieces):
            moves.append(_recv(members[place - 1], *edges[s : s + 2]))
        if v < m - 1 and 0 <= (s := t - v) < len(pieces):
            moves.append(_send(members[(place + 1) % m], *edges[s : s + 2]))
        built.append(moves)
    return built


def from_root(members, rank, root, edges):
    """One message from the root to each other member, all at once."""
    own = [_recv(root, *edges[members.index(rank) :][:2])]
    return [
        [_send(k, *edges[j : j + 2]) for j, k in enumerate(members) if k != root] if rank == root else own
    ]


def all_to_all(members, rank, counts, pairwise):
    """Block j of the send buffer goes to member j: all at once, or to i + s and from i - s in round s."""
    m, i = len(members), members.index(rank)
    out, into = edges_of(counts[i]), edges_of([row[i] for row in counts])
    built = []
    for s in range(1, m):
        to, source = (i + s) % m, (i - s) % m
        receive = _recv(members[source], *into[source : source + 2])
        built.append([receive, _send(members[to], *out[to : to + 2])])
    return built if pairwise else [[move for moves in built for move in moves]]


# -- all_reduce: each takes (members, rank, start, n, nodes) and leaves the same bits on every member; the reason is
# -- in each


def ring_sum(members, rank, start, n, nodes=None):
    """Ring reduce_scatter, then ring all_gather.  Each chunk is summed once, in ring order, and copied."""
    edges = edges_of(split_counts(n, len(members)), start)
    return ring(members, rank, edges, 0, reduce=True) + ring(members, rank, edges, 1)


def direct_sum(members, rank, start, n, nodes=None):
    """Direct reduce_scatter, then direct all_gather.  Each chunk is summed once, at its owner, and copied."""
    edges = edges_of(split_counts(n, len(members)), start)
    return direct(members, rank, edges, reduce=True) + direct(members, rank, edges)


def tree_sum(members, rank, start, n, nodes=None):
    """Binomial reduce to the first member, then binomial broadcast.  One sum, made once, and copied."""
    down = tree(members, rank, members[0], start, start + n)
    return undone(down, reduce=True) + down


def _folded(members, rank, start, n, core_rounds):
    """Run an algorithm for powers of two over any number of members, as MPICH does.

    Of the first 2 (m - 2^k) members the even ones hand their whole vector to their right neighbour, sit
    out, and get the result at the end.
    """
    i, rest = members.index(rank), len(members) - (1 << (len(members).bit_length() - 1))
    core = [*members[1 : 2 * rest : 2], *members[2 * rest :]]
    before = []
    if i < 2 * rest:
        whole = start, start + n
        before = [_recv(members[i - 1], *whole, reduce=True) if i % 2 else _send(members[i + 1], *whole)]
    middle = core_rounds(core, rank) if rank in core else [[] for _ in core_rounds(core, core[0])]
    return [before, *middle, *undone([before])] if rest else middle


def doubling_sum(members, rank, start, n, nodes=None):
    """Recursive doubling: in round k everybody swaps its whole partial sum with the member at distance 2^k.

    The two partners compute a + b and b + a, which are the same bits, so by induction all members of a
    block of 2^(k+1) hold the same bits after round k.
    """

    def core_rounds(core, rank):
        peers = [core[core.index(rank) ^ (1 << k)] for k in range(len(core).bit_length() - 1)]
        return [[_recv(peer, start, start + n, True), _send(peer, start, start + n)] for peer in peers]

    return _folded(members, rank, start, n, core_rounds)


def halving_sum(members, rank, start, n, nodes=None):
    """Rabenseifner: reduce_scatter by recursive halving, then all_gather by recursive doubling.

    Each chunk is summed in one tree, at one owner, and copied.
    """

    def core_rounds(core, rank):
        i, edges = core.index(rank), edges_of(split_counts(n, len(core)), start)
        halve, distance = [], len(core) // 2
        while distance:
            own = i // distance * distance  # the half-block of `distance` chunks that this member keeps
            peer, other = core[i ^ distance], own ^ distance
            mine, theirs = (edges[own], edges[own + distance]), (edges[other], edges[other + distance])
            halve.append([_recv(peer, *mine, reduce=True), _send(peer, *theirs)])
            distance //= 2
        return halve + undone(halve)

    return _folded(members, rank, start, n, core_rounds)


def hierarchical_sum(members, rank, start, n, nodes):
    """Inside the nodes, across them, and inside again: the slow links carry each byte once.

    With the same number of members on every node: ring reduce_scatter inside the node; the members with
    the same place in their nodes all-reduce their chunk across the nodes by ring; ring all_gather inside.
    With uneven nodes: binomial reduce to the first member of the node, a ring across those, binomial
    broadcast.  Either way each chunk is summed once and copied.
    """
    by_node: dict[int, list[int]] = {}
    for member, node in zip(members, nodes, strict=True):
        by_node.setdefault(node, []).append(member)
    groups = list(by_node.values())
    own = next(group for group in groups if rank in group)
    if len({len(group) for group in groups}) == 1:
        place, edges = own.index(rank), edges_of(split_counts(n, len(own)), start)
        across = [group[place] for group in groups]
        middle = ring_sum(across, rank, edges[place], edges[place + 1] - edges[place])
        return ring(own, rank, edges, -1, reduce=True) + middle + ring(own, rank, edges, 0)
    leaders = [group[0] for group in groups]
    inside = undone(tree(own, rank, own[0], start, start + n), reduce=True)
    inside += [[] for _ in range(max((len(group) - 1).bit_length() for group in groups) - len(inside))]
    across = ring_sum(leaders, leaders[0] if rank not in leaders else rank, start, n)
    return inside + (across if rank in leaders else [[] for _ in across]) + undone(inside)


def library_sum(members, rank, start, n, nodes=None):
    """What stands in plans and ledgers for the MPI library's all_reduce, whose messages nobody can see.

    One message to the right neighbour, of the elements that the ring sends, the least that any algorithm can.
    """

    def sent(member):
        moves = (move for moves in ring_sum(members, member, start, n) for move in moves)
        return sum(move.elements for move in moves if move.kind == "send")

    i = members.index(rank)
    left, right = members[i - 1], members[(i + 1) % len(members)]
    return [[_recv(left, 0, sent(left)), _send(right, 0, sent(rank))]]
