"""A one-line progress bar on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


class ProgressBar:
    """Draw ``label [####....] done/total`` on one line of stderr: ten times a second, once where it is no
    terminal.

    Parameters
    ----------
    label : str
        What is going on, in front of the bar.
    total : int or None
        The count at which the bar is full; None where it is not known (then only the count is drawn).
    show : bool or None
        True draws, False does not, None draws where stderr is a terminal.
    unit : str
        Printed after the counts.
    scale : float
        Counts are divided by this before they are printed (2**20 turns bytes into MiB).
    """

    def __init__(self, label: str, total: int | None, show: bool | None = None, unit="", scale=1.0):
        self.alive: Callable[[], None] = lambda: None  # called at every update, drawn or not: a sign of life
        self.label, self.total, self.unit, self.scale = label, total, unit, scale
        self.show = sys.stderr.isatty() if show is None else show
        self.width = 0  # of the line drawn last, to blank what a shorter one leaves
        self.interval = 0.1 if sys.stderr.isatty() else 1.0  # seconds
        self.drawn_at = -1.0

    def update(self, done: int) -> None:
        """Draw the bar at `done`, unless it was drawn a moment ago and is not full yet."""
        self.alive()
        now = time.monotonic()
        if not self.show or (now - self.drawn_at < self.interval and done != self.total):
            return
        self.drawn_at = now
        count = f"{done / self.scale:,.0f}"
        if self.total is None:
            line = f"{self.label} {count}{self.unit}"
        else:
            filled = int(30 * done / self.total) if self.total else 30
            bar = "#" * filled + "." * (30 - filled)
            line = f"{self.label} [{bar}] {count}/{self.total / self.scale:,.0f}{self.unit}"
        sys.stderr.write("\r" + line.ljust(self.width))
        sys.stderr.flush()
        self.width = len(line)

    def close(self) -> None:
        """End the line, if anything was drawn."""
        if self.width:
            sys.stderr.write("\n")
            sys.stderr.flush()
            self.width = 0
