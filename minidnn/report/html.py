"""report.html: one file, which needs no network, with everything that a trace says.

The charts are drawn by Apache ECharts (Apache-2.0; echarts.min.js lies beside this file, unchanged, with its
licence). It is vendored, as no kept Python package carries it: the report then needs nothing installed, where
plotly.py's bundle would make each file 4.6 MB instead of 1.2 MB and Bokeh's would bring a dozen dependencies.
"""

import json
import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from minidnn.files import writing
from minidnn.report.adjoint import adjoint_messages
from minidnn.report.bandwidth import collective_rows, fit_text
from minidnn.report.breakdown import PARTS, TITLES, by_rank
from minidnn.report.colors import layer_colors
from minidnn.report.pieces import communication, is_hidden, pieces, working
from minidnn.report.plan_rows import cell_text, row_text
from minidnn.report.records import Trace
from minidnn.report.tables import communication_matrix, memory_by_rank
from minidnn.report.timeline import NAMES
from minidnn.text import time

MESSAGE_FIELDS = (
    "number", "source", "dest", "bytes", "phase", "layer", "tensor", "micro_batch", "op", "algorithm", "index",
    "count", "tag", "dtype", "start", "stop", "cause", "difference",
)  # fmt: skip


def save_html(trace: Trace, path: str | Path, steps: list[int] | None = None) -> None:
    """Write the report; its timeline shows `steps` (by default the first, a typical and the slowest one)."""
    page = _asset("report.html")
    data = json.dumps(payload(trace, steps), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    parts = {
        "/*STYLE*/": _asset("report.css"),
        "/*ECHARTS*/": _asset("echarts.min.js"),
        "/*DATA*/": data.replace("<", "\\u003c"),  # so that no text in it can end the script element
        "/*TIMELINE*/": _asset("timeline.js"),
        "/*REPORT*/": _asset("report.js"),
    }
    for marker, text in parts.items():
        before, after = page.split(marker)
        page = before + text + after
    # No script runs but these two: whatever a trace may say, and however it may come into the page.
    scripts = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digests = (b64encode(sha256(text.encode()).digest()).decode() for text in scripts)
    page = page.replace("/*SCRIPTS*/", " ".join(f"'sha256-{digest}'" for digest in digests))
    with writing(path) as file:
        file.write(page)


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def payload(trace: Trace, steps: list[int] | None = None) -> dict:
    """What the page shows, as plain data."""
    complete = trace.complete_steps()
    if steps is None and complete:
        steps = sorted({complete[0], trace.typical_step(), max(complete, key=trace.duration)})
    split = by_rank(trace)
    parts = [*PARTS, "hidden"]
    layers = trace.layers()
    return {
        "title": " ".join(str(trace.run[key]) for key in ("model", "strategy") if trace.run.get(key)),
        "ranks": trace.ranks,
        "layers": layers,
        "colors": layer_colors(layers),
        "kinds": NAMES,
        "typical": trace.typical_step() if complete else None,
        "timelines": {step: _timeline(trace, step) for step in steps or []},
        "parts": {part: TITLES[part] for part in parts},
        "split": [[getattr(split[rank], part) * 1e3 for part in parts] for rank in trace.ranks]
        if split
        else [],
        "matrix": communication_matrix(trace) if trace.messages else [],
        "memory": memory_by_rank(trace),
        "steps": complete,
        "losses": [_loss(trace, step) for step in complete],
        "durations": [1e3 * trace.duration(step) for step in complete],
        "training": trace.run.get("losses") or [],
        "epochs": trace.run.get("history") or [],
        "plan": _plan(trace.run.get("plan_rows")),
        "plan_text": str(trace.run.get("plan") or ""),
        "collectives": collective_rows(trace) if trace.messages else None,
        "fit": fit_text(trace) if trace.messages else "",
        "facts": _facts(trace),
    }


def _loss(trace: Trace, step: int) -> float | None:
    losses = [s.loss for s in trace.steps[step].values() if s.loss is not None]
    return losses[0] if losses and losses[0] == losses[0] else None


def _timeline(trace: Trace, step: int) -> dict:
    """One step: pieces, strips of communication, messages and their adjoints, in ms from the step's begin."""
    zero, end = trace.window(step)

    def ms(seconds: float) -> float:
        return round(1e3 * (seconds - zero), 5)

    lanes = {rank: lane for lane, rank in enumerate(trace.ranks)}
    busy = {rank: working(trace, step, rank) for rank in trace.ranks}
    shown, strips = [], []
    for rank in trace.ranks:
        for piece in pieces(trace, step, rank):
            span = piece.span
            labels = [span.layer, span.phase, span.micro_batch, span.flops]
            shown.append([ms(piece.begin), ms(piece.end), lanes[rank], piece.kind, *labels])
        for kind, intervals in zip(("exposed", "hidden"), communication(trace, step, rank), strict=True):
            strips += [[ms(begin), ms(end), lanes[rank], kind] for begin, end in intervals]
    messages = []
    for m in trace.messages_of(step):
        if m.source in lanes and m.dest in lanes:
            record = {key: getattr(m, key) for key in MESSAGE_FIELDS}
            times = {"sent": ms(m.sent), "ready": ms(m.ready), "done": ms(m.done)}
            late = {"sender_late": m.sender_late, "receiver_late": m.receiver_late, "wire": m.wire}
            record |= {key: round(1e3 * value, 5) for key, value in late.items()}
            words = {"content": m.content, "reason": m.reason, "group": list(m.group)}
            messages.append({**record, **times, **words, "hidden": is_hidden(m, busy)})
    adjoints = adjoint_messages(trace, step)
    length = 1e3 * (end - zero)
    return {"duration": length, "pieces": shown, "strips": strips, "messages": messages, "adjoints": adjoints}


def _plan(rows: dict | None) -> list[dict]:
    """The rows of the plan (see `plan_rows`) with the words that the page shows."""
    result = []
    for row in (rows or {}).get("rows", []):
        layer = row["kind"] == "layer"
        name = row["name"] if layer else row_text(row)
        detail = (
            row["placement"]
            if layer
            else f"{row['from']} to {row['to']}"
            if row["kind"] == "exchange"
            else ""
        )
        cells = [None if cell is None else cell_text(row, cell) for cell in row["cells"]]
        shape = row.get("shape", "")
        result.append({"kind": row["kind"], "name": name, "detail": detail, "shape": shape, "cells": cells})
    return result


def _facts(trace: Trace) -> list[list[str]]:
    """Everything in run.json that is short, and the state of the clocks, as (name, value)."""
    facts: dict[str, str] = {}

    def add(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(str(key), inner)
        elif value not in (None, "", []):
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            facts.setdefault(name.replace("_", " "), text)

    for key, value in trace.run.items():
        if key not in ("format", "version", "plan", "plan_rows", "history", "losses"):
            add(key, value)
    complete = trace.complete_steps()
    if complete:
        facts["steps traced"] = f"{complete[0]} to {complete[-1]}"
    facts["messages traced"] = str(len(trace.messages))
    if trace.size > 1:
        facts["clocks aligned within"] = time(trace.clock_error)
    return [[name, value] for name, value in facts.items()]
