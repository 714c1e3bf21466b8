"""A step cut into what a picture shows: pieces of each rank's time, messages exposed or hidden."""

from dataclasses import dataclass

from minidnn.report.breakdown import flights, intersect, measure, split_wait, subtract, union
from minidnn.report.records import Message, Span, Trace


@dataclass(frozen=True)
class Piece:
    """A stretch of one rank's time.

    `kind` is compute, input, update, other, exposed, sender_late or receiver_late.
    """

    kind: str
    begin: float
    end: float
    span: Span


def pieces(trace: Trace, step: int, rank: int) -> list[Piece]:
    """One rank's spans, waiting cut into its causes, in order of time."""
    own = [m for m in trace.messages_of(step) if rank in (m.source, m.dest)]
    frame = trace.steps[step][rank]
    window = [(frame.begin, frame.end)]
    result = []
    for span in trace.spans_of(rank, step):
        if span.state == "wait":
            for kind, intervals in split_wait(span, rank, own, window).items():
                name = "exposed" if kind == "transfer" else kind
                result += [Piece(name, begin, end, span) for begin, end in intervals]
            continue
        for begin, end in intersect([(span.begin, span.end)], window):
            kind = {"comm": "exposed"}.get(span.state, span.state)
            if kind == "compute" and span.phase == "update":
                kind = "update"
            result.append(Piece(kind, begin, end, span))
    return sorted(result, key=lambda piece: piece.begin)


def working(trace: Trace, step: int, rank: int) -> list[tuple[float, float]]:
    """When a rank computed or loaded data: what communication can hide behind."""
    return union([(s.begin, s.end) for s in trace.spans_of(rank, step) if s.state in ("compute", "input")])


def communication(trace: Trace, step: int, rank: int) -> tuple[list, list]:
    """When a rank's messages were under way: (exposed, hidden) intervals."""
    own = [m for m in trace.messages_of(step) if rank in (m.source, m.dest)]
    flight, busy = flights(own, rank), working(trace, step, rank)
    return subtract(flight, busy), intersect(flight, busy)


def is_hidden(message: Message, busy: dict[int, list[tuple[float, float]]]) -> bool:
    """Whether the receiver worked for more than half of the time that the message took."""
    flight = union([(max(message.sent, message.ready), message.done)])
    return bool(flight) and measure(intersect(flight, busy[message.dest])) > measure(flight) / 2
