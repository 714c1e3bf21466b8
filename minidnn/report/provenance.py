"""Whose contributions are in which chunk, round by round: a collective executed on sets instead of numbers.

This is the proof that an algorithm is right (every rank's contribution arrives everywhere, and none is
added twice) and the explanation of how it works; :mod:`.collective` prints and draws it.
"""

from __future__ import annotations

from dataclasses import dataclass

from minidnn.comm.algorithms import BLOCKED, Rounds, edges_of, normalise, rounds


@dataclass(frozen=True)
class Provenance:
    """The history of a collective.

    Attributes
    ----------
    edges : tuple of int
        Borders of the chunks: the coarsest cut of the buffer in which every message is whole chunks.
    states : list over time of list over ranks of list over chunks of frozenset
        ``states[t][rank][chunk]``: the ranks whose contributions the rank's copy holds after round t (0:
        before).
    rounds : list over ranks of Rounds
    """

    op: str
    algorithm: str
    edges: tuple[int, ...]
    states: list[list[list[frozenset[int]]]]
    rounds: list[Rounds]

    def complete(self, rank: int, index: int, start: int, stop: int) -> bool:
        """Whether every rank's contribution is in what a rank sends of [start, stop) in round ``index``."""
        first, last = self.edges.index(start), self.edges.index(stop)
        return all(len(chunk) == len(self.rounds) for chunk in self.states[index - 1][rank][first:last])


def provenance(
    op: str, algorithm: str, p: int, n: int | tuple[int, ...], root: int = 0, **options
) -> Provenance:
    """Execute a collective on sets of ranks; ``n`` elements, or as many as ``n`` says in each rank's block.

    Raises
    ------
    ValueError
        The operation is all_to_all, whose blocks keep their contributor.
    AssertionError
        A contribution would be added twice, a rank would send what it does not hold, or sends and receives
        do not pair up: the algorithm is wrong.
    """
    if op == "all_to_all":
        raise ValueError("all_to_all adds nothing up: there is no provenance to follow")
    counts = normalise(op, algorithm, p, n)
    everyone = [rounds(op, algorithm, p, rank, counts, root, **options) for rank in range(p)]
    moves = [move for own in everyone for moves in own for move in moves]
    total = n if isinstance(n, int) else sum(n)
    borders = {0, total} | {move.start for move in moves} | {move.stop for move in moves}
    if op in BLOCKED:
        borders |= set(edges_of(counts))
    edges = tuple(sorted(borders))
    first_chunk = {edge: k for k, edge in enumerate(edges)}
    state = [[_initial(op, rank, root, counts, start) for start in edges[:-1]] for rank in range(p)]
    states = [state]
    assert len({len(own) for own in everyone}) == 1, "all ranks must count the same rounds"
    for index in range(len(everyone[0])):
        state = [list(chunks) for chunks in state]
        before = states[-1]
        sent = {}
        for rank, own in enumerate(everyone):
            for move in own[index]:
                if move.kind == "send":
                    sent.setdefault((rank, move.peer), []).append(move)
        for rank, own in enumerate(everyone):
            for move in own[index]:
                if move.kind == "send":
                    continue
                out = sent[move.peer, rank].pop(0)
                assert (out.start, out.stop) == (move.start, move.stop), f"{out} meets {move}"
                for chunk in range(first_chunk[move.start], first_chunk[move.stop]):
                    arrived = before[move.peer][chunk]
                    assert arrived, f"rank {move.peer} sends chunk {chunk} that it does not hold"
                    if move.reduce:
                        assert not arrived & state[rank][chunk], (
                            f"chunk {chunk} is added twice on rank {rank}"
                        )
                        arrived = arrived | state[rank][chunk]
                    state[rank][chunk] = arrived
        assert not any(sent.values()), f"sent but not received: {sent}"
        states.append(state)
    return Provenance(op, algorithm, edges, states, everyone)


def _initial(op, rank, root, counts, start) -> frozenset[int]:
    if op in ("all_reduce", "reduce", "reduce_scatter"):
        return frozenset((rank,))
    if op in ("broadcast", "scatter", "send"):
        return frozenset((root,)) if rank == root else frozenset()
    edges = edges_of(counts)
    return frozenset((rank,)) if edges[rank] <= start < edges[rank + 1] else frozenset()
