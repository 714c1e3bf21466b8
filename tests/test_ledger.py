"""The ledger: counters that close, records that agree with what was sent, trace folders, aligned clocks."""

import json
import time

import numpy as np
import pytest
from closed_forms import messages
from transport import Transport

from minidnn.comm import collectives, threads, trace_files
from minidnn.comm.algorithms import ALGORITHMS
from minidnn.comm.ledger import Labels, Ledger
from minidnn.errors import InputError


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_rank_is_in_exactly_one_state_and_the_times_close():
    clock = Clock()
    ledger = Ledger(clock=clock)
    clock.now += 1  # other
    ledger.state("input", phase="input")
    clock.now += 2
    with ledger.scope(layer="conv1", phase="forward"):
        before = ledger.state("compute", flops=10)
        clock.now += 3
        with ledger.during("wait"):
            clock.now += 4
        clock.now += 5  # back in compute
        ledger.restore(before)
    clock.now += 6
    times = ledger.times()
    assert times == {
        ("other", "", ""): 1,
        ("input", "", "input"): 2 + 6,
        ("compute", "conv1", "forward"): 3 + 5,
        ("wait", "conv1", "forward"): 4,
    }
    assert sum(times.values()) == clock.now - 100


def test_scopes_nest_and_end_even_when_something_is_raised():
    ledger = Ledger()
    with ledger.scope(layer="fc6", phase="backward"):
        with pytest.raises(KeyError), ledger.scope(tensor="W", micro_batch=2):
            assert ledger.labels == Labels(None, "backward", "fc6", "W", 2, "")
            raise KeyError
        assert ledger.labels == Labels(phase="backward", layer="fc6")
    assert ledger.labels == Labels()


def test_spans_of_a_trace_are_the_time_line():
    clock = Clock()
    ledger = Ledger(clock=clock)
    ledger.trace()
    ledger.begin_step(1)
    with ledger.scope(layer="conv1", phase="forward"):
        before = ledger.state("compute", flops=10)
        clock.now += 3
        ledger.restore(before)
    clock.now += 1
    ledger.end_step(loss=0.5, images=16)
    spans = [record for record in ledger.records() if record["kind"] == "span"]
    assert [
        (s["state"], s["layer"], s["begin"], s["end"], s["flops"]) for s in spans if s["end"] > s["begin"]
    ] == [
        ("compute", "conv1", 100, 103, 10),
        ("other", "", 103, 104, 0),
    ]
    assert all(a["end"] == b["begin"] for a, b in zip(spans, spans[1:], strict=False))
    (step,) = [record for record in ledger.records() if record["kind"] == "step"]
    assert step == {"kind": "step", "step": 1, "begin": 100, "end": 104, "loss": 0.5, "images": 16}


def test_a_collective_in_flight_is_recorded_under_its_own_labels():
    """Its time goes to the layer and micro-batch that started it, the computation around it keeps its own."""

    def main(comm):
        ledger = comm.ledger
        ledger.trace()
        ledger.begin_step(1)
        with ledger.scope(layer="conv5", phase="gradient sync", micro_batch=0):
            pending = collectives.all_reduce.start(comm, np.ones(8))
        with ledger.scope(layer="conv1", phase="backward", micro_batch=3):
            before = ledger.state("compute", flops=5)
            while not pending.test():
                pass
            ledger.restore(before)
        ledger.end_step()
        return [record for record in ledger.records() if record["kind"] == "span"]

    for spans in threads.run(2, main):
        assert {(s["state"], s["layer"], s["phase"], s["micro_batch"]) for s in spans} == {
            ("other", "", "", None),
            ("comm", "conv5", "gradient sync", 0),
            ("compute", "conv1", "backward", 3),
        }
        assert [s["step"] for s in spans] == [None] + [1] * (len(spans) - 1)
        assert sum(s["flops"] for s in spans) == 5


