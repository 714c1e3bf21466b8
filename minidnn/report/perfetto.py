"""trace.json for https://ui.perfetto.dev and chrome://tracing: the Chrome Trace Event format, with arrows.

A process is a rank; its threads are "steps", "computing" (what the rank does), and as many lanes of sends
and of receives as are under way at once, since slices of one thread must be nested or apart. An arrow is a
pair of flow events, "s" inside the slice of the send and "f" (with bp "e": bind to the enclosing slice)
inside the receive's. Times are microseconds. The format is Google's "Trace Event Format",
docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from minidnn.files import writing
from minidnn.launch import alive
from minidnn.report.pieces import Piece, pieces
from minidnn.report.records import Message, Trace
from minidnn.report.timeline import NAMES

STEPS, COMPUTING, SENDS, RECEIVES = 0, 1, 100, 200
LEAST = 0.001  # microseconds: a slice without length is not drawn and catches no arrow


def save_perfetto(trace: Trace, path: str | Path, steps: list[int] | None = None) -> None:
    """Write the steps asked for (by default all complete ones), event by event: a long run's file has gigabytes."""
    about = {key: str(trace.run[key]) for key in ("model", "strategy", "command") if key in trace.run}
    document = {"displayTimeUnit": "ms", "otherData": about, "traceEvents": []}
    encode = json.JSONEncoder(separators=(",", ":")).encode
    with writing(path) as file:
        file.write(encode(document).removesuffix("]}"))
        for number, event in enumerate(events(trace, steps)):
            file.write("," * (number > 0) + encode(event))
            if number % 10_000 == 0:
                alive()
        file.write("]}")


def events(trace: Trace, steps: list[int] | None = None) -> Iterator[dict]:
    """What `traceEvents` lists."""
    steps = trace.complete_steps() if steps is None else steps
    wanted = set(steps)
    messages = [m for m in trace.messages if m.step in wanted]
    for rank in trace.ranks:
        yield from _metadata(rank, "process", name=f"rank {rank}")
        yield from _metadata(rank, "process", sort_index=rank)
        yield from _thread(rank, STEPS, "steps") + _thread(rank, COMPUTING, "computing")
        for step in steps:
            frame = trace.steps[step][rank]
            args = {"loss": frame.loss, "images": frame.images}
            yield _slice(f"step {step}", "step", rank, STEPS, frame.begin, frame.end, args)
            yield from (_piece(rank, piece) for piece in pieces(trace, step, rank))
        for record in trace.memory.get(rank, []):
            held = {key: value for key, value in record.items() if isinstance(value, int) and key not in SKIP}
            if record.get("step") in wanted and held:
                at = round(1e6 * record["time"], 3)
                yield {"ph": "C", "name": "memory, bytes", "pid": rank, "ts": at, "args": held}
    sends = _lanes(messages, "source", lambda m: (m.sent, m.send_done))
    receives = _lanes(messages, "dest", lambda m: (m.ready, m.done))
    for first, lanes, name in ((SENDS, sends, "sends"), (RECEIVES, receives, "receives")):
        for rank, lane in sorted({(m.source if first == SENDS else m.dest, lane) for m, lane in lanes}):
            yield from _thread(rank, first + lane, f"{name} {lane + 1}" if lane else name)
    halves = chain(
        (_message(m, m.source, SENDS + lane, m.sent, m.send_done, "s") for m, lane in sends),
        (_message(m, m.dest, RECEIVES + lane, m.ready, m.done, "f") for m, lane in receives),
    )
    yield from chain.from_iterable(halves)


SKIP = ("seq", "step", "rank")


def _metadata(rank: int, what: str, thread: int | None = None, **args) -> list[dict]:
    where = {"pid": rank} if thread is None else {"pid": rank, "tid": thread}
    return [
        {"ph": "M", "name": f"{what}_{key}", **where, "args": {key: value}} for key, value in args.items()
    ]


def _thread(rank: int, thread: int, name: str) -> list[dict]:
    return _metadata(rank, "thread", thread, name=name, sort_index=thread)


def _slice(name: str, kind: str, rank: int, thread: int, begin: float, end: float, args: dict) -> dict:
    """A complete event ("X")."""
    start = round(1e6 * begin, 3)
    length = max(LEAST, round(round(1e6 * end, 3) - start, 3))
    args = {key: value for key, value in args.items() if value not in (None, "")}
    where = {"pid": rank, "tid": thread, "ts": start, "dur": length}
    return {"ph": "X", "name": name, "cat": kind, **where, "args": args}


def _piece(rank: int, piece: Piece) -> dict:
    span = piece.span
    name = (
        f"{span.layer} {span.phase}".strip() if piece.kind == "compute" else NAMES.get(piece.kind, piece.kind)
    )
    args = {
        "state": span.state,
        "layer": span.layer,
        "phase": span.phase,
        "micro_batch": span.micro_batch,
        "step": span.step,
    }
    if span.flops:
        args |= {"flops": span.flops, "GFLOP/s": round(span.flops / (span.end - span.begin) / 1e9, 2)}
    return _slice(name, piece.kind, rank, COMPUTING, piece.begin, piece.end, args)


def _message(m: Message, rank: int, thread: int, begin: float, end: float, flow: str) -> list[dict]:
    """The slice of one half of a message, and its end of the arrow."""
    keys = (
        "step", "phase", "layer", "tensor", "micro_batch", "op", "algorithm", "index", "count", "source", "dest",
        "tag", "bytes", "dtype", "start", "stop", "cause", "difference",
    )  # fmt: skip
    args = {key: getattr(m, key) for key in keys} | {"group": list(m.group)}
    late = {"sender_late_us": m.sender_late, "receiver_late_us": m.receiver_late, "wire_us": m.wire}
    args |= {key: round(1e6 * value, 3) for key, value in late.items()}
    name = f"{m.op or 'send'} {m.layer} {m.tensor}".strip() + (f" {m.index}/{m.count}" if m.count > 1 else "")
    bar = _slice(name, "message", rank, thread, begin, end, args)
    at = (
        bar["ts"]
        if flow == "s"
        else max(round(bar["ts"] + bar["dur"] - LEAST / 2, 4), round(1e6 * m.sent, 3))
    )
    arrow = {
        "ph": flow,
        "id": m.number,
        "name": "message",
        "cat": "message",
        "pid": rank,
        "tid": thread,
        "ts": at,
    }
    return [bar, arrow | {"bp": "e"} if flow == "f" else arrow]


def _lanes(messages: list[Message], rank_of: str, times) -> list[tuple[Message, int]]:
    """Give each message the first lane of its rank that is free when it begins."""
    free: dict[int, list[float]] = {}
    result = []
    for m in sorted(messages, key=lambda m: times(m)):
        begin, end = times(m)
        lanes = free.setdefault(getattr(m, rank_of), [])
        # compared at the file's resolution, with the length that a slice has at least
        begin, end = round(1e6 * begin, 3), max(round(1e6 * end, 3), round(1e6 * begin, 3) + LEAST)
        lane = next((i for i, until in enumerate(lanes) if until <= begin), len(lanes))
        lanes[lane : lane + 1] = [end]
        result.append((m, lane))
    return result
