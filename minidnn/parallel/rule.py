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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from typing import Any

from .. import nn
from ..errors import InputError
from ..nn.dimensions import Axis, Dimensions, Part, parse
from .mesh import Mesh, bounds, cut
from .placement import At, Halo, Layout, Partial, Placement, Replicate, Shape, Shard, elsewhere, intervals


class PlacementError(InputError):
    """A split that a layer cannot take."""


@dataclass(frozen=True)
class Split:
    """How a strategy splits one layer.

    `letters` has the axes of the mesh over which each letter of the layer's dimensions is split, `at` the coordinate
    at which the layer runs along an axis, where it runs at one only.
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


class Loss(nn.Module):
    """What the rule has to know of the loss, which a plan has as a layer that is None."""

    dims = "n ... k -> n"
    whole = "k"


def _known(layer: nn.Module | None) -> nn.Module:
    return Loss() if layer is None else layer


def dimensions(layer: nn.Module | None, shapes: Sequence[Shape]) -> Dimensions | None:
    """What a layer states, for inputs of these shapes of one sample; None where it states nothing. None is the loss."""
    text = _known(layer).dims
    return parse(text, tuple(map(tuple, shapes))) if text else None


def splittable(layer: nn.Module | None, shapes: Sequence[Shape], out: Shape, parts: int) -> list[str]:
    """The letters along which a layer can be split into so many parts."""
    dims, layer = dimensions(layer, shapes), _known(layer)
    if dims is None:
        return []
    axes = [axis for operand in (*dims.inputs, *dims.variables, dims.output) for axis in operand]

    def possible(letter: str) -> bool:
        leads = all(axis[0] == letter for axis in axes if letter in axis)
        if letter in layer.windows.split() and out[dims.axis_of(letter, dims.output) - 1] < parts:
            return False  # a part that has nothing to look at
        return leads and letter not in layer.whole.split() and not (letter == "g" and layer.groups % parts)

    return list(filter(possible, dict.fromkeys([*(x[0] for x in dims.output if x), *sorted(dims.summed)])))


def derive(
    name: str, layer: nn.Module | None, shapes: Sequence[Shape], out: Shape, split: Split, mesh: Mesh
) -> Derived:
    """Apply the rule to one layer; None is the loss.

    `shapes` are those of one sample of each input, `out` that of the output. PlacementError, if the layer cannot be
    split so, says how it can.
    """
    states, known = dimensions(layer, shapes), _known(layer)
    dims = states or Dimensions(((),) * len(shapes), (), ())
    letters: dict[str, tuple[str, ...]] = {}
    for asked, axes in split.letters.items():  # two names for the features are one letter
        letter = dims.letter(asked) if states else asked
        letters[letter] = (*letters.get(letter, ()), *axes)
    given = [*chain(*letters.values()), *split.at]
    if twice := [axis for axis in given if given.count(axis) > 1]:
        raise PlacementError(
            f"{name}: the axis {twice[0]!r} is given twice in {str(split)!r}: it splits one letter"
        )
    over = {axis: x for x, axes in letters.items() for axis in axes if mesh.axis_size(axis) > 1}
    parts = {x: prod(mesh.axis_size(axis) for axis in letters[x]) for x in over.values()}
    for letter, n in parts.items():
        can, kind = splittable(layer, shapes, out, n), "the loss" if layer is None else type(layer).__name__
        if states is None:
            why = f"so it cannot be split along {letter!r}: leave it replicated"
            raise PlacementError(f"{name}: {kind} states no dimensions (`dims`), {why}")
        if letter not in can:
            how = f"of {known.dims!r} it can be split along {', '.join(can) or 'nothing'}"
            raise PlacementError(f"{name}: {kind} cannot be split along {letter!r} into {n} parts: {how}")

    def placed(operand: Sequence[Axis], shape: Shape, axis: str, read: bool) -> Placement:
        if axis not in over:
            return At(split.at[axis]) if axis in split.at and mesh.axis_size(axis) > 1 else Replicate()
        letter = over[axis]
        at = dims.axis_of(letter, operand)
        if at is None:
            return Replicate()
        # the last axis is that of features, if it is not the only one, that of samples
        number = -1 if at == len(shape) - 1 and letter != "n" else at
        if not read or letter not in known.windows.split():
            return Shard(number, _units(known, dims, operand[at], shape[at], parts[letter], shapes))
        names = tuple(x for x in mesh.names if x in letters[letter])
        sizes = [mesh.axis_size(x) for x in names]
        outputs = cut(out[dims.axis_of(letter, dims.output) - 1], sizes)
        ranges = tuple(known.field(letter, start, stop, shape[1:]) for start, stop in outputs)
        return Shard(number) if ranges == cut(shape[at], sizes) else Halo(number, names, ranges)

    def layout(operand: Sequence[Axis], shape: Shape, read: bool = False) -> Layout:
        return tuple(placed(operand, shape, axis, read) for axis in mesh.names)

    def lacking(whole: Layout, placement: Placement, letters: Collection[str]) -> Layout:
        """The same with `placement` along the axes that split one of these letters, which the operand lacks."""
        along = zip(mesh.names, whole, strict=True)
        return tuple(placement if p == Replicate() and over.get(a) in letters else p for a, p in along)

    inputs = tuple(layout(x, (0, *shape), read=True) for x, shape in zip(dims.inputs, shapes, strict=True))
    gradient = layout(dims.output, (0, *out))
    variables, operands = {}, iter(dims.variables)
    for key, variable in known.named_variables(prefix=""):
        operand = next(operands, None)
        own = layout(operand or (), variable.full_shape)
        if operand is not None:
            own = lacking(own, At(0), dims.summed)
        sums = tuple(a for a, p in zip(mesh.names, own, strict=True) if a in over and p == Replicate())
        variables[key] = Variable(own, sums)
    counted = known.statistics.split() or parts
    return Derived(
        inputs=inputs,
        leaves=tuple(lacking(x, Partial(), parts) for x in inputs),
        output=lacking(gradient, Partial(), parts),
        gradient=gradient,
        variables=variables,
        statistics=tuple(a for a in mesh.names if layer is not None and over.get(a) in counted),
    )


def _units(layer: nn.Module, dims: Dimensions, axis: Axis, n: int, parts: int, shapes) -> int | None:
    """The indivisible pieces of an axis of n entries; None where an even split respects them."""
    if len(axis) == 1:
        return None
    units, letter = layer.groups, axis[:1]
    if letter != ("g",):  # as many as the axis of an input that is the letter alone
        units = next(s[o.index(letter) - 1] for o, s in zip(dims.inputs, shapes, strict=True) if letter in o)
    even = all(bounds(units, parts, i)[1] * n // units == bounds(n, parts, i)[1] for i in range(parts))
    return None if even else units


def localise(
    layer: nn.Module, derived: Derived, mesh: Mesh, rank: int, shape: Shape, out: Shape, shared: dict
) -> nn.Module:
    """The part of `layer` that a rank runs, with variables of its own.

    `shared` has the parts of variables that the rank has already, by the id of the whole: what two layers share is one.
    """
    at = mesh.coordinates[rank]
    memo: dict[int, Any] = {}
    for key, whole in layer.named_variables(prefix=""):
        own = derived.variables[key].layout
        memo[id(whole)] = None
        if not elsewhere(own, at):
            part = tuple(slice(*x) for x in intervals(own, whole.full_shape, at, mesh))
            memo[id(whole)] = shared.setdefault(id(whole), whole.part(part))
    local = copy.deepcopy(layer, memo)
    box = intervals(derived.output, (0, *out), at, mesh)[1:]
    read = intervals(derived.inputs[0], (0, *shape), at, mesh)[1:]
    if (box, read) != (tuple((0, n) for n in out), tuple((0, n) for n in shape)):
        local.localise(Part(box, read, tuple(out), tuple(shape)))
    return local
