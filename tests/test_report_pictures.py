"""Timeline, Perfetto trace, comparison, curves, model graph and commands: what is in them."""

import argparse
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import pytest
from report_traces import write_trace

from minidnn import nn
from minidnn.errors import InputError
from minidnn.parallel import Options, make_plan, make_strategy
from minidnn.report import commands, graph
from minidnn.report.breakdown import by_rank
from minidnn.report.colors import MUTED, families, ink, layer_colors, lighter
from minidnn.report.compare import bytes_by_cause, compare, save_comparison
from minidnn.report.curves import draw_run
from minidnn.report.perfetto import save_perfetto
from minidnn.report.plan_rows import rows_of
from minidnn.report.timeline import draw, save_timeline
from minidnn.report.trace import load
from minidnn.report.views import write_views

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    return {p: load(write_trace(tmp_path_factory.mktemp(f"p{p}") / "t", p)) for p in (1, 2, 8)}


def plan_of(strategy, ranks, **options):
    model = nn.build("alexnet", image=56, classes=8, width=0.25)
    chosen = Options(**options)
    return make_plan(
        model, (56, 56, 3), make_strategy(strategy, model, (56, 56, 3), ranks, chosen), 16, "alexnet"
    )  # fmt: skip


# -- timeline


@pytest.mark.parametrize("p", [1, 2, 8])
def test_the_timeline_has_a_lane_for_each_rank_and_an_arrow_for_each_message(traces, p):
    plt = pytest.importorskip("matplotlib.pyplot")
    trace = traces[p]
    figure = draw(trace, 1)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"rank {r}" for r in range(p)]
    messages = trace.messages_of(1)
    arrows = [collection for collection in axes.collections if collection.get_label() == "messages"]
    segments = [segment for collection in arrows for segment in collection.get_segments()]
    assert len(segments) == len(messages)
    assert all(head[0] >= tail[0] for tail, head in segments)
    hidden = [c for c in arrows if c.get_linestyle()[0][1] is not None]
    assert sum(len(c.get_segments()) for c in hidden) == sum(m.layer == "conv4" for m in messages)
    entries = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "conv1 (relu1, pool1)" in entries and "input" in entries
    if p > 1:
        for name in (
            "communication, exposed",
            "communication, hidden",
            "waiting, sender late",
            "message, hidden",
        ):
            assert name in entries
        assert any(collection.get_hatch() for collection in axes.collections)
        assert axes.get_legend().get_bbox_to_anchor().x0 > axes.bbox.x1  # outside
    assert {"conv1", "conv2"} <= {text.get_text() for text in axes.texts}
    plt.close(figure)


def test_the_timeline_is_written_as_png_and_as_svg_with_text(traces, tmp_path):
    pytest.importorskip("matplotlib")
    save_timeline(traces[2], [tmp_path / "t.png", tmp_path / "t.svg"])
    assert (tmp_path / "t.png").read_bytes().startswith(PNG)
    root = ElementTree.parse(tmp_path / "t.svg").getroot()
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"rank 0", "rank 1", "conv1", "time, ms"} <= texts


def test_colours_follow_families_and_can_be_told_apart():
    layers = ["conv1", "relu1", "norm1", "pool1", "conv2", "bn2", "flatten", "fc6", "drop6", "loss"]
    assert families(layers)["pool1"] == "conv1" and families(layers)["drop6"] == "fc6"
    colors = layer_colors(layers)
    assert colors["conv1"] == colors["pool1"] != colors["conv2"] and colors["conv1"] in MUTED
    many = layer_colors([f"fc{i}" for i in range(13)])
    assert len(set(many.values())) == 13
    assert (
        lighter("#000000", 0.5) == "#808080" and ink("#FFFFFF") == "#000000" and ink("#332288") == "#FFFFFF"
    )


# -- Perfetto


