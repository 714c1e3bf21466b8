"""The cost model behind "auto", the cache of measured links, and the explanations."""

import json

import numpy as np
import pytest

from minidnn.comm import collectives, threads, tuning
from minidnn.comm.tuning import Link
from minidnn.console import Parser
from minidnn.errors import InputError
from minidnn.report import collective

SLOW_START = Link(alpha=1e-3, beta=1e-9, gamma=0.0)  # messages are dear, bytes are cheap
NARROW = Link(alpha=1e-9, beta=1e-6, gamma=0.0)  # the other way round


def test_the_model_is_the_textbook_formula():
    link, n = Link(1e-5, 1e-9, 1e-10), 8000
    a, b, g = link
    assert tuning.predict("ring", 8, n, link) == pytest.approx(14 * a + 14 / 8 * n * b + 7 / 8 * n * g)
    assert tuning.predict("doubling", 8, n, link) == pytest.approx(3 * (a + n * b + n * g))
    assert tuning.predict("halving", 8, n, link) == pytest.approx(6 * a + 14 / 8 * n * b + 7 / 8 * n * g)
    assert tuning.predict("tree", 8, n, link) == pytest.approx(6 * (a + n * b) + 3 * n * g)


def test_small_arrays_take_few_messages_and_large_ones_few_bytes():
    assert tuning.choose(8, 64, SLOW_START) == "doubling"
    assert tuning.choose(8, 64_000, NARROW) in ("ring", "halving", "direct")
    assert tuning.choose(7, 64_000, NARROW) in ("ring", "direct")  # folding costs bytes
    assert tuning.choose(1, 100) in tuning.CANDIDATES


def test_auto_gives_the_sum_and_the_same_algorithm_on_all_ranks(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def main(comm):
        link = tuning.measure(comm)
        small, large = np.full(3, 1.0 + comm.rank), np.full(100_000, 1.0 + comm.rank)
        assert (collectives.all_reduce(comm, small, "auto") == 6).all()
        assert (collectives.all_reduce(comm, large, "auto") == 6).all()
        return link

    first = threads.run(3, main, debug=True)
    assert first[0] == first[1] == first[2] and min(first[0]) > 0
    (key, values) = json.loads((tmp_path / "minidnn" / "links.json").read_text()).popitem()
    assert tuple(values[:3]) == first[0] and "3 ranks" in key
    assert threads.run(3, main) == first  # from the cache, which no new measurement would equal
    for text in ("not JSON", json.dumps({key: [*values[:3], values[3] - 2 * tuning.MAX_AGE]})):
        (tmp_path / "minidnn" / "links.json").write_text(text)
        anew = threads.run(3, main)
        assert len(set(anew)) == 1 and anew != first


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert threads.run(2, tuning.measure)[0].alpha > 0


def explained(*arguments):
    parser = Parser()
    collective.add_arguments(parser)
    return collective.main(parser.parse_args(map(str, arguments)))


def test_the_table_of_a_ring():
    text = explained("ring", "--ranks", 3, "--elements", 6)
    lines = text.splitlines()
    assert lines[0] == "all_reduce ring: 3 ranks, 6 elements, 4 rounds"
    at = lines.index("round 2 of 4")
    assert [line.split() for line in lines[at + 1 : at + 8]] == [
        "0 sends [4:6] to 1, which adds it".split(),
        "1 sends [0:2] to 2, which adds it".split(),
        "2 sends [2:4] to 0, which adds it".split(),
        ["[0:2]", "[2:4]", "[4:6]"],
        ["rank", "0", "0", "012", "02"],
        ["rank", "1", "01", "1", "012"],
        ["rank", "2", "012", "12", "2"],
    ]
    assert lines[-1].startswith("at least 2 n (p - 1) / p = 8 elements")


@pytest.mark.parametrize("p", [1, 2, 5, 12])
@pytest.mark.parametrize(
    "op, algorithm", [(o, a) for o in collective.EXPLAINED for a in collective.ALGORITHMS[o]]
)
def test_every_algorithm_can_be_explained(op, algorithm, p):
    text = explained(algorithm, "--op", op, "--ranks", p)
    assert text.startswith(f"{op} {algorithm}: {p} ranks")
    rows = text.split("elements\n")[-1].splitlines()[:p]
    assert text.count(" sends [") == sum(int(row.split()[2]) for row in rows)


def test_the_drawing(tmp_path):
    pytest.importorskip("matplotlib")
    text = explained("halving", "--ranks", 5, "--plot", tmp_path / "halving.png")
    assert text.endswith("halving.png") and (tmp_path / "halving.png").stat().st_size > 5000
    history = collective.provenance("all_reduce", "ring", 4, 16)
    axes = collective.figure(history).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"rank {r}" for r in range(4)]
    assert len(axes.get_xticklabels()) == 7  # the start and six rounds
    arrows = [text for text in axes.texts if getattr(text, "arrow_patch", None) is not None]
    assert len(arrows) == 6 * 4 and len(axes.patches) == 7 * 4 * 4  # and a box for each chunk


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("rings",), "unknown algorithm 'rings'; known: .*ring"),
        (("ring", "--ranks", 0), "--ranks 0"),
        (("ring", "--op", "broadcast"), "broadcast has no algorithm 'ring'"),
        (("hierarchical", "--nodes", "0,1"), "nodes has 2 entries for 4 ranks"),
        (("binomial", "--root", 9), "root 9"),
    ],
)
def test_wrong_options_are_one_line(arguments, text):
    with pytest.raises(InputError, match=text):
        explained(*arguments)
