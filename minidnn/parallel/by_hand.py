"""Strategies written by hand, and `make_strategy`, which knows all of them by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from .. import nn
from ..errors import InputError
from ..nn.dimensions import Dimensions
from .mesh import Mesh
from .placement import At, Partial, Placement, Replicate, Shard
from .planner import LOSS, Shapes
from .rule import PlacementError, Split
from .strategies import STRATEGIES
from .strategy import Options, Strategy
from .tables import Table, mesh_of

Rule = Placement | Mapping[str, Placement] | Split


def place(rules: Mapping[str, Rule]) -> Callable[..., Strategy]:
    """A strategy from placements by layer name or pattern: ``place({"conv*": Shard(0), "fc6": Shard(-1)})``.

    A placement is that of the layer's output, along the only axis of the mesh; of several axes, a dict by axis. A
    `Split` names the letters of the layer's dimensions instead. The first pattern that matches a layer counts. A
    layer that none matches follows the layer before it where it can (the first is `Shard(0)`); so does "loss". The
    result is a strategy builder like those of :mod:`.strategies`, with the arguments (model, shape, ranks, options).

    It raises InputError for a pattern that matches no layer, or none that an earlier one leaves, and for a place that
    is not on the mesh; PlacementError for a placement that the layer cannot take.
    """

    def build(model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
        mesh = mesh_of(options, ranks, Mesh(ranks=ranks))
        table = Table("placed", model, shape, mesh, options)
        first: dict[str, str] = {}  # the pattern that counts, by layer
        for pattern, rule in rules.items():
            matched = [name for name in table.layers if fnmatchcase(name, pattern)]
            if not matched:
                raise InputError(f"no layer is called {pattern!r}; the layers are {', '.join(table.layers)}")
            _check_rule(pattern, rule, mesh)
            if first.keys() >= set(matched):
                why = "as a pattern before it matches its layers: put it first"
                raise InputError(f"{pattern!r} never applies, {why}")
            first = dict.fromkeys(matched, pattern) | first
        given = {n: _split(n, rules[first[n]], table) for n in table.layers if n in first}
        samples = tuple(Replicate() if axis == "stage" else Shard(0) for axis in mesh.names)
        return table.pipelined(table.follow(given, start=samples, strict=True))

    return build


def _by_axis(rule: Rule, mesh: Mesh) -> Mapping[str, Placement]:
    return rule if isinstance(rule, Mapping) else {mesh.names[0]: rule}


def _check_rule(pattern: str, rule: Rule, mesh: Mesh) -> None:
    if isinstance(rule, Split):
        over = dict.fromkeys((axis for axes in rule.letters.values() for axis in axes), Replicate())
        rule = {axis: At(i) for axis, i in rule.at.items()} | over
    for axis, placement in _by_axis(rule, mesh).items():
        if not isinstance(placement, Shard | Replicate | Partial | At):
            known = "Shard(axis), Replicate(), Partial() or At(i)"
            raise InputError(f"{pattern!r} is {placement!r}: expected {known}, or those by axis of the mesh")
        if axis not in mesh.names or axis == "stage":
            expected = f"one of the mesh {mesh} that is not its stages"
            raise InputError(f"{pattern!r} names the axis {axis!r}: expected {expected}")
        size = mesh.axis_size(axis)
        if isinstance(placement, At) and not 0 <= placement.index < size:
            raise InputError(f"{pattern!r} on rank {placement.index}, but there are {size} ranks")


def _split(name: str, rule: Rule, table: Table) -> Split:
    """The letters of a layer's dimensions that placements of its output mean."""

    def letter_of(dims: Dimensions, placement: Placement) -> str:
        if isinstance(placement, Partial):
            return min(dims.summed, default="")
        axis = placement.axis
        return dims.output[axis][0] if axis == 0 or -len(dims.output) < axis < len(dims.output) else ""

    if isinstance(rule, Split):
        return rule
    split, refused = table.asked(name, _by_axis(rule, table.mesh), letter_of)
    if refused:
        kind = type(table.layers[name]).__name__ if name != LOSS else "the loss"
        raise PlacementError(
            f"{name}: {kind} cannot be {refused[0]}; use Shard(0) or Replicate() (Partial() is for linear layers "
            "and ungrouped convolutions, which sum over input features)"
        )
    return split


def parse_splits(text: str) -> dict[str, Split]:
    """The rules of ``"conv*: n=data,model; fc*: n=data o=model; fc8: model@0"``: letters over axes, a place on one."""
    rules: dict[str, Split] = {}
    for rule in filter(None, map(str.strip, text.split(";"))):
        pattern, colon, words = rule.partition(":")
        letters, places = {}, {}
        for word in words.split():
            if over := re.fullmatch(r"([^=]+)=([^,]+(?:,[^,]+)*)", word):
                letters[over[1]] = tuple(over[2].split(","))
            elif at := re.fullmatch(r"([^@]+)@(\d{1,9})", word):
                places[at[1]] = int(at[2])
            else:
                expected = "a letter and axes, as n=data,model, or an axis and a place, as model@0"
                raise InputError.about("split", word, expected)
        if not colon or not pattern.strip():
            expected = "a layer, or a pattern, and its splits, as in conv*: n=data,model"
            raise InputError.about("split", rule, expected)
        rules[pattern.strip()] = Split(letters, places)
    return rules


def make_strategy(name: str, model: nn.Sequential, shape: Shapes, ranks: int, options: Options) -> Strategy:
    """The strategy called `name` for `model` over `ranks` ranks, or that of `options.split`; InputError lists the
    names."""
    if options.split:
        return place(parse_splits(options.split))(model, shape, ranks, options)
    if name not in STRATEGIES:
        raise InputError(f"unknown strategy {name!r}: expected one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name](model, shape, ranks, options)
