"""Matplotlib, imported when a picture is asked for and not before."""

from pathlib import Path

from minidnn.errors import InputError

FORMATS = (".png", ".svg", ".pdf")


def check_target(path: str | Path) -> None:
    """Before a long run: can its picture be drawn to `path` afterwards?

    Raises
    ------
    InputError
        A folder that does not exist, a name that does not end as a picture's, or no matplotlib.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--plot {path}: the name of a picture ends in {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--plot {path}: there is no folder {path.parent}")
    pyplot()


def pyplot():
    """`matplotlib.pyplot`, drawing into files.

    Raises
    ------
    InputError
        when matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise InputError('pictures need matplotlib: pip install "minidnn[plot]"') from None
    matplotlib.use("agg", force=False)
    import matplotlib.pyplot as plt

    plt.rcParams["svg.fonttype"] = "none"  # letters stay letters: small files that can be searched
    plt.rcParams["hatch.linewidth"] = 0.6
    return plt
