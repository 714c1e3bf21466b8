"""Reading a trace folder: DIR/run.json and one DIR/rank{r}.jsonl per rank.

A rank's file is a header line, records numbered 0, 1, 2, ... in `seq`, and an end line that states how
many there were, so that a record that was lost or a run that was cut off is noticed. Three things are
done to what was read:

1. Clocks are aligned. Every rank writes its own `perf_counter`; the header's `clock_offset` (found by
   ping-pong) brings it to rank 0's. What the ping-pong left, at most `clock_error`, may still let a message
   arrive before it was sent; the smallest shifts that forbid this are found from the messages themselves
   (`_forbid_time_travel`).
2. Each send is paired with its receive: the n-th send with one (group, source, destination, tag) belongs to
   the n-th receive with the same, which is MPI's own rule of matching.
3. Time zero is the first thing any rank recorded.

`load` raises one InputError for a folder that is not a whole trace; `read` returns the problems together
with what could be read, which is what `minidnn trace` shows.
"""

import os
from pathlib import Path

from minidnn.errors import InputError, printable
from minidnn.launch import alive
from minidnn.report import schema
from minidnn.report.records import Message, Span, Step, Trace


def load(folder: str | Path) -> Trace:
    """Read a whole trace.

    Raises
    ------
    InputError
        when the folder is not a trace, is cut off, lacks a rank or a record, or mixes several runs.
    """
    trace, problems = read(folder)
    if problems or trace is None:
        raise InputError(f"{folder}: " + describe(problems))
    return trace


def describe(problems: list[str]) -> str:
    """The first problem, and how many more there are, on one line."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return problems[0] + more


def read(folder: str | Path) -> tuple[Trace | None, list[str]]:
    """Read what can be read of a trace, and say what is wrong with it (an empty list: nothing)."""
    folder = Path(folder)
    if not os.path.isdir(folder):
        return None, ["not a folder" if os.path.exists(folder) else "no such folder"]
    files = sorted(folder.glob("rank*.jsonl"))
    if not (folder / "run.json").is_file():
        return None, [
            "not a trace of minidnn: it has no run.json" + (" (the run did not end)" if files else "")
        ]
    try:
        run = _clean(schema.parse((folder / "run.json").read_text(encoding="utf-8")))
    except OSError as error:
        return None, [f"run.json cannot be read: {error.strerror or error}"]
    except ValueError as error:
        return None, [f"run.json is not valid JSON ({error})"]
    if not isinstance(run, dict) or run.get("format", schema.FORMAT) != schema.FORMAT:
        return None, ["not a trace of minidnn: run.json is another program's"]
    if fault := schema.fault(run, schema.RUN):
        return None, [f"run.json: {fault}"]
    problems: list[str] = []
    parts = {}
    for path in files:
        header, records = _read_rank(path, run, problems)
        if header is not None:
            parts[header["rank"]] = header, records
    if not parts:
        return None, problems or ["it has no rank*.jsonl files"]
    trace, more = assemble(folder, run, parts)
    return trace, problems + more


def assemble(
    folder: str | Path, run: dict, parts: dict[int, tuple[dict, list[dict]]]
) -> tuple[Trace, list[str]]:
    """Make a trace of each rank's header and records (which it leaves as they are), and say what is wrong."""
    sizes = {header["size"] for header, _ in parts.values()}
    size, problems = max(sizes), []
    trace = Trace(Path(folder), run, size, sorted(parts))
    if len(sizes) > 1:
        problems.append(f"its files are of runs of {' and '.join(map(str, sorted(sizes)))} ranks")
    missing = [str(r) for r in range(size) if r not in parts][:16]
    if missing:
        problems.append(f"of {size} ranks, rank {', '.join(missing)} is missing")
    _fill(trace, parts, problems)
    return trace, problems


def _clean(value: object) -> object:
    """A value of JSON, in whose texts nothing is left that cannot be shown."""
    if isinstance(value, str):
        return "\n".join(map(printable, value.split("\n")))
    if isinstance(value, list):
        return [_clean(x) for x in value]
    return {_clean(k): _clean(x) for k, x in value.items()} if isinstance(value, dict) else value


def _read_rank(path: Path, run: dict, problems: list[str]) -> tuple[dict | None, list[dict]]:
    """Header and records of one file, up to the first line that is not what it must be."""
    records, ended = [], None
    header = None
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if number % 10_000 == 0:
                    alive()
                try:
                    record = schema.parse(line)
                except ValueError:
                    problems.append(f"{path.name} is cut off or damaged at line {number}")
                    return header, records
                if header is None and isinstance(record, dict):
                    fault = schema.header_fault(record, run, path.stem.removeprefix("rank"))
                else:
                    fault = _fault(record, header, len(records), ended)
                if fault:
                    problems.append(f"{path.name} line {number}: {fault}")
                    return header, records
                if header is None:
                    header = record
                elif record["kind"] == "end":
                    ended = record["records"]
                else:
                    records.append(record)
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror or error}")
        return header, records
    if header is None:
        problems.append(f"{path.name} is empty")
    elif ended is None:
        problems.append(f"{path.name} is cut off after {len(records)} records (it has no end line)")
    elif ended != len(records):
        problems.append(f"{path.name} holds {len(records)} records, its end line says {ended}")
    return header, records


def _fault(record: object, header: dict | None, count: int, ended: int | None) -> str | None:
    """What is wrong with one line after the first, or None."""
    if not isinstance(record, dict):
        return "not a record"
    if ended is not None:
        return "a record after the end line"
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in schema.REQUIRED or kind == "header":
        return f"a record of unknown kind {str(kind)[:40]!r}"
    if fault := schema.record_fault(record, kind, header["rank"], header["size"]):
        return fault
    if kind != "end" and record.get("seq") != count:
        return f"record {count} is missing (found {str(record.get('seq'))[:40]} in its place)"
    return None


