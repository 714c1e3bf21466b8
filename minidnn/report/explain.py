"""One training step told in plain words, rank by rank, in the order of time."""

from collections.abc import Iterable

from minidnn.report.adjoint import adjoint_collectives
from minidnn.report.bandwidth import Collective, collectives
from minidnn.report.breakdown import intersect, measure, split_wait, union
from minidnn.report.records import Message, Span, Trace
from minidnn.report.text import size, time

MARGIN = " " * 13
VERBS = {"compute": "computes", "input": "loads its part of the batch", "other": "does other work"}
WHY = {
    "forward": "{layer} needs it",
    "backward": "{layer} has the gradient and another rank has the layer before it",
    "gradient sync": "every rank has a copy of {layer}, and the copies must get the same, summed gradient",
    "update": "the updated weights of {layer} are needed elsewhere",
}


def explain(
    trace: Trace, step: int | None = None, ranks: Iterable[int] | None = None, every_round: bool = False
) -> str:
    """The story of one step (by default a typical one), for each rank or for those given.

    A collective of more than four rounds is told by its first two and its last, unless `every_round` is set.
    """
    step = trace.typical_step() if step is None else step
    if step not in trace.steps:
        known = trace.complete_steps()
        raise ValueError(f"step {step} is not in the trace (it has {known[0]} to {known[-1]})")
    own = collectives(trace.messages_of(step))
    pairs = adjoint_collectives(trace, step)
    partner = {id(a.first): b for a, b in pairs} | {id(b.first): a for a, b in pairs}
    ranks = trace.ranks if ranks is None else ranks
    return "\n\n".join(_rank(trace, step, rank, own, partner, every_round) for rank in ranks)


def _rank(trace: Trace, step: int, rank: int, own: list, partner: dict, every_round: bool) -> str:
    frame = trace.steps[step][rank]
    spans = trace.spans_of(rank, step)
    events: list[tuple[float, str]] = [
        (run[0].begin, _work(run)) for run in _runs(spans) if run[0].state in VERBS
    ]
    busy = union([(s.begin, s.end) for s in spans if s.state not in ("wait", "comm")])
    mine = [m for m in trace.messages_of(step) if rank in (m.source, m.dest)]
    for c in own:
        if any(rank in (m.source, m.dest) for m in c.messages):
            begin = min(
                m.sent if m.source == rank else m.ready for m in c.messages if rank in (m.source, m.dest)
            )
            events.append((begin, _told(c, rank, partner.get(id(c.first)), busy, frame.begin, every_round)))
    for span in spans:
        if span.state == "wait" and span.end - span.begin > 0.002 * (frame.end - frame.begin):
            events.append((span.begin, _waits(span, rank, mine)))
    head = f"Step {step} on rank {rank} of {trace.size}: {time(frame.end - frame.begin)}"
    if frame.loss is not None:
        head += f", loss {frame.loss:.4f}"
    lines = [f"{1e3 * (at - frame.begin):8.2f} ms  {text}" for at, text in sorted(events, key=lambda e: e[0])]
    return "\n".join([head, *lines])


def _runs(spans: list[Span]) -> list[list[Span]]:
    """Neighbouring spans of the same state and phase, with nothing between them."""
    runs: list[list[Span]] = []
    for span in spans:
        if runs and (runs[-1][-1].state, runs[-1][-1].phase) == (span.state, span.phase):
            runs[-1].append(span)
        else:
            runs.append([span])
    return runs


def _work(run: list[Span]) -> str:
    first, seconds = run[0], sum(span.end - span.begin for span in run)
    layers = list(dict.fromkeys(span.layer for span in run if span.layer))
    flops = sum(span.flops for span in run)
    what = VERBS[first.state]
    if first.state == "compute":
        what += f" {first.phase}" + (f" of {_listed(layers)}" if layers else "")
    elif first.phase and first.phase != first.state:
        what += f" ({first.phase})"
    rate = f", {flops / 1e9:.2f} GFLOP at {flops / seconds / 1e9:.1f} GFLOP/s" if flops and seconds else ""
    return f"{what}: {time(seconds)}{rate}"


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:3])}, ... {', '.join(names[-2:])}"


