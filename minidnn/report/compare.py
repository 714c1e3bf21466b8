"""Runs of several strategies side by side: where a step's time goes, what is sent, memory; and a picture.

The picture has the two views of the thesis's Figures 4.25 to 4.28: box plots of the step times of each run,
and the step times one after the other as lines (the thesis drew epochs). Below them: where the time goes, and
the bytes.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from minidnn.errors import printable
from minidnn.pictures import save, styled
from minidnn.report.breakdown import PARTS, TITLES, Breakdown, by_rank, mean
from minidnn.report.colors import MUTED, part_style
from minidnn.report.records import CONTENTS, Message, Trace
from minidnn.report.tables import memory_by_rank
from minidnn.text import size, table


def contents(message: Message) -> str:
    """Why a message is sent, in a word or two that are the same for every strategy."""
    return CONTENTS.get(message.phase, message.phase or "other")


def names(traces: list[Trace]) -> list[str]:
    """A name for each run: its strategy, with the folder where two share one."""
    strategies = [trace.name for trace in traces]
    twice = {name for name in strategies if strategies.count(name) > 1}
    return [f"{t.name} ({printable(t.folder.name)})" if t.name in twice else t.name for t in traces]


def bytes_by_cause(trace: Trace) -> dict[tuple[str, str], float]:
    """Bytes that one rank sends in a step, on average over ranks and steps, by (cause, layer)."""
    steps = trace.complete_steps()
    wanted, share = set(steps), (len(steps) or 1) * len(trace.ranks)
    sent: dict[tuple[str, str], float] = defaultdict(float)
    for message in trace.messages:
        if message.step in wanted:
            sent[contents(message), message.layer] += message.bytes / share
    return dict(sent)


def step_times(trace: Trace) -> list[float]:
    """Seconds of every step but the first, which pays for warming up."""
    steps = trace.complete_steps()
    return [trace.duration(step) for step in steps[1:] or steps]


def compare(traces: list[Trace]) -> str:
    """The tables of `minidnn compare`."""
    titles = names(traces)
    splits = [mean(list(by_rank(trace).values())) for trace in traces]
    return "\n\n".join([
        _time_table(traces, titles, splits),
        _bytes_table(traces, titles),
        *_memory_table(traces, titles),
        *_reason(traces, titles),
    ])  # fmt: skip


def _time_table(traces: list[Trace], titles: list[str], splits: list[Breakdown]) -> str:
    rows = [["ranks", *(str(trace.size) for trace in traces)]]
    times = [step_times(trace) for trace in traces]
    for name, share in (("quartile 1", 25), ("median", 50), ("quartile 3", 75)):
        rows.append([f"step, {name}", *(f"{1e3 * np.percentile(own, share):.2f}" for own in times)])
    first = np.median(times[0])
    rows.append(["speed against the first", *(f"{first / np.median(own):.3f}" for own in times)])
    rows.append([])
    for part in [*PARTS, "hidden"]:
        rows.append([TITLES[part], *(f"{1e3 * getattr(split, part):.2f}" for split in splits)])
    return table(rows, ["ms", *titles], "Where the time of a step goes, mean over ranks and steps")


def _bytes_table(traces: list[Trace], titles: list[str]) -> str:
    sent = [bytes_by_cause(trace) for trace in traces]
    keys = list(dict.fromkeys(key for own in sent for key in own))
    order = {name: place for place, name in enumerate(CONTENTS.values())}
    rows: list[list[str]] = []
    for name in sorted({why for why, _ in keys}, key=lambda why: order.get(why, len(order))):
        for why, layer in keys:
            if why == name:
                rows.append(
                    [why, layer, *(size(own[why, layer]) if (why, layer) in own else "" for own in sent)]
                )
        totals = [sum(b for (why, _), b in own.items() if why == name) for own in sent]
        rows += [[name, "all", *(size(total) for total in totals)], []]
    rows.append(["in all", "", *(size(sum(own.values())) for own in sent)])
    return table(rows, ["why", "layer", *titles], "Bytes sent by a rank in a step")


def _memory_table(traces: list[Trace], titles: list[str]) -> list[str]:
    held = [memory_by_rank(trace) for trace in traces]
    kinds = list(dict.fromkeys(name for own in held for name in own["names"]))
    if not kinds:
        return []
    rows = []
    for kind in kinds:
        row = [kind.replace("_", " ")]
        for own in held:
            column = own["names"].index(kind) if kind in own["names"] else None
            row.append("" if column is None else size(max(bytes_[column] for bytes_ in own["bytes"])))
        rows.append(row)
    return [table(rows, ["memory", *titles], "Memory of the rank that holds the most")]


def _reason(traces: list[Trace], titles: list[str]) -> list[str]:
    """In a sentence for each pair with the first: what the difference in bytes comes from."""
    sentences = []
    first = bytes_by_cause(traces[0])
    for trace, title in list(zip(traces, titles, strict=True))[1:]:
        other = bytes_by_cause(trace)
        totals = sum(first.values()), sum(other.values())
        if abs(totals[0] - totals[1]) < 1:  # they are means: equal but for rounding
            sentences.append(f"{titles[0]} and {title} send the same number of bytes.")
            continue
        changes: dict[str, float] = defaultdict(float)
        for sign, own in ((1, other), (-1, first)):
            for (why, _), count in own.items():
                changes[why] += sign * count
        told = [
            f"{size(abs(change))} {'more' if change > 0 else 'less'} of {why}"
            for why, change in sorted(changes.items(), key=lambda item: -abs(item[1]))
            if abs(change) >= 1
        ]
        ratio = totals[1] / totals[0] if totals[0] else float("inf")
        sentences.append(
            f"{title} sends {ratio:.2f} times the bytes of {titles[0]}: " + ", ".join(told) + "."
        )
    return ["\n".join(sentences)] if sentences else []


def save_comparison(traces: list[Trace], path: str | Path) -> None:
    """Draw box plots of the step times, the steps as lines, where the time goes, and the bytes by cause."""
    with styled() as Figure:
        figure = Figure(figsize=(12, 8), layout="constrained")
        _panels(figure, traces)
        save(figure, path, dpi=150)


def _panels(figure, traces: list[Trace]) -> None:
    titles = names(traces)
    (boxes, lines), (split, sent) = figure.subplots(2, 2)
    colors = [MUTED[i % len(MUTED)] for i in range(len(traces))]
    times = [[1e3 * seconds for seconds in step_times(trace)] for trace in traces]
    flier = {"marker": "*", "markeredgecolor": "red", "markerfacecolor": "red"}  # as in the thesis
    drawn = boxes.boxplot(
        times, tick_labels=titles, patch_artist=True, flierprops=flier, medianprops={"color": "black"}
    )
    for box, color in zip(drawn["boxes"], colors, strict=True):
        box.set(facecolor=color, alpha=0.6)
    boxes.set(title="Step times", ylabel="ms")
    for trace, title, color in zip(traces, titles, colors, strict=True):
        steps = trace.complete_steps()
        durations = [1e3 * trace.duration(step) for step in steps]
        lines.plot(steps, durations, label=title, color=color, marker="o" if len(steps) < 40 else None)
    lines.set(title="Steps in order", xlabel="step", ylabel="ms", ylim=(0, None), ymargin=0.1)
    lines.legend(frameon=False)
    _stack_time(split, traces, titles)
    _stack_bytes(sent, traces, titles)
    for axes in (boxes, lines, split, sent):
        axes.spines[["top", "right"]].set_visible(False)


def _stack_time(axes, traces: list[Trace], titles: list[str]) -> None:
    left = np.zeros(len(traces))
    splits = [mean(list(by_rank(trace).values())) for trace in traces]
    for part in PARTS:
        widths = np.array([1e3 * getattr(split, part) for split in splits])
        if widths.any():
            axes.barh(titles, widths, left=left, label=TITLES[part], height=0.5, **part_style(part))
            left += widths
    axes.invert_yaxis()
    axes.set(title="Where the time of a step goes", xlabel="ms", xlim=(0, 1.05 * max(left) or 1))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.15), ncols=3)


def _stack_bytes(axes, traces: list[Trace], titles: list[str]) -> None:
    left = np.zeros(len(traces))
    sent = [bytes_by_cause(trace) for trace in traces]
    causes = list(dict.fromkeys(why for own in sent for why, _ in own))
    for why, color in zip(causes, MUTED[1:], strict=False):
        widths = np.array([sum(b for (w, _), b in own.items() if w == why) / 2**20 for own in sent])
        axes.barh(titles, widths, left=left, label=why, height=0.5, color=color)
        left += widths
    axes.invert_yaxis()
    axes.set(title="Bytes sent by a rank in a step", xlabel="MiB", xlim=(0, 1.05 * max(left) or 1))
    if causes:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.15), ncols=3)
