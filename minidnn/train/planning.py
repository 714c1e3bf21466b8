"""Which model, and which plan of a step, the options mean: `minidnn plan` and every training program ask here."""

from __future__ import annotations

import argparse
from functools import cache
from typing import Any

from .. import nn
from ..data.archives import inspect
from ..errors import InputError
from ..parallel import STRATEGIES, Options, Plan, Shard, make_plan, make_strategy
from ..parallel.mesh import Mesh
from ..parallel.placement import Halo
from ..parallel.planned import LayerPlan
from .options import BATCH, default_image, default_variant, parallel_options, parser, speaking_of_flags

# By the options of `Options` that strategies read, the flags that set them.
_READ = {
    name: name for name in ("scheme", "fc_update", "fc_pairs", "schedule", "stages", "micro_batches", "dp")
}
_READ["costs"] = "balance"
_FLAGS = (*_READ.values(), "buckets", "sharded_momentum", "fc_gradients", "conv_lr_scale", "local_batch_norm")


def build_model(args: argparse.Namespace, image: int, classes: int) -> nn.Sequential:
    """The model that the options ask for, without weights, for images of `image` pixels."""
    if args.model == "alexnet":
        names = ("variant", "norm", "dropout", "width")
        return nn.build(
            "alexnet", image=image, classes=classes, **{name: getattr(args, name) for name in names}
        )
    if args.model == "lenet":
        return nn.build("lenet", image=image, channels=3, classes=classes)
    raise InputError(f"--model {args.model}: expected alexnet or lenet, which take images")


def planned_model(args: argparse.Namespace) -> tuple[nn.Sequential, tuple[int, ...]]:
    """The model that training with these options would train, and the shape of an image; no image is decoded."""
    listing = inspect(args.data) if args.data else None
    variant = args.variant or default_variant(args.strategy, args.image)
    image = args.image or (listing.image if listing else default_image(variant))
    classes = len(listing.classes) if listing else args.classes
    with speaking_of_flags():
        return build_model(argparse.Namespace(**vars(args) | {"variant": variant}), image, classes), (
            image,
            image,
            3,
        )


def batch_of(args: argparse.Namespace, ranks: int) -> int:
    """Samples of a step."""
    return args.batch_per_rank * ranks if args.batch_per_rank else args.batch or BATCH


def plan_of(args: argparse.Namespace, ranks: int, nodes: int) -> Plan:
    """The plan of a training step over `ranks` ranks, spread over so many nodes."""
    model, shape = planned_model(args)
    batch = batch_of(args, ranks)
    options = parallel_options(args, batch=batch)
    with speaking_of_flags():
        strategy = make_strategy(args.strategy, model, shape, ranks, options)
        where = tuple(rank * nodes // ranks for rank in range(ranks))
        return make_plan(model, shape, strategy, batch, args.model, where)


def apart(layer: LayerPlan, mesh: Mesh) -> bool:
    """Whether ranks see different samples, or parts of the images, of what a layer takes."""
    placed = zip(layer.derived.inputs[0], mesh.sizes, strict=True)
    return any(isinstance(p, Shard | Halo) and p.axis != -1 for p, size in placed if size > 1)


def normalises(layer: LayerPlan) -> bool:
    """Whether there is a batch norm in a layer."""
    return layer.layer is not None and any(m.statistics for _, m in layer.layer.named_modules())


class _Noted:
    """Options that note which of them are read."""

    def __init__(self, options: Options) -> None:
        self.options, self.names = options, set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self.options, name)


def without_effect(
    args: argparse.Namespace, model: nn.Sequential, shape: tuple[int, ...], ranks: int
) -> list[str]:
    """A line for each option that was given and that is not read, or makes no difference to this strategy over so many
    ranks."""
    defaults, options = parser("", None), parallel_options(args, batch=batch_of(args, ranks))
    unread = {}
    if args.data:
        unread |= dict.fromkeys(("classes", "images"), "with --data: it is of the shapes")
    if not args.trace:
        unread |= dict.fromkeys(("trace_steps", "overwrite"), "without --trace")
    if args.model != "alexnet":
        unread |= dict.fromkeys(("norm", "width", "dropout"), f"with --model {args.model}")
    given = {n for n in (*unread, *_FLAGS) if getattr(args, n) != defaults.get_default(n)}
    used = cache(lambda strategy: _used(strategy, model, shape, ranks, options))
    for name in _FLAGS:
        if name in given and name not in used(args.strategy):
            others = [s for s in STRATEGIES if not args.split and name in used(s)]
            only = f", only with {', '.join(others)}" if others else f" on {ranks} rank{'s' * (ranks > 1)}"
            unread[name] = f"with {'--split' if args.split else f'--strategy {args.strategy}'}{only}"
    lines = {name: f"note: --{name.replace('_', '-')} has no effect {why}" for name, why in unread.items()}
    return [line for name, line in lines.items() if name in given]


def _used(name: str, model: nn.Sequential, shape: tuple[int, ...], ranks: int, options: Options) -> set[str]:
    """The flags that make a difference to a strategy; none where it cannot be made."""
    noted: Any = _Noted(options)
    try:
        strategy = make_strategy(name, model, shape, ranks, noted)
        plan = make_plan(model, shape, strategy, options.batch)
    except InputError:
        return set()
    for stage in range(strategy.mesh.axis_size("stage")):
        strategy.schedule(stage)
    found = {flag for argument, flag in _READ.items() if argument in noted.names}
    buckets = [bucket for own in plan.buckets.values() for bucket in own]
    more = {
        "buckets": buckets,
        "sharded_momentum": buckets,
        "fc_gradients": any(bucket.matrix for bucket in buckets),
        "conv_lr_scale": "conv" in strategy.updates.values(),
        "local_batch_norm": any(normalises(x) and apart(x, plan.mesh) for x in plan.layers),
    }
    return found | {flag for flag, matters in more.items() if matters}
