"""`--trace` and `--explain`: recording a run, and writing its views at the end."""

from __future__ import annotations


class Tracing:
    """Does nothing unless asked."""

    def __init__(self, session) -> None:
        self.session = session

    def begin_step(self, step: int) -> None:
        self.session.ledger.begin_step(step)

    def end_step(self, result) -> None:
        self.session.ledger.end_step(result.loss, result.samples)

    def close(self, history) -> None:
        pass