@pytest.mark.parametrize("p", [1, 2, 8])
def test_the_perfetto_file_obeys_the_trace_event_format(traces, p, tmp_path):
    """A parser written from the format's description alone."""
    trace = traces[p]
    save_perfetto(trace, tmp_path / "trace.json")
    document = json.loads((tmp_path / "trace.json").read_text())
    assert document["displayTimeUnit"] in ("ms", "ns")
    slices, names, starts, ends = {}, {}, {}, {}
    for event in document["traceEvents"]:
        assert event["ph"] in "XMsfC" and isinstance(event["pid"], int) and isinstance(event["name"], str)
        where = event["pid"], event.get("tid")
        if event["ph"] == "X":
            assert event["dur"] > 0 and event["ts"] >= -0.01 and isinstance(event["args"], dict)
            slices.setdefault(where, []).append((event["ts"], event["ts"] + event["dur"], event["name"]))
        elif event["ph"] == "M":
            (value,) = event["args"].values()
            names.setdefault(event["name"], {})[where] = value
        elif event["ph"] == "C":
            assert all(isinstance(value, int) for value in event["args"].values())
        else:
            ends_or_starts = starts if event["ph"] == "s" else ends
            assert event["id"] not in ends_or_starts and event["cat"] == "message"
            assert event["ph"] == "s" or event["bp"] == "e"
            ends_or_starts[event["id"]] = event
    assert {names["process_name"][r, None] for r in range(p)} == {f"rank {r}" for r in range(p)}
    assert set(slices) <= set(names["thread_name"])
    for own in slices.values():  # on one thread slices are nested or apart
        open_until = []
        for begin, end, _ in sorted(own, key=lambda item: (item[0], -item[1])):
            while open_until and open_until[-1] <= begin + 5e-4:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + 2e-3
            open_until.append(end)
    assert starts.keys() == ends.keys() and len(starts) == len(trace.messages)
    for number, start in starts.items():
        end, message = ends[number], trace.messages[number]
        assert (start["pid"], end["pid"]) == (message.source, message.dest)
        assert start["ts"] <= end["ts"] + 1e-3
        for event in (start, end):  # an arrow ends in a slice, which it finds by time
            own = slices[event["pid"], event["tid"]]
            assert any(b - 1e-6 <= event["ts"] <= e + 1e-6 and message.layer in n for b, e, n in own)


# -- comparison, curves, views


