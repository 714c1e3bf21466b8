"""The collectives as data: right by symbolic execution, with the messages that the formulas say."""

import itertools

import pytest
from closed_forms import Cost, closed_form, messages, total

from minidnn.comm.algorithms import ALGORITHMS, rounds, split_counts
from minidnn.report.provenance import provenance

SIZES = (0, 1, 2, 3, 7, 16, 61)


def node_maps(p):
    """All on one node, alternating nodes, blocks of two, and one rank alone."""
    yield from {
        (0,) * p,
        tuple(r % 2 for r in range(p)),
        tuple(r // 2 for r in range(p)),
        (5,) + (1,) * (p - 1),
    }


ROOTED = ("broadcast", "reduce", "scatter", "gather")


def cases(p):
    for op, names in ALGORITHMS.items():
        for algorithm in names:
            for n in SIZES:
                for root in {0, p // 2, p - 1} if op in ROOTED else {0}:
                    options = [{}]
                    if algorithm == "hierarchical":
                        options = [{"nodes": nodes} for nodes in node_maps(p)]
                    for each in options:
                        yield op, algorithm, n, root, each


@pytest.mark.parametrize("p", range(1, 10))
def test_every_contribution_arrives_once_wherever_it_should(p):
    for op, algorithm, n, root, options in cases(p):
        if op == "all_to_all":
            continue
        last = provenance(op, algorithm, p, n, root, **options)
        everyone, final = frozenset(range(p)), last.states[-1]
        counts = split_counts(n, p)
        for rank, chunk in itertools.product(range(p), range(len(last.edges) - 1)):
            start = last.edges[chunk]
            owner = next(r for r in range(p) if start < sum(counts[: r + 1]))
            got, where = final[rank][chunk], (op, algorithm, n, root, options, rank, chunk)
            if op == "all_reduce" or (op == "reduce" and rank == root):
                assert got == everyone, where
            elif op == "reduce_scatter" and rank == owner:
                assert got == everyone, where
            elif op == "broadcast" or (op == "scatter" and rank == owner):
                assert got == {root}, where
            elif op == "all_gather" or (op == "gather" and rank == root):
                assert got == {owner}, where


@pytest.mark.parametrize("p", range(1, 10))
def test_messages_and_elements_equal_the_closed_forms(p):
    for op, algorithm, n, root, options in cases(p):
        for rank in range(p):
            own = messages(op, algorithm, p, rank, n, root, **options)
            sent = [elements for _, _, _, elements, kind in own if kind == "send"]
            expected = closed_form(op, algorithm, p, rank, n, root, **options)
            assert Cost(len(sent), sum(sent)) == expected, (op, algorithm, n, root, options, rank)
            assert all(elements > 0 for _, _, _, elements, _ in own)


@pytest.mark.parametrize("p", range(1, 10))
def test_no_receive_overlaps_another_move_of_its_round_unless_it_is_added_after_it(p):
    """Sends must read the buffer as it was when the round began, whenever the receive happens to arrive."""
    for op, algorithm, n, root, options in cases(p):
        if op == "all_to_all":  # two buffers
            continue
        for rank in range(p):
            for moves in rounds(op, algorithm, p, rank, n, root, **options):
                for a, b in itertools.permutations(moves, 2):
                    overlap = max(a.start, b.start) < min(a.stop, b.stop)
                    assert not (a.kind == "recv" and not a.reduce and overlap), (op, algorithm, a, b)


def test_uneven_blocks_with_zeros():
    counts = (3, 0, 5, 1)
    for op, algorithm in [("reduce_scatter", "ring"), ("reduce_scatter", "direct")]:
        assert closed_form(op, algorithm, 4, 1, counts) == Cost(3, 9)
        assert closed_form(op, algorithm, 4, 2, counts) == Cost(2, 4)
        assert sum(e for *_, e, kind in messages(op, algorithm, 4, 2, counts) if kind == "send") == 4
    assert closed_form("all_gather", "direct", 4, 1, counts) == Cost(0, 0)
    matrix = ((1, 2, 0), (0, 4, 1), (3, 0, 0))
    for algorithm in ALGORITHMS["all_to_all"]:
        assert total("all_to_all", algorithm, 3, matrix) == Cost(3, 6)
        for rank in range(3):
            own = messages("all_to_all", algorithm, 3, rank, matrix)
            assert sum(e for *_, e, kind in own if kind == "send") == sum(matrix[rank]) - matrix[rank][rank]


@pytest.mark.parametrize("p", [2, 3, 4, 8])
def test_textbook_costs_when_everything_divides(p):
    n = 24 * p
    best = Cost(2 * (p - 1), 2 * n * (p - 1) // p)
    for rank in range(p):
        assert closed_form("all_reduce", "ring", p, rank, n) == best
        assert closed_form("all_reduce", "direct", p, rank, n) == best
        assert closed_form("all_reduce", "mpi", p, rank, n) == (1, best.elements)
        if p & (p - 1) == 0:
            k = p.bit_length() - 1
            assert closed_form("all_reduce", "doubling", p, rank, n) == (k, k * n)
            assert closed_form("all_reduce", "halving", p, rank, n) == (2 * k, best.elements)
    assert total("all_reduce", "tree", p, n) == (2 * (p - 1), 2 * (p - 1) * n)
    assert total("all_reduce", "hierarchical", p, n, nodes=(0,) * p) == (p * best[0], p * best[1])


def test_ring_order_is_the_documented_one():
    """Reduce_scatter step s: rank r sends chunk r - s; afterwards it owns chunk r + 1 and sends r + 1 - s."""
    p = 5
    for rank in range(p):
        own = rounds("all_reduce", "ring", p, rank, 10 * p)
        sent = [next(m.start // 10 for m in moves if m.kind == "send") for moves in own]
        assert sent == [(rank - s) % p for s in range(p - 1)] + [(rank + 1 - s) % p for s in range(p - 1)]
        assert all(
            m.peer == ((rank + 1) % p if m.kind == "send" else (rank - 1) % p) for ms in own for m in ms
        )


def test_the_number_of_rounds():
    lengths = {name: len(rounds("all_reduce", name, 6, 0, 60)) for name in ALGORITHMS["all_reduce"]}
    # 6 ranks fold to 4: one round before and one after; the tree is 3 deep
    assert lengths == {"ring": 10, "direct": 2, "doubling": 4, "halving": 6, "tree": 6, "hierarchical": 10}
    assert len(rounds("broadcast", "chain", 5, 2, 64, segments=8)) == 5 - 2 + 8


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("all_reduce", "rings", 2, 0, 4), "known: ring, doubling"),
        (("allreduce", "ring", 2, 0, 4), "known: all_reduce"),
        (("all_gather", "ring", 2, 0, (1, 2, 3)), "2 counts"),
        (("all_to_all", "direct", 2, 0, ((1, 2), (3, -1))), "2 x 2 matrix"),
        (("broadcast", "chain", 2, 0, -1), "length >= 0"),
        (("broadcast", "chain", 2, 2, 8), "must be in 0..1"),
    ],
)
def test_wrong_choices_are_refused_by_name(arguments, text):
    with pytest.raises(ValueError, match=text):
        rounds(*arguments)
