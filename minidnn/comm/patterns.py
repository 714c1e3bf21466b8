"""The communication patterns that the algorithms are made of.

Every function returns the rounds of one rank as lists of moves.  ``members`` are the ranks that take part, in
order, so that a pattern can run inside a part of the ranks (the nodes of a hierarchy, the power of two left
after folding); ``rank`` is one of them, unless a docstring says otherwise.  ``edges`` are the borders of
the chunks, one chunk per member.  Empty moves are dropped by the caller.
"""

from __future__ import annotations

from .algorithms import Move, edges_of, split_counts


def send(peer: int, start: int, stop: int) -> Move:
    return Move("send", peer, start, stop)


def recv(peer: int, start: int, stop: int, reduce: bool = False) -> Move:
    return Move("recv", peer, start, stop, reduce)


# -- reduce_scatter and all_gather


def ring_reduce_scatter(members, rank, edges, shift=0):
    """Partial sums travel round the ring; member i ends with the whole sum of chunk (i + shift) % m.

    In step s member i sends chunk (i + shift - 1 - s) % m to its right and adds what comes from its left to
    chunk (i + shift - 2 - s) % m.  The sum of a chunk is made in ring order, another order for each chunk.
    """
    m, i = len(members), members.index(rank)
    right, left = members[(i + 1) % m], members[i - 1]
    built = []
    for s in range(m - 1):
        out, into = (i + shift - 1 - s) % m, (i + shift - 2 - s) % m
        built.append(
            [recv(left, edges[into], edges[into + 1], reduce=True), send(right, edges[out], edges[out + 1])]
        )
    return built


def ring_all_gather(members, rank, edges, shift=0):
    """Finished chunks travel round the ring; member i starts with chunk (i + shift) % m and ends with all."""
    m, i = len(members), members.index(rank)
    right, left = members[(i + 1) % m], members[i - 1]
    built = []
    for s in range(m - 1):
        out, into = (i + shift - s) % m, (i + shift - 1 - s) % m
        built.append([recv(left, edges[into], edges[into + 1]), send(right, edges[out], edges[out + 1])])
    return built


def direct_reduce_scatter(members, rank, edges):
    """One round: everybody sends each other member its chunk; the owner adds them in ring order."""
    m, i = len(members), members.index(rank)
    if m == 1:
        return []
    others = [(i + k) % m for k in range(1, m)]
    moves = [recv(members[j], edges[i], edges[i + 1], reduce=True) for j in others]
    return [moves + [send(members[j], edges[j], edges[j + 1]) for j in others]]


def direct_all_gather(members, rank, edges):
    """One round: everybody sends its own chunk to each other member."""
    m, i = len(members), members.index(rank)
    if m == 1:
        return []
    others = [(i + k) % m for k in range(1, m)]
    moves = [recv(members[j], edges[j], edges[j + 1]) for j in others]
    return [moves + [send(members[j], edges[i], edges[i + 1]) for j in others]]


# -- trees and chains


def binomial_broadcast(members, rank, root, start, stop):
    """The holders double in every round; counted from the root, v receives from v less its lowest set bit."""
    m = len(members)
    v = (members.index(rank) - members.index(root)) % m
    built = []
    for k in reversed(range((m - 1).bit_length())):
        distance, moves = 1 << k, []
        if v % (2 * distance) == 0 and v + distance < m:
            moves.append(send(_from_root(members, root, v + distance), start, stop))
        elif v % (2 * distance) == distance:
            moves.append(recv(_from_root(members, root, v - distance), start, stop))
        built.append(moves)
    return built


def binomial_reduce(members, rank, root, start, stop):
    """The broadcast backwards: in round k, v sends its partial sum to v - 2^k if bit k is its lowest."""
    m = len(members)
    v = (members.index(rank) - members.index(root)) % m
    built = []
    for k in range((m - 1).bit_length()):
        distance, moves = 1 << k, []
        if v % (2 * distance) == 0 and v + distance < m:
            moves.append(recv(_from_root(members, root, v + distance), start, stop, reduce=True))
        elif v % (2 * distance) == distance:
            moves.append(send(_from_root(members, root, v - distance), start, stop))
        built.append(moves)
    return built


