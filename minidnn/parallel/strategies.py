"""The strategies: each is a table of splits on a mesh; none has its own engine.

==============  ======================  ============================================================
sequential      (one rank)
data            data=p                  ``*: n=data``
layer_split     stage=p                 consecutive layers at each stage, micro-batches between them
owt             model=p                 ``conv*: n=model  fc*: o=model``: One Weird Trick
                                        (Krizhevsky 2014, arXiv 1404.5997)
hybrid          data=2, model=p/2       OWT, and ``*: n=data``
tensor          model=p                 features: of convolutions, and column/row pairs of linear
                                        layers (Shoeybi et al. 2019, arXiv 1909.08053)
alexnet2012     data, model=towers      the towers of the original network (Krizhevsky et al. 2012)
spatial         space=p                 ``conv*: h=space  fc*: o=space``: rows of the images
3d              data, stage, model      tensor, pipelined, and ``*: n=data``
==============  ======================  ============================================================

With another mesh (`Options.mesh`) each does the same over more axes: "data" splits samples, "stage" makes a
pipeline. `place` and `splits` make a strategy of a table written by hand.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import nn
from ..errors import InputError
from .balance import balanced_starts
from .costs import estimated_costs
from .mesh import Mesh
from .placement import Replicate
from .planner import LOSS, Shapes
from .rule import Split
from .schedule import accumulate, live_activations, one_weird_trick, pipeline
from .strategy import Options, Strategy
from .tables import Splits, Table


def _mesh(name: str, ranks: int, options: Options, default: Mesh, needs: tuple[str, ...] = ()) -> Mesh:
    """The mesh of the options, or the default one; it must have so many ranks, and the axes that the strategy splits
    over."""
    mesh = options.mesh or default
    known = dict.fromkeys((*default.names, "data", "stage"))
    if mesh.size != ranks:
        raise InputError(f"mesh {mesh} has {mesh.size} ranks, but there are {ranks}")
    lacks = [axis for axis in needs if axis not in mesh.names]
    idle = [axis for axis in mesh.names if axis not in known and mesh.axis_size(axis) > 1]
    if lacks or idle:
        what = f"lacks {lacks[0]!r}" if lacks else f"has {idle[0]!r}, which it does not use"
        raise InputError(f"strategy {name!r} works over the axes {', '.join(known)}: mesh {mesh} {what}")
    return mesh


def _rows(ranks: int, options: Options, default: int) -> int:
    """The size of the axis "data", as the options say or by default."""
    rows = default if options.dp is None else options.dp
    if rows < 1 or ranks % rows:
        raise InputError.about("dp", rows, f"a number that divides the {ranks} ranks")
    return rows


def pipelined(
    name: str, model, shape: Shapes, mesh: Mesh, splits: Splits, options: Options, **more
) -> Strategy:
    """A strategy of one stage, or, where the mesh has an axis "stage", pipelined."""
    count, stages = options.micro_batches, mesh.axis_size("stage")
    if "stage" not in mesh.names:
        return Strategy(
            name, mesh, splits, lambda at: accumulate(count), options, micro_batches=(count,), **more
        )
    return Strategy(
        name,
        mesh,
        splits,
        lambda at: pipeline(options.schedule, stages, at, count),
        options,
        starts=tuple(_stage_starts(name, model, shape, stages, options)),
        micro_batches=(count,) * stages,
        pipelined=True,
        alive=tuple(live_activations(options.schedule, stages, stage, count) for stage in range(stages)),
        **more,
    )


def _stage_starts(name: str, model: nn.Sequential, shape: Shapes, stages: int, options: Options) -> list[str]:
    names = model.names
    if stages > len(names):
        raise InputError(f"{name} over {stages} stages needs as many layers; the model has {len(names)}")
    if options.stages is None:
        costs = options.costs or estimated_costs(model, shape, options.batch, options.micro_batches)
        # cut before layers with weights, where pooling has made the activations small
        firsts = [i for i, (_, layer) in enumerate(model) if i == 0 or layer.parameters()]
        if len(firsts) < stages:
            firsts = list(range(len(names)))
        units = [sum(costs[a:b]) for a, b in zip(firsts, [*firsts[1:], len(names)], strict=True)]
        return [names[firsts[i]] for i in balanced_starts(units, stages)]
    given = [names.index(s) if s in names else s for s in options.stages]
    numbers = range(1, len(names))
    if len(given) != stages - 1 or not all(i in numbers for i in given) or given != sorted(set(given)):
        raise InputError.about(
            "stages",
            ",".join(map(str, options.stages)),
            f"{stages - 1} layers in rising order, the first ones of stages 1 to {stages - 1}, by name or by number: "
            + ", ".join(f"{i} {names[i]}" for i in numbers),
        )
    return [names[i] for i in given]


def sequential(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """One process; the reference of all the others."""
    if ranks != 1:
        raise InputError(f"strategy 'sequential' runs on 1 rank, got {ranks}: choose another strategy")
    return _by_samples("sequential", model, shape, _mesh("sequential", ranks, options, Mesh(data=1)), options)


def data(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """Data parallelism: samples split throughout, gradients summed in buckets during backward."""
    return _by_samples("data", model, shape, _mesh("data", ranks, options, Mesh(data=ranks)), options)


def layer_split(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """Consecutive layers on each rank; activations go up the stages, their gradients down."""
    mesh = _mesh("layer_split", ranks, options, Mesh(stage=ranks), ("stage",))
    return _by_samples("layer_split", model, shape, mesh, options)


def _by_samples(name: str, model, shape: Shapes, mesh: Mesh, options: Options) -> Strategy:
    """Samples over the axis "data", if there is one; a layer that states no dimensions is replicated."""
    table = Table(model, shape, mesh)
    over = ("data",) if "data" in mesh.names else ()
    splits = table.follow(
        {n: Split({"n": over} if over else {}) for n in table.layers}, (Replicate(),) * len(mesh.names)
    )
    return pipelined(name, model, shape, mesh, splits, options, notes=tuple(table.notes))


def owt(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """One Weird Trick over all ranks; scheme (a), (b) or (c)."""
    mesh = _mesh("owt", ranks, options, Mesh(model=ranks), ("model",))
    return _one_weird_trick("owt", model, shape, mesh, options)


def hybrid(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """One Weird Trick along the axis "model", data parallelism along "data"."""
    rows = _rows(ranks, options, 2 if ranks > 2 and ranks % 2 == 0 else 1) if options.mesh is None else 1
    mesh = _mesh("hybrid", ranks, options, Mesh(data=rows, model=ranks // rows), ("model",))
    return _one_weird_trick("hybrid", model, shape, mesh, options)


def _one_weird_trick(name: str, model, shape: Shapes, mesh: Mesh, options: Options) -> Strategy:
    table = Table(model, shape, mesh)
    linear, names = table.linear, model.names
    if not linear or names.index(linear[0]) == 0:
        raise InputError(
            f"strategy {name!r} needs layers before the first fully connected one: use tensor or data"
        )
    cut = names.index(linear[0])
    nowhere = (Replicate(),) * len(mesh.names)
    rules = {n: Split({"n": ("model",)}) for n in names[:cut]}
    if options.fc_pairs:  # column, row, then a reduce_scatter over the samples: what is left is data parallel
        for column, row in zip(linear[0:-1:2], linear[1::2], strict=False):
            rules |= {column: Split({"o": ("model",)}), row: Split({"i": ("model",)})}
        rules |= {n: Split({"n": ("model",)}) for n in (*linear, LOSS) if n not in rules}
        splits = table.follow(rules, nowhere, after_sum="n")
    else:
        rules |= {n: Split({"o": ("model",)}) for n in linear}
        splits = table.follow(rules | {LOSS: Split()}, nowhere)
    splits = table.data_parallel(splits)
    more = {"updates": {n: "conv" if n in names[:cut] else "fc" for n in names}, "notes": tuple(table.notes)}
    if "stage" in mesh.names:
        if options.scheme != "a":
            raise InputError.about(
                "scheme", options.scheme, "a in a pipeline: its micro-batches do what b and c are for"
            )
        return pipelined(name, model, shape, mesh, splits, options, **more)
    count = 1 if options.scheme == "a" else mesh.axis_size("model")
    return Strategy(
        name,
        mesh,
        splits,
        lambda at: one_weird_trick(options.scheme, count, options.fc_update == "each"),
        options,
        starts=(linear[0],),
        micro_batches=(1, count),
        by_member="model" if options.scheme == "b" else "",
        alive=(1, 1),
        **more,
    )


def tensor(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """Every layer by features, the whole batch on every rank."""
    mesh = _mesh("tensor", ranks, options, Mesh(model=ranks), ("model",))
    return _by_features("tensor", model, shape, mesh, options)


def three_d(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """Features along "model", stages along "stage", samples along "data"."""
    rows = (
        _rows(ranks, options, ranks // (4 if ranks % 4 == 0 else 2 - ranks % 2))
        if options.mesh is None
        else 1
    )
    stages = 2 if ranks // rows % 4 == 0 else 1
    default = Mesh(data=rows, stage=stages, model=ranks // rows // stages)
    mesh = _mesh("3d", ranks, options, default, ("stage", "model"))
    return _by_features("3d", model, shape, mesh, options)


def _by_features(name: str, model, shape: Shapes, mesh: Mesh, options: Options) -> Strategy:
    table = Table(model, shape, mesh)
    rules = {n: Split({"o": ("model",)}) for n in (*table.mixing, *table.linear)}
    rules |= {row: Split({"i": ("model",)}) for row in table.linear[1::2]}
    splits = table.follow(rules | {LOSS: Split()}, (Replicate(),) * len(mesh.names))
    splits = table.data_parallel(splits)
    return pipelined(name, model, shape, mesh, splits, options, notes=tuple(table.notes))


def alexnet2012(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """The towers of 2012: grouped convolutions stay local, conv3 and the linear layers read all towers.

    The last linear layer lives on the first rank of the towers alone, as in the published layer files. With more
    ranks than towers, the axis "data" has towers of its own for each part of the samples.
    """
    table = Table(model, shape, Mesh(model=ranks))
    towers = max((layer.groups for n, layer in model if n in table.mixing and layer.parameters()), default=1)
    if towers == 1:
        raise InputError(
            "strategy 'alexnet2012' splits a network with grouped convolutions: use AlexNet's variant 2012"
        )
    rows = _rows(ranks, options, 1 if ranks % towers else ranks // towers) if options.mesh is None else 1
    mesh = _mesh("alexnet2012", ranks, options, Mesh(data=rows, model=ranks // rows), ("model",))
    table = Table(model, shape, mesh)
    rules = {n: Split({"o": ("model",)}) for n in (*table.mixing, *table.linear)}
    rules |= {n: Split({}, {"model": 0}) for n in (table.linear[-1], LOSS)}
    splits = table.follow(rules, (Replicate(),) * len(mesh.names))
    splits = table.data_parallel(splits)
    return pipelined("alexnet2012", model, shape, mesh, splits, options, notes=tuple(table.notes))


def spatial(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """Rows of the images, with a halo exchange before each window; the fully connected layers by features."""
    mesh = _mesh("spatial", ranks, options, Mesh(space=ranks), ("space",))
    table = Table(model, shape, mesh)
    rules = {n: Split({"h": ("space",)}) for n in table.mixing} | {
        n: Split({"o": ("space",)}) for n in table.linear
    }
    splits = table.follow(rules | {LOSS: Split()}, (Replicate(),) * len(mesh.names))
    splits = table.data_parallel(splits)
    return pipelined("spatial", model, shape, mesh, splits, options, notes=tuple(table.notes))


STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "sequential": sequential,
    "data": data,
    "layer_split": layer_split,
    "owt": owt,
    "hybrid": hybrid,
    "tensor": tensor,
    "alexnet2012": alexnet2012,
    "spatial": spatial,
    "3d": three_d,
}
