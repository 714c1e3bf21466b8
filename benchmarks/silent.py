"""A ledger that keeps nothing, to measure what the one that counts costs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from minidnn.comm.ledger import Ledger, Scope


class SilentLedger(Ledger):
    """Labels are followed, since errors name them; nothing is timed or counted."""

    def restore(self, place, flops=0):
        old, self._now = self._now, place
        return old

    def cell(self, op):
        return [0, 0, 0, 0]

    def flying(self, any_collective):
        pass


class _CallCounter(Ledger):
    """Counts its calls in `calls`, a class attribute."""

    calls: Counter = Counter()

    def restore(self, place, flops=0):
        self.calls["switch"] += 1
        return super().restore(place, flops)

    def cell(self, op):
        self.calls["cell"] += 1
        return super().cell(op)

    def scope(self, **labels):
        self.calls["scope"] += 1
        return super().scope(**labels)


def calls_of(ledger: Ledger, step: Callable[[], None], repeats: int = 20_000) -> dict[str, Any]:
    """How often one step uses the ledger, and the seconds that this costs: calls x seconds of a call alone."""
    usual = type(ledger)
    _CallCounter.calls.clear()
    ledger.__class__ = _CallCounter
    try:
        step()
    finally:
        ledger.__class__ = usual
    calls, own = dict(_CallCounter.calls), Ledger()

    def scoped() -> None:
        with Scope(own, {"phase": "forward", "layer": "conv1"}):
            pass

    alone = {
        "switch": lambda: own.state("compute", "conv1", "forward"),
        "cell": lambda: own.cell("send"),
        "scope": scoped,
    }
    seconds = 0.0
    for name, count in calls.items():
        begin = time.perf_counter()
        for _ in range(repeats):
            alone[name]()
        seconds += count * (time.perf_counter() - begin) / repeats
    return {"calls": calls, "cost": seconds}
