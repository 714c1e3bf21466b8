"""Strategies written by hand, and `make_strategy`, which knows all of them by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from .. import nn
from ..errors import InputError
from .mesh import Mesh
from .placement import At, Partial, Placement, Replicate, Shard
from .planner import Shapes
from .rule import PlacementError, Split, dimensions
from .strategies import STRATEGIES
from .strategy import Options, Strategy
from .tables import Table, mesh_of

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
        mesh = mesh_of(options, ranks, Mesh(ranks=ranks))
        table = Table("placed", model, shape, mesh, options)
        first: dict[str, str] = {}  # the pattern that counts, by layer
        for pattern, rule in rules.items():
            matched = [name for name in table.layers if fnmatchcase(name, pattern)]
            if not matched:
                known = ", ".join(table.layers)
                raise InputError(f"no layer is called {pattern!r}; the layers are {known}")
            _check_rule(pattern, rule, mesh)
            if first.keys() >= set(matched):
                raise InputError(
                    f"{pattern!r} never applies, as a pattern before it matches its layers: put it first"
                )
            first = dict.fromkeys(matched, pattern) | first
        given = {n: _split(n, rules[first[n]], table) for n in table.layers if n in first}
        samples = tuple(Replicate() if axis == "stage" else Shard(0) for axis in mesh.names)
        return table.pipelined(table.follow(given, start=samples, strict=True))

    return build


def _by_axis(rule: Placement | Mapping[str, Placement], mesh: Mesh) -> Mapping[str, Placement]:
    return rule if isinstance(rule, Mapping) else {mesh.names[0]: rule}


def _check_rule(pattern: str, rule: Placement | Mapping[str, Placement] | Split, mesh: Mesh) -> None:
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


def _split(name: str, rule: Placement | Mapping[str, Placement] | Split, table: Table) -> Split:
    """The letters of a layer's dimensions that placements of its output mean."""
    if isinstance(rule, Split):
        return rule
    layer, dims = table.layers[name], dimensions(table.layers[name], table.shapes[name])
    letters: dict[str, tuple[str, ...]] = {}
    placed = _by_axis(rule, table.mesh)
    for axis, placement in placed.items():
        if not isinstance(placement, Shard | Partial):
            continue
        letter = None
        if dims and isinstance(placement, Partial):
            letter = min(dims.summed, default=None)
        elif dims and (placement.axis == 0 or -len(dims.output) < placement.axis < len(dims.output)):
            letter = dims.output[placement.axis][0]
        axes = (*letters.get(letter, ()), axis)
        if letter is None or not table.can(name, letter, axes):
            kind = "the loss" if layer is None else type(layer).__name__
            raise PlacementError(
                f"{name}: {kind} cannot be {placement}; use Shard(0) or Replicate() (Partial() is for linear layers "
                "and ungrouped convolutions, which sum over input features)"
            )
        letters[letter] = axes
    return Split(letters, {axis: p.index for axis, p in placed.items() if isinstance(p, At)})


def parse_splits(text: str) -> dict[str, Split]:
    """The rules of ``"conv*: n=data,model; fc*: n=data o=model; fc8: model@0"``: letters over axes, a place on one."""
    rules: dict[str, Split] = {}
    for rule in filter(None, map(str.strip, text.split(";"))):
        pattern, colon, words = rule.partition(":")
        letters, places = {}, {}
        for word in words.split():
            if over := re.fullmatch(r"([^=]+)=([^,]+(?:,[^,]+)*)", word):
                letters[over[1]] = tuple(over[2].split(","))
            elif at := re.fullmatch(r"([^@]+)@(\d+)", word):
                places[at[1]] = int(at[2])
            else:
                raise InputError(
                    f"split {word!r}: expected a letter and axes, as n=data,model, or an axis and a place, as model@0"
                )
        if not colon or not pattern.strip():
            expected = "a layer, or a pattern, and its splits, as in conv*: n=data,model"
            raise InputError(f"split {rule!r}: expected {expected}")
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
