"""The plan of one training step, as data: the planner makes it, the executor runs it, `print` shows it, and the tests
hold the ledger of a real run equal to it, byte for byte."""

from __future__ import annotations

from .describe import plan_text
from .messages import Message, step_messages
from .planned import Planned


class Plan(Planned):
    """A `Planned` step, and what is read off it; `str(plan)` lists every rank, layer, layout and message."""

    def messages(self, rank: int) -> list[Message]:
        """Every message that `rank` sends or receives in one step, in the order of its events."""
        return list(step_messages(self, rank, self.events[rank]))

    def bytes_sent(self, rank: int) -> int:
        """Bytes that `rank` sends in one step."""
        return sum(m.bytes for m in self.messages(rank) if m.kind == "send")

    def __str__(self) -> str:
        return plan_text(self)

    __repr__ = __str__
