"""``minidnn collective ring --ranks 4``: a collective round by round, as a table and as a drawing.

Each cell says whose contributions a rank's copy of a chunk holds: in an all_reduce they grow from one rank
to all.
"""

from __future__ import annotations

import argparse
from math import ceil

from minidnn.comm.algorithms import ALGORITHMS
from minidnn.console import count, path
from minidnn.errors import InputError
from minidnn.pictures import save, styled

from .bandwidth import lower_bound
from .provenance import Provenance, provenance

#: What can be explained: all_to_all adds nothing up, and a single message explains itself.
EXPLAINED = tuple(op for op in ALGORITHMS if op not in ("all_to_all", "send"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``minidnn collective``."""
    names = sorted({name for op in EXPLAINED for name in ALGORITHMS[op]})
    parser.add_argument("algorithm", help=f"one of {', '.join(names)}")
    parser.add_argument(
        "--op", help=f"one of {', '.join(EXPLAINED)} (default: the first that has the algorithm)"
    )
    parser.add_argument("--ranks", type=count(1, 64), default=4, help="number of ranks (default 4)")
    parser.add_argument("--elements", type=count(0), help="length of the array (default: 4 per rank)")
    parser.add_argument("--root", type=count(0), default=0, help="of a broadcast, reduce, scatter or gather")
    parser.add_argument("--nodes", help="for hierarchical: the node of each rank, as in 0,0,1,1")
    parser.add_argument("--segments", type=count(1, 1024), help="for chain: the number of pieces (default 4)")
    parser.add_argument("--plot", type=path, metavar="FILE", help="draw it, too: .png, .svg or .pdf")


def main(args: argparse.Namespace) -> str:
    """The explanation that the options ask for, as text; with ``--plot`` also writes the drawing.

    Raises
    ------
    InputError
        An unknown algorithm, or options that do not fit it.
    """
    history = _history(args)
    text = table(history) + "\n\n" + costs(history)
    if args.plot:
        with styled():
            save(figure(history), args.plot, dpi=150, bbox_inches="tight")
        text += f"\ndrawn to {args.plot}"
    return text


def _history(args):
    ops = [op for op in EXPLAINED if args.algorithm in ALGORITHMS[op]] if args.op is None else [args.op]
    if not ops:
        known = sorted({name for op in EXPLAINED for name in ALGORITHMS[op]})
        raise InputError(f"unknown algorithm {args.algorithm!r}; known: {', '.join(known)}")
    n = 4 * args.ranks if args.elements is None else args.elements
    options = {"root": args.root}
    if args.algorithm == "chain":
        options["segments"] = 4 if args.segments is None else args.segments
    if args.algorithm == "hierarchical":
        default = [2 * rank // args.ranks for rank in range(args.ranks)]  # two nodes
        try:
            options["nodes"] = tuple(map(int, args.nodes.split(",")) if args.nodes else default)
        except ValueError:
            raise InputError(
                f"--nodes {args.nodes}: expected a number for each rank, as in 0,0,1,1"
            ) from None
    return provenance(ops[0], args.algorithm, args.ranks, n, **options)


def table(history: Provenance) -> str:
    """Who holds what after each round, and what was sent to get there."""
    p, n = len(history.rounds), history.edges[-1]
    chunks = list(zip(history.edges, history.edges[1:], strict=False))
    cells = [[[_contributors(held, p) for held in own] for own in state] for state in history.states]
    width = max([6, *(len(cell) for state in cells for own in state for cell in own)]) + 2
    lines = [f"{history.op} {history.algorithm}: {p} ranks, {n} elements, {len(history.rounds[0])} rounds"]
    lines.append("Each cell lists the ranks whose contributions are in that chunk on that rank; · is none.")
    head = "".join(f"[{a}:{b}]".ljust(width) for a, b in chunks)
    for index, state in enumerate(cells):
        if index:
            lines += ["", f"round {index} of {len(history.rounds[0])}"]
            lines += ["  " + line for line in _messages(history, index - 1)]
        else:
            lines += ["", "at the start"]
        lines.append(" " * 10 + head)
        lines += [
            f"  rank {rank:<3}" + "".join(cell.ljust(width) for cell in own) for rank, own in enumerate(state)
        ]
    return "\n".join(line.rstrip() for line in lines)


def _contributors(held, p) -> str:
    if not held:
        return "·"
    if len(held) == p and p > 4:
        return "all"
    return ("" if p <= 10 else ",").join(map(str, sorted(held)))


def _messages(history, index) -> list[str]:
    lines = []
    for rank, own in enumerate(history.rounds):
        for move in own[index]:
            if move.kind == "send":
                there = (m for m in history.rounds[move.peer][index] if m.kind == "recv")
                adding = any(m.reduce and m.peer == rank and m.start == move.start for m in there)
                what = "which adds it" if adding else "which keeps it"
                lines.append(f"{rank} sends [{move.start}:{move.stop}] to {move.peer}, {what}")
    return lines or ["nothing is sent"]


def costs(history: Provenance) -> str:
    """Messages and elements that each rank sends, and the least that any algorithm must."""
    p, n = len(history.rounds), history.edges[-1]
    lines = ["sent        messages  elements"]
    for rank, own in enumerate(history.rounds):
        sent = [move.elements for moves in own for move in moves if move.kind == "send"]
        lines.append(f"  rank {rank:<5}{len(sent):>7}{sum(sent):>10}")
    if history.op == "all_reduce":
        least = f"at least 2 n (p - 1) / p = {ceil(lower_bound(history.op, p, n))} elements"
        lines.append(f"{least} must be sent by some rank, in any algorithm")
    return "\n".join(lines)


def figure(history: Provenance):
    """The same, drawn: time to the right, ranks downwards, arrows for messages, darker for more complete."""
    with styled() as Figure:
        import matplotlib
    p, times, n = len(history.rounds), len(history.states), max(1, history.edges[-1])
    colours = matplotlib.colormaps["cividis_r"]
    drawing = Figure(figsize=(min(24, 1.2 + 2.1 * times), 1.0 + 0.75 * p))
    axes = drawing.add_subplot()
    box, gap, height = 1.0, 0.75, 0.42

    def place(time, element):
        return time * (box + gap) + box * element / n

    for time, state in enumerate(history.states):
        for rank, own in enumerate(state):
            for start, stop, held in zip(history.edges, history.edges[1:], own, strict=False):
                left, width = place(time, start), place(time, stop) - place(time, start)
                share, text = len(held) / p, _contributors(held, p)
                look = {"color": colours(0.1 + 0.8 * share) if held else "white", "ec": "0.4", "lw": 0.6}
                axes.bar(left, height, width, rank - height / 2, align="edge", **look)
                if len(text) <= 17 * width:
                    look = {"color": "white" if share > 0.55 else "black", "size": 7}
                    axes.text(left + width / 2, rank, text, ha="center", va="center", **look)
        arrow = {"arrowstyle": "->", "color": "0.25", "lw": 0.8}
        for rank, own in enumerate(history.rounds if time else ()):
            for move in own[time - 1]:
                if move.kind == "send":
                    ends = (place(time, 0) - 0.03, move.peer), (place(time - 1, n) + 0.03, rank)
                    axes.annotate("", *ends, arrowprops=arrow)
    axes.set_xlim(-0.1, place(times - 1, n) + 0.1)
    axes.set_ylim(p - 0.5, -0.5)
    axes.set_yticks(range(p), [f"rank {rank}" for rank in range(p)])
    names = ["start", *(f"after round {time}" for time in range(1, times))]
    axes.set_xticks([place(time, n / 2) for time in range(times)], names)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    title = f"{history.op} {history.algorithm}, {p} ranks: whose contributions each chunk holds"
    axes.set_title(title, size=10)
    return drawing
