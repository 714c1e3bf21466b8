"""Strategies written by hand, and `make_strategy`, which knows all of them by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from .. import nn
from ..errors import InputError
from .mesh import Mesh
from .placement import At, Partial, Placement, Replicate, Shard
from .planner import LOSS, Shapes
from .rule import PlacementError, Split, dimensions
from .strategies import STRATEGIES, pipelined
from .strategy import Options, Strategy
from .tables import Table

Rules = Mapping[str, Placement | Mapping[str, Placement] | Split]


def place(rules: Rules) -> Callable[..., Strategy]:
    """A strategy from placements by layer name or pattern: ``place({"conv*": Shard(0), "fc6": Shard(-1)})``.

    A placement is that of the layer's output, along the only axis of the mesh; of several axes, a dict by axis. A
    `Split` names the letters of the layer's dimensions instead. The first pattern that matches a layer counts. A
    layer that none matches follows the layer before it where it can (the first is `Shard(0)`); so does "loss". The
    result is a strategy builder like those of :mod:`.strategies`, with the arguments (model, shape, ranks, options).

    Raises
    ------
    InputError
        When built: a pattern that matches no layer, or none that an earlier one leaves; a place that is not on the
        mesh.
    PlacementError
        When built: a placement that the layer cannot take.
    """

    def build(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
        mesh = options.mesh or Mesh(ranks=ranks)
        if mesh.size != ranks:
            raise InputError(f"mesh {mesh} has {mesh.size} ranks, but there are {ranks}")
        table = Table(model, shape, mesh)
        names = [*model.names, LOSS]
        for pattern, rule in rules.items():
            if not any(fnmatchcase(name, pattern) for name in names):
                raise InputError(f"no layer is called {pattern!r}; the layers are {', '.join(names)}")
            _check_rule(pattern, rule, mesh)
        first = {n: next((p for p in rules if fnmatchcase(n, p)), None) for n in names}
        for pattern in rules:
            if pattern not in first.values():
                raise InputError(
                    f"{pattern!r} never applies, as a pattern before it matches its layers: put it first"
                )
        given = {
            name: _split(name, rules[pattern], table)
            for name, pattern in first.items()
            if pattern is not None
        }
        samples = tuple(Replicate() if axis == "stage" else Shard(0) for axis in mesh.names)
        splits = table.follow(given, samples, strict=True)
        return pipelined("placed", model, shape, mesh, splits, options, notes=tuple(table.notes))

    return build


def _check_rule(pattern: str, rule: object, mesh: Mesh) -> None:
    if isinstance(rule, Split):
        placed = {axis: At(i) for axis, i in rule.at.items()} | {
            a: Replicate() for x in rule.letters.values() for a in x
        }
    else:
        placed = rule if isinstance(rule, Mapping) else {mesh.names[0]: rule}
    for axis, placement in placed.items():
        if not isinstance(placement, Shard | Replicate | Partial | At):
            known = "Shard(axis), Replicate(), Partial() or At(i)"
            raise InputError(f"{pattern!r} is {placement!r}: expected {known}, or those by axis of the mesh")
        if axis not in mesh.names or axis == "stage":
            raise InputError(
                f"{pattern!r} names the axis {axis!r}: expected one of the mesh {mesh} that is not its stages"
            )
        if isinstance(placement, At) and not 0 <= placement.index < mesh.axis_size(axis):
            raise InputError(
                f"{pattern!r} on rank {placement.index}, but there are {mesh.axis_size(axis)} ranks"
            )


def _split(name: str, rule: Placement | Mapping[str, Placement] | Split, table: Table) -> Split:
    """The letters of a layer's dimensions that placements of its output mean."""
    if isinstance(rule, Split):
        return rule
    layer, dims = table.layers[name], dimensions(table.layers[name], table.shapes[name])
    letters: dict[str, tuple[str, ...]] = {}
    at = {}
    for axis, placement in (rule if isinstance(rule, Mapping) else {table.mesh.names[0]: rule}).items():
        if isinstance(placement, At):
            at[axis] = placement.index
        if not isinstance(placement, Shard | Partial):
            continue
        letter = None
        if dims is not None and isinstance(placement, Partial):
            letter = min(dims.summed, default=None)
        elif dims is not None and (
            placement.axis == 0 or -len(dims.output) < placement.axis < len(dims.output)
        ):
            letter = dims.output[placement.axis][0]
        if letter is None or not table.can(name, letter, (*letters.get(letter, ()), axis)):
            raise PlacementError(
                f"{name}: {type(layer).__name__ if layer else 'the loss'} cannot be {placement}; use Shard(0) or "
                "Replicate() (Partial() is for linear layers and ungrouped convolutions, which sum over input features)"
            )
        letters[letter] = (*letters.get(letter, ()), axis)
    return Split(letters, at)


def parse_splits(text: str) -> dict[str, Split]:
    """The rules of ``"conv*: n=data,model; fc*: n=data o=model; fc8: model@0"``: letters over axes, or a place on
    one."""
    rules: dict[str, Split] = {}
    for rule in filter(None, (part.strip() for part in text.split(";"))):
        pattern, colon, words = rule.partition(":")
        letters, at = {}, {}
        for word in words.split():
            letter, equals, axes = word.partition("=")
            axis, sign, place_ = word.partition("@")
            if equals and letter and all(axes.split(",")):
                letters[letter] = tuple(axes.split(","))
            elif sign and axis and place_.isdecimal() and len(place_) < 10:
                at[axis] = int(place_)
            else:
                raise InputError.about(
                    "split", word, "a letter and axes, as n=data,model, or an axis and a place, as model@0"
                )
        if not colon or not pattern.strip():
            raise InputError.about(
                "split", rule, "a layer, or a pattern, and its splits, as in conv*: n=data,model"
            )
        rules[pattern.strip()] = Split(letters, at)
    return rules


def make_strategy(name: str, model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """The strategy called `name` for `model` over `ranks` ranks, or that of `options.split`; InputError lists the
    names."""
    if options.split:
        return place(parse_splits(options.split))(model, shape, ranks, options)
    if name not in STRATEGIES:
        raise InputError(f"unknown strategy {name!r}: expected one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name](model, shape, ranks, options)
