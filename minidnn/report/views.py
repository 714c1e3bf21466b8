"""All pictures and files of a trace, written together."""

from pathlib import Path

from minidnn.errors import InputError
from minidnn.report.html import save_html
from minidnn.report.perfetto import save_perfetto
from minidnn.report.records import Trace
from minidnn.report.timeline import save_timeline


def write_views(trace: Trace, folder: str | Path | None = None, step: int | None = None) -> list[str]:
    """Write trace.json, report.html, timeline.png and timeline.svg into a folder (default: the trace's).

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
    lines = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_perfetto(trace, folder / "trace.json")
        lines.append(
            f"wrote {folder / 'trace.json'}: open it at https://ui.perfetto.dev or in chrome://tracing"
        )
        save_html(trace, folder / "report.html")
        lines.append(f"wrote {folder / 'report.html'}: open it in a browser")
        if trace.complete_steps():
            try:
                save_timeline(trace, [folder / "timeline.png", folder / "timeline.svg"], step)
                lines.append(f"wrote {folder / 'timeline.png'} and timeline.svg")
            except InputError as error:
                lines.append(f"no timeline.png: {error}")
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror or error}") from None
    return lines
