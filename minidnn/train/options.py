"""The options that every training program takes, on the command line or from a TOML file."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..console import FRACTION, IMAGE, WIDTH, Parser, count, measure, one_of, path
from ..errors import InputError
from ..nn.models import MODELS
from ..parallel.mesh import Mesh
from ..parallel.schedule import PIPELINES
from ..parallel.strategies import STRATEGIES
from ..parallel.strategy import Options

# Of a run with --check that does not say how long. Longer ones are honest in float64 only: in float32, rounding
# sooner or later turns a ReLU on in one run that is off in the other, and from there they part.
CHECK_STEPS = 3
# AlexNet's own (2012, sec. 5), as momentum and weight decay are. The thesis has 16 samples, without momentum; but with
# few samples a step is the reading and updating of the fully connected weights, however the work is split.
BATCH, EPOCHS, RATE = Options.batch, 10, 0.01
LARGE = 200  # pixels from which images are as those of the published networks

LONGEST = 2**20  # bytes that are read of a TOML file, which may turn out to be an endless device
# What an argument of the library is called on the command line, where not like itself.
_FLAGS = {"bucket_mib": "buckets"}
# What a value in a TOML file must be for an option of a type.
_TOML = {int: ((int,), "a whole number"), float: ((int, float), "a number"), str: ((str,), "a text")}


def parser(description: str, strategy: str | None) -> argparse.ArgumentParser:
    """The parser of a training program; `strategy` is its default, or None to ask for one."""
    p = Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_step_options(p, strategy)
    _output_options(p.add_argument_group("output"))
    return p


def add_step_options(p: argparse.ArgumentParser, strategy: str | None) -> None:
    """All that a training step depends on, so that what plans it takes the same."""
    p.add_argument(
        "--config", type=path, metavar="FILE.toml", help="read options from a TOML file; flags override it"
    )
    add_model_options(p.add_argument_group("model and data"))
    _training_options(p.add_argument_group("training"))
    _parallel_options(p.add_argument_group("parallelism"), strategy)


def add_model_options(g) -> None:
    """Those that say which model it is."""
    g.add_argument("--model", default="alexnet", help=f"one of {', '.join(MODELS)}")
    g.add_argument("--variant", help="of alexnet: thesis, 2012 or owt; default by --strategy and --image")
    g.add_argument("--norm", default="lrn", help="of alexnet: lrn, batch or none")
    g.add_argument("--width", type=WIDTH, default=1.0, help="of alexnet: factor on channels and features")
    g.add_argument("--dropout", type=FRACTION, default=0.5, help="of alexnet's fully connected layers")
    g.add_argument(
        "--data",
        type=path,
        metavar="PATH",
        help="folder or zip of Tiny ImageNet or Dogs vs. Cats; default: shapes",
    )
    g.add_argument("--image", type=IMAGE, help="pixels; default the data set's; of shapes 56, 67 for 2012")
    g.add_argument("--classes", type=count(), default=10, help="of the embedded shapes")
    g.add_argument("--images", type=count(), default=2000, help="training images of the embedded shapes")
    g.add_argument("--augment", action="store_true", help="random flips and crops")


def _training_options(g) -> None:
    g.add_argument("--batch", type=count(), help=f"samples of a step over all ranks; default {BATCH}")
    g.add_argument("--batch-per-rank", type=count(), help="samples of a step per rank, instead")
    g.add_argument("--epochs", type=count(), help=f"default {EPOCHS}")
    g.add_argument("--steps", type=count(), help="of an epoch; default once through the data")
    g.add_argument(
        "--validation", type=count(0), default=500, metavar="N", help="validation images an epoch; 0: none"
    )
    g.add_argument("--lr", type=measure(), default=RATE, help=f"learning rate, default {RATE}")
    g.add_argument(
        "--conv-lr-scale", type=measure(), default=1.0, help="of owt: factor on the convolutions' rate"
    )
    g.add_argument("--momentum", type=FRACTION, default=0.9)
    g.add_argument("--weight-decay", type=measure(), default=5e-4)
    g.add_argument("--decay", type=measure(), default=1e-6, help="Keras's: lr / (1 + decay * iteration)")
    g.add_argument("--dtype", default="float32", help="float32 or float64")
    g.add_argument("--seed", type=count(0, 2**63 - 1), default=0)
    g.add_argument("--device", type=one_of("cpu", "gpu"), default="cpu", help="cpu or gpu")


def _parallel_options(g, strategy: str | None) -> None:
    g.add_argument("--strategy", default=strategy, help=f"one of {', '.join(STRATEGIES)}")
    g.add_argument("--mesh", metavar="AXES", help="ranks along named axes, as data=2,stage=2,model=2")
    g.add_argument(
        "--split", metavar="RULES", help='in place of a strategy: "conv*: n=data,model; fc*: n=data o=model"'
    )
    g.add_argument(
        "--all-reduce", default="ring", help="ring, doubling, halving, tree, direct, hierarchical, mpi, auto"
    )
    g.add_argument(
        "--buckets",
        type=measure(1e6),
        default=25.0,
        metavar="MIB",
        help="gradient buckets; 0: one per parameter",
    )
    g.add_argument(
        "--sharded-momentum", action="store_true", help="each rank updates its shard of the gradients"
    )
    g.add_argument("--local-batch-norm", action="store_true", help="do not synchronise batch norm over ranks")
    g.add_argument("--scheme", default="a", help="of owt: a, b or c")
    g.add_argument("--fc-update", default="once", help="of owt: once, or each micro-batch")
    g.add_argument(
        "--fc-gradients",
        default="sum",
        help="of replicated fully connected weights: sum them, or gather their factors",
    )
    g.add_argument(
        "--fc-pairs", action="store_true", help="of owt: column/row pairs of fully connected layers"
    )
    g.add_argument("--micro-batches", type=count(), default=1, metavar="M")
    g.add_argument("--schedule", default="1f1b", help=f"of a pipeline: {', '.join(PIPELINES)}")
    g.add_argument("--stages", help="of a pipeline: first layers of stages 1, 2, ..., as conv3,fc6 or 5,11")
    g.add_argument(
        "--balance",
        type=one_of("estimated", "measured"),
        default="estimated",
        help="of a pipeline: estimated or measured layer costs",
    )
    g.add_argument("--dp", type=count(), help="of hybrid, 3d and alexnet2012: ranks along data")
    g.add_argument("--debug-comm", action="store_true", help="compare a header before every collective")


def _output_options(g) -> None:
    g.add_argument(
        "--check",
        action="store_true",
        help="run the one-process twin beside and compare; of a trace, each message",
    )
    g.add_argument("--plot", type=path, metavar="FILE.png", help="curves, and where the time went")
    g.add_argument(
        "--trace", type=path, metavar="DIR", help="record every message; write tables, pictures and a report"
    )
    g.add_argument(
        "--trace-steps", type=count(), default=20, metavar="N", help="keep the last N steps of a trace"
    )
    g.add_argument("--overwrite", action="store_true", help="let --trace replace an earlier run's folder")
    g.add_argument("--explain", action="store_true", help="tell step 1 in words")
    g.add_argument("--quiet", action="store_true", help="do not print the plan")


def parse(p: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse flags over a TOML file over defaults.

    Raises
    ------
    InputError
        An unknown option or a value that does not fit, in either place.
    """
    first, _ = p.parse_known_args(argv)
    if first.config:
        p.set_defaults(**read_toml(p, first.config))
    return complete(p.parse_args(argv))


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Check what options are together, and fill in the defaults that depend on others."""
    if args.strategy is None and not args.split:
        raise InputError(f"--strategy is missing: expected one of {', '.join(STRATEGIES)}")
    if args.batch is not None and args.batch_per_rank is not None:
        raise InputError("--batch and --batch-per-rank exclude each other: give one of them")
    if getattr(args, "check", False) and args.epochs is None and args.steps is None:
        args.steps, args.epochs = CHECK_STEPS, 1
    args.epochs = args.epochs or EPOCHS
    args.variant = args.variant or default_variant(args.strategy, args.image)
    parallel_options(args)
    return args


def default_variant(strategy: str | None, image: int | None) -> str:
    """AlexNet for large images is One Weird Trick's, for small ones the thesis's; that of 2012 for its strategy."""
    return "2012" if strategy == "alexnet2012" else "owt" if (image or 0) >= LARGE else "thesis"


def default_image(variant: str) -> int:
    """Pixels of an image where none are asked for: 56, or 67, the least that the network of 2012 takes."""
    return 67 if variant == "2012" else 56


def read_toml(p: argparse.ArgumentParser, file: str) -> dict[str, object]:
    """The options in a file, those of every training program among them."""
    try:
        with open(file, "rb") as source:
            values = tomllib.loads(source.read(LONGEST).decode())
    except OSError as error:
        raise InputError(f"--config {file}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"--config {file}: not TOML: {error}") from None
    actions = {a.dest: a for a in (*parser("", None)._actions, *p._actions)}
    defaults = {}
    for key, value in values.items():
        action = actions.get(key.replace("-", "_"))
        if action is None or action.dest in ("config", "help"):
            known = sorted(d.replace("_", "-") for d in actions if d not in ("config", "help"))
            raise InputError(f"--config {file}: unknown option {key!r}; known: {', '.join(known)}")
        switch = action.const is True
        if action.dest == "stages" and isinstance(value, list):
            value = ",".join(map(str, value))
        kinds, words = ((bool,), "true or false") if switch else _TOML[getattr(action.type, "kind", str)]
        if not isinstance(value, kinds) or isinstance(value, bool) != switch:
            raise InputError(f"--config {file}: {key} = {value!r}: expected {words}")
        try:
            defaults[action.dest] = action.type(value) if action.type else value
        except (argparse.ArgumentTypeError, OverflowError) as error:
            raise InputError(f"--config {file}: --{action.dest.replace('_', '-')} {error}") from None
    return defaults


@contextmanager
def speaking_of_flags() -> Iterator[None]:
    """Inside, an error about an argument of the library names the option of the command line instead."""
    try:
        yield
    except InputError as error:
        if not error.argument:
            raise
        flag = _FLAGS.get(error.argument, error.argument).replace("_", "-")
        raise InputError(f"--{flag} {error.value}: expected {error.expected}") from None


def parallel_options(args: argparse.Namespace, **overrides: object) -> Options:
    """The planner's options from the command line's."""
    stages = None
    if args.stages:
        words = (word.strip() for word in args.stages.split(","))
        stages = tuple(int(word) if word.isdecimal() and len(word) < 10 else word for word in words)
    same = (
        "dtype all_reduce sharded_momentum micro_batches schedule scheme fc_update fc_gradients fc_pairs dp"
    )
    values: dict[str, object] = {name: getattr(args, name) for name in same.split()}
    values |= {"split": args.split or "", "stages": stages, "bucket_mib": args.buckets}
    values |= {"sync_batch_norm": not args.local_batch_norm, **overrides}
    with speaking_of_flags():
        return Options(mesh=Mesh.parse(args.mesh) if args.mesh else None, **values)
