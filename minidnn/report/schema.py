"""What the records of a trace must be: checked when they are read, so nothing behind that need doubt them."""

import json
import sys
from collections.abc import Callable

from minidnn.errors import printable

FORMAT, VERSION = "minidnn-trace", 1
MOST_RANKS = 2**16


def _is(kind: type | tuple, rule: Callable) -> Callable[[object], bool]:
    return lambda x: isinstance(x, kind) and not isinstance(x, bool) and rule(x)


WHOLE = _is(int, lambda x: abs(x) < 2**62)
COUNT = _is(int, lambda x: 0 <= x < 2**62)
NUMBER = _is((int, float), lambda x: abs(x) <= sys.float_info.max)
TIME = _is((int, float), lambda x: abs(x) < 1e12)  # seconds, of any clock
LABEL = _is(str, str.isprintable)
TEXT = _is(str, lambda x: True)
PAIR = _is(list, lambda x: len(x) == 2 and all(map(COUNT, x)))
ROWS = {"layer": ("placement", "shape"), "exchange": ("adjoint", "layer", "from", "to"), "sync": ("layer",)}


def _list(item: Callable) -> Callable[[object], bool]:
    return _is(list, lambda x: all(map(item, x)))


def _or_none(check: Callable) -> Callable[[object], bool]:
    return lambda x: x is None or check(x)


def _is_row(row: object) -> bool:
    """Whether it is a row of a plan (`plan_rows`)."""
    if not isinstance(row, dict) or not TEXT(row.get("kind")) or row["kind"] not in ROWS:
        return False
    cell = PAIR if row["kind"] == "exchange" else COUNT
    return all(TEXT(row.get(key)) for key in ("name", *ROWS[row["kind"]])) and _list(_or_none(cell))(
        row.get("cells")
    )


#: By the name of a field, whichever record it is in; None stands for an absent one.
FIELDS = {
    **dict.fromkeys(("step", "micro_batch", "tag"), WHOLE),
    **dict.fromkeys(
        ("bytes", "index", "count", "start", "stop", "images", "source", "dest", "records"), COUNT
    ),
    **dict.fromkeys(("rank", "size"), COUNT),
    **dict.fromkeys(("flops", "loss", "difference"), NUMBER),
    **dict.fromkeys(("begin", "end", "posted", "done", "time", "clock_offset", "clock_error"), TIME),
    **dict.fromkeys(("phase", "layer", "tensor", "op", "algorithm", "dtype", "cause", "state"), LABEL),
    "group": _list(COUNT),
    "side": ("send", "recv").__contains__,
}
RUN = {
    "losses": _list(_or_none(NUMBER)),
    "history": _list(_is(dict, lambda x: "step" in x and all(map(_or_none(NUMBER), x.values())))),
    "plan_rows": _is(dict, lambda x: _list(_is_row)(x.get("rows", []))),
    "command": lambda x: TEXT(x) or _list(TEXT)(x),
    "options": _is(dict, lambda x: True),
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

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def fault(record: dict, fields: dict = FIELDS, required: tuple[str, ...] = ()) -> str | None:
    """What is wrong with the fields of a record, or of run.json with `RUN`; None if nothing is."""
    absent = [key for key in required if record.get(key) is None]
    if absent:
        return f"a record without {', '.join(absent)}"
    for key, value in record.items():
        check = fields.get(key)
        if check is None:  # kinds of memory, and what no table reads
            if not key.isprintable() or (isinstance(value, int | float) and not abs(value) < 2**62):
                return f"a field called {printable(key)[:40]} of {str(value)[:40]}"
        elif value is not None and not check(value):
            return f"{key} cannot be {printable(str(value))[:40]}"
    return None


def header_fault(header: dict, run: dict, rank: str) -> str | None:
    """What is wrong with the first line of the file of a rank, or None."""
    if header.get("format") != FORMAT:
        return "not a trace of minidnn (its header is missing)"
    if header.get("version") != VERSION:
        return f"written in version {header.get('version')} of the format, this program reads {VERSION}"
    if fault(header, required=REQUIRED["header"]) or not header["rank"] < header["size"] <= MOST_RANKS:
        return "its header lacks rank or size, or they make no sense"
    if str(header["rank"]) != rank:
        return f"the file of rank {header['rank']} under another name"
    if header.get("run") != run.get("run"):
        return f"belongs to run {header.get('run')}, run.json to run {run.get('run')}: a mix of several runs"
    return None


def record_fault(record: dict, kind: str, rank: int, size: int) -> str | None:
    """What is wrong with a record of a rank, or None."""
    if found := fault(record, required=REQUIRED[kind]):
        return found.replace("a record", f"a {kind} record")
    if kind in ("span", "step") and record["begin"] > record["end"]:
        return f"a {kind} that ends before it begins"
    if kind == "message":
        own = record["source"] if record["side"] == "send" else record["dest"]
        if own != rank or max(record["source"], record["dest"], *(record.get("group") or ())) >= size:
            return (
                f"a message from {record['source']} to {record['dest']} is not one of rank {rank} of {size}"
            )
        if "done" not in record:  # None is a message under way
            return "a message record without done"
    return None
