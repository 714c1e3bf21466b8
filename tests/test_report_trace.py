"""Reading traces: clocks, pairing, and everything that a folder can have wrong with it."""

import json

import pytest
from report_traces import ALPHA, BETA, CLOCKS, write_records, write_trace

from minidnn.errors import InputError
from minidnn.report.perfetto import save_perfetto
from minidnn.report.trace import load, read


@pytest.mark.parametrize("size", [1, 2, 8])
def test_clocks_are_aligned_and_messages_paired(tmp_path, size):
    trace = load(write_trace(tmp_path / "t", size))
    assert trace.ranks == list(range(size)) and trace.complete_steps() == [1, 2, 3]
    rounds = 2 * (size - 1) + 2 * 2 * (size - 1)  # all_gather, reduce_scatter, two all_reduce
    assert len(trace.messages) == 3 * size * rounds
    for m in trace.messages:
        assert m.dest == (m.source + 1) % size
        assert m.wire == pytest.approx(ALPHA + BETA * m.bytes, abs=1e-9)
        assert m.sender_late + m.wire == pytest.approx(m.done - m.ready, abs=1e-9)
        assert m.receiver_late + m.wire == pytest.approx(m.done - m.sent, abs=1e-9)
    assert min(s.begin for s in trace.steps[1].values()) == pytest.approx(0, abs=1e-9)
    assert trace.clock_error == 2e-6 and trace.clock_shift < 1e-9


def test_no_message_arrives_before_it_is_sent_whatever_the_clocks_say(tmp_path):
    folder = write_trace(tmp_path / "t", 4)
    for rank, error in ((1, 0.004), (3, -0.003)):
        path = folder / f"rank{rank}.jsonl"
        lines = path.read_text().splitlines()
        header = json.loads(lines[0])
        header["clock_offset"] = CLOCKS[rank] + error
        path.write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")
    trace = load(folder)
    assert all(m.done >= m.sent for m in trace.messages)
    assert 0 < trace.clock_shift < 0.008


def test_the_nth_send_belongs_to_the_nth_receive(tmp_path):
    def half(seq, rank, side, posted, size):
        return {
            "seq": seq, "kind": "message", "side": side, "step": 1, "source": 0, "dest": 1, "tag": 5,
            "bytes": size, "group": [0, 1], "posted": posted - CLOCKS[rank],
            "done": posted + 1 - CLOCKS[rank],
        }  # fmt: skip

    # the second message is recorded before the first one on the receiver's side
    sends = [half(0, 0, "send", 1.0, 10), half(1, 0, "send", 2.0, 20)]
    receives = [half(0, 1, "recv", 1.7, 20), half(1, 1, "recv", 1.5, 10)]
    trace = load(write_records(tmp_path / "t", [sends, receives]))
    assert [(m.bytes, round(m.ready, 6)) for m in trace.messages] == [(10, 0.5), (20, 0.7)]


def _edit(path, change):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


def _renumber(lines, start):
    records = [json.loads(line) for line in lines]
    for i, record in enumerate(records[start:-1], start - 1):
        record["seq"] = i
    records[-1]["records"] = len(records) - 2
    return [json.dumps(record) for record in records]


def _first_message(lines):
    return next(i for i, line in enumerate(lines) if '"message"' in line)


def _without_bytes(lines):
    i = _first_message(lines)
    record = json.loads(lines[i])
    del record["bytes"]
    return [*lines[:i], json.dumps(record), *lines[i + 1 :]]


def _without_a_message(lines):  # by somebody who renumbers what is left
    i = _first_message(lines)
    return _renumber(lines[:i] + lines[i + 1 :], 1)


def _replace_line(number, text):
    return lambda lines: [*lines[:number], text, *lines[number + 1 :]]


FAULTS = {
    "a deleted record": (lambda lines: lines[:30] + lines[31:], "rank1.jsonl line 31: record 29 is missing"),
    "cut in a line": (lambda lines: [*lines[:40], lines[40][:25]], "is cut off or damaged at line 41"),
    "cut after a line": (lambda lines: lines[:40], "rank1.jsonl is cut off after 39 records"),
    "no end line": (lambda lines: lines[:-1], "it has no end line"),
    "wrong count": (lambda lines: [*lines[:-1], '{"kind": "end", "records": 3}'], "its end line says 3"),
    "after the end": (lambda lines: [*lines, '{"kind": "memory"}'], "a record after the end line"),
    "empty": (lambda lines: [""], "rank1.jsonl is cut off or damaged at line 1"),
    "foreign": (lambda lines: ['{"traceEvents": []}'], "not a trace of minidnn"),
    "a list": (_replace_line(5, "[]"), "rank1.jsonl line 6: not a record"),
    "unknown kind": (_replace_line(5, '{"seq": 4, "kind": "song"}'), "unknown kind 'song'"),
    "lacks a field": (_without_bytes, "a message record without bytes"),
    "later version": (lambda lines: [lines[0].replace('"version": 1', '"version": 9')], "version 9"),
    "another run": (lambda lines: [lines[0].replace('"a1"', '"b2"')], "a mix of several runs"),
    "one side only": (_without_a_message, "1 messages have only one side"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_trace_is_one_clear_error_and_the_rest_is_read(tmp_path, fault):
    change, words = FAULTS[fault]
    folder = write_trace(tmp_path / "t", 2)
    _edit(folder / "rank1.jsonl", change)
    with pytest.raises(InputError) as error:
        load(folder)
    assert words in str(error.value) and "\n" not in str(error.value)
    trace, problems = read(folder)
    assert problems and len(trace.steps) == 3 and 0 in trace.ranks


def test_a_missing_rank_is_named(tmp_path):
    folder = write_trace(tmp_path / "t", 4)
    (folder / "rank2.jsonl").unlink()
    with pytest.raises(InputError, match=r"of 4 ranks, rank 2 is missing \(and 1 more\)"):
        load(folder)
    trace, _ = read(folder)
    assert trace.complete_steps() == [1, 2, 3] and trace.messages


def test_folders_that_are_no_traces(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a folder"):
        load(tmp_path / "file")
    with pytest.raises(InputError, match="no run.json"):
        load(tmp_path)
    for text, words in (("{", "not valid JSON"), ('{"format": "x"}', "another program's"), ("[]", "another")):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(InputError, match=words):
            load(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "minidnn-trace", "version": 1}')
    with pytest.raises(InputError, match="no rank"):
        load(tmp_path)


def test_a_message_still_under_way_is_reported(tmp_path):
    folder = write_trace(tmp_path / "t", 2)

    def forget(lines):
        i = _first_message(lines)
        return [*lines[:i], json.dumps(json.loads(lines[i]) | {"done": None}), *lines[i + 1 :]]

    _edit(folder / "rank0.jsonl", forget)
    with pytest.raises(InputError, match="1 messages were still under way"):
        load(folder)


def test_reading_and_writing_a_long_trace_is_a_sign_of_life(tmp_path, monkeypatch):
    """Other ranks wait for the one that does it, and hear of none of its work."""
    write_trace(tmp_path / "run", 1, steps=300)
    signs = []
    monkeypatch.setattr("minidnn.launch.life.heard", lambda: signs.append(1))
    trace = load(tmp_path / "run")
    assert signs
    signs.clear()
    save_perfetto(trace, tmp_path / "trace.json")
    assert len(signs) > 1
