"""The timeline of one step: a lane per rank, computing coloured by layer, messages as arrows.

A lane has a broad bar (what the rank does) and a thin one under it (when its messages are under way: exposed
or hidden behind computing). Waiting is hatched: for a late sender, or for a late receiver.
"""

from pathlib import Path

from minidnn.pictures import save, styled
from minidnn.report.colors import HATCHES, HATCHING, STATE_COLORS, families, ink, layer_colors, lighter
from minidnn.report.pieces import Piece, communication, is_hidden, pieces, working
from minidnn.report.records import Trace
from minidnn.text import time

NAMES = {
    "input": "input",
    "update": "update",
    "other": "other",
    "exposed": "communication, exposed",
    "hidden": "communication, hidden",
    "sender_late": "waiting, sender late",
    "receiver_late": "waiting, receiver late",
}
BROAD, THIN = 0.46, 0.09  # heights of the two bars, of a lane of height 1


def save_timeline(trace: Trace, paths: list[str | Path] | str | Path, step: int | None = None) -> None:
    """Write the picture of one step (by default a typical one) to one or more files, .png or .svg."""
    with styled():
        figure = draw(trace, trace.typical_step() if step is None else step)
        save(figure, *([paths] if isinstance(paths, str | Path) else paths), dpi=160, bbox_inches="tight")


def draw(trace: Trace, step: int):
    """A matplotlib figure of one step."""
    ranks = trace.ranks
    with styled() as Figure:
        figure = Figure(figsize=(13, 1.6 + 1.0 * len(ranks)))
    axes = figure.subplots()
    zero, end = trace.window(step)
    colors = layer_colors(trace.layers())
    used: set[str] = set()
    for lane, rank in enumerate(ranks):
        own = pieces(trace, step, rank)
        used |= {piece.kind for piece in own}
        _bars(axes, own, lane, zero, colors)
        _labels(axes, own, lane, zero, colors, 0.0085 * (end - zero))
        for kind, intervals in zip(("exposed", "hidden"), communication(trace, step, rank), strict=True):
            if intervals:
                used.add(kind)
                bars = [(1e3 * (begin - zero), 1e3 * (end - begin)) for begin, end in intervals]
                place = (lane + BROAD / 2 + 0.03, THIN)
                axes.broken_barh(bars, place, facecolors=STATE_COLORS[kind], linewidth=0)
    _arrows(axes, trace, step, zero)
    axes.set_yticks(range(len(ranks)), [f"rank {rank}" for rank in ranks])
    axes.set_ylim(len(ranks) - 0.5, -0.5)
    axes.set_xlim(0, 1e3 * (end - zero))
    axes.set_xlabel("time, ms")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    what = " ".join(str(trace.run[key]) for key in ("model", "strategy") if trace.run.get(key))
    axes.set_title(
        f"{what}, {trace.size} ranks: step {step}, {time(trace.duration(step))}", loc="left", fontsize=12
    )
    _legend(figure, axes, trace, colors, used)
    return figure


def _bars(axes, own: list[Piece], lane: int, zero: float, colors: dict[str, str]) -> None:
    """The broad bar of a lane; pieces that look alike are drawn together, which is much faster."""
    alike: dict[tuple[str, str, str | None], list[tuple[float, float]]] = {}
    for piece in own:
        color, edge, pattern = STATE_COLORS.get(piece.kind, STATE_COLORS["other"]), "none", None
        if piece.kind == "compute":
            color, edge = colors.get(piece.span.layer, STATE_COLORS["update"]), "white"
            color = lighter(color) if piece.span.phase == "forward" else color
        elif piece.kind in HATCHES:
            edge, pattern = HATCHING, HATCHES[piece.kind]
        bar = 1e3 * (piece.begin - zero), 1e3 * (piece.end - piece.begin)
        alike.setdefault((color, edge, pattern), []).append(bar)
    for (color, edge, pattern), bars in alike.items():
        style = {"facecolors": color, "edgecolors": edge, "hatch": pattern, "linewidth": 0.4, "zorder": 2}
        axes.broken_barh(bars, (lane - BROAD / 2, BROAD), **style)


