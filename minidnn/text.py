"""Text for people: tables, and numbers with a few digits and a unit."""

from collections.abc import Iterable, Sequence


def table(rows: Iterable[Sequence[object]], header: Sequence[str], title: str = "") -> str:
    """Columns side by side: text to the left, numbers to the right, a rule under the header.

    A column is one of numbers if every cell below its header is a number, empty, or text that begins with
    a digit or a sign. `None` is shown as an empty cell, floats with `number`. A row `[]` draws a rule
    (above totals).
    """
    rows = [["" if cell is None else _cell(cell) for cell in row] for row in rows]
    filled = [row for row in rows if row]
    columns = range(len(header))
    widths = [max(len(text) for text in [header[c], *(row[c] for row in filled)]) for c in columns]
    right = [
        bool(filled) and all(not row[c] or row[c][0] in "0123456789+-." for row in filled) for c in columns
    ]

    def line(cells: Sequence[str]) -> str:
        places = zip(cells, widths, right, strict=True)
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in places).rstrip()

    rule = "  ".join("-" * w for w in widths)
    lines = [line(header), rule, *(line(row) if row else rule for row in rows)]
    return "\n".join([title, *lines] if title else lines)


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def number(value: float, digits: int = 3) -> str:
    """A float with about `digits` significant digits and no exponent where that stays short."""
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e7):
        return f"{value:.{digits - 1}e}"
    places = digits - len(str(int(size))) if size >= 1 else digits
    return f"{value:.{max(0, places)}f}"


def size(count: float) -> str:
    """Bytes with a binary unit: 1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("the loop returns")


def time(seconds: float) -> str:
    """Seconds with a decimal unit: 0.00042 -> '420 us'."""
    for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(seconds) >= scale:
            return f"{number(seconds / scale)} {unit}"
    return f"{seconds * 1e9:.0f} ns"
