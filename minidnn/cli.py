"""The `minidnn` command: ``minidnn plan``, ``train``, ``gradcheck``, ``collective``, ``trace``, ...

Each sub-command imports what it needs when it runs, so that ``minidnn plan`` starts fast and nothing
optional is asked for before it is used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from .console import IMAGE, WIDTH, Parser, count, measure, run_program
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
    args = _parser().parse_args(argv)
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
    from .comm import explain
    from .data import command as data
    from .report import commands as report
    from .report import profile

    add(
        "collective",
        "explain a collective algorithm step by step",
        explain.add_arguments,
        _print(explain.main),
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

    add(
        "profile",
        "time each layer of a training step, and compare with the machine's peak",
        profile_options,
        lambda args: profile.run(args, _build_model(args)),
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
    p.add_argument("--model", default="alexnet", help="alexnet, lenet, mlp, ...")
    p.add_argument("--variant", help="of alexnet: thesis, 2012 or owt; default by the image's size")
    p.add_argument("--norm", default="lrn", help="of alexnet: lrn, batch or none")
    p.add_argument("--width", type=WIDTH, default=1.0, help="of alexnet: factor on channels and features")
    p.add_argument("--image", type=IMAGE, default=56, help="pixels")
    p.add_argument("--classes", type=count(), default=200)
    p.add_argument("--batch", type=count(), help="samples of a step over all ranks")


def _plan_options(p: argparse.ArgumentParser) -> None:
    from .parallel.strategies import STRATEGIES

    _model_options(p)
    p.add_argument(
        "--strategy",
        default="owt",
        help=f"{', '.join(STRATEGIES)}; several with --compare, and variants: data,data:factors,owt:b,owt:pairs",
    )
    p.add_argument("--ranks", default="2", help="number of ranks; several with --compare: 2,4,8")
    p.add_argument("--batch-per-rank", type=count())
    p.add_argument(
        "--nodes", type=count(), default=1, help="hosts that the ranks are spread over, for hierarchical"
    )
    p.add_argument("--dtype", default="float32")
    p.add_argument("--all-reduce", default="ring")
    p.add_argument("--buckets", type=measure(1e6), default=25.0, metavar="MIB")
    p.add_argument("--sharded-momentum", action="store_true")
    p.add_argument("--scheme", default="a", help="of owt: a, b or c")
    p.add_argument("--fc-update", default="once", help="of owt: once or each")
    p.add_argument("--fc-gradients", default="sum", help="of replicated linear weights: sum or factors")
    p.add_argument("--fc-pairs", action="store_true", help="of owt: column/row pairs")
    p.add_argument("--micro-batches", type=count(), default=1)
    p.add_argument("--schedule", default="1f1b", help="of layer_split: naive, gpipe, 1f1b or zb-h1")
    p.add_argument("--stages", help="of layer_split: first layers of stages, as conv3,fc6 or 5,11")
    p.add_argument("--dp", type=count(), help="of hybrid and alexnet2012: rows of the process grid")
    p.add_argument(
        "--rank", type=count(0), action="append", metavar="R", help="show this rank only (repeatable)"
    )
    p.add_argument("--compare", action="store_true", help="one table over strategies and numbers of ranks")
    p.set_defaults(local_batch_norm=False, image=None)


def _build_model(args: argparse.Namespace, strategy: str = ""):
    from . import nn

    options: dict[str, object] = {"image": args.image, "classes": args.classes}
    if args.model == "alexnet":
        large = "2012" if strategy == "alexnet2012" else "owt" if args.image >= 200 else "thesis"
        options |= {"variant": args.variant or large, "norm": args.norm, "width": args.width}
    elif args.model == "lenet":
        options["channels"] = 3
    else:
        raise InputError(f"--model {args.model}: expected alexnet or lenet, which take images")
    return nn.build(args.model, **options)


def _make_plan(args: argparse.Namespace, strategy: str, ranks: str):
    from .parallel import make_plan, make_strategy
    from .train.options import BATCH, default_image, parallel_options

    if not ranks.isdecimal() or len(ranks) > 4 or not 1 <= int(ranks) <= 1024:
        raise InputError(
            f"--ranks {ranks}: expected a number from 1 up (several only with --compare), to 1024"
        )
    size = int(ranks)
    if args.batch is not None and args.batch_per_rank is not None:
        raise InputError("--batch and --batch-per-rank exclude each other: give one of them")
    batch = args.batch_per_rank * size if args.batch_per_rank else args.batch or BATCH
    if not 1 <= args.nodes <= size:
        raise InputError(f"--nodes {args.nodes}: expected 1 to {size}, the number of ranks")
    nodes = tuple(rank * args.nodes // size for rank in range(size))
    options = parallel_options(args, batch=batch, nodes=nodes)
    if args.image is None:
        args.image = default_image("2012" if strategy == "alexnet2012" else "")
    shape = (args.image, args.image, 3)
    model = _build_model(args, strategy)
    return make_plan(
        model, shape, make_strategy(strategy, model, shape, size, options), batch, options, args.model
    )


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
        from .parallel.compare import compare_plans

        names, sizes = args.strategy.split(","), args.ranks.split(",")
        print(compare_plans({name: [_make_plan(*_variant(args, name), n) for n in sizes] for name in names}))
        return 0
    from .parallel.describe import plan_text

    plan = _make_plan(args, args.strategy, args.ranks)
    for rank in args.rank or ():
        if not 0 <= rank < plan.size:
            raise InputError(f"--rank {rank}: the plan has ranks 0 to {plan.size - 1}")
    print(plan_text(plan, args.rank))
    return 0


def _summary(args: argparse.Namespace) -> int:
    from . import nn

    print(nn.summary(_build_model(args), (args.image, args.image, 3), args.batch or 1))
    return 0


def _gradcheck_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("operation", nargs="*", help="only these operations")


def _gradcheck(args: argparse.Namespace) -> int:
    from .gradcheck import gradcheck_report

    text, ok = gradcheck_report(tuple(args.operation))
    print(text)
    return 0 if ok else 1
