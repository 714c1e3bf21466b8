"""What the records of a trace must be: checked when they are read, so nothing behind that need doubt them.

A field is of one type wherever it occurs; which ones a record cannot do without is in `REQUIRED`.
"""

import json
from collections.abc import Callable

from minidnn.errors import printable

FORMAT, VERSION = "minidnn-trace", 1
MOST_RANKS = 2**16
FARTHEST = 1e12  # seconds, of any clock

Check = Callable[[object], bool]


def _is(kind: type | tuple, rule: Callable) -> Check:
    return lambda x: isinstance(x, kind) and not isinstance(x, bool) and rule(x)


WHOLE = _is(int, lambda x: abs(x) < 2**62)
COUNT = _is(int, lambda x: 0 <= x < 2**62)
NUMBER = _is((int, float), lambda x: abs(x) < float("inf"))
TIME = _is((int, float), lambda x: abs(x) < FARTHEST)
TEXT = _is(str, lambda x: printable(x) == x)
FIELDS: dict[str, tuple[Check, str]] = {
    **dict.fromkeys(("step", "chunk", "tag", "version"), (WHOLE, "a whole number")),
    **dict.fromkeys(
        ("bytes", "index", "count", "start", "stop", "images", "records", "rank", "size", "source", "dest"),
        (COUNT, "a whole number from 0 up"),
    ),
    **dict.fromkeys(("flops", "loss", "difference"), (NUMBER, "a finite number")),
    **dict.fromkeys(
        ("begin", "end", "posted", "done", "time", "clock_offset", "clock_error"), (TIME, "a time in seconds")
    ),
    **dict.fromkeys(
        ("phase", "layer", "tensor", "op", "algorithm", "dtype", "cause", "state"), (TEXT, "a text")
    ),
    "group": (_is(list, lambda x: all(map(COUNT, x))), "a list of ranks"),
    "side": (("send", "recv").__contains__, "send or recv"),
}
REQUIRED = {
    "header": ("rank", "size"),
    "message": ("side", "source", "dest", "bytes", "posted"),
    "span": ("state", "begin", "end"),
    "step": ("step", "begin", "end"),
    "memory": (),
    "end": ("records",),
}


def parse(text: str) -> object:
    """JSON, without what is no number; ValueError where it is none, and where it is too deep or too long."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def fault(record: dict, kind: str) -> str | None:
    """What is wrong with the fields of a record of a known kind, or None."""
    absent = [key for key in REQUIRED[kind] if record.get(key) is None]
    if "done" not in record and kind == "message":  # None is a message under way
        absent.append("done")
    if absent:
        return f"a {kind} record without {', '.join(absent)}"
    for key, value in record.items():
        check, words = FIELDS.get(key, (None, ""))
        if check and value is not None and not check(value):
            return f"{key} is {str(value)[:40]!r}: expected {words}"
        if printable(key) != key:
            return f"a field called {key[:40]!r}"
    if kind in ("span", "step") and record["begin"] > record["end"]:
        return f"a {kind} that ends before it begins"
    return None


def header_fault(header: dict, run: dict, rank: str) -> str | None:
    """What is wrong with the first line of the file of a rank, or None."""
    if header.get("format") != FORMAT:
        return "not a trace of minidnn (its header is missing)"
    if header.get("version") != VERSION:
        return f"written in version {header.get('version')} of the format, this program reads {VERSION}"
    if fault(header, "header") or not header["rank"] < header["size"] <= MOST_RANKS:
        return "its header lacks rank or size, or they make no sense"
    if str(header["rank"]) != rank:
        return f"the file of rank {header['rank']} under another name"
    if header.get("run") != run.get("run"):
        return f"belongs to run {header.get('run')}, run.json to run {run.get('run')}: a mix of several runs"
    return None


def message_fault(record: dict, rank: int, size: int) -> str | None:
    """What is wrong with who sends to whom in a message of a rank, or None."""
    own = record["source"] if record["side"] == "send" else record["dest"]
    if own != rank or max(record["source"], record["dest"], *(record.get("group") or ())) >= size:
        return f"a message from {record['source']} to {record['dest']}, which rank {rank} of {size} cannot have seen"
    return None


def run_fault(run: dict) -> str | None:
    """What is wrong with run.json, or None."""
    curves = run.get("losses") or [], *((run.get("history") or []),)
    rows = (
        (run.get("plan_rows") or {}).get("rows", []) if isinstance(run.get("plan_rows") or {}, dict) else None
    )
    if not isinstance(curves[0], list) or not all(x is None or NUMBER(x) for x in curves[0]):
        return "losses are not a list of numbers"
    if not isinstance(curves[1], list) or not all(isinstance(e, dict) and _numbers(e) for e in curves[1]):
        return "history is not a list of epochs"
    if not isinstance(rows, list) or not all(isinstance(row, dict) and _is_row(row) for row in rows):
        return "plan_rows are not those of a plan"
    command = run.get("command") or []
    if not isinstance(command, str) and not (
        isinstance(command, list) and all(isinstance(x, str) for x in command)
    ):
        return "command is not a text or a list of texts"
    if not isinstance(run.get("options") or {}, dict):
        return "options are not names and values"
    return None


def _numbers(epoch: dict) -> bool:
    return "step" in epoch and all(x is None or NUMBER(x) for x in epoch.values())


def _is_row(row: dict) -> bool:
    texts = {
        "layer": ("name", "placement", "shape"),
        "exchange": ("name", "adjoint", "layer", "from", "to"),
        "sync": ("name", "layer"),
    }.get(row.get("kind") if isinstance(row.get("kind"), str) else "")
    pair = row.get("kind") == "exchange"
    cells = row.get("cells")
    return (
        texts is not None
        and all(isinstance(row.get(key), str) for key in texts)
        and isinstance(cells, list)
        and all(c is None or (_is_pair(c) if pair else COUNT(c)) for c in cells)
    )


def _is_pair(cell: object) -> bool:
    return isinstance(cell, list) and len(cell) == 2 and all(map(COUNT, cell))
