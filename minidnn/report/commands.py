"""The commands `minidnn trace`, `minidnn compare` and `minidnn graph`."""

import argparse

from minidnn.console import count, path
from minidnn.errors import InputError
from minidnn.report.compare import compare, save_comparison
from minidnn.report.explain import explain
from minidnn.report.graph import save_graph
from minidnn.report.tables import report
from minidnn.report.trace import describe, load, read
from minidnn.report.views import write_views


def add_trace_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `minidnn trace`."""
    parser.add_argument("folder", type=path, metavar="DIR", help="what --trace DIR wrote")
    parser.add_argument("--explain", action="store_true", help="tell one step in words")
    parser.add_argument(
        "--step", type=count(0), metavar="N", help="the step to tell and draw (default: a typical one)"
    )
    parser.add_argument(
        "--rank", type=count(0), action="append", metavar="R", help="tell only this rank (repeatable)"
    )
    parser.add_argument("--every-round", action="store_true", help="tell every round of every collective")
    parser.add_argument(
        "-o",
        "--out",
        type=path,
        metavar="DIR",
        help="where the pictures go (default: into the trace's folder)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="only print")


def run_trace(args: argparse.Namespace) -> int:
    """Print the tables, write the pictures; with --explain, tell one step.

    Raises
    ------
    InputError
        when the folder is not a whole trace, after what could be read has been shown.
    """
    trace, problems = read(args.folder)
    if trace is not None:
        if args.step is not None and args.step not in trace.complete_steps():
            known = ", ".join(map(str, trace.complete_steps())) or "none"
            raise InputError(f"--step {args.step}: the trace's whole steps are {known}")
        print(report(trace))
        if args.explain and trace.complete_steps():
            print("\n" + explain(trace, args.step, args.rank, args.every_round))
        if not args.no_pictures and (trace.complete_steps() or not problems):
            print("\n" + "\n".join(write_views(trace, args.out, args.step)))
    if problems or trace is None:
        shown = "; what could be read is shown above" if trace is not None else ""
        raise InputError(f"{args.folder}: {describe(problems)}{shown}")
    return 0


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `minidnn compare`."""
    parser.add_argument(
        "folders", nargs="+", type=path, metavar="DIR", help="two or more folders that --trace wrote"
    )
    parser.add_argument(
        "-o", "--out", type=path, metavar="FILE", help="draw them, too: FILE.png, .svg or .pdf"
    )


def run_compare(args: argparse.Namespace) -> int:
    """Print several runs side by side, and draw them."""
    if len(args.folders) < 2:
        raise InputError(f"compare needs at least two folders, got {len(args.folders)}")
    traces = [load(folder) for folder in args.folders]
    for trace in traces:
        trace.typical_step()  # raises where there is nothing to compare
    print(compare(traces))
    if args.out:
        save_comparison(traces, args.out)
        print(f"\nwrote {args.out}")
    return 0


def add_graph_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `minidnn graph`, beside those that choose the plan."""
    parser.add_argument(
        "-o", "--out", type=path, default="graph.svg", metavar="FILE", help="FILE.svg, .png or .pdf"
    )


def run_graph(args: argparse.Namespace, plan) -> int:
    """Draw a plan."""
    drawn_by = save_graph(plan, args.out)
    print(f"wrote {args.out}, drawn by {drawn_by}")
    return 0
