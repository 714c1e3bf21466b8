"""The steps of a trace as tables: by rank, by layer and phase, by pair of ranks, by collective."""

from collections import defaultdict

from minidnn.report.bandwidth import collective_table, fit_text
from minidnn.report.breakdown import PARTS, TITLES, Breakdown, by_rank, mean
from minidnn.report.records import PHASES, Trace
from minidnn.text import size, table, time


def closing_table(parts: dict[object, Breakdown], title: str = "", first: str = "rank") -> str:
    """Where the step's time went, in ms: a row for each entry of `parts` and, if there are several, the mean.

    The parts sum to the wall time, but for what no span covers ("unaccounted"); "hidden" runs beside them.
    """
    columns = [*PARTS, "unaccounted", "wall", "hidden"]
    rows = [[str(key), *(f"{1e3 * getattr(p, c):.2f}" for c in columns)] for key, p in parts.items()]
    average = mean(list(parts.values()))
    if len(parts) > 1:
        rows += [[], ["mean", *(f"{1e3 * getattr(average, c):.2f}" for c in columns)]]
    share = {c: getattr(average, c) / average.wall if average.wall else 0.0 for c in columns}
    rows += [["share", *(f"{100 * share[c]:.1f}%" for c in columns)]]
    short = {"exposed": "comm. exposed", "hidden": "comm. hidden"}
    short |= {"sender_late": "sender late", "receiver_late": "receiver late"}
    return table(rows, [first, *(short.get(c, TITLES[c]) for c in columns)], title)


def layer_phase_table(trace: Trace, steps: list[int] | None = None) -> str:
    """Per step and rank, by layer: computing time and bytes sent in each phase."""
    steps = steps or trace.complete_steps()
    wanted, share = set(steps), len(steps) * len(trace.ranks) or 1
    seconds: dict = defaultdict(float)
    sent: dict = defaultdict(lambda: [0, 0])
    for rank in trace.ranks:
        for step in steps:
            for span in trace.spans_of(rank, step):
                if span.state == "compute":
                    seconds[span.layer, span.phase] += span.end - span.begin
    for message in trace.messages:
        if message.step in wanted:
            entry = sent[message.layer, message.phase]
            entry[0] += message.bytes
            entry[1] += 1
    used = {phase for _, phase in [*seconds, *sent]}
    phases = sorted(used, key=lambda phase: PHASES.index(phase) if phase in PHASES else len(PHASES))
    active = {layer: None for layer, _ in [*seconds, *sent]}
    layers = [layer for layer in dict.fromkeys([*trace.layers(), *active]) if layer in active]
    rows = []
    for layer in layers:
        times = [seconds.get((layer, phase), 0.0) for phase in phases]
        counts = [sent.get((layer, phase), [0, 0]) for phase in phases]
        row = [layer or "-"]
        row += [f"{1e3 * t / share:.3f}" if t else "" for t in times]
        row += [f"{b / share / 2**20:.3f} ({n / share:g})" if n else "" for b, n in counts]
        rows.append(row)
    total_time = [sum(t for (_, p), t in seconds.items() if p == phase) for phase in phases]
    total_sent = [[sum(e[i] for (_, p), e in sent.items() if p == phase) for i in (0, 1)] for phase in phases]
    total = ["total", *(f"{1e3 * t / share:.3f}" if t else "" for t in total_time)]
    total += [f"{b / share / 2**20:.3f} ({n / share:g})" if n else "" for b, n in total_sent]
    header = ["layer", *(f"{phase}, ms" for phase in phases), *(f"{phase}, MiB sent" for phase in phases)]
    keep = [0] + [c for c in range(1, len(header)) if total[c]]
    picked = [[row[c] for c in keep] if row else [] for row in [*rows, [], total]]
    return table(
        picked, [header[c] for c in keep], "By layer and phase, per step and rank (messages in brackets)"
    )