def test_time_in_flight_is_counted_once_however_many_collectives_fly():
    """From the first start to the last end, on a clock that only the program moves."""

    def main(comm):
        clock = Clock()
        comm.ledger = Ledger(comm.rank, comm.size, clock)
        first = collectives.all_reduce.start(comm, np.ones(4))
        clock.now += 1
        second = collectives.all_reduce.start(comm, np.ones(4))
        clock.now += 2
        first.wait()
        clock.now += 4
        under_way = comm.ledger.in_flight
        second.wait()
        clock.now += 8  # nothing flies, unless the first wait saw the second one to its end, too
        return under_way, comm.ledger.in_flight

    for under_way, in_flight in threads.run(2, main):
        assert in_flight == under_way and in_flight in (3, 7)


def test_only_the_last_steps_are_kept():
    ledger = Ledger()
    ledger.trace(last_steps=3)
    for step in range(10):
        ledger.begin_step(step)
        with ledger.during("compute"):
            pass
        ledger.note("memory", bytes=step)
        ledger.end_step(loss=float("nan"))
    records = list(ledger.records())
    assert {record["step"] for record in records} == {7, 8, 9, None}  # None: between the steps
    assert [r["bytes"] for r in records if r["kind"] == "memory"] == [7, 8, 9]
    assert [r["loss"] for r in records if r["kind"] == "step"] == [None] * 3  # JSON has no NaN
    assert ledger.dropped_steps == 7


def test_nothing_is_recorded_unless_asked():
    def main(comm):
        comm.ledger.begin_step(1)
        collectives.all_reduce(comm, np.ones(10))
        comm.ledger.note("memory", bytes=3)
        comm.ledger.end_step(1.0)
        return list(comm.ledger.records())

    assert threads.run(3, main) == [[]] * 3


@pytest.mark.parametrize("p", range(2, 6))
def test_records_of_every_collective_are_its_messages(p):
    calls = {
        ("all_reduce", name): lambda comm, name=name: collectives.all_reduce(
            comm, np.ones(11, np.float32), name
        )
        for name in ALGORITHMS["all_reduce"]
    }
    for name in ("ring", "direct"):
        calls["reduce_scatter", name] = lambda comm, name=name: collectives.reduce_scatter(
            comm, np.ones(11, np.float32), None, name
        )
    for name in ("binomial", "chain"):
        calls["broadcast", name] = lambda comm, name=name: collectives.broadcast(
            comm, np.ones(11, np.float32), 0, name
        )

    def main(comm, call):
        transport = Transport(comm)
        comm.ledger.trace()
        comm.ledger.begin_step(7)
        with comm.ledger.scope(
            phase="gradient sync", layer="fc6", tensor="fc6.W", micro_batch=1, cause="replicated"
        ):
            call(comm)
        records = [record for record in comm.ledger.records() if record["kind"] == "message"]
        return records, transport.totals()

    for (op, algorithm), call in calls.items():
        everything = threads.run(p, main, call)
        sends, receives = {}, {}
        for rank, (records, totals) in enumerate(everything):
            expected = messages(op, algorithm, p, rank, 11)
            got = []
            for r in records:
                peer = r["dest"] if r["side"] == "send" else r["source"]
                assert (r["source"] if r["side"] == "send" else r["dest"]) == rank
                got.append((r["index"], r["count"], peer, (r["stop"] - r["start"]), r["side"]))
                assert r["bytes"] == 4 * (r["stop"] - r["start"]) and r["dtype"] == "float32"
                assert (r["op"], r["algorithm"], r["group"]) == (op, algorithm, tuple(range(p)))
                labels = [r[name] for name in ("step", "phase", "layer", "tensor", "micro_batch", "cause")]
                assert labels == [7, "gradient sync", "fc6", "fc6.W", 1, "replicated"]
                assert r["posted"] <= r["done"]
                side = sends if r["side"] == "send" else receives
                side.setdefault((r["source"], r["dest"], r["tag"]), []).append(
                    (r["start"], r["stop"], r["posted"])
                )
            assert sorted(got) == sorted(expected)
            sent = [r["bytes"] for r in records if r["side"] == "send"]
            received = [r["bytes"] for r in records if r["side"] == "recv"]
            assert totals == (len(sent), sum(sent), len(received), sum(received))
        assert sends.keys() == receives.keys()
        for key, out in sends.items():  # the n-th send with a tag is the n-th receive
            assert [s[:2] for s in out] == [r[:2] for r in receives[key]]