def _labels(axes, own: list[Piece], lane: int, zero: float, colors: dict[str, str], letter: float) -> None:
    """Names inside the bars: neighbours of one family and phase get one name, where it fits.

    `letter` is the time that is as wide as a letter.
    """
    family = families(list(colors))
    groups: list[list] = []
    for piece in own:
        if piece.kind == "compute":
            key = family.get(piece.span.layer, ""), piece.span.phase
            if groups and groups[-1][0] == key and piece.begin - groups[-1][2] < letter / 10:
                groups[-1][2] = piece.end
            else:
                groups.append([key, piece.begin, piece.end])
    for (name, phase), begin, end in groups:
        if name and end - begin > letter * len(name):
            color = lighter(colors[name]) if phase == "forward" else colors[name]
            place = (1e3 * ((begin + end) / 2 - zero), lane)
            style = {"ha": "center", "va": "center", "fontsize": 8, "clip_on": True, "zorder": 4}
            axes.text(*place, name, color=ink(color), **style)


def _arrows(axes, trace: Trace, step: int, zero: float) -> None:
    """Each message as a line from its sending to its arrival, with a head at the receiver."""
    from matplotlib.collections import LineCollection

    lanes = {rank: lane for lane, rank in enumerate(trace.ranks)}
    busy = {rank: working(trace, step, rank) for rank in trace.ranks}
    messages = [m for m in trace.messages_of(step) if m.source in lanes and m.dest in lanes]
    strength = 1.0 if len(messages) <= 100 else max(0.35, 100 / len(messages))
    edge = BROAD / 2 + 0.03 + THIN / 2
    for hidden in (True, False):
        own = [m for m in messages if is_hidden(m, busy) == hidden]
        style = {"color": STATE_COLORS["hidden" if hidden else "exposed"], "alpha": strength, "zorder": 5}
        for down in (True, False):
            way = [m for m in own if (lanes[m.dest] > lanes[m.source]) == down]
            # from the near side of the sender's lane to the near side of the receiver's
            start, stop = (edge, -BROAD / 2) if down else (-BROAD / 2, edge)
            tails = [(1e3 * (m.sent - zero), lanes[m.source] + start) for m in way]
            heads = [(1e3 * (m.done - zero), lanes[m.dest] + stop) for m in way]
            lines = list(zip(tails, heads, strict=True))
            dashes = "--" if hidden else "-"
            axes.add_collection(
                LineCollection(lines, linewidths=1.0, linestyles=dashes, label="messages", **style)
            )
            if heads:
                axes.scatter(
                    *zip(*heads, strict=True), marker="v" if down else "^", s=18, linewidths=0, **style
                )


def _legend(figure, axes, trace: Trace, colors: dict[str, str], used: set[str]) -> None:
    """Outside, to the right: layers, then states, then the two kinds of arrows."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    family = families(trace.layers())
    handles = []
    for leader in dict.fromkeys(family.values()):
        if any(s.layer in family and family[s.layer] == leader for r in trace.ranks for s in trace.spans[r]):
            rest = [layer for layer, its in family.items() if its == leader and layer != leader]
            label = leader + (f" ({', '.join(rest)})" if rest else "")
            handles.append(
                Patch(facecolor=colors[leader], label=label if len(label) < 34 else leader + " ...")
            )
    handles.append(Patch(facecolor=lighter("#555555"), label="lighter: forward, darker: backward"))
    for kind, name in NAMES.items():
        if kind in used and kind in HATCHES:
            handles.append(Patch(facecolor="white", edgecolor=HATCHING, hatch=HATCHES[kind], label=name))
        elif kind in used:
            handles.append(Patch(facecolor=STATE_COLORS[kind], label=name))
    for kind, line in (("exposed", "-"), ("hidden", "--")):
        if kind in used:
            style = {"color": STATE_COLORS[kind], "linestyle": line, "marker": "v", "markersize": 4}
            handles.append(Line2D([], [], label=f"message, {kind}", **style))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=8, frameon=False)
