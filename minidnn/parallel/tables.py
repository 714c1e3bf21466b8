"""From splits for some layers of a model to splits for all of them, and to a strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from .. import nn
from ..errors import InputError
from ..nn.dimensions import Dimensions
from .balance import balanced_starts
from .costs import estimated_costs
from .mesh import Mesh
from .placement import At, Layout, Partial, Placement, Replicate, Shard
from .planner import LOSS, Shapes
from .rule import Split, derive, dimensions, splittable
from .schedule import live_activations, pipeline
from .strategy import Options, Strategy

Splits = dict[str, Split]


def mesh_of(options: Options, ranks: int, default: Mesh) -> Mesh:
    """The mesh of the options, or the default one; InputError unless it has so many ranks."""
    mesh = options.mesh or default
    if mesh.size != ranks:
        raise InputError(f"mesh {mesh} has {mesh.size} ranks, but there are {ranks}")
    return mesh


class Table:
    """The layers of a model, to be split over a mesh; `notes` say what could not be done as asked."""

    def __init__(self, name: str, model: nn.Sequential, shape: Shapes, mesh: Mesh, options: Options) -> None:
        self.name, self.model, self.shape, self.mesh, self.options = name, model, shape, mesh, options
        self.notes: list[str] = []
        self.linear = [n for n, layer in model if layer.factors]  # the fully connected layers
        # the others that have weights or windows, as convolutions, normalisations, poolings
        self.mixing = [n for n, x in model if not x.factors and (x.parameters() or x.windows)]
        rows = list(model.shapes(shape))
        self.layers = {name: layer for name, layer, *_ in rows} | {LOSS: None}
        self.shapes = {name: inputs for name, _, inputs, _ in rows} | {LOSS: (rows[-1][-1],)}
        self.outs = {name: out for name, *_, out in rows} | {LOSS: ()}
        self.sources = dict(model.sources) | {LOSS: (model.names[-1],)}

    def can(self, name: str, letter: str, axes: tuple[str, ...]) -> bool:
        """Whether a layer can be split so."""
        layer, shapes = self.layers[name], self.shapes[name]
        dims, parts = dimensions(layer, shapes), prod(map(self.mesh.axis_size, axes))
        return dims is not None and dims.letter(letter) in splittable(layer, shapes, self.outs[name], parts)

    def strategy(self, rules: Mapping[str, Split], after_sum: str = "", **more: Any) -> Strategy:
        """The strategy of these rules, for layers that `follow` one another, over the axis "data" by samples, too."""
        return self.pipelined(self.by_samples(self.follow(rules, after_sum)), **more)

    def follow(
        self, rules: Mapping[str, Split], after_sum: str = "", start: Layout = (), strict: bool = False
    ) -> Splits:
        """The splits of all layers: one that no rule names is split as the layer before it, where it can be.

        Parameters
        ----------
        after_sum : str
            The letter that is split after a layer whose output is still to be summed; default none.
        start : Layout
            Where the model's inputs are, for the first layers to follow; default replicated.
        strict : bool
            A layer that cannot be split as its rule says is an error; else it is replicated there and a note says so.
        """

        def letter_after(dims: Dimensions, placement: Placement) -> str:
            """Its own letter of an input that is split; where the layer sums over that, the output's letter there."""
            if isinstance(placement, Partial):
                return after_sum
            own, axis = dims.inputs[0][placement.axis][0], placement.axis
            if any(own in letters for letters in dims.output):
                return own
            return dims.output[axis][0] if -len(dims.output) <= axis < len(dims.output) else ""

        found: Splits = {}
        layouts: dict[str, Layout] = {}
        for name, layer in self.layers.items():
            if name not in rules:
                before = layouts.get(self.sources[name][0], start or (Replicate(),) * len(self.mesh.names))
                placed = dict(zip(self.mesh.names, before, strict=True))
                found[name], _ = self.asked(name, placed, letter_after)
            else:
                found[name] = rules[name] if strict else self._possible(name, rules[name])
            derived = derive(name, layer, self.shapes[name], self.outs[name], found[name], self.mesh)
            layouts[name] = derived.output
        return found

    def by_samples(self, splits: Splits) -> Splits:
        """Every layer that can, and the loss, split by samples over the axis "data", too, if the mesh has it."""
        if "data" not in self.mesh.names:
            return splits
        over = {n: tuple(dict.fromkeys(("data", *s.letters.get("n", ())))) for n, s in splits.items()}
        return {n: self._possible(n, Split({**s.letters, "n": over[n]}, s.at)) for n, s in splits.items()}

    def _possible(self, name: str, split: Split) -> Split:
        letters = {x: axes for x, axes in split.letters.items() if self.can(name, x, axes)}
        refused = (x for x in split.letters if x not in letters)
        why = f"over {self.mesh}: it is replicated there"
        self.notes += [f"{name} cannot be split along {x!r} {why}" for x in refused]
        return Split(letters, split.at)

    def asked(
        self, name: str, placed: Mapping[str, Placement], letter_of: Callable[[Dimensions, Placement], str]
    ) -> tuple[Split, list[Placement]]:
        """The split of a layer that placements along axes ask for, by the letter of each; and those that cannot be."""
        dims = dimensions(self.layers[name], self.shapes[name])
        letters: dict[str, tuple[str, ...]] = {}
        refused = []
        for axis, placement in placed.items():
            if isinstance(placement, Shard | Partial):
                letter = letter_of(dims, placement) if dims else ""
                axes = (*letters.get(letter, ()), axis)
                if letter and self.can(name, letter, axes):
                    letters[letter] = axes
                else:
                    refused.append(placement)
        return Split(letters, {axis: p.index for axis, p in placed.items() if isinstance(p, At)}), refused

    def pipelined(self, splits: Splits, **more: Any) -> Strategy:
        """A strategy of one stage, or, where the mesh has an axis "stage", pipelined."""
        options, piped, stages = self.options, "stage" in self.mesh.names, self.mesh.axis_size("stage")
        count, schedule = options.micro_batches, options.schedule if piped else "naive"
        return Strategy(
            self.name,
            self.mesh,
            splits,
            lambda at: pipeline(schedule, stages, at, count),
            options,
            starts=tuple(self._stage_starts(stages)) if piped else (),
            micro_batches=(count,) * stages,
            pipelined=piped,
            alive=tuple(live_activations(schedule, stages, stage, count) for stage in range(stages)),
            notes=tuple(self.notes),
            **more,
        )

    def _stage_starts(self, stages: int) -> list[str]:
        names, options = self.model.names, self.options
        if stages > len(names):
            has = f"the model has {len(names)}"
            raise InputError(f"{self.name} over {stages} stages needs as many layers; {has}")
        if options.stages is None:
            costs = options.costs or estimated_costs(
                self.model, self.shape, options.batch, options.micro_batches
            )
            # cut before layers with weights, where pooling has made the activations small
            firsts = [i for i, (_, layer) in enumerate(self.model) if i == 0 or layer.parameters()]
            if len(firsts) < stages:
                firsts = list(range(len(names)))
            units = [sum(costs[a:b]) for a, b in zip(firsts, [*firsts[1:], len(names)], strict=True)]
            return [names[firsts[i]] for i in balanced_starts(units, stages)]
        given = [names.index(s) if s in names else s for s in options.stages]
        numbers = range(1, len(names))
        if len(given) != stages - 1 or not all(i in numbers for i in given) or given != sorted(set(given)):
            expected = (
                f"{stages - 1} layers in rising order, the first ones of stages 1 to {stages - 1}, by name or by "
                "number: " + ", ".join(f"{i} {names[i]}" for i in numbers)
            )
            raise InputError.about("stages", ",".join(map(str, options.stages)), expected)
        return [names[i] for i in given]
