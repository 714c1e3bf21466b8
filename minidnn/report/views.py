"""All pictures and files of a trace, written together."""

from pathlib import Path

from minidnn.errors import InputError
from minidnn.launch import alive
from minidnn.pictures import styled
from minidnn.report.html import save_html
from minidnn.report.perfetto import save_perfetto
from minidnn.report.records import Trace
from minidnn.report.timeline import save_timeline

FILES = ("trace.json", "report.html", "timeline.png", "timeline.svg")


def write_views(trace: Trace, folder: str | Path | None = None, step: int | None = None) -> list[str]:
    """Write `FILES` into a folder (default: the trace's).

    Returns
    -------
    list of str
        A line about each file; without matplotlib one line says so, in place of the timelines.

    Raises
    ------
    InputError
        when the folder cannot be written to.
    """
    folder = Path(trace.folder if folder is None else folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror or error}") from None
    events, page, *pictures = (folder / name for name in FILES)
    save_perfetto(trace, events)
    lines = [f"wrote {events}: open it at https://ui.perfetto.dev or in chrome://tracing"]
    alive()
    save_html(trace, page)
    lines.append(f"wrote {page}: open it in a browser")
    alive()
    if trace.complete_steps():
        try:
            with styled():
                pass
        except InputError as error:
            return [*lines, f"no timeline.png: {error}"]
        save_timeline(trace, pictures, step)
        lines.append(f"wrote {pictures[0]} and timeline.svg")
    return lines
