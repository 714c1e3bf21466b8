"""Splits for every layer of a model, from rules for some of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from .. import nn
from ..nn.dimensions import Dimensions
from .mesh import Mesh
from .placement import At, Layout, Partial, Shard
from .planner import LOSS, Shapes
from .rule import Split, derive, dimensions, splittable

Splits = dict[str, Split]


class Table:
    """Splits for every layer, from rules for some of them: what is not named follows the layer before it where it
    can."""

    def __init__(self, model: nn.Sequential, shape: Shapes, mesh: Mesh) -> None:
        self.mesh, self.notes = mesh, []
        rows = list(model.shapes(shape))
        self.layers = {name: layer for name, layer, *_ in rows} | {LOSS: None}
        self.shapes = {name: inputs for name, _, inputs, _ in rows} | {LOSS: (rows[-1][-1],)}
        self.outs = {name: out for name, *_, out in rows} | {LOSS: ()}
        self.sources = dict(model.sources) | {LOSS: (model.names[-1],)}

    @property
    def linear(self) -> list[str]:
        """The fully connected layers."""
        return [name for name, layer in self.layers.items() if layer is not None and layer.factors]

    @property
    def mixing(self) -> list[str]:
        """Layers before the fully connected ones that have weights or windows, as convolutions, normalisations,
        poolings."""
        return [
            name
            for name, layer in self.layers.items()
            if layer is not None and not layer.factors and (layer.parameters() or layer.windows)
        ]

    def can(self, name: str, letter: str, axes: tuple[str, ...]) -> bool:
        """Whether a layer can be split so."""
        dims = dimensions(self.layers[name], self.shapes[name])
        parts = prod(self.mesh.axis_size(axis) for axis in axes)
        found = splittable(self.layers[name], self.shapes[name], self.outs[name], parts)
        return dims is not None and dims.letter(letter) in found

    def layout(self, name: str, split: Split) -> Layout:
        """Of the output."""
        return derive(name, self.layers[name], self.shapes[name], self.outs[name], split, self.mesh).output

    def follow(
        self, rules: Mapping[str, Split], start: Layout, after_sum: str = "", strict: bool = False
    ) -> Splits:
        """The splits of all layers.

        Parameters
        ----------
        rules : dict
            Of some layers. Where a layer cannot be split so, it is replicated there and a note says so; or, if
            `strict`, it is an error.
        start : Layout
            Where the model's inputs are, for the first layers to follow.
        after_sum : str
            The letter that is split after a layer whose output is still to be summed; default none.
        """
        found: Splits = {}
        layouts: dict[str, Layout] = {}
        for name in self.layers:
            split = rules.get(name)
            if split is None:
                split = self._followed(name, layouts.get(self.sources[name][0], start), after_sum)
            elif not strict:
                split = self._possible(name, split)
            found[name] = split
            layouts[name] = self.layout(name, split)
        return found

    def _possible(self, name: str, split: Split) -> Split:
        letters = {x: axes for x, axes in split.letters.items() if self.can(name, x, axes)}
        for letter in split.letters.keys() - letters.keys():
            self.notes.append(
                f"{name} cannot be split along {letter!r} over {self.mesh}: it is replicated there"
            )
        return Split(letters, split.at)

    def data_parallel(self, splits: Splits) -> Splits:
        """Every layer that can, and the loss, split by samples over the axis "data", too, if the mesh has it."""
        if "data" not in self.mesh.names:
            return splits
        over = {n: tuple(dict.fromkeys(("data", *s.letters.get("n", ())))) for n, s in splits.items()}
        return {n: self._possible(n, Split({**s.letters, "n": over[n]}, s.at)) for n, s in splits.items()}

    def _followed(self, name: str, before: Layout, after_sum: str) -> Split:
        """Split along every axis of the mesh as the layer before is, where this one can."""
        dims, letters, at = dimensions(self.layers[name], self.shapes[name]), {}, {}
        for axis, placement in zip(self.mesh.names, before, strict=True):
            letter = ""
            if isinstance(placement, At):
                at[axis] = placement.index
            elif placement == Partial():
                letter = after_sum
            elif isinstance(placement, Shard) and dims is not None:
                letter = self._letter_after(dims, placement.axis)
            if letter and self.can(name, letter, (*letters.get(letter, ()), axis)):
                letters[letter] = (*letters.get(letter, ()), axis)
        return Split(letters, at)

    def _letter_after(self, dims: Dimensions, axis: int) -> str:
        """The letter to split after an input that is split along an axis: its own, or, where the layer sums over
        that, the output's letter there; "" where there is none."""
        own = dims.inputs[0][axis][0]
        if any(own in letters for letters in dims.output):
            return own
        return dims.output[axis][0] if -len(dims.output) <= axis < len(dims.output) else ""
