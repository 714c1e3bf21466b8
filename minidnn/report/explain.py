"""One training step told in plain words, rank by rank, in the order of time."""

from collections.abc import Iterable

from minidnn.errors import InputError
from minidnn.report.adjoint import adjoint_collectives
from minidnn.report.bandwidth import Collective, collectives
from minidnn.report.breakdown import flights, intersect, measure, split_wait
from minidnn.report.pieces import working
from minidnn.report.records import Message, Span, Trace
from minidnn.text import size, time

MARGIN = " " * 13
VERBS = {"compute": "computes", "input": "loads its part of the batch", "other": "does other work"}
SHORT = 0.002  # of the step: waiting and other work below this is not told


def explain(
    trace: Trace, step: int | None = None, ranks: Iterable[int] | None = None, every_round: bool = False
) -> str:
    """The story of one step (by default a typical one), for each rank or for those given.

    A collective of more than four rounds is told by its first two and its last, unless `every_round` is set.

    Raises
    ------
    InputError
        when the trace has no such step or rank.
    """
    step = trace.typical_step() if step is None else step
    if step not in trace.steps:
        known = ", ".join(map(str, trace.complete_steps()))
        raise InputError(f"step {step} is not in the trace; it has {known}")
    ranks = trace.ranks if ranks is None else list(ranks)
    for rank in ranks:
        if rank not in trace.steps[step]:
            raise InputError(f"rank {rank} is not in the trace; it has {', '.join(map(str, trace.ranks))}")
    return "\n\n".join(_Story(trace, step, rank, every_round).text() for rank in ranks)


