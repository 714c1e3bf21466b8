"""The `minidnn` command: ``minidnn plan``, ``train``, ``gradcheck``, ``collective``, ``trace``, ...

Each sub-command imports what it needs when it runs, so that ``minidnn plan`` starts fast and nothing
optional is asked for before it is used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from .console import Parser, count, run_program
from .errors import InputError


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exits with code 0, 1 (a check failed) or 2 (bad input)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["train"]:  # under mpirun: its own parser, inside the guard
        from .train import run

        run("Train a model by any strategy: mpirun -n 2 minidnn train --strategy owt", None, argv[1:])
        return
    run_program(_run, argv)


def _run(argv: Sequence[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if getattr(args, "config", None):
        from .train.options import read_toml

        args.options_of.set_defaults(**read_toml(args.options_of, args.config))
        args = parser.parse_args(argv)
    return args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="minidnn", description="Deep learning in which every message can be seen.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help: str, fill: Callable, run: Callable) -> None:
        sub = commands.add_parser(name, help=help, description=help)
        fill(sub)
        sub.set_defaults(run=run)

    commands.add_parser(
        "train", help="train a model by any strategy (mpirun -n 2 minidnn train --strategy owt)"
    )
    add("plan", "print the plan of a training step: layers, placements, every message", _plan_options, _plan)
    add("summary", "print a model's layers, shapes, parameters and arithmetic", _model_options, _summary)
    add(
        "gradcheck",
        "check the gradients of every operation by finite differences",
        _gradcheck_options,
        _gradcheck,
    )
    _add_delegated(add)
    return parser


def _add_delegated(add: Callable) -> None:
    """Commands whose options and work live with what they are about."""
    from .data import command as data
    from .report import collective, profile
    from .report import commands as report

    add(
        "collective",
        "explain a collective algorithm step by step",
        collective.add_arguments,
        _print(collective.main),
    )
    add("data", "fetch a data set, or say what a folder or zip holds", data.add_arguments, data.main)
    add(
        "trace", "show a recorded run: tables, timeline, report", report.add_trace_arguments, report.run_trace
    )
    add("compare", "compare recorded runs side by side", report.add_compare_arguments, report.run_compare)

    def profile_options(p: argparse.ArgumentParser) -> None:
        _model_options(p)
        profile.add_arguments(p)
        p.set_defaults(batch=16)  # the thesis's

    def run_profile(args: argparse.Namespace) -> int:
        from .train.planning import planned_model

        return profile.run(args, *planned_model(args))

    add(
        "profile",
        "time each layer of a training step, and compare with the machine's peak",
        profile_options,
        run_profile,
    )

    def graph_options(p: argparse.ArgumentParser) -> None:
        _plan_options(p)
        report.add_graph_arguments(p)

    add(
        "graph",
        "draw the layers, placements and communication layers of a plan",
        graph_options,
        lambda args: report.run_graph(args, _make_plan(args, args.strategy, args.ranks)),
    )


def _print(run: Callable[[argparse.Namespace], str]) -> Callable[[argparse.Namespace], int]:
    def printing(args: argparse.Namespace) -> int:
        print(run(args))
        return 0

    return printing


def _model_options(p: argparse.ArgumentParser) -> None:
    from .train.options import add_model_options

    add_model_options(p)
    p.add_argument("--batch", type=count(), help="samples of a step")
    p.set_defaults(strategy=None)


def _plan_options(p: argparse.ArgumentParser) -> None:
    from .train.options import add_step_options

    add_step_options(p, "owt")
    p.add_argument("--ranks", default="2", help="number of ranks; several with --compare: 2,4,8")
    p.add_argument(
        "--nodes", type=count(), default=1, help="hosts that the ranks are spread over, for hierarchical"
    )
    p.add_argument(
        "--rank", type=count(0), action="append", metavar="R", help="show this rank only (repeatable)"
    )
    p.add_argument(
        "--compare",
        action="store_true",
        help="one table over numbers of ranks and strategies, with variants: data,data:factors,owt:b,owt:pairs",
    )
    p.set_defaults(options_of=p)


def _make_plan(args: argparse.Namespace, strategy: str, ranks: str):
    from .train.options import complete
    from .train.planning import plan_of

    if not ranks.isdecimal() or len(ranks) > 4 or not 1 <= int(ranks) <= 1024:
        raise InputError(
            f"--ranks {ranks}: expected a number from 1 up (several only with --compare), to 1024"
        )
    size = int(ranks)
    if not 1 <= args.nodes <= size:
        raise InputError(f"--nodes {args.nodes}: expected 1 to {size}, the number of ranks")
    return plan_of(complete(argparse.Namespace(**vars(args) | {"strategy": strategy})), size, args.nodes)


_VARIANTS = {
    "pairs": {"fc_pairs": True},
    "factors": {"fc_gradients": "factors"},
    "sharded": {"sharded_momentum": True},
    **{scheme: {"scheme": scheme} for scheme in "abc"},
}


def _variant(args: argparse.Namespace, name: str) -> tuple[argparse.Namespace, str]:
    """The options and the strategy of a row of a comparison, such as "owt:b:pairs"."""
    strategy, *parts = name.split(":")
    options = vars(args).copy()
    for part in parts:
        if part not in _VARIANTS:
            raise InputError(f"--strategy {name}: expected one of {', '.join(_VARIANTS)} after the colon")
        options |= _VARIANTS[part]
    return argparse.Namespace(**options), strategy


def _plan(args: argparse.Namespace) -> int:
    if args.compare:
        from .report.plan_compare import compare_plans

        names, sizes = args.strategy.split(","), args.ranks.split(",")
        print(compare_plans({name: [_make_plan(*_variant(args, name), n) for n in sizes] for name in names}))
        return 0
    from .parallel.describe import plan_text
    from .report.plan_compare import totals_line

    plan = _make_plan(args, args.strategy, args.ranks)
    for rank in args.rank or ():
        if not 0 <= rank < plan.size:
            raise InputError(f"--rank {rank}: the plan has ranks 0 to {plan.size - 1}")
    print(plan_text(plan, args.rank) + "\n\n" + totals_line(plan))
    return 0


def _summary(args: argparse.Namespace) -> int:
    from . import nn
    from .train.options import speaking_of_flags
    from .train.planning import planned_model

    with speaking_of_flags():
        print(nn.summary(*planned_model(args), args.batch or 1))
    return 0


def _gradcheck_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("operation", nargs="*", help="only these operations")


def _gradcheck(args: argparse.Namespace) -> int:
    from .gradcheck import gradcheck_report

    text, ok = gradcheck_report(tuple(args.operation))
    print(text)
    return 0 if ok else 1