def _from_root(members, root, v):
    return members[(members.index(root) + v) % len(members)]


def chain_broadcast(members, rank, root, pieces):
    """A pipeline: pieces go down the chain one behind the other, in m - 2 + len(pieces) rounds."""
    m = len(members)
    v = (members.index(rank) - members.index(root)) % m
    edges, built = edges_of(pieces), []
    for t in range(m - 2 + len(pieces) if m > 1 else 0):
        moves = []
        if v > 0 and 0 <= (s := t - v + 1) < len(pieces):
            moves.append(recv(_from_root(members, root, v - 1), edges[s], edges[s + 1]))
        if v < m - 1 and 0 <= (s := t - v) < len(pieces):
            moves.append(send(_from_root(members, root, v + 1), edges[s], edges[s + 1]))
        built.append(moves)
    return built


def to_or_from_root(op, members, rank, root, edges):
    """scatter and gather, directly: one message between the root and each other member, all at once."""
    i, r = members.index(rank), members.index(root)
    if len(members) == 1:
        return []
    if rank == root:
        others = [j for j in range(len(members)) if j != r]
        make = send if op == "scatter" else recv
        return [[make(members[j], edges[j], edges[j + 1]) for j in others]]
    make = recv if op == "scatter" else send
    return [[make(root, edges[i], edges[i + 1])]]


def send_to(members, rank, root, dest, n):
    """One message from the root to another member."""
    moves = {root: [send(dest, 0, n)], dest: [recv(root, 0, n)]} if root != dest else {}
    return [moves.get(rank, [])]


def all_to_all(members, rank, counts, pairwise):
    """Block j of the send buffer goes to member j: all at once, or to i + s and from i - s in round s."""
    m, i = len(members), members.index(rank)
    out = edges_of(counts[i])
    into = edges_of([counts[j][i] for j in range(m)])
    built = []
    for s in range(1, m):
        to, source = (i + s) % m, (i - s) % m
        built.append(
            [
                recv(members[source], into[source], into[source + 1]),
                send(members[to], out[to], out[to + 1]),
            ]
        )
    if pairwise or m == 1:
        return built
    receives, sends = zip(*built, strict=True)
    return [[*receives, *sends]]


# -- all_reduce:
# Each takes (members, rank, start, n, nodes) and leaves the same bits on every member; the reason is in each.


def ring_all_reduce(members, rank, start, n, nodes=None):
    """Ring reduce_scatter, then ring all_gather.  Each chunk is summed once, in ring order, and copied."""
    edges = edges_of(split_counts(n, len(members)), start)
    return ring_reduce_scatter(members, rank, edges, 1) + ring_all_gather(members, rank, edges, 1)


def direct_all_reduce(members, rank, start, n, nodes=None):
    """Direct reduce_scatter, then direct all_gather.  Each chunk is summed once, at its owner, and copied."""
    edges = edges_of(split_counts(n, len(members)), start)
    return direct_reduce_scatter(members, rank, edges) + direct_all_gather(members, rank, edges)


def tree_all_reduce(members, rank, start, n, nodes=None):
    """Binomial reduce to the first member, then binomial broadcast.  One sum, made once, and copied."""
    root = members[0]
    return binomial_reduce(members, rank, root, start, start + n) + binomial_broadcast(
        members, rank, root, start, start + n
    )


