"""How fast messages were: a fit of time = alpha + bytes * beta, and each collective against its lower bound.

alpha (seconds a message) and beta (seconds a byte) come from the trace itself. The bounds are those of Chan,
Heimlich, Purkayastha and van de Geijn, "Collective communication: theory, practice, and experience"
(2007), table 1: for p ranks and n bytes, ceil(log2 p) messages one after the other, and through some rank
at least

    2 (p-1)/p n   all_reduce
      (p-1)/p n   reduce_scatter, all_gather, scatter, gather, all_to_all (n: what one rank sends and keeps)
              n   broadcast, reduce, send
"""

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from math import ceil, log2

import numpy as np

from minidnn.report.breakdown import INSTANT
from minidnn.report.records import Message, Trace
from minidnn.text import number, size, table, time


@dataclass(frozen=True)
class Line:
    """time = alpha + bytes * beta; `spread` is the median of |measured / fitted - 1|."""

    alpha: float
    beta: float
    messages: int
    spread: float
    separable: bool = True

    def __call__(self, count: float, messages: float = 1) -> float:
        return messages * self.alpha + count * self.beta


def fit(trace: Trace) -> Line:
    """Fit alpha and beta >= 0 to the messages that a rank waited for.

    Hidden messages are left out: their receiver notices the arrival only when it next looks. The sum of
    relative errors (not of their squares) is made small, by reweighting, so that the few messages that
    met a busy system do not decide. With messages of one size only, alpha and beta cannot be told apart,
    and alpha is taken as 0.
    """
    messages = [m for m in trace.messages if m.bytes and m.wire > 0]
    messages = [m for m in messages if waited_for(trace, m)] or messages
    if not messages:
        return Line(0.0, 0.0, 0, 0.0, False)
    n = np.array([m.bytes for m in messages], dtype=np.float64)
    t = np.array([m.wire for m in messages])
    if np.unique(n).size == 1:
        alpha, beta, separable = 0.0, float(np.median(t / n)), False
    else:
        alpha, beta = _least_relative(n, t)
        separable = True
    spread = float(np.median(np.abs(t / (alpha + beta * n) - 1)))
    return Line(alpha, beta, len(messages), spread, separable)


def _least_relative(n: np.ndarray, t: np.ndarray) -> tuple[float, float]:
    """alpha, beta >= 0 that minimise sum |t - f| / sqrt(t f), f = alpha + n beta.

    Relative to the geometric mean, twice as long and half as long weigh the same. Solved by reweighted least
    squares.
    """
    A = np.stack([np.ones_like(n), n], axis=1)
    fitted = t
    error = np.ones_like(t)
    for _ in range(50):
        scale = 1 / np.sqrt(t * fitted * np.maximum(error, 1e-3))
        (alpha, beta), *_ = np.linalg.lstsq(A * scale[:, None], t * scale, rcond=None)
        if alpha < 0:
            alpha, beta = 0.0, np.median(t / n)
        elif beta < 0:
            alpha, beta = np.median(t), 0.0
        fitted = alpha + n * beta
        error = np.abs(t - fitted) / np.sqrt(t * fitted)
    return float(alpha), float(beta)


def waited_for(trace: Trace, message: Message) -> bool:
    """Whether a wait of the receiver ended with the arrival of the message."""
    spans = trace.spans_of(message.dest, message.step)
    last = bisect_right(spans, message.done, key=lambda span: span.begin)
    waits = (span for span in spans[max(0, last - 4) : last] if span.state == "wait")
    return any(span.begin < message.done <= max(span.end, span.until) + INSTANT for span in waits)


def lower_bound(op: str, p: int, count: float) -> float:
    """Bytes that at least one of p ranks must send or receive in a collective over `count` bytes."""
    if op == "all_reduce":
        return 2 * (p - 1) / p * count
    if op in ("reduce_scatter", "all_gather", "scatter", "gather", "all_to_all"):
        return (p - 1) / p * count
    return count


