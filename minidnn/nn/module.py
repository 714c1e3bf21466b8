"""`Module`, the base of all layers and of `Sequential`.

A layer is its options plus its parameters: attributes that are `Parameter` (trained) or `Buffer` (saved
only). It has no other state, but for dropout's count of its calls, so a planner may copy it shallowly and put
parts of the parameters in place of the whole.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from minidnn.backend import array_module, to_device
from minidnn.nn.context import current_context
from minidnn.nn.dimensions import Part
from minidnn.nn.parameter import Buffer, Parameter, Variable
from minidnn.tensor import Tensor

Shape = tuple[int, ...]


def join(*parts: str) -> str:
    """Dotted path of the non-empty parts."""
    return ".".join(part for part in parts if part)


class Module:
    """A differentiable function with parameters.

    A subclass writes ``forward(x, *extra)`` and, to be planned and summarised, `output_shape` and `macs`.
    """

    name: str = ""  # dotted path in the model, set by the container
    training: bool = (
        True  # what dropout and batch normalisation go by; ``nn.context(training=...)`` overrides it
    )
    also: tuple[str, ...] = ()  # earlier layers of the `Sequential` whose outputs are extra inputs

    # What a strategy can split:
    dims: str = ""  # the dimensions, as in `minidnn.nn.dimensions`; a layer that states none is replicated
    whole: str = ""  # letters of `dims` that cannot be split
    windows: str = ""  # letters along which an output reads a window of the input: see `field`
    statistics: str = (
        ""  # letters over which the layer takes statistics, which ranks that split them have to sum
    )
    groups: int = 1  # entries of a letter "g"
    factors: str = (
        ""  # the weight matrix, if any, whose gradient is a product over the samples: see `Factors`
    )

    def forward(self, x: Tensor, *extra: Tensor) -> Tensor:
        """The function itself."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def __setattr__(self, key: str, value: Any) -> None:
        """Set an attribute; a module or a variable takes its name from it."""
        object.__setattr__(self, key, value)
        if isinstance(value, Module):
            value.set_name(join(self.name, key))
        elif isinstance(value, Variable):
            value.name = join(self.name, key)

    def __call__(self, x: Tensor, *extra: Tensor) -> Tensor:
        return self.forward(x, *extra)

    def output_shape(self, shape: Shape, *extra: Shape) -> Shape:
        """Shape of one sample's output for one sample's input shape; ValueError if the input does not fit."""
        return tuple(shape)

    def macs(self, shape: Shape, *extra: Shape) -> int:
        """Multiply-accumulate operations per sample, of matrix products and convolutions only."""
        return 0

    def field(self, letter: str, start: int, stop: int, shape: Shape) -> tuple[int, int]:
        """The entries of the input, along a letter of `windows`, that outputs start to stop read."""
        return start, stop

    def localise(self, part: Part) -> None:
        """Become the layer that computes a part: change the options that speak of the whole; variables are cut
        already."""

    @property
    def label(self) -> str:
        """What error messages call this layer: its name, or its class where it has none."""
        return self.name or type(self).__name__

    @property
    def is_training(self) -> bool:
        """``training`` of the current context if that says so, else of this layer."""
        said = current_context().training
        return self.training if said is None else said

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """(attribute, module) of the modules directly inside; TypeError if some are hidden in a list."""
        for key, value in vars(self).items():
            if isinstance(value, Module):
                yield key, value
            elif isinstance(value, (list, tuple, dict)) and _hides(value):
                raise TypeError(
                    f"{self.label}: nothing finds the layers and parameters in the {type(value).__name__} {key!r}: "
                    "put layers in nn.ModuleList or nn.ModuleDict, and give each parameter an attribute"
                )

    def set_name(self, name: str) -> None:
        """Set the dotted path of this module and of all that is inside it."""
        for path, module in self.named_modules(name):
            module.name = path
        for path, variable in self.named_variables():
            variable.name = path

    def train(self, mode: bool = True) -> "Module":
        """Set ``training`` here and inside."""
        self.training = mode
        for _, child in self.children():
            child.train(mode)
        return self

    def eval(self) -> "Module":
        """``train(False)``."""
        return self.train(False)

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """(dotted path, module): this one, and all that are inside it."""
        yield prefix, self
        for key, child in self.children():
            yield from child.named_modules(join(prefix, key))

    def named_variables(self, kind: type = Variable, prefix: str | None = None) -> Iterator[tuple[str, Any]]:
        """(dotted name, variable) of parameters and buffers in program order; one that is tied, once, by its first
        name."""
        seen = set()
        for path, module in self.named_modules(self.name if prefix is None else prefix):
            for key, value in vars(module).items():
                if isinstance(value, kind) and id(value) not in seen:
                    seen.add(id(value))
                    yield join(path, key), value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter), in program order."""
        return self.named_variables(Parameter)

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """(dotted name, buffer), in program order."""
        return self.named_variables(Buffer)

    def parameters(self) -> list[Parameter]:
        """The parameters, in program order, each once."""
        found = {id(value): value for value in vars(self).values() if isinstance(value, Parameter)}
        for _, child in self.children():
            found |= {id(value): value for value in child.parameters()}
        return list(found.values())

    def init(self, seed: int = 0, dtype=np.float32, xp=np) -> "Module":
        """Draw all values from ``rng(seed, dotted name)``; returns self.

        ValueError: ``dtype`` is no floating-point type.
        """
        dtype = np.dtype(dtype)
        if dtype.kind != "f":
            raise ValueError(f"init: parameters need a floating-point dtype, got {dtype}")
        self.set_name(self.name)
        for name, variable in self.named_variables():
            variable.materialise(seed, name, dtype, xp)
        return self

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Copies of all values by dotted name, parameters and buffers in program order."""
        state = {}
        for name, variable in self.named_variables():
            if variable.data is None:
                raise RuntimeError(f"{name} has no values yet: call model.init(seed=...)")
            state[name] = variable.data.copy()
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, xp=np) -> None:
        """Take values by dotted name; a variable keeps its dtype, one without values takes that of the state.

        A part of a parameter accepts the whole array and cuts its slice out, so a checkpoint of the whole
        model loads into any split of it.

        KeyError: missing or unexpected names (``strict=False`` ignores both).
        ValueError: an array of the wrong shape. Nothing has been changed then.
        """
        variables = dict(self.named_variables())
        missing = [name for name in variables if name not in state]
        unexpected = [name for name in state if name not in variables]
        if strict and (missing or unexpected):
            raise KeyError(f"state does not fit the model: missing {missing}, unexpected {unexpected}")
        taken = [(name, variable, state[name]) for name, variable in variables.items() if name in state]
        for name, variable, value in taken:
            if value.shape not in (variable.shape, variable.full_shape):
                raise ValueError(
                    f"{name}: got an array of shape {value.shape}, expected {variable.full_shape}"
                )
        for _, variable, value in taken:
            if variable.data is None:
                variable.set_values(value, value.dtype, xp)
            else:
                part = value[variable.slices] if value.shape == variable.full_shape else value
                device = array_module(variable.data)
                variable.assign(to_device(part, device).astype(variable.data.dtype))

    def __repr__(self) -> str:
        hidden, plain = ("name", "training"), int | float | str | tuple
        options = ((k, v) for k, v in vars(self).items() if k not in hidden and k[0] != "_")
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in options if isinstance(v, plain))})"


def _hides(value: Any) -> bool:
    """Whether modules or variables are in a plain container."""
    if isinstance(value, dict):
        value = tuple(value.values())
    return isinstance(value, (list, tuple)) and any(
        isinstance(v, Module | Variable) or _hides(v) for v in value
    )