def test_golden_trace_of_a_ring_over_two_ranks():
    def main(comm):
        comm.ledger.trace()
        collectives.all_reduce(comm, np.arange(5.0))
        keys = ("side", "index", "count", "source", "dest", "start", "stop", "bytes", "tag")
        return [tuple(r[k] for k in keys) for r in comm.ledger.records() if r["kind"] == "message"]

    assert threads.run(2, main) == [
        [
            ("recv", 1, 2, 1, 0, 3, 5, 16, 131073),
            ("send", 1, 2, 0, 1, 0, 3, 24, 131073),
            ("recv", 2, 2, 1, 0, 0, 3, 24, 131073),
            ("send", 2, 2, 0, 1, 3, 5, 16, 131073),
        ],
        [
            ("recv", 1, 2, 0, 1, 0, 3, 24, 131073),
            ("send", 1, 2, 1, 0, 3, 5, 16, 131073),
            ("recv", 2, 2, 0, 1, 3, 5, 16, 131073),
            ("send", 2, 2, 1, 0, 0, 3, 24, 131073),
        ],
    ]


def traced(comm, folder, overwrite=False):
    run = trace_files.prepare(comm, folder, overwrite)
    comm.ledger.trace()
    for step in (1, 2):
        comm.ledger.begin_step(step)
        with comm.ledger.scope(phase="forward", layer="fc6"), comm.ledger.during("compute", flops=7):
            collectives.all_gather(comm, np.ones(3, np.float32))
        comm.ledger.end_step(loss=np.float64(step), images=4)
    trace_files.write(comm, folder, run, {"strategy": "data", "images": np.int64(4)})
    return run


def test_a_trace_folder_is_complete_json(tmp_path):
    folder = tmp_path / "deep" / "out"
    (run, *rest) = threads.run(3, traced, folder)
    assert rest == [run, run]
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"rank{r}.jsonl" for r in range(3)),
        "run.json",
    ]
    info = json.loads((folder / "run.json").read_text())
    assert info == {"format": "minidnn-trace", "version": 1, "run": run, "strategy": "data", "images": 4}
    for rank in range(3):
        header, *records, end = map(json.loads, (folder / f"rank{rank}.jsonl").read_text().splitlines())
        assert (header["format"], header["version"], header["run"]) == ("minidnn-trace", 1, run)
        assert (header["rank"], header["size"], header["dropped_steps"]) == (rank, 3, 0)
        assert [record["seq"] for record in records] == list(range(len(records)))
        assert end == {"kind": "end", "records": len(records)}
        kinds = [record["kind"] for record in records]
        assert kinds.count("step") == 2 and kinds.count("message") == 8 and "span" in kinds


def test_the_reports_can_read_it(tmp_path):
    trace = pytest.importorskip("minidnn.report.trace")
    threads.run(4, traced, tmp_path)
    read = trace.load(tmp_path)
    assert read.size == 4 and len(read.messages) == 2 * 4 * 3
    assert all(message.bytes == 12 and message.done >= message.sent for message in read.messages)


def test_another_run_is_not_overwritten_unless_asked(tmp_path):
    threads.run(3, traced, tmp_path)
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(InputError, match="holds the trace of another run.*--overwrite"):
        threads.run(2, traced, tmp_path)
    assert (tmp_path / "run.json").read_text() == before
    threads.run(2, traced, tmp_path, True)
    assert not (tmp_path / "rank2.jsonl").exists()  # the old run had three ranks


def test_every_rank_learns_that_the_folder_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")

    def main(comm):
        with pytest.raises(InputError, match="cannot write a trace to .*file/out: Not a directory"):
            trace_files.prepare(comm, tmp_path / "file" / "out")
        return True

    assert threads.run(3, main) == [True] * 3


def test_clocks_that_differ_are_measured():
    def main(comm):
        comm.ledger.clock = lambda: time.perf_counter() + 1000.0 * comm.rank
        return trace_files.measure_clock(comm)

    for rank, (offset, error) in enumerate(threads.run(4, main)):
        assert abs(offset + 1000.0 * rank) <= error
        assert error < 1.0
