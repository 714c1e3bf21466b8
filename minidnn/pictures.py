"""Matplotlib, imported when a picture is asked for and not before, and never with a window.

Figures are made without `pyplot`, so nothing is changed for a program that draws, too.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minidnn import files
from minidnn.errors import InputError

FORMATS = (".png", ".svg", ".pdf")
STYLE = {
    "svg.fonttype": "none",  # letters stay letters: small files that can be searched
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # a layer may be called $x
}


def check_target(path: str | Path) -> None:
    """Before a long run: can its picture be drawn to `path` afterwards?

    Raises
    ------
    InputError
        It cannot be written, its name does not end as a picture's, or there is no matplotlib.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise InputError(f"{path}: the name of a picture ends in {', '.join(FORMATS)}")
    files.check_target(path)
    with styled():
        pass


@contextmanager
def styled() -> Iterator[type]:
    """``with styled() as Figure:`` gives matplotlib's class, with the settings of this package's pictures.

    Raises
    ------
    InputError
        when matplotlib is not installed.
    """
    wanted = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError('pictures need matplotlib: pip install "minidnn[plot]"') from None
    finally:
        if wanted is not None:  # a notebook's, which its child processes inherit, need not exist here
            os.environ["MPLBACKEND"] = wanted
    if wanted is not None:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = wanted
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # it draws a box
        yield Figure


def save(figure, *paths: str | Path, **options) -> None:
    """Write a figure to .png, .svg or .pdf files; `options` are those of its `savefig`."""
    for path in paths:
        kind = Path(path).suffix.lower()
        if kind not in FORMATS:
            raise InputError(f"{path}: the name of a picture ends in {', '.join(FORMATS)}")
        with files.writing(path, "wb") as file:
            figure.savefig(file, format=kind[1:], **options)
