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

from collections.abc import Callable, Iterable

from .. import nn
from ..errors import InputError
from .mesh import Mesh
from .planner import LOSS, Shapes
from .rule import Split
from .schedule import one_weird_trick
from .strategy import Options, Strategy
from .tables import Splits, Table, mesh_of


def _table(name: str, model, shape, ranks: int, options: Options, default: Mesh, needs: str = "") -> Table:
    """The table of a strategy whose mesh has these axes, and no others but "data" and "stage"."""
    mesh, known = mesh_of(options, ranks, default), dict.fromkeys((*default.names, "data", "stage"))
    lacks = [axis for axis in needs.split() if axis not in mesh.names]
    idle = [axis for axis in mesh.names if axis not in known and mesh.axis_size(axis) > 1]
    if lacks or idle:
        what = f"lacks {lacks[0]!r}" if lacks else f"has {idle[0]!r}, which it does not use"
        raise InputError(f"strategy {name!r} works over the axes {', '.join(known)}: mesh {mesh} {what}")
    return Table(name, model, shape, mesh, options)


def _rows(ranks: int, options: Options, default: int) -> int:
    """The size of the axis "data" of a strategy's own mesh, as the options say or by default."""
    if options.mesh is not None:
        return 1
    rows = default if options.dp is None else options.dp
    if rows < 1 or ranks % rows:
        raise InputError.about("dp", rows, f"a number that divides the {ranks} ranks")
    return rows


def _by(letter: str, names: Iterable[str], axis: str = "model") -> Splits:
    return {name: Split({letter: (axis,)}) for name in names}


def sequential(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """One process; the reference of all the others."""
    if ranks != 1:
        raise InputError(f"strategy 'sequential' runs on 1 rank, got {ranks}: choose another strategy")
    return _by_samples(_table("sequential", model, shape, ranks, options, Mesh(data=1)))


def data(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """Data parallelism: samples split throughout, gradients summed in buckets during backward."""
    return _by_samples(_table("data", model, shape, ranks, options, Mesh(data=ranks)))


def layer_split(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """Consecutive layers on each rank; activations go up the stages, their gradients down."""
    return _by_samples(_table("layer_split", model, shape, ranks, options, Mesh(stage=ranks), "stage"))


def _by_samples(table: Table) -> Strategy:
    return table.strategy(dict.fromkeys(table.layers, Split()))


def owt(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """One Weird Trick over all ranks; scheme (a), (b) or (c)."""
    return _one_weird_trick(_table("owt", model, shape, ranks, options, Mesh(model=ranks), "model"))


def hybrid(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """One Weird Trick along the axis "model", data parallelism along "data"."""
    rows = _rows(ranks, options, 2 if ranks > 2 and ranks % 2 == 0 else 1)
    default = Mesh(data=rows, model=ranks // rows)
    return _one_weird_trick(_table("hybrid", model, shape, ranks, options, default, "model"))


def _one_weird_trick(table: Table) -> Strategy:
    linear, names, options = table.linear, table.model.names, table.options
    if not linear or names[0] == linear[0]:
        raise InputError(
            f"strategy {table.name!r} needs layers before the first fully connected one: use tensor or data"
        )
    convolutional = names[: names.index(linear[0])]
    rules, after_sum = _by("n", convolutional) | _by("o", linear) | {LOSS: Split()}, ""
    if options.fc_pairs:  # column, row, then a reduce_scatter over the samples: what is left is data parallel
        pairs = len(linear) // 2 * 2
        rules |= _by("i", linear[1::2]) | _by("n", (*linear[pairs:], LOSS))
        after_sum = "n"
    updates = {n: "conv" if n in convolutional else "fc" for n in names}
    if "stage" in table.mesh.names:
        if options.scheme != "a":
            expected = "a in a pipeline: its micro-batches do what b and c are for"
            raise InputError.about("scheme", options.scheme, expected)
        return table.strategy(rules, after_sum, updates=updates)
    count = 1 if options.scheme == "a" else table.mesh.axis_size("model")
    return Strategy(
        table.name,
        table.mesh,
        table.by_samples(table.follow(rules, after_sum)),
        lambda at: one_weird_trick(options.scheme, count, options.fc_update == "each"),
        options,
        starts=(linear[0],),
        micro_batches=(1, count),
        by_member="model" if options.scheme == "b" else "",
        updates=updates,
        alive=(1, 1),
        notes=tuple(table.notes),
    )


def tensor(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """Every layer by features, the whole batch on every rank."""
    return _by_features(_table("tensor", model, shape, ranks, options, Mesh(model=ranks), "model"))


def three_d(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """Features along "model", stages along "stage", samples along "data"."""
    rows = _rows(ranks, options, ranks // (4 if ranks % 4 == 0 else 2 - ranks % 2))
    stages = 2 if ranks // rows % 4 == 0 else 1
    default = Mesh(data=rows, stage=stages, model=ranks // rows // stages)
    return _by_features(_table("3d", model, shape, ranks, options, default, "stage model"))


def _by_features(table: Table) -> Strategy:
    columns, rows = _by("o", (*table.mixing, *table.linear)), _by("i", table.linear[1::2])
    return table.strategy(columns | rows | {LOSS: Split()})


def alexnet2012(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """The towers of 2012: grouped convolutions stay local, conv3 and the linear layers read all towers.

    The last linear layer lives on the first rank of the towers alone, as in the published layer files. With more
    ranks than towers, the axis "data" has towers of its own for each part of the samples.
    """
    towers = max((layer.groups for _, layer in model if layer.parameters() and not layer.factors), default=1)
    if towers == 1:
        raise InputError(
            "strategy 'alexnet2012' splits a network with grouped convolutions: use AlexNet's variant 2012"
        )
    rows = _rows(ranks, options, 1 if ranks % towers else ranks // towers)
    default = Mesh(data=rows, model=ranks // rows)
    table = _table("alexnet2012", model, shape, ranks, options, default, "model")
    alone = dict.fromkeys((table.linear[-1], LOSS), Split({}, {"model": 0}))
    return table.strategy(_by("o", (*table.mixing, *table.linear)) | alone)


def spatial(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """Rows of the images, with a halo exchange before each window; the fully connected layers by features."""
    table = _table("spatial", model, shape, ranks, options, Mesh(space=ranks), "space")
    rules = _by("h", table.mixing, "space") | _by("o", table.linear, "space")
    return table.strategy(rules | {LOSS: Split()})


_BY_NAME = (sequential, data, layer_split, owt, hybrid, tensor, alexnet2012, spatial)
STRATEGIES: dict[str, Callable[..., Strategy]] = {f.__name__: f for f in _BY_NAME} | {"3d": three_d}
