"""Signs of life of this rank, for the guard that watches for stalls."""

from __future__ import annotations

from collections.abc import Callable

heard: Callable[[], None] | None = None  # the guard's, where there is one


def alive() -> None:
    """This rank goes on: what takes long without a message calls this now and then.  Costs next to nothing."""
    if heard is not None:
        heard()