class _Story:
    """One step as one rank lives it."""

    def __init__(self, trace: Trace, step: int, rank: int, every_round: bool) -> None:
        self.trace, self.step, self.rank, self.every_round = trace, step, rank, every_round
        self.frame = trace.steps[step][rank]
        self.own = [m for m in trace.messages_of(step) if rank in (m.source, m.dest)]
        self.busy = working(trace, step, rank)
        self.numbered = len({m.micro_batch for m in self.own if m.micro_batch is not None}) > 1
        pairs = adjoint_collectives(trace, step)
        self.partner = {id(a.first): b for a, b in pairs} | {id(b.first): a for a, b in pairs}

    def text(self) -> str:
        spans = self.trace.spans_of(self.rank, self.step)
        least = SHORT * (self.frame.end - self.frame.begin)
        events = [(c.begin(self.rank), self.told(c)) for c in collectives(self.own)]
        for run in _runs(spans):
            length = sum(span.end - span.begin for span in run)
            if run[0].state in VERBS and (run[0].state == "compute" or length > least):
                events.append((run[0].begin, _work(run)))
            elif run[0].state == "wait":
                events += [(s.begin, self.waits(s)) for s in run if s.end - s.begin > least]
        head = f"Step {self.step} on rank {self.rank} of {self.trace.size}: "
        head += time(self.frame.end - self.frame.begin)
        if self.frame.loss is not None:
            head += f", loss {self.frame.loss:.4f}"
        events.sort(key=lambda event: event[0])
        return "\n".join([head, *(f"{self.moment(at):>8} ms  {text}" for at, text in events)])

    def moment(self, at: float) -> str:
        """Milliseconds since the step began."""
        return f"{1e3 * (at - self.frame.begin):.2f}"

    def told(self, c: Collective) -> str:
        """One collective: what, why, each round, how much of it was hidden, what comes back."""
        m = c.first
        number = f", micro-batch {m.micro_batch}" if self.numbered and m.micro_batch is not None else ""
        members = ", ".join(map(str, m.group))
        group = f" over ranks {members}" if len(m.group) > 1 and m.op != "send" else ""
        how = f" ({m.algorithm})" if m.algorithm else ""
        lines = [f"{m.phase}, {m.layer}{number}: {m.op or 'send'}{how} of {m.content}{group}"]
        lines.append(f"why: {m.reason}")
        lines += self.rounds(c.messages)
        flight = flights(list(c.messages), self.rank)
        total, hidden = measure(flight), measure(intersect(flight, self.busy))
        if total:
            lines.append(
                f"under way for {time(total)}, {100 * hidden / total:.0f} % of it hidden behind computing"
            )
        return f"\n{MARGIN}".join([*lines, self.back(m)])

    def rounds(self, messages: tuple[Message, ...]) -> list[str]:
        """What this rank sends and gets in each round."""
        by_index: dict[int, list[Message]] = {}
        for m in messages:
            by_index.setdefault(m.index, []).append(m)
        lines = []
        for index, own in sorted(by_index.items()):
            parts = [self.half(m) for m in sorted(own, key=lambda m: m.source != self.rank)]
            lines.append(f"round {index} of {own[0].count}: " + "; ".join(parts))
        if len(lines) > 4 and not self.every_round:
            sent = size(sum(m.bytes for m in messages if m.source == self.rank))
            got = size(sum(m.bytes for m in messages if m.dest == self.rank))
            between = f"... {len(lines) - 3} rounds likewise; in all rounds {sent} sent, {got} received"
            lines = [*lines[:2], between, lines[-1]]
        return lines

    def half(self, m: Message) -> str:
        """This rank's end of a message."""
        verb, other = (
            ("sends", f"to rank {m.dest}") if m.source == self.rank else ("gets", f"from rank {m.source}")
        )
        part = f"elements {m.start}:{m.stop}" if m.stop > m.start else "data"
        twin = f"; {m.difference:.1e} from the one-process run" if m.difference is not None else ""
        return f"{verb} {part} ({size(m.bytes)} {m.dtype}{twin}) {other}"

    def back(self, m: Message) -> str:
        """What the other pass does about this collective."""
        partner = self.partner.get(id(m))
        if partner is not None:
            moment = f"{partner.first.op} at {self.moment(partner.begin(self.rank))} ms"
            if m.phase == "forward":
                return f"backward of {m.layer} returns the gradient of this by {moment}"
            return f"this returns the gradient of the forward {moment}"
        if m.phase == "forward":
            return "nothing returns: no gradient flows back, or each rank already has its part of it"
        if m.phase == "gradient sync" and m.op == "all_gather":
            return "x and gy of all ranks: x^T gy is the sum of their gradients of the same weights"
        if m.phase == "gradient sync":
            return (
                "this is the backward of using the same weights on every rank: copies forward, a sum backward"
            )
        return "it has no counterpart in the other pass"

    def waits(self, span: Span) -> str:
        """For what this rank waits."""
        pieces = {name: measure(part) for name, part in split_wait(span, self.rank, self.own).items()}
        names = {"sender_late": "late senders", "receiver_late": "late receivers", "transfer": "the transfer"}
        told = [f"{time(seconds)} for {names[name]}" for name, seconds in pieces.items() if seconds > 1e-7]
        where = ", ".join(word for word in (span.phase, span.layer) if word)
        return (
            "waits"
            + (f" ({where})" if where else "")
            + ": "
            + ", ".join(told or [time(span.end - span.begin)])
        )


def _runs(spans: list[Span]) -> list[list[Span]]:
    """Neighbouring spans of the same state and phase.

    Posting and progressing messages within computing, a matter of microseconds, does not part a run.
    """
    runs: list[list[Span]] = []
    for span in spans:
        if runs and (runs[-1][-1].state, runs[-1][-1].phase) == (span.state, span.phase):
            runs[-1].append(span)
        elif span.state != "comm":
            runs.append([span])
    return runs


def _work(run: list[Span]) -> str:
    """A run of computing, loading or other work."""
    first, seconds = run[0], sum(span.end - span.begin for span in run)
    layers = list(dict.fromkeys(span.layer for span in run if span.layer))
    flops = sum(span.flops for span in run)
    what = VERBS[first.state]
    if first.state == "compute":
        what += f" {first.phase}" + (f" of {_listed(layers)}" if layers else "")
    rate = f", {flops / 1e9:.2f} GFLOP at {flops / seconds / 1e9:.1f} GFLOP/s" if flops and seconds else ""
    return f"{what}: {time(seconds)}{rate}"


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:3])}, ... {', '.join(names[-2:])}"