def _folded(members, rank, start, n, core_rounds):
    """Run an algorithm for powers of two over any number of members, as MPICH does.

    Of the first 2 (m - 2^k) members the even ones hand their whole vector to their right neighbour, sit
    out, and get the result at the end.
    """
    m = len(members)
    power = 1 << (m.bit_length() - 1)
    rest = m - power
    core = [members[2 * k + 1] for k in range(rest)] + list(members[2 * rest :])
    steps = len(core_rounds(core, core[0]))
    i = members.index(rank)
    before, after = [], []
    if i < 2 * rest and i % 2 == 0:
        before, after = [send(members[i + 1], start, start + n)], [recv(members[i + 1], start, start + n)]
    elif i < 2 * rest:
        before = [recv(members[i - 1], start, start + n, reduce=True)]
        after = [send(members[i - 1], start, start + n)]
    middle = core_rounds(core, rank) if rank in core else [[] for _ in range(steps)]
    return [before, *middle, after] if rest else middle


def doubling_all_reduce(members, rank, start, n, nodes=None):
    """Recursive doubling: in round k everybody swaps its whole partial sum with the member at distance 2^k.

    The two partners compute a + b and b + a, which are the same bits, so by induction all members of a
    block of 2^(k+1) hold the same bits after round k.
    """

    def core_rounds(core, rank):
        i, built = core.index(rank), []
        for k in range(len(core).bit_length() - 1):
            peer = core[i ^ (1 << k)]
            built.append([recv(peer, start, start + n, reduce=True), send(peer, start, start + n)])
        return built

    return _folded(members, rank, start, n, core_rounds)


def halving_all_reduce(members, rank, start, n, nodes=None):
    """Rabenseifner: reduce_scatter by recursive halving, then all_gather by recursive doubling.

    Each chunk is summed in one tree, at one owner, and copied.
    """

    def core_rounds(core, rank):
        m, i = len(core), core.index(rank)
        edges = edges_of(split_counts(n, m), start)
        halve, double = [], []
        distance = m // 2
        while distance:
            own = i // distance * distance  # the half-block of `distance` chunks that this member keeps
            other = own ^ distance
            peer = core[i ^ distance]
            mine, theirs = (edges[own], edges[own + distance]), (edges[other], edges[other + distance])
            halve.append([recv(peer, *mine, reduce=True), send(peer, *theirs)])
            double.insert(0, [recv(peer, *theirs), send(peer, *mine)])
            distance //= 2
        return halve + double

    return _folded(members, rank, start, n, core_rounds)


def hierarchical_all_reduce(members, rank, start, n, nodes=None):
    """Inside the nodes, across them, and inside again: the slow links carry each byte once.

    With the same number g of members on every node: ring reduce_scatter inside the node; the members with
    the same place in their nodes all-reduce their chunk across the nodes by ring; ring all_gather inside.
    With uneven nodes: binomial reduce to the first member of the node, a ring across those, binomial
    broadcast.  Either way each chunk is summed once and copied.
    """
    groups: dict[int, list[int]] = {}
    for member, node in zip(members, nodes, strict=True):
        groups.setdefault(node, []).append(member)
    own = next(group for group in groups.values() if rank in group)
    if len({len(group) for group in groups.values()}) == 1:
        place = own.index(rank)
        edges = edges_of(split_counts(n, len(own)), start)
        across = [group[place] for group in groups.values()]
        return (
            ring_reduce_scatter(own, rank, edges)
            + ring_all_reduce(across, rank, edges[place], edges[place + 1] - edges[place])
            + ring_all_gather(own, rank, edges)
        )
    depth = max((len(group) - 1).bit_length() for group in groups.values())
    leaders = [group[0] for group in groups.values()]
    inside = binomial_reduce(own, rank, own[0], start, start + n)
    outside = binomial_broadcast(own, rank, own[0], start, start + n)
    idle = [[] for _ in range(depth - len(inside))]
    if rank in leaders:
        across = ring_all_reduce(leaders, rank, start, n)
    else:
        across = [[] for _ in range(2 * (len(leaders) - 1))]
    return inside + idle + across + idle + outside


ALL_REDUCE = {
    "ring": ring_all_reduce,
    "doubling": doubling_all_reduce,
    "halving": halving_all_reduce,
    "tree": tree_all_reduce,
    "direct": direct_all_reduce,
    "hierarchical": hierarchical_all_reduce,
}
