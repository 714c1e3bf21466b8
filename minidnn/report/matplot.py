"""Matplotlib, imported when a picture is asked for and not before."""

from minidnn.errors import InputError


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