def _fill(trace: Trace, parts: dict, problems: list[str]) -> None:
    """Align the clocks, pair the messages and sort the records into the trace."""
    shifts = {rank: float(header.get("clock_offset") or 0.0) for rank, (header, _) in parts.items()}
    trace.clock_error = max(float(header.get("clock_error") or 0.0) for header, _ in parts.values())
    halves: dict[tuple, tuple[list, list]] = {}
    for _, records in parts.values():
        for record in records:
            if record["kind"] == "message":
                key = (tuple(record.get("group") or ()), record["source"], record["dest"], record.get("tag"))
                halves.setdefault(key, ([], []))[record["side"] == "recv"].append(record)
    pairs, alone = [], 0
    for sends, receives in halves.values():
        for side in (sends, receives):
            side.sort(key=lambda record: record["posted"])  # stable: equal times stay in order of seq
        pairs += zip(sends, receives, strict=False)
        alone += abs(len(sends) - len(receives))
    arrived = [pair for pair in pairs if None not in (pair[0]["done"], pair[1]["done"])]
    if len(arrived) < len(pairs):
        problems.append(
            f"{len(pairs) - len(arrived)} messages were still under way when the trace was written"
        )
    pairs = arrived
    if alone:
        problems.append(f"{alone} messages have only one side: a record or a rank is missing")
    trace.clock_shift = _forbid_time_travel(shifts, pairs)
    times = [
        record[key] + shifts[rank]
        for rank, (_, records) in parts.items()
        for record in records
        for key in ("begin", "posted")
        if key in record
    ]
    zero = min(times, default=0.0)
    shifts = {rank: shift - zero for rank, shift in shifts.items()}
    for rank, (_, records) in sorted(parts.items()):
        _sort_in(trace, rank, records, shifts[rank])
    trace.messages = sorted(
        (_message(s, r, shifts) for s, r in pairs), key=lambda m: (m.step, m.sent, m.source)
    )
    for number, message in enumerate(trace.messages):
        message.number = number


def _sort_in(trace: Trace, rank: int, records: list[dict], shift: float) -> None:
    """Put one rank's spans, steps and memory records into the trace."""
    spans, memory = trace.spans.setdefault(rank, []), trace.memory.setdefault(rank, [])
    for record in records:
        if record["kind"] == "span":
            labels = (record.get("layer") or "", record.get("phase") or "", record.get("micro_batch"))
            times = (record["begin"] + shift, record["end"] + shift)
            flops = float(record.get("flops") or 0)
            if times[0] < times[1]:
                spans.append(Span(rank, record["state"], *labels, _step(record), *times, flops))
        elif record["kind"] == "step":
            times = (record["begin"] + shift, record["end"] + shift)
            step = Step(rank, record["step"], *times, record.get("loss"), record.get("images"))
            trace.steps.setdefault(step.step, {})[rank] = step
        elif record["kind"] == "memory":
            memory.append({**record, "time": (record.get("time") or 0.0) + shift})
    spans.sort(key=lambda span: span.begin)
    for i, span in enumerate(spans):
        # what follows a wait is the state before it, for a moment, and then the collective going on
        after = (later.end for later in spans[i + 1 : i + 3] if later.state == "comm")
        span.until = next(after, span.end)


def _step(record: dict) -> int:
    """The number of a record's step; -1 outside of any."""
    return -1 if record.get("step") is None else record["step"]


def _message(send: dict, receive: dict, shifts: dict[int, float]) -> Message:
    """One message out of its two records."""
    here, there = shifts[send["source"]], shifts[send["dest"]]
    sent = send["posted"] + here
    differences = [x["difference"] for x in (send, receive) if x.get("difference") is not None]
    return Message(
        number=0,
        **{key: send[key] for key in ("source", "dest", "bytes")},
        step=_step(send),
        **{
            key: send.get(key) or ""
            for key in ("phase", "layer", "tensor", "op", "algorithm", "dtype", "cause")
        },
        micro_batch=send.get("micro_batch"),
        index=send.get("index") or 1,
        count=send.get("count") or 1,
        group=tuple(send.get("group") or ()),
        tag=send.get("tag") or 0,
        start=send.get("start") or 0,
        stop=send.get("stop") or 0,
        needed_by=receive.get("cause") or "",
        sent=sent,
        send_done=send["done"] + here,
        ready=receive["posted"] + there,
        done=max(sent, receive["done"] + there),  # equal where the clocks had to be shifted, but for rounding
        difference=max(differences, default=None),
    )


def _forbid_time_travel(shifts: dict[int, float], pairs: list[tuple[dict, dict]]) -> float:
    """Shift clocks until every message arrives no earlier than it was sent; the largest change is returned.

    Each pair of ranks gives one constraint, shift[source] - shift[dest] <= earliest arrival - sending over
    their messages. The relaxation of Bellman and Ford solves such a system and leaves clocks alone that need
    nothing; clocks only ever move back.
    """
    slack: dict[tuple[int, int], float] = {}
    for send, receive in pairs:
        key = send["source"], send["dest"]
        slack[key] = min(slack.get(key, float("inf")), receive["done"] - send["posted"])
    before = dict(shifts)
    for _ in shifts:
        for (source, dest), limit in slack.items():
            shifts[source] = min(shifts[source], shifts[dest] + limit)
    return max((before[rank] - shifts[rank] for rank in shifts), default=0.0)