@dataclass(frozen=True)
class Collective:
    """All messages of one collective operation of one step."""

    messages: tuple[Message, ...]

    @property
    def first(self) -> Message:
        return self.messages[0]

    @property
    def ranks(self) -> int:
        return len(self.first.group) or len({r for m in self.messages for r in (m.source, m.dest)})

    def begin(self, rank: int) -> float:
        """When a rank posted its first message of this."""
        return min(
            m.sent if m.source == rank else m.ready for m in self.messages if rank in (m.source, m.dest)
        )

    @property
    def elements(self) -> int:
        """Elements of the whole vector (for all_to_all, of the largest send buffer)."""
        return max(m.stop for m in self.messages) - min(m.start for m in self.messages)

    @property
    def bytes(self) -> float:
        """Bytes of the whole vector."""
        moved = self.first.stop - self.first.start
        return self.elements * self.first.bytes / moved if moved else self.first.bytes

    @property
    def busiest(self) -> int:
        """Bytes that the busiest rank sends or receives, whichever is more."""
        sent, received = defaultdict(int), defaultdict(int)
        for m in self.messages:
            sent[m.source] += m.bytes
            received[m.dest] += m.bytes
        return max([*sent.values(), *received.values()])

    @property
    def seconds(self) -> float:
        """From the moment the last rank took part to the last arrival: late ranks are not counted."""
        ranks = {rank for m in self.messages for rank in (m.source, m.dest)}
        return max(0.0, max(m.done for m in self.messages) - max(map(self.begin, ranks)))


def collectives(messages: list[Message]) -> list[Collective]:
    """Group messages by the operation they belong to, in order of time."""
    groups: dict[tuple, list[Message]] = {}
    for m in messages:
        pair = (m.source, m.dest) if m.op in ("send", "recv", "") else ()
        key = (m.step, m.phase, m.layer, m.tensor, m.micro_batch, m.op, m.algorithm, m.group, m.tag, pair)
        groups.setdefault(key, []).append(m)
    return [Collective(tuple(own)) for own in groups.values()]


def collective_table(trace: Trace) -> str:
    """Each kind of collective: bytes against the bound, time against alpha + n beta, bandwidth."""
    found = collective_rows(trace)
    return table(found["rows"], found["header"], "Collectives: bytes and time against the lower bound")


def collective_rows(trace: Trace) -> dict[str, list]:
    """The header and the rows of that table, as text."""
    line = fit(trace)
    kinds: dict[tuple, list[Collective]] = {}
    wanted = set(trace.complete_steps())
    for c in collectives([m for m in trace.messages if m.step in wanted]):
        m = c.first
        kinds.setdefault((m.phase, m.layer, m.tensor, m.op, m.algorithm, c.ranks, c.bytes), []).append(c)
    rows = []
    for (phase, layer, tensor, op, algorithm, p, count), own in kinds.items():
        rounds = max(m.count for m in own[0].messages)
        bound = lower_bound(op, p, count)
        measured = float(np.median([c.seconds for c in own]))
        predicted = line(own[0].busiest, rounds)
        least = line(bound, ceil(log2(p)) if p > 1 else 1)
        rows.append([
            phase, f"{layer} {tensor}".strip(), f"{op} ({algorithm})" if algorithm else op, str(p),
            str(rounds), size(count), f"{own[0].busiest / bound:.2f}" if bound else "", time(measured),
            time(predicted), f"{measured / least:.2f}" if least else "", f"{bound / measured / 1e9:.3f}"
            if measured else "",
        ])  # fmt: skip
    header = [
        "phase", "layer tensor", "collective", "ranks", "rounds", "vector", "bytes / bound", "median time",
        "alpha + n beta", "time / bound", "bus GB/s",
    ]  # fmt: skip
    return {"header": header, "rows": rows}


def fit_text(trace: Trace) -> str:
    """The fitted line in a sentence."""
    line = fit(trace)
    if not line.messages:
        return "Messages: none took long enough to be measured."
    if not line.separable:
        rate = f"{1 / line.beta / 1e9:.3f} GB/s" if line.beta else "unmeasured"
        return f"Messages: {line.messages} of one size, at {rate} (alpha and beta cannot be told apart)."
    rate = f"{1 / line.beta / 1e9:.3f} GB/s" if line.beta else "too fast to measure"
    return (
        f"Messages: time = alpha + bytes * beta with alpha = {time(line.alpha)}, 1 / beta = {rate}; "
        f"fitted to {line.messages} messages, half of them within {number(100 * line.spread)} %."
    )
