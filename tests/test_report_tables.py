"""Where the time goes, what is sent and how fast, told as tables and as a story; against independent sums."""

import json
from collections import Counter

import numpy as np
import pytest
from closed_forms import closed_form
from report_traces import ALPHA, BETA, BUCKETS, CONV, FC, FEATURES, MS, write_records, write_trace
from transport import Transport

from minidnn import nn
from minidnn.comm import threads, trace_files
from minidnn.comm.algorithms import ALGORITHMS
from minidnn.errors import InputError
from minidnn.optim import SGD
from minidnn.parallel import Executor, Options, make_strategy
from minidnn.report.adjoint import adjoint_messages
from minidnn.report.bandwidth import collectives, fit, lower_bound
from minidnn.report.breakdown import PARTS, breakdown, intersect, measure, subtract, union
from minidnn.report.explain import explain
from minidnn.report.live import gather
from minidnn.report.plan_rows import rows_of
from minidnn.report.tables import communication_matrix, report
from minidnn.report.trace import load
from minidnn.text import number, size, table, time


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return load(write_trace(tmp_path_factory.mktemp("two") / "t", 2))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Three steps of OWT on two threads: the trace, what went through each transport, the trace without files."""
    folder = tmp_path_factory.mktemp("real") / "t"

    def main(comm):
        model = nn.build("alexnet", image=56, classes=4, width=0.125)
        options = Options()
        strategy = make_strategy("owt", model, (56, 56, 3), 2, options)
        executor = Executor(
            model, (56, 56, 3), strategy, comm, 8, 0,
            lambda groups: SGD([{"params": p} for p in groups.values()], lr=0.01), np,
        )  # fmt: skip
        run = trace_files.prepare(comm, folder)
        images = np.random.default_rng(0).standard_normal((8, 56, 56, 3)).astype(np.float32)
        rows = slice(*executor.plan.input_rows(comm.rank))
        transport = Transport(comm)
        comm.ledger.trace()
        for step in range(3):
            comm.ledger.begin_step(step)
            result = executor.step(images[rows], np.arange(8) % 4)
            comm.ledger.end_step(result.loss, result.samples)
        comm.ledger.labels = comm.ledger.labels._replace(step=None)
        counted = transport.totals()[:2]
        live = gather(comm, {"strategy": "owt"})
        trace_files.write(comm, folder, run, {"plan_rows": rows_of(executor.plan)})
        return counted, live

    (first, live), (second, nothing) = threads.run(2, main)
    assert nothing is None
    return load(folder), (first, second), live


def test_a_made_up_step_closes_into_the_parts_it_was_made_of(two):
    slow = 1 + 0.1 * (1 % 3)  # rank 0 in step 1
    b = breakdown(two, 1, 0)
    conv, fc = sum(CONV.values()), sum(FC.values())
    assert b.compute == pytest.approx((3 * conv * slow + 3 * fc / 2 + 1.5) * MS)
    assert b.input == pytest.approx(0.4 * MS) and b.other == pytest.approx(0.05 * MS)
    exchange = ALPHA + 4 * FEATURES * BETA
    last = 2 * (ALPHA + 2 * BUCKETS["conv1"] * BETA)
    first = 2 * (ALPHA + 2 * BUCKETS["conv4"] * BETA)
    late = 3 * conv * 0.1 * MS  # rank 1 is slower by a tenth, in forward and in backward
    assert b.sender_late == pytest.approx(late) and b.receiver_late == 0
    assert b.exposed == pytest.approx(2 * exchange + last)
    assert b.hidden == pytest.approx(first + ALPHA / 2, abs=1e-4)
    assert sum(getattr(b, part) for part in PARTS) == pytest.approx(b.wall) and b.closes


def test_a_real_step_closes_within_one_percent_and_every_byte_was_counted(real):
    trace, counted, _ = real
    for step in trace.complete_steps():
        for rank in trace.ranks:
            b = breakdown(trace, step, rank)
            assert abs(sum(getattr(b, part) for part in PARTS) - b.wall) <= 0.01 * b.wall
            assert min(getattr(b, part) for part in PARTS) >= 0 and b.compute > 0
    for rank in trace.ranks:
        own = [m for m in trace.messages if m.source == rank]
        assert (len(own), sum(m.bytes for m in own)) == counted[rank]
    assert all(m.done >= m.sent for m in trace.messages)
    assert "all_gather (ring)" in report(trace)


def test_a_trace_can_be_told_without_files(real):
    trace, _, live = real
    assert len(live.messages) == len(trace.messages) and live.complete_steps() == trace.complete_steps()
    text = explain(live, 0, [1])
    for words in (
        "Step 0 on rank 1 of 2",
        "backward, fc7: reduce_scatter (ring)",
        "gradient sync",
        "update of fc",
    ):
        assert words in text


def test_waiting_is_blamed_on_the_side_that_was_late(tmp_path):
    """By rendezvous: rank 1 is ready 2 s before the first message, and asks 3 s late for the second."""

    def message(seq, side, posted, done, tag):
        where = {"source": 0, "dest": 1, "tag": tag, "group": [0, 1], "bytes": 8, "step": 1}
        return {"seq": seq, "kind": "message", "side": side, "posted": posted, "done": done, **where}

    def span(seq, state, begin, end):
        return {"seq": seq, "kind": "span", "state": state, "step": 1, "begin": begin, "end": end}

    def step(seq, end):
        return {"seq": seq, "kind": "step", "step": 1, "begin": 0.0, "end": end}

    first = [
        span(0, "compute", 0, 2), message(1, "send", 2.0, 2.5, 1), span(2, "wait", 2, 2.5),
        message(3, "send", 2.5, 6.0, 2), span(4, "wait", 2.5, 6.0), step(5, 6.0),
    ]  # fmt: skip
    second = [
        message(0, "recv", 0.0, 2.5, 1), span(1, "wait", 0, 2.5), span(2, "compute", 2.5, 5.5),
        message(3, "recv", 5.5, 6.0, 2), span(4, "wait", 5.5, 6.0), step(5, 6.0),
    ]  # fmt: skip
    for record in second:  # rank 1's clock
        for key in {"begin", "end", "posted", "done"} & set(record):
            record[key] -= 123.456
    trace = load(write_records(tmp_path / "t", [first, second]))
    a, b = breakdown(trace, 1, 0), breakdown(trace, 1, 1)
    assert (a.receiver_late, a.sender_late, a.exposed) == pytest.approx((3.0, 0.0, 1.0))
    assert (b.receiver_late, b.sender_late, b.exposed) == pytest.approx((0.0, 2.0, 1.0))


def test_intervals():
    a, b = union([(3, 4), (0, 1), (0.5, 2), (5, 5), (7, 6)]), [(1.5, 3.5), (3.75, 9)]
    assert a == [(0, 2), (3, 4)]
    assert intersect(a, b) == [(1.5, 2), (3, 3.5), (3.75, 4)]
    assert subtract(a, b) == [(0, 1.5), (3.5, 3.75)]
    assert measure(intersect(a, b)) + measure(subtract(a, b)) == measure(a)


def test_the_matrix_equals_a_count_over_the_files(two):
    expected = np.zeros((2, 2))
    for rank in (0, 1):
        for line in (two.folder / f"rank{rank}.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record.get("side") == "send":
                expected[record["source"], record["dest"]] += record["bytes"] / 3
    np.testing.assert_allclose(communication_matrix(two), expected)


def test_alpha_and_beta_are_found_again(two):
    line = fit(two)
    assert line.alpha == pytest.approx(ALPHA, rel=1e-6) and line.beta == pytest.approx(BETA, rel=1e-6)
    assert line.messages == 24 and line.separable  # those of conv4's bucket were hidden


@pytest.mark.parametrize("p", [2, 3, 4, 5])
@pytest.mark.parametrize("op", ALGORITHMS)
def test_traces_of_each_collective_hold_the_messages_of_its_closed_form(tmp_path, op, p):
    from minidnn.comm import collectives as library

    def main(comm):
        run = trace_files.prepare(comm, tmp_path / "t")
        comm.ledger.trace()
        comm.ledger.begin_step(1)
        x = np.arange(20.0 * p)
        with comm.ledger.scope(phase="forward", layer="fc", cause="test"):
            if op in ("broadcast", "reduce"):
                getattr(library, op)(comm, x)
            elif op == "scatter":
                library.scatter(comm, x, counts=[20] * p)
            elif op in ("gather", "all_gather"):
                getattr(library, op)(comm, x[:20])
            else:
                getattr(library, op)(comm, x)
        comm.ledger.end_step()
        trace_files.write(comm, tmp_path / "t", run)

    threads.run(p, main)
    trace = load(tmp_path / "t")
    counts = (20,) * p if op in ("all_gather", "reduce_scatter", "gather", "scatter") else 20 * p
    sent = Counter()
    for m in trace.messages:
        sent[m.source] += 1
        assert (m.op, m.algorithm, m.layer, m.group) == (op, ALGORITHMS[op][0], "fc", tuple(range(p)))
        assert 1 <= m.index <= m.count and m.bytes == 8 * (m.stop - m.start)
    expected = {r: closed_form(op, ALGORITHMS[op][0], p, r, counts).messages for r in range(p)}
    assert sent == Counter({r: n for r, n in expected.items() if n})
    (whole,) = collectives(trace.messages)
    assert whole.busiest >= lower_bound(op, p, whole.bytes) - 1e-9
    if op != "all_to_all":
        assert whole.bytes == 8 * 20 * p or op in ("scatter", "gather")


def test_the_adjoint_of_a_message_carries_the_same_slice_back(two):
    adjoints = adjoint_messages(two, 1)
    by_number = {m.number: m for m in two.messages}
    forward = [m for m in two.messages_of(1) if m.phase == "forward"]
    assert forward
    for m in forward:
        (back,) = (by_number[n] for n in adjoints[m.number])
        assert (back.phase, back.op, back.layer) == ("backward", "reduce_scatter", "fc6")
        assert (back.start, back.stop) == (m.start, m.stop)
        assert m.number in adjoints[back.number]
    assert all(m.number not in adjoints for m in two.messages_of(1) if m.phase == "gradient sync")


def test_the_story_tells_what_goes_to_whom_why_and_what_returns(two):
    text = explain(two, 1)
    first, second = text.split("\n\n")
    assert first.startswith("Step 1 on rank 0 of 2") and second.startswith("Step 1 on rank 1 of 2")
    for words in (
        "forward, fc6: all_gather (ring) of activations over ranks 0, 1",
        "why: fc6 needs them in another placement",
        "sends elements 0:147456 (576.0 KiB float32) to rank 1",
        "gets elements 147456:294912 (576.0 KiB float32) from rank 1",
        "backward of fc6 returns the gradient of this by reduce_scatter at",
        "this returns the gradient of the forward all_gather at",
        "100 % of it hidden behind computing",
        "replicated weights: ranks with a copy of conv4 must get the same, summed gradient",
        "computes forward of conv1, relu1, pool1, ... pool5, flatten",
        "loads its part of the batch",
        "for late senders",
    ):
        assert words in first, words
    times = [float(line.split()[0]) for line in first.splitlines()[1:] if line[:9].strip()]
    assert times == sorted(times)
    with pytest.raises(InputError, match="step 9 is not in the trace; it has 1, 2, 3"):
        explain(two, 9)
    with pytest.raises(InputError, match="rank 7 is not in the trace; it has 0, 1"):
        explain(two, 1, [7])


def test_long_collectives_are_shortened_unless_asked(tmp_path):
    trace = load(write_trace(tmp_path / "t", 8, steps=1))
    assert "... 11 rounds likewise; in all rounds 13.4 MiB sent, 13.4 MiB received" in explain(trace, 1, [0])
    told = explain(trace, 1, [0], every_round=True)
    assert "likewise" not in told and "round 13 of 14" in told


def test_all_tables_appear_for_any_number_of_ranks(two, tmp_path):
    text = report(two)
    for words in ("Where the time", "By layer and phase", "Communication matrix", "alpha + n beta"):
        assert words in text
    alone = report(load(write_trace(tmp_path / "t", 1)))
    assert "Where the time" in alone and "matrix" not in alone


def test_the_difference_from_the_one_process_run_is_shown(tmp_path):
    folder = write_trace(tmp_path / "t", 2, steps=1)
    path = folder / "rank0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for record in lines:
        if record.get("side") == "send":
            record["difference"] = 2.5e-7 if record["layer"] == "conv1" else 1e-9
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    trace = load(folder)
    assert "2.5e-07 from the one-process run" in explain(trace, 1)
    assert "The largest difference from the one-process run" in report(trace) and "2.5e-07" in report(trace)


def test_table_and_numbers():
    rows = [["a", 1.5, None], ["bb", 22.25, "x"], [], ["sum", 23.75, ""]]
    text = table(rows, ["name", "value", "note"], "T")
    assert text.splitlines() == [
        "T",
        "name  value  note",
        "----  -----  ----",
        "a      1.50",
        "bb     22.2  x",
        "----  -----  ----",
        "sum    23.8",
    ]
    assert [size(n) for n in (0, 1023, 1536, 3 << 20)] == ["0 B", "1023 B", "1.5 KiB", "3.0 MiB"]
    assert [time(t) for t in (2.0, 0.00042, 3e-8)] == ["2.00 s", "420 us", "30 ns"]
    assert [number(x) for x in (0.0, 1234.5, 1e-9, float("nan"))] == ["0.000", "1234", "1.00e-09", "nan"]
