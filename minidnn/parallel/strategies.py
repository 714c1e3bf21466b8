"""The strategies: each says where every layer lives and how a step runs; none has its own engine.

==============  ==================================================================================
sequential      one rank
data            samples split, weights on every rank, gradients summed
layer_split     consecutive layers on each rank, micro-batches pipelined between them
owt             One Weird Trick: convolutions by samples, fully connected layers by features
                (Krizhevsky 2014, arXiv 1404.5997)
hybrid          OWT over each row of a dp x mp grid, data parallel over its columns
tensor          every layer by features: channels of convolutions, column/row pairs of linear layers
                (Shoeybi et al. 2019, arXiv 1909.08053)
alexnet2012     the two towers of the original network (Krizhevsky et al. 2012, sec. 3.2)
==============  ==================================================================================

`place` makes a strategy of placements written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from .. import nn
from ..errors import InputError
from .balance import balanced_starts
from .costs import estimated_costs
from .placement import Grid, OnRank, Partial, Placement, Replicate, Shard
from .planner import LOSS
from .schedule import accumulate, live_activations, one_weird_trick, pipeline
from .shard import PlacementError, requirement
from .strategy import Options, Strategy

Shape = tuple[int, ...]


def sequential(model: nn.Sequential, shape: Shape, ranks: int, options: Options) -> Strategy:
    """One process; the reference of all the others."""
    if ranks != 1:
        raise InputError(f"strategy 'sequential' runs on 1 rank, got {ranks}: choose another --strategy")
    return _one_segment("sequential", model, Grid(1, 1), Shard(0), options)


def data(model: nn.Sequential, shape: Shape, ranks: int, options: Options) -> Strategy:
    """Data parallelism: `Shard(0)` throughout, gradients summed in buckets during backward."""
    return _one_segment("data", model, Grid(1, ranks), Shard(0), options)


def _one_segment(name: str, model, grid: Grid, placement: Placement, options: Options) -> Strategy:
    placements = {layer: placement for layer, _ in model} | {LOSS: placement}
    return _whole(name, grid, placements, options)


def _whole(name: str, grid: Grid, placements: dict[str, Placement], options: Options) -> Strategy:
    chunks = options.micro_batches
    return Strategy(name, grid, placements, chunks=(chunks,), schedule=lambda member: accumulate(chunks))


def layer_split(model: nn.Sequential, shape: Shape, ranks: int, options: Options) -> Strategy:
    """Consecutive layers on each rank; activations go up the ranks, their gradients down."""
    names = model.names
    starts = _stage_starts(model, shape, ranks, options)
    placements, stage = {}, 0
    for name in names:
        if stage < len(starts) and name == starts[stage]:
            stage += 1
        placements[name] = OnRank(stage)
    chunks = options.micro_batches
    return Strategy(
        "layer_split",
        Grid(1, ranks),
        placements | {LOSS: OnRank(ranks - 1)},
        starts=tuple(starts),
        chunks=(chunks,) * ranks,
        chunking="contiguous",
        schedule=lambda member: pipeline(options.schedule, ranks, member, chunks),
        update_groups=("all",) * ranks,
        alive=tuple(live_activations(options.schedule, ranks, stage, chunks) for stage in range(ranks)),
    )


def _stage_starts(model: nn.Sequential, shape: Shape, ranks: int, options: Options) -> list[str]:
    names = model.names
    if ranks > len(names):
        raise InputError(f"layer_split over {ranks} ranks needs as many layers; the model has {len(names)}")
    if options.stages is None:
        costs = options.costs or estimated_costs(model, shape, options.batch, options.micro_batches)
        # cut before layers with weights, where pooling has made the activations small
        firsts = [i for i, (_, layer) in enumerate(model) if i == 0 or layer.parameters()]
        if len(firsts) < ranks:
            firsts = list(range(len(names)))
        units = [sum(costs[a:b]) for a, b in zip(firsts, [*firsts[1:], len(names)], strict=True)]
        return [names[firsts[i]] for i in balanced_starts(units, ranks)]
    stages = [names.index(s) if s in names else s for s in options.stages]
    numbers = range(1, len(names))
    if len(stages) != ranks - 1 or not all(i in numbers for i in stages) or stages != sorted(set(stages)):
        raise InputError(
            f"--stages {','.join(map(str, options.stages))}: expected {ranks - 1} layers in rising order, the first "
            f"ones of stages 1 to {ranks - 1}, by name or by number: "
            + ", ".join(f"{i} {names[i]}" for i in numbers)
        )
    return [names[i] for i in stages]


def owt(model: nn.Sequential, shape: Shape, ranks: int, options: Options) -> Strategy:
    """One Weird Trick over all ranks; scheme (a), (b) or (c)."""
    return _one_weird_trick("owt", model, shape, Grid(1, ranks), options)


def hybrid(model: nn.Sequential, shape: Shape, ranks: int, options: Options) -> Strategy:
    """One Weird Trick within the rows of a grid, data parallelism between them."""
    grid = _grid(ranks, options, 2 if ranks > 2 and ranks % 2 == 0 else 1)
    return _one_weird_trick("hybrid", model, shape, grid, options)


def _grid(ranks: int, options: Options, default: int) -> Grid:
    """The process grid of so many rows as the options say, or by default."""
    dp = default if options.dp is None else options.dp
    if dp < 1 or ranks % dp:
        raise InputError(f"--dp {dp}: {ranks} ranks do not fill a grid of {dp} rows")
    return Grid(dp, ranks // dp)


def _one_weird_trick(name: str, model, shape: Shape, grid: Grid, options: Options) -> Strategy:
    linear = [layer for layer, kind in model if isinstance(kind, nn.Linear)]
    names = model.names
    if not linear or names.index(linear[0]) == 0:
        raise InputError(
            f"strategy {name!r} needs layers before the first fully connected one: use tensor or data"
        )
    split = names.index(linear[0])
    placements: dict[str, Placement] = {layer: Shard(0) for layer in names[:split]}
    if options.fc_pairs:
        placements |= _column_row_pairs(model, shape, names[split:], grid.mp)
    else:
        rules = {layer: Shard(-1) for layer in linear}
        placements |= _follow(model, shape, names[split:], rules, Replicate(), grid.mp) | {LOSS: Replicate()}
    chunks = 1 if options.scheme == "a" else grid.mp
    return Strategy(
        name,
        grid,
        placements,
        starts=(linear[0],),
        chunks=(1, chunks),
        chunking="by member" if options.scheme == "b" else "interleaved",
        schedule=lambda member: one_weird_trick(options.scheme, chunks, options.fc_update == "each"),
        update_groups=("conv", "fc"),
        alive=(1, 1),
    )


def _column_row_pairs(model, shape: Shape, names: list[str], size: int) -> dict[str, Placement]:
    """Column, row, then a reduce_scatter over the samples: what is left of the net is data parallel."""
    linear = [n for n in names if isinstance(model[n], nn.Linear)]
    rules: dict[str, Placement] = {}
    for column, row in zip(linear[0:-1:2], linear[1::2], strict=False):
        rules |= {column: Shard(-1), row: Partial()}
    rules |= {n: Shard(0) for n in linear if n not in rules}
    placements = _follow(model, shape, names, rules, Replicate(), size, after_partial=Shard(0))
    return placements | {LOSS: Shard(0)}


def tensor(model: nn.Sequential, shape: Shape, ranks: int, options: Options) -> Strategy:
    """Every layer split by features, the whole batch on every rank."""
    linear = [n for n, layer in model if isinstance(layer, nn.Linear)]
    rules: dict[str, Placement] = {
        n: Shard(-1) for n, layer in model if isinstance(layer, nn.Conv2d | nn.LocalResponseNorm)
    }
    for column, row in zip(linear[0::2], linear[1::2], strict=False):
        rules |= {column: Shard(-1), row: Partial()}
    rules |= {n: Shard(-1) for n in linear if n not in rules}
    placements = _follow(model, shape, model.names, rules, Replicate(), ranks)
    return _whole("tensor", Grid(1, ranks), placements | {LOSS: Replicate()}, options)


def alexnet2012(model: nn.Sequential, shape: Shape, ranks: int, options: Options) -> Strategy:
    """The towers of 2012: grouped convolutions stay local, conv3 and the linear layers read all towers.

    The last linear layer lives on the first rank of the towers alone, as in the published layer files. With more
    ranks than towers, each row of a grid has the towers of its own, and the rows are data parallel.
    """
    towers = max((layer.groups for _, layer in model if isinstance(layer, nn.Conv2d)), default=1)
    if towers == 1:
        raise InputError(
            "strategy 'alexnet2012' splits a network with grouped convolutions: use --variant 2012"
        )
    linear = [n for n, layer in model if isinstance(layer, nn.Linear)]
    split = (nn.Conv2d, nn.LocalResponseNorm, nn.Linear)
    rules: dict[str, Placement] = {n: Shard(-1) for n, layer in model if isinstance(layer, split)}
    rules[linear[-1]] = OnRank(0)
    grid = _grid(ranks, options, 1 if ranks % towers else ranks // towers)
    placements = _follow(model, shape, model.names, rules, Replicate(), grid.mp)
    return _whole("alexnet2012", grid, placements | {LOSS: OnRank(0)}, options)


def _follow(
    model, shape: Shape, names: list[str], rules: dict, start: Placement, size: int, after_partial=None
) -> dict[str, Placement]:
    """Placements of `names`: by `rules`, else that of the layer before, where the layer can take it."""
    in_shapes = {name: ins[0] for name, _, ins, _ in model.shapes(shape)}
    placements: dict[str, Placement] = {}
    placement = start
    for name in names:
        if name in rules:
            placement = rules[name]
        elif isinstance(placement, Partial):
            placement = after_partial or Replicate()
        else:
            try:
                requirement(name, model[name], placement, size, in_shapes[name])
            except PlacementError:
                placement = Replicate()
        placements[name] = placement
    return placements


def place(placements: Mapping[str, Placement]) -> Callable[..., Strategy]:
    """A strategy from placements by layer name or pattern: ``place({"conv*": Shard(0), "fc6": Shard(-1)})``.

    The first pattern that matches a layer counts. A layer that none matches follows the layer before
    it where it can (the first is `Shard(0)`); so does "loss". The result is a strategy builder like the others of this
    module, with the arguments (model, shape, ranks, options).

    Raises
    ------
    InputError
        When built: a pattern that matches no layer, or none that an earlier one leaves; an `OnRank` beyond the ranks.
    PlacementError
        When built: a placement that the layer cannot take.
    """

    def build(model: nn.Sequential, shape: Shape, ranks: int, options: Options) -> Strategy:
        names = [*model.names, LOSS]
        for pattern, placement in placements.items():
            if not any(fnmatchcase(name, pattern) for name in names):
                raise InputError(f"place: no layer is called {pattern!r}; the layers are {', '.join(names)}")
            if not isinstance(placement, Placement):
                known = "Shard(0), Shard(-1), Replicate(), Partial() or OnRank(r)"
                raise InputError(f"place: {pattern!r} is {placement!r}: expected {known}")
            if isinstance(placement, OnRank) and not 0 <= placement.rank < ranks:
                raise InputError(f"place: {pattern!r} on rank {placement.rank}, but there are {ranks} ranks")
        first = {n: next((p for p in placements if fnmatchcase(n, p)), None) for n in names}
        for pattern in placements:
            if pattern not in first.values():
                raise InputError(
                    f"place: {pattern!r} never applies, as a pattern before it matches its layers: put it first"
                )
        rules = {name: placements[pattern] for name, pattern in first.items() if pattern is not None}
        found = _follow(model, shape, model.names, rules, Shard(0), ranks)
        for name, _, ins, _ in model.shapes(shape):
            requirement(name, model[name], found[name], ranks, ins[0])
        last = found[model.names[-1]]
        loss = rules.get(LOSS, last if isinstance(last, OnRank) or last == Shard(0) else Replicate())
        if loss in (Partial(), Shard(-1)):
            raise PlacementError(f"loss: it cannot be {loss}; use Shard(0), Replicate() or OnRank(r)")
        return _whole("placed", Grid(1, ranks), found | {LOSS: loss}, options)

    return build


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "sequential": sequential,
    "data": data,
    "layer_split": layer_split,
    "owt": owt,
    "hybrid": hybrid,
    "tensor": tensor,
    "alexnet2012": alexnet2012,
}


def make_strategy(name: str, model: nn.Sequential, shape: Shape, ranks: int, options: Options) -> Strategy:
    """The strategy called `name` for `model` over `ranks` ranks; InputError lists the known names."""
    if name not in STRATEGIES:
        raise InputError(f"unknown strategy {name!r}: expected one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name](model, shape, ranks, options)
