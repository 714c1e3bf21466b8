"""The one rule: from a layer's dimensions and the axes that split them, where everything lies.

Split letter L over axis A of the mesh.  Then, along A:

- an input, variable or output that has L is `Shard` on L's axis; an input read through windows is a `Halo`;
- an input without L is `Replicate`, and its gradient `Partial`;
- a variable without L is `Replicate`, and its gradient is summed over A: the sum of data parallelism;
- if the output lacks L, it is `Partial`, its gradient is needed `Replicate`, and a variable without L, a bias, is added
  once: it is held at coordinate 0 alone.

Along an axis that splits no letter of the layer everything is `Replicate`, and every rank computes the same.
A parallel layer is the sequential layer on parts of its variables (`localise`), never a re-implementation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from .. import nn
from ..errors import InputError
from ..nn.dimensions import Axis, Dimensions, Part, parse
from .mesh import Mesh, bounds
from .placement import At, Halo, Layout, Partial, Placement, Replicate, Shard, intervals

Shape = tuple[int, ...]


class PlacementError(InputError):
    """A split that a layer cannot take."""


@dataclass(frozen=True)
class Split:
    """How a strategy splits one layer.

    Attributes
    ----------
    letters : dict
        The axes of the mesh over which each letter of the layer's dimensions is split.
    at : dict
        The coordinate at which the layer runs along an axis, where it runs at one only.
    """

    letters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    at: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{letter}={','.join(axes)}" for letter, axes in self.letters.items()]
        return " ".join(parts + [f"{axis}@{i}" for axis, i in self.at.items()]) or "replicated"


@dataclass(frozen=True)
class Variable:
    """A parameter or buffer of a layer: its layout, and the axes of the mesh over which its gradient is summed."""

    layout: Layout
    sums: tuple[str, ...]


@dataclass(frozen=True)
class Derived:
    """What follows from the split of a layer.

    Attributes
    ----------
    inputs, leaves : tuple of Layout
        Of each input: the layout that the layer needs, and that in which it leaves the gradient.
    output, gradient : Layout
        Of the output, and of its gradient as the layer needs it.
    variables : dict
        By the variable's path inside the layer; those of a layer inside it are replicated.
    statistics : tuple of str
        The axes of the mesh over which statistics of samples (batch norm) have to be summed.
    """

    inputs: tuple[Layout, ...]
    leaves: tuple[Layout, ...]
    output: Layout
    gradient: Layout
    variables: Mapping[str, Variable]
    statistics: tuple[str, ...]


def dimensions(layer: nn.Module | None, shapes: Sequence[Shape]) -> Dimensions | None:
    """What a layer states, for inputs of these shapes of one sample; None where it states nothing. None is the loss."""
    text = _statement(layer)
    return parse(text, tuple(map(tuple, shapes))) if text else None


def _statement(layer: nn.Module | None) -> str:
    return "n ... k -> n" if layer is None else layer.dims


def splittable(
    layer: nn.Module | None, dims: Dimensions | None, shapes: Sequence[Shape], out: Shape, parts: int
) -> list[str]:
    """The letters along which a layer can be split into so many parts."""
    if dims is None:
        return []
    whole, windows = ("k", "") if layer is None else (layer.whole.split(), layer.windows.split())
    operands = (*dims.inputs, *dims.variables, dims.output)
    found = []
    for letter in dict.fromkeys([*(axis[0] for axis in dims.output if axis), *sorted(dims.summed)]):
        leads = all(axis[0] == letter for operand in operands for axis in operand if letter in axis)
        at = dims.axis_of(letter, dims.output)
        no_window = letter in windows and out[at - 1] < parts  # a part that has nothing to look at
        if leads and letter not in whole and not no_window and not (letter == "g" and layer.groups % parts):
            found.append(letter)
    return found


def derive(
    name: str, layer: nn.Module | None, shapes: Sequence[Shape], out: Shape, split: Split, mesh: Mesh
) -> Derived:
    """Apply the rule to one layer; None is the loss.

    Parameters
    ----------
    shapes, out : tuples of int
        Of one sample: of every input, and of the output.

    Raises
    ------
    PlacementError
        The layer cannot be split so; says how it can.
    """
    dims = dimensions(layer, shapes)
    letters = {dims.letter(x) if dims else x: axes for x, axes in split.letters.items()}
    roles: dict[str, str | int] = {a: i for a, i in split.at.items() if mesh.axis_size(a) > 1}
    roles |= {axis: letter for letter, axes in letters.items() for axis in axes if mesh.axis_size(axis) > 1}
    parts = {x: prod(mesh.axis_size(a) for a in letters[x]) for x in roles.values() if isinstance(x, str)}
    for letter, n in parts.items():
        _check(name, layer, dims, letter, shapes, out, n)
    own = dict(layer.named_variables(prefix="")) if layer else {}
    operands: list[tuple[tuple[Axis, ...], Shape]] = []  # the axes of each, and its shape
    if dims:
        whole = [(0, *s) for s in shapes] + [v.full_shape for v in own.values()]
        operands = [*zip((*dims.inputs, *dims.variables), whole, strict=False), (dims.output, (0, *out))]
    else:
        operands = [((), ())] * (len(shapes) + 1)
    inputs, last = len(shapes), len(operands) - 1
    layouts: list[list[Placement]] = [[] for _ in operands]
    leaves: list[list[Placement]] = [[] for _ in shapes]
    gradient: list[Placement] = []
    unstated: list[Placement] = []  # of variables that the statement leaves out
    sums: list[list[str]] = [[] for _ in own]
    statistics = []
    for axis in mesh.names:
        role = roles.get(axis)
        if not isinstance(role, str):
            for layout in (*layouts, *leaves, gradient, unstated):
                layout.append(Replicate() if role is None else At(role))
            continue
        added = role in dims.summed
        for i, (operand, shape) in enumerate(operands):
            at, found = dims.axis_of(role, operand), None
            if at is not None:
                placed = _axis(at, len(shape), 0 if i < inputs or i == last else -1)
                found = Shard(placed, _units(dims, layer, role, operand[at], shape[at], parts[role], shapes))
                if i < inputs and role in layer_windows(layer):
                    found = _halo(
                        layer, role, letters[role], at, shape, out[dims.axis_of(role, dims.output) - 1], mesh
                    )
            if i < inputs:
                leaves[i].append(found or Partial())
            layouts[i].append(
                found or (Partial() if i == last else At(0) if added and i >= inputs else Replicate())
            )
        for i, of_variable in enumerate(sums, inputs):
            if i >= last or (not added and dims.axis_of(role, operands[i][0]) is None):
                of_variable.append(axis)
        unstated.append(Replicate())
        gradient.append(Replicate() if layouts[last][-1] == Partial() else layouts[last][-1])
        if layer is not None and (role in layer.statistics.split() or not layer.statistics):
            statistics.append(axis)
    variables = {
        key: Variable(tuple(layouts[i] if i < last else unstated), tuple(sums[i - inputs]))
        for i, key in enumerate(own, inputs)
    }
    return Derived(
        tuple(map(tuple, layouts[:inputs])),
        tuple(map(tuple, leaves)),
        tuple(layouts[last]),
        tuple(gradient),
        variables,
        tuple(statistics),
    )


def layer_windows(layer: nn.Module | None) -> list[str]:
    return [] if layer is None else layer.windows.split()


def _check(name: str, layer, dims, letter: str, shapes, out: Shape, parts: int) -> None:
    """Raise PlacementError unless the layer can be split into so many parts along a letter."""
    kind = "the loss" if layer is None else type(layer).__name__
    if dims is None:
        raise PlacementError(
            f"{name}: {kind} states no dimensions (`dims`), so it cannot be split along {letter!r}: leave it replicated"
        )
    can = splittable(layer, dims, shapes, out, parts)
    if letter not in can:
        raise PlacementError(
            f"{name}: {kind} cannot be split along {letter!r} into {parts} parts: of {_statement(layer)!r} it can be "
            f"split along {', '.join(can) or 'nothing'}"
        )


def _axis(at: int, axes: int, only: int) -> int:
    """The number by which an axis is called: the last one, the features, is -1; `only` is that of an array of one
    axis."""
    return only if axes == 1 else -1 if at == axes - 1 else at


def _units(dims: Dimensions, layer, letter: str, axis: Axis, n: int, parts: int, shapes) -> int | None:
    """The indivisible pieces of an axis of n entries that begins with a letter; None where an even split respects
    them."""
    if len(axis) == 1:
        return None
    units = layer.groups if letter == "g" else _size(dims, letter, shapes)
    even = all(bounds(units, parts, i)[1] * n // units == bounds(n, parts, i)[1] for i in range(parts))
    return None if even else units


def _size(dims: Dimensions, letter: str, shapes: Sequence[Shape]) -> int:
    """Entries of a letter that is an axis of some input of its own."""
    return next(s[o.index((letter,)) - 1] for o, s in zip(dims.inputs, shapes, strict=True) if (letter,) in o)


def _halo(
    layer: nn.Module, letter: str, axes: tuple[str, ...], at: int, shape: Shape, n: int, mesh: Mesh
) -> Placement:
    """What the windows of each part of `n` outputs read of axis `at` of the input; plain `Shard` where they overlap
    not."""
    axis = _axis(at, len(shape), 0)
    sizes = [size for name, size in zip(mesh.names, mesh.sizes, strict=True) if name in axes]
    own = [(0, n)]
    even = [(0, shape[at])]
    for size in sizes:
        own, even = (
            [(a + x, a + y) for a, b in rows for x, y in (bounds(b - a, size, i) for i in range(size))]
            for rows in (own, even)
        )
    ranges = tuple(layer.field(letter, start, stop, shape[1:]) for start, stop in own)
    return (
        Shard(axis)
        if ranges == tuple(even)
        else Halo(axis, tuple(x for x in mesh.names if x in axes), ranges)
    )


def localise(
    layer: nn.Module,
    derived: Derived,
    mesh: Mesh,
    rank: int,
    shape: Shape,
    out: Shape,
    shared: dict[int, Any] | None = None,
) -> nn.Module | None:
    """The part of `layer` that a rank runs, with variables of its own; None where it runs nothing.

    Parameters
    ----------
    shared : dict, optional
        The parts of variables that this rank has already, by the id of the whole: a variable that two layers have is
        one.
    """
    at = mesh.coordinates[rank]
    if _elsewhere(derived.gradient, at):
        return None
    shared = {} if shared is None else shared
    memo: dict[int, Any] = {}
    for key, whole in layer.named_variables(prefix=""):
        layout = derived.variables[key].layout
        if _elsewhere(layout, at):
            memo[id(whole)] = None
        else:
            cut = tuple(slice(*x) for x in intervals(layout, whole.full_shape, at, mesh))
            memo[id(whole)] = shared.setdefault(id(whole), whole.part(cut))
    local = copy.deepcopy(layer, memo)
    boxes = [
        intervals(layout, (0, *s), at, mesh)[1:]
        for layout, s in ((derived.output, out), (derived.inputs[0], shape))
    ]
    if (boxes[0], boxes[1]) != (tuple((0, n) for n in out), tuple((0, n) for n in shape)):
        local.localise(Part(boxes[0], boxes[1], tuple(out), tuple(shape)))
    return local


def _elsewhere(layout: Layout, at: Sequence[int]) -> bool:
    return any(isinstance(p, At) and p.index != i for p, i in zip(layout, at, strict=True))