def communication_matrix(trace: Trace, steps: list[int] | None = None) -> list[list[float]]:
    """Bytes per step: entry [source][destination], of the ranks that the trace has."""
    steps = steps or trace.complete_steps()
    wanted = set(steps)
    place = {rank: i for i, rank in enumerate(trace.ranks)}
    matrix = [[0.0] * len(place) for _ in place]
    for message in trace.messages:
        if message.step in wanted and message.source in place and message.dest in place:
            matrix[place[message.source]][place[message.dest]] += message.bytes / len(steps)
    return matrix


def matrix_table(trace: Trace) -> str:
    """The communication matrix with sums."""
    matrix = communication_matrix(trace)
    rows = [
        [f"rank {r}", *(size(b) if b else "." for b in row), size(sum(row))]
        for r, row in zip(trace.ranks, matrix, strict=True)
    ]
    received = [sum(column) for column in zip(*matrix, strict=True)]
    rows += [[], ["received", *(size(b) for b in received), size(sum(received))]]
    header = ["from \\ to", *(f"rank {r}" for r in trace.ranks), "sent"]
    return table(rows, header, "Communication matrix, per step")


def memory_by_rank(trace: Trace) -> dict[str, list]:
    """What the memory records say: `names` of kinds of memory, `bytes` a row for each rank, the most seen."""
    names: dict[str, None] = {}
    most: dict[int, dict[str, float]] = {rank: {} for rank in trace.ranks}
    for rank, records in trace.memory.items():
        for record in records:
            for key, value in record.items():
                if key not in ("seq", "step", "rank", "time", "kind") and isinstance(value, int | float):
                    names.setdefault(key)
                    most[rank][key] = max(most[rank].get(key, 0), value)
    return {"names": list(names), "bytes": [[most[r].get(name, 0) for name in names] for r in trace.ranks]}


def summary(trace: Trace) -> str:
    """What run this is, and how far its clocks can be trusted."""
    steps = trace.complete_steps()
    run = trace.run
    what = ", ".join(str(run[key]) for key in ("model", "strategy") if run.get(key))
    seen = (
        f"steps {steps[0]} to {steps[-1]}"
        if len(steps) > 1
        else f"step {steps[0]}"
        if steps
        else "no whole step"
    )
    lines = [
        f"{trace.folder}: {what or 'a run'} on {trace.size} ranks, {seen}, {len(trace.messages)} messages"
    ]
    if run.get("command"):
        command = run["command"]
        lines.append("command: " + (command if isinstance(command, str) else " ".join(command)))
    if trace.size > 1:
        clock = f"clocks: aligned by ping-pong to within {time(trace.clock_error)}"
        if trace.clock_shift:
            moved = f"then shifted by up to {time(trace.clock_shift)}"
            clock += f", {moved} so that no message arrives before it is sent"
        lines.append(clock)
    return "\n".join(lines)


def twin_table(trace: Trace) -> str:
    """Where messages differ from the same slices of the one-process run (recorded with --check)."""
    found: dict[tuple[str, str, str], list[float | None]] = defaultdict(list)
    for m in trace.messages:
        found[m.phase, m.layer, m.op].append(m.difference)
    rows, left_out = [], 0
    for key, own in found.items():
        compared = [d for d in own if d is not None]
        left_out += len(own) - len(compared)
        largest = f"{max(compared):.1e}" if compared else ""
        rows.append([*key, str(len(own)), str(len(compared)), largest])
    header = ["phase", "layer", "collective", "messages", "compared", "largest difference"]
    text = table(rows, header, "The largest difference from the one-process run")
    if left_out:
        text += (
            "\nNot compared, for one process never forms them: partial sums, batch-norm statistics, metrics."
        )
    return text


def report(trace: Trace) -> str:
    """All tables of a trace."""
    parts = [summary(trace)]
    if trace.complete_steps():
        title = "Where the time of a step went, ms (mean over steps, the first left out)"
        parts += [closing_table(by_rank(trace), title), layer_phase_table(trace)]
    if trace.messages:
        parts += [matrix_table(trace), fit_text(trace), collective_table(trace)]
    checked = trace.messages and (trace.run.get("options") or {}).get("check")
    if checked or any(m.difference is not None for m in trace.messages):
        parts.append(twin_table(trace))
    return "\n\n".join(parts)