def test_the_comparison_tells_what_differs(traces, tmp_path):
    a, b = traces[2], load(write_trace(tmp_path / "data", 8, strategy="data"))
    sent = bytes_by_cause(a)
    total = sum(m.bytes for m in a.messages) / (2 * 3)
    assert sum(sent.values()) == pytest.approx(total)
    assert sent["activations", "fc6"] == 4 * 9216 * 16
    text = compare([a, b])
    for words in ("owt", "data", "step, median", "gradients of weights", "conv4", "in all", "data sends"):
        assert words in text
    twice = compare([a, a])
    assert f"owt ({a.folder.name})" in twice and "the same number of bytes" in twice
    pytest.importorskip("matplotlib")
    save_comparison([a, b], tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(PNG)


def test_curves_are_drawn_from_a_history(tmp_path):
    pytest.importorskip("matplotlib")
    epoch = {"step": 5, "loss": 2.0, "accuracy": 0.5, "validation_loss": None, "validation_accuracy": None}
    later = {"step": 10, "loss": 1.0, "accuracy": 0.7, "validation_loss": 1.1, "validation_accuracy": 0.6}
    history = SimpleNamespace(losses=[2.0 / (i + 1) for i in range(10)], epochs=[epoch, later])
    draw_run(history, [[1.0, 40.0, 3.0, 2.0, 0.5], [1.0, 39.0, 4.0, 2.0, 0.5]], tmp_path / "c.svg", "a title")
    text = (tmp_path / "c.svg").read_text()
    for words in ("a title", "Loss", "Accuracy", "rank 1", "idle (waiting)", "communication", "validation"):
        assert words in text
    assert "epoch" not in epoch  # what was given is left alone


def test_all_views_are_written_and_a_missing_matplotlib_is_one_line(traces, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    lines = write_views(traces[2], tmp_path / "new" / "folder")
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"trace.json", "report.html"}
    assert lines[-1] == 'no timeline.png: pictures need matplotlib: pip install "minidnn[plot]"'
    with pytest.raises(InputError, match="cannot write into"):
        (tmp_path / "file").write_text("")
        write_views(traces[2], tmp_path / "file")


# -- model graph


@pytest.mark.parametrize(
    "strategy, ranks", [("data", 2), ("owt", 3), ("layer_split", 3), ("hybrid", 4), ("tensor", 2)]
)
def test_the_rows_of_a_plan_account_for_every_parameter_and_byte(strategy, ranks):
    plan = plan_of(strategy, ranks)
    rows = rows_of(plan)["rows"]
    json.dumps(rows)
    for rank in range(ranks):
        held = sum(row["cells"][rank] or 0 for row in rows if row["kind"] == "layer")
        assert held == sum(p.size for p in plan.held[rank])
        exchanged = sum(sum(row["cells"][rank] or (0,)) for row in rows if row["kind"] == "exchange")
        synced = sum(row["cells"][rank] or 0 for row in rows if row["kind"] == "sync")
        metrics = sum(m.bytes for m in plan.messages(rank) if m.kind == "send" and m.phase == "metrics")
        assert exchanged + synced + metrics == plan.bytes_sent(rank)


def test_the_graph_shows_layers_placements_and_communication_of_each_rank():
    text = graph.dot(rows_of(plan_of("hybrid", 4)))
    for words in (
        "rank 3",
        "Shard(0)",
        "Shard(-1)",
        "all_gather for fc6, backward: reduce_scatter",
        "gradients of",
    ):
        assert words in text
    assert text.count("all_gather for fc6") == 2  # one for each place along data
    split = graph.dot(rows_of(plan_of("layer_split", 3)))
    assert "At(0) to At(1)" in split and "rank 2 sends" in split


def test_the_graph_is_drawn_by_graphviz_or_else_by_matplotlib(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    plan = plan_of("owt", 2)
    drawn_by = graph.save_graph(plan, tmp_path / "any.svg")
    assert drawn_by in ("Graphviz", "matplotlib") and "fc6" in (tmp_path / "any.svg").read_text()
    monkeypatch.setitem(sys.modules, "graphviz", None)
    assert graph.save_graph(plan, tmp_path / "g.svg") == "matplotlib"
    text = (tmp_path / "g.svg").read_text()
    assert "all_gather for fc7" in text and "Shard(-1)" in text and "rank 1" in text
    with pytest.raises(InputError, match=".svg, .png or .pdf"):
        graph.save_graph(plan, tmp_path / "g.txt")


# -- commands


def arguments(add, *argv):
    parser = argparse.ArgumentParser()
    add(parser)
    return parser.parse_args([str(word) for word in argv])


def test_the_trace_command_prints_tables_and_writes_the_views(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder = write_trace(tmp_path / "t", 2)
    assert commands.run_trace(arguments(commands.add_trace_arguments, folder, "--explain", "--step", 2)) == 0
    printed = capsys.readouterr().out
    assert (
        "Communication matrix" in printed and "Step 2 on rank 1 of 2" in printed and "report.html" in printed
    )
    for name in ("timeline.png", "timeline.svg", "trace.json", "report.html"):
        assert (folder / name).stat().st_size > 1000
    with pytest.raises(InputError, match="--step 7: the trace's whole steps are 1, 2, 3"):
        commands.run_trace(arguments(commands.add_trace_arguments, folder, "--step", 7))


def test_the_trace_command_shows_what_can_be_read_and_then_fails(tmp_path, capsys):
    folder = write_trace(tmp_path / "t", 2)
    (folder / "rank1.jsonl").write_text(
        "\n".join((folder / "rank1.jsonl").read_text().splitlines()[:-30]) + "\n"
    )
    args = arguments(commands.add_trace_arguments, folder, "--no-pictures")
    with pytest.raises(InputError, match="rank1.jsonl is cut off .* what could be read is shown above"):
        commands.run_trace(args)
    assert "steps 1 to 2" in capsys.readouterr().out
    with pytest.raises(InputError, match="no such folder"):
        commands.run_trace(arguments(commands.add_trace_arguments, tmp_path / "nowhere"))


def test_the_compare_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    a, b = write_trace(tmp_path / "a", 2), write_trace(tmp_path / "b", 2, strategy="data")
    out = tmp_path / "c.svg"
    assert commands.run_compare(arguments(commands.add_compare_arguments, a, b, "-o", out)) == 0
    assert "Bytes sent by a rank in a step" in capsys.readouterr().out and "Step times" in out.read_text()
    with pytest.raises(InputError, match="at least two folders, got 1"):
        commands.run_compare(arguments(commands.add_compare_arguments, a))


def test_the_graph_command_says_what_drew_it(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    args = arguments(commands.add_graph_arguments, "-o", tmp_path / "g.svg")
    assert commands.run_graph(args, plan_of("owt", 2)) == 0
    assert "drawn by" in capsys.readouterr().out
    with pytest.raises(InputError, match="cannot write"):
        commands.run_graph(
            arguments(commands.add_graph_arguments, "-o", tmp_path / "no" / "g.svg"), plan_of("data", 2)
        )


def test_the_mean_over_steps_leaves_out_the_first(traces):
    own = by_rank(traces[2])
    again = by_rank(traces[2], [2, 3])
    assert own == again and own != by_rank(traces[2], [1])


def test_a_notebooks_backend_in_the_environment_does_not_matter(tmp_path):
    """As child processes of a notebook inherit it; and the variable is as it was for whoever comes next."""
    pytest.importorskip("matplotlib")
    program = """
import os, sys
from minidnn.pictures import check_target
check_target(sys.argv[1])
import matplotlib
print(os.environ["MPLBACKEND"], "matplotlib.pyplot" in sys.modules)
"""
    backend = "module://of_a_notebook.that_is_not_here"
    environment = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(tmp_path / "p.png")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{backend} False\n", "")
