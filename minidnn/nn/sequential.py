"""`Sequential`: named layers in program order, with skip connections where a layer asks for them."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence

from minidnn.nn.module import Module, Shape, join
from minidnn.tape import current_tape
from minidnn.tensor import Tensor

INPUT = "input"  # the name under which a layer's `also` may refer to the model's own input


class Sequential(Module):
    """Layers one after the other; iterating gives ``(name, layer)``.

    ``Sequential(Linear(4, 3), ReLU())`` names its layers linear1 and relu1; a mapping ``{"fc": Linear(...)}``
    or pairs ``[("fc", Linear(4, 3))]`` give the names. A `Sequential` inside a `Sequential` is laid flat: its
    layer "conv" becomes "block.conv".

    A layer takes the output of the one before it. ``("fc", (Linear(4, 3), "conv5"))`` names what it takes instead,
    and a layer whose ``also`` names earlier layers is called with their outputs as extra inputs:
    ``Add(also=("relu1",))`` is a skip connection. "input" is the input of the container it was written in, so
    ``Sequential(Conv2d(...), ReLU(), Add(also=("input",)))`` is a residual block wherever it is put.

    One layer under two names is tied: the second is a copy that has the same parameters.

    Parameters
    ----------
    *layers : Module, or one mapping, or one iterable of pairs
    external : tuple of str
        Names of values that layers take though they are not inside, further inputs of the model; `forward` takes them
        after the first.

    Raises
    ------
    ValueError
        A name that is used twice, is not a name, or is used in ``also`` before the layer it belongs to.
    TypeError
        Something that is not a Module.
    """

    def __init__(
        self,
        *layers: Module | Mapping[str, Module] | Iterable[tuple[str, Module]],
        external: tuple[str, ...] = (),
    ):
        self.layers: dict[str, Module] = {}
        self.sources: dict[str, tuple[str, ...]] = {}  # the names of the inputs of each layer
        self._order: list | None = None
        self.inputs = (INPUT, *external)
        for name, layer in _named(layers):
            layer, *takes = layer if isinstance(layer, tuple) else (layer,)
            if isinstance(layer, Sequential):
                self._add_flat(name, layer, takes)
            else:
                before = takes or [next(reversed(self.layers), INPUT)]
                self._add(name, layer, (*before, *getattr(layer, "also", ())))

    @property
    def external(self) -> tuple[str, ...]:
        """The names of the inputs after the first."""
        return self.inputs[1:]

    def _add(self, name: str, layer: Module, sources: tuple[str, ...]) -> None:
        if not isinstance(layer, Module):
            raise TypeError(f"{name}: expected a Module, got {type(layer).__name__}")
        if not all(name.split(".")) or name == INPUT:
            raise ValueError(f"{name!r} cannot name a layer")
        if name in self.layers:
            raise ValueError(f"two layers are named {name!r}")
        if any(layer is other for other in self.layers.values()):
            layer = copy.copy(layer)
        for source in sources:
            if source not in (*self.inputs, *self.layers):
                known = ", ".join(self.layers)
                raise ValueError(f"{name} takes {source!r}, which is no earlier layer ({known})")
        self.layers[name], self.sources[name], self._order = layer, sources, None
        self.set_name(self.name)

    def _add_flat(self, name: str, block: "Sequential", takes: Sequence[str]) -> None:
        """The layers of a block; its "input" is what the block takes."""
        outer = dict(zip(block.inputs, takes or (next(reversed(self.layers), INPUT),), strict=False))
        for inner, layer in block:
            sources = tuple(
                join(name, s) if s in block.layers else outer.get(s, s) for s in block.sources[inner]
            )
            if layer.also:
                layer = copy.copy(layer)  # the block itself keeps the names that hold inside it
                layer.also = sources[-len(layer.also) :]
            self._add(join(name, inner), layer, sources)

    def forward(self, x: Tensor, *extra: Tensor) -> Tensor:
        """Call the layers in order; ``extra`` are the values of ``external``."""
        kept = dict(zip(self.inputs, (x, *extra), strict=True))
        tape, layers = current_tape(), self.layers
        outer = tape.layer
        try:
            for name, sources, done in self._order or self._ordered():
                tape.layer = name  # what the nodes are called in errors and in the ledger
                x = kept[name] = layers[name](*[kept[source] for source in sources])
                for source in done:
                    del kept[source]
        finally:
            tape.layer = outer
        return x

    def _ordered(self) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        """Of each layer: its name, what it takes, and what nobody takes after it."""
        last = {source: name for name, sources in self.sources.items() for source in sources}
        done = {
            name: tuple(s for s in dict.fromkeys(own) if last[s] == name)
            for name, own in self.sources.items()
        }
        self._order = [(name, own, done[name]) for name, own in self.sources.items()]
        return self._order

    def input_shapes(self, shape: Shape | Mapping[str, Shape], *extra: Shape) -> dict[str, Shape]:
        """The shape of each input, by name, given in order or as such a mapping."""
        if isinstance(shape, Mapping):
            return {name: tuple(shape[name]) for name in self.inputs}
        return dict(zip(self.inputs, (tuple(shape), *extra), strict=True))

    def shapes(
        self, shape: Shape | Mapping[str, Shape], *extra: Shape
    ) -> Iterator[tuple[str, Module, tuple[Shape, ...], Shape]]:
        """(name, layer, input shapes, output shape) per sample, layer by layer; see `input_shapes`."""
        known = self.input_shapes(shape, *extra)
        for name, layer in self:
            inputs = tuple(known[source] for source in self.sources[name])
            known[name] = layer.output_shape(*inputs)
            yield name, layer, inputs, known[name]

    def output_shape(self, shape: Shape, *extra: Shape) -> Shape:
        """Shape of the last output; ValueError naming the first layer that cannot take its input."""
        rows = list(self.shapes(shape, *extra))
        return rows[-1][-1] if rows else tuple(shape)

    def macs(self, shape: Shape, *extra: Shape) -> int:
        """Sum over the layers."""
        return sum(layer.macs(*inputs) for _, layer, inputs, _ in self.shapes(shape, *extra))

    def children(self) -> Iterator[tuple[str, Module]]:
        """(name, layer)."""
        return iter(self.layers.items())

    def between(self, start: str, stop: str) -> "Sequential":
        """The layers from ``start`` to ``stop``, both included: the same objects under the same names.

        Outputs of layers outside that are used inside become ``external``, in order of first use; so does the
        model's "input" where the part does not begin with the model.
        """
        names = list(self.layers)
        first, last = (names.index(self._find(name)) for name in (start, stop))
        inside = names[first : last + 1]
        before = names[first - 1] if first else INPUT
        outside = dict.fromkeys(
            s for name in inside for s in self.sources[name] if s not in (*inside, before)
        )
        part = Sequential()
        part.inputs = (before, *outside)
        part.layers = {name: self.layers[name] for name in inside}
        part.sources = {name: self.sources[name] for name in inside}
        return part

    def _find(self, name: str) -> str:
        if name not in self.layers:
            raise KeyError(f"no layer {name!r}; the layers are {', '.join(self.layers)}")
        return name

    @property
    def names(self) -> list[str]:
        """Names of the layers, in order."""
        return list(self.layers)

    def __iter__(self) -> Iterator[tuple[str, Module]]:
        return iter(self.layers.items())

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> Module:
        return self.layers[self._find(name)]

    def __repr__(self) -> str:
        lines = [f"  {name}: {layer!r}" for name, layer in self]
        return "\n".join(["Sequential(", *lines, ")"])


def _named(layers: tuple) -> Iterator[tuple[str, Module]]:
    """Pairs of name and layer from any of the three ways to write them."""
    if len(layers) == 1 and isinstance(layers[0], Mapping):
        yield from layers[0].items()
    elif len(layers) == 1 and not isinstance(layers[0], Module) and isinstance(layers[0], Iterable):
        yield from layers[0]
    else:
        count: dict[str, int] = {}
        for layer in layers:
            kind = type(layer).__name__.lower()
            count[kind] = count.get(kind, 0) + 1
            yield f"{kind}{count[kind]}", layer
