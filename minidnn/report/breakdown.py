"""Where a step's time went, and which communication was hidden behind computing.

A rank is in exactly one state at every moment (the ledger's spans do not overlap), so its step closes:

    wall = input + compute + exposed communication + sender late + receiver late + other + unaccounted

Time in the state "wait" is split by the messages that end it: as long as the awaited data had not been
sent, the *sender* was late; as long as a message on offer was not asked for, the *receiver* was; what is
left is the transfer itself, and counts with the state "comm" as exposed communication. A message that
travels while its rank computes is hidden. Scalasca's "late sender" and "late receiver" patterns mean the
same.
"""

from dataclasses import dataclass, fields

from minidnn.report.records import Message, Span, Trace

Intervals = list[tuple[float, float]]
INSTANT = 1e-9  # seconds: below this, a difference of two clocks is rounding


@dataclass
class Breakdown:
    """Seconds of one rank (or a mean over ranks and steps); `hidden` overlaps the other entries."""

    input: float = 0.0
    compute: float = 0.0
    exposed: float = 0.0
    sender_late: float = 0.0
    receiver_late: float = 0.0
    other: float = 0.0
    unaccounted: float = 0.0
    wall: float = 0.0
    hidden: float = 0.0

    @property
    def idle(self) -> float:
        return self.sender_late + self.receiver_late

    @property
    def closes(self) -> bool:
        """Whether the parts sum to the wall time within 1 %."""
        return abs(self.unaccounted) <= 0.01 * self.wall


PARTS = ("input", "compute", "exposed", "sender_late", "receiver_late", "other")
TITLES = {
    "input": "input",
    "compute": "compute",
    "exposed": "exposed communication",
    "sender_late": "waiting, sender late",
    "receiver_late": "waiting, receiver late",
    "other": "other",
    "unaccounted": "unaccounted",
    "wall": "wall",
    "hidden": "hidden communication",
}


def breakdown(trace: Trace, step: int, rank: int) -> Breakdown:
    """Where one rank's time went in one step."""
    frame = trace.steps[step][rank]
    window = [(frame.begin, frame.end)]
    own = [m for m in trace.messages_of(step) if rank in (m.source, m.dest)]
    result = Breakdown(wall=frame.end - frame.begin)
    busy: Intervals = []
    for span in trace.spans_of(rank, step):
        length = measure(intersect([(span.begin, span.end)], window))
        if span.state == "wait":
            pieces = split_wait(span, rank, own, window)
            result.sender_late += measure(pieces["sender_late"])
            result.receiver_late += measure(pieces["receiver_late"])
            result.exposed += measure(pieces["transfer"])
        elif span.state == "comm":
            result.exposed += length
        else:
            name = span.state if span.state in ("input", "compute") else "other"
            setattr(result, name, getattr(result, name) + length)
            if name != "other":
                busy.append((span.begin, span.end))
    result.unaccounted = result.wall - sum(getattr(result, name) for name in PARTS)
    result.hidden = measure(intersect(intersect(flights(own, rank), union(busy)), window))
    return result


def mean(parts: list[Breakdown]) -> Breakdown:
    """Entry-wise mean."""
    names = [f.name for f in fields(Breakdown)]
    return Breakdown(**{name: sum(getattr(p, name) for p in parts) / len(parts) for name in names})


def by_rank(trace: Trace, steps: list[int] | None = None) -> dict[int, Breakdown]:
    """For each rank the mean over `steps`; by default all steps but the first, which pays for warming up."""
    steps = steps or trace.complete_steps()[1:] or trace.complete_steps()
    return {rank: mean([breakdown(trace, step, rank) for step in steps]) for rank in trace.ranks if steps}


def split_wait(
    span: Span, rank: int, own: list[Message], window: Intervals | None = None
) -> dict[str, Intervals]:
    """Divide a waiting span into sender late, receiver late and transfer.

    Only messages that complete within the span count: others under way are not what is being waited for.
    """
    inside = [(span.begin, span.end)]
    if window is not None:
        inside = intersect(inside, window)
    late_sender, late_receiver = [], []
    last = max(span.end, span.until) + INSTANT
    for m in own:
        if m.dest == rank and span.begin < m.done <= last:
            late_sender.append((m.ready, min(m.sent, m.done)))
        if m.source == rank and span.begin < m.send_done <= last:
            late_receiver.append((m.sent, min(m.ready, m.send_done)))
    late_sender, late_receiver = (
        [(begin, end) for begin, end in late if end - begin > INSTANT]
        for late in (late_sender, late_receiver)
    )
    sender = intersect(union(late_sender), inside)
    rest = subtract(inside, sender)
    receiver = intersect(union(late_receiver), rest)
    return {"sender_late": sender, "receiver_late": receiver, "transfer": subtract(rest, receiver)}


def flights(own: list[Message], rank: int) -> Intervals:
    """The time during which at least one of a rank's messages was under way, seen from that rank."""
    sends = [(m.sent, m.send_done) for m in own if m.source == rank]
    # A posted receive whose message has not been sent yet costs nothing and moves nothing.
    receives = [(max(m.ready, m.sent), m.done) for m in own if m.dest == rank]
    return union(sends + receives)


def union(intervals: Intervals) -> Intervals:
    """Sorted disjoint intervals that cover the same points; empty and reversed ones vanish."""
    result: Intervals = []
    for begin, end in sorted(intervals):
        if end <= begin:
            continue
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], end))
        else:
            result.append((begin, end))
    return result


def intersect(a: Intervals, b: Intervals) -> Intervals:
    """Points in both of two lists of sorted disjoint intervals."""
    result, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        begin, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if begin < end:
            result.append((begin, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return result


def subtract(a: Intervals, b: Intervals) -> Intervals:
    """Points of `a` that are not in `b`, both sorted and disjoint."""
    result = []
    for begin, end in a:
        for low, high in b:
            if high <= begin or low >= end:
                continue
            if begin < low:
                result.append((begin, low))
            begin = max(begin, high)
        if begin < end:
            result.append((begin, end))
    return result


def measure(intervals: Intervals) -> float:
    """Total length of disjoint intervals."""
    return sum(end - begin for begin, end in intervals)