def _told(
    c: Collective,
    rank: int,
    partner: Collective | None,
    busy: list,
    zero: float,
    every_round: bool,
) -> str:
    """One collective as this rank sees it: what, why, each round, how much was hidden, what comes back."""
    m = c.first
    cause = m.cause or WHY.get(m.phase, "").format(layer=m.layer)
    chunk = f", chunk {m.chunk}" if m.chunk is not None else ""
    group = f" over ranks {_listed([str(r) for r in m.group])}" if len(m.group) > 1 and m.op != "send" else ""
    how = f" ({m.algorithm})" if m.algorithm else ""
    lines = [f"{m.phase}, {m.layer}{chunk}: {m.op or 'send'}{how} of {m.tensor or 'data'}{group}"]
    if cause:
        lines.append(f"why: {cause}")
    lines += _rounds([x for x in c.messages if rank in (x.source, x.dest)], rank, every_round)
    flight = union([
        (x.sent, x.send_done) if x.source == rank else (max(x.sent, x.ready), x.done)
        for x in c.messages if rank in (x.source, x.dest)
    ])  # fmt: skip
    total, hidden = measure(flight), measure(intersect(flight, busy))
    if total:
        lines.append(
            f"under way for {time(total)}, {100 * hidden / total:.0f} % of it hidden behind computing"
        )
    lines.append(_return(c, partner, rank, zero))
    return f"\n{MARGIN}".join(lines)


def _rounds(own: list[Message], rank: int, every_round: bool) -> list[str]:
    """What this rank sends and receives in each round."""
    rounds: dict[int, list[Message]] = {}
    for m in own:
        rounds.setdefault(m.index, []).append(m)
    lines = []
    for index, messages in sorted(rounds.items()):
        parts = []
        for m in sorted(messages, key=lambda m: m.source != rank):
            verb, other = (
                ("sends", f"to rank {m.dest}") if m.source == rank else ("gets", f"from rank {m.source}")
            )
            part = f"elements {m.start}:{m.stop}" if m.stop > m.start else "data"
            twin = f", {m.difference:.1e} from the one-process run" if m.difference is not None else ""
            parts.append(f"{verb} {part} ({size(m.bytes)} {m.dtype}{twin}) {other}")
        lines.append(f"round {index} of {messages[0].count}: " + "; ".join(parts))
    if len(lines) > 4 and not every_round:
        sent = sum(m.bytes for m in own if m.source == rank)
        received = sum(m.bytes for m in own if m.dest == rank)
        between = (
            f"... rounds 3 to {len(lines) - 1} likewise; in all {size(sent)} sent, {size(received)} received"
        )
        lines = [*lines[:2], between, lines[-1]]
    return lines


def _return(c: Collective, partner: Collective | None, rank: int, zero: float) -> str:
    """What the other pass does about this collective."""
    m = c.first
    if m.phase in ("forward", "backward") and partner is not None:
        at = min(
            x.sent if x.source == rank else x.ready for x in partner.messages if rank in (x.source, x.dest)
        )
        moment = f"{partner.first.op} at {1e3 * (at - zero):.2f} ms"
        if m.phase == "forward":
            return f"backward of {m.layer} returns the gradient of this by {moment}"
        return f"this returns the gradient of the forward {moment}"
    if m.phase == "forward":
        return "nothing returns: no gradient flows back, or each rank already has its part of it"
    if m.phase == "gradient sync":
        return "this is the backward of using the same weights on every rank: copies forward, a sum backward"
    return "it has no counterpart in the other pass"


def _waits(span: Span, rank: int, own: list[Message]) -> str:
    pieces = {name: measure(part) for name, part in split_wait(span, rank, own).items()}
    names = {
        "sender_late": "for late senders",
        "receiver_late": "for late receivers",
        "transfer": "for the transfer",
    }
    told = [f"{time(seconds)} {names[name]}" for name, seconds in pieces.items() if seconds > 1e-7]
    where = f" ({span.phase}, {span.layer})" if span.layer else f" ({span.phase})" if span.phase else ""
    return f"waits{where}: " + ", ".join(told or [time(span.end - span.begin)])
