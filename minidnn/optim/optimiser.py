"""What all optimisers share: groups of parameters and their options, learning rates, and named state."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from typing import Any

import numpy as np

from minidnn.backend import array_module, to_device
from minidnn.tensor import Tensor

#: The options that all optimisers have.
COMMON = {"weight_decay": 0.0, "decay": 0.0, "schedule": None}


class Optimiser(ABC):
    """Updates parameters in place, element by element: a part of a parameter is updated as the whole would be.

    The rate of iteration i, counted from 0, is ``lr * schedule(i) / (1 + decay * i)``, by Keras's ``decay``.

    Parameters
    ----------
    params : iterable of Tensor, or of groups ``{"params": [...], "lr": ...}``
        A group may override each of the options. A parameter without gradient is not updated.
    *values, **options
        By position or name, those of `defaults`, which the class describes; common to all are ``lr``, optional
        where every group has its own, ``weight_decay``, which leaves out parameters whose ``decay`` attribute
        is False, ``decay``, and ``schedule``, from the iteration to a factor: see `minidnn.optim.schedules`.

    Attributes
    ----------
    groups : list of dict
        All options of each group, and its "params"; options may be changed between steps.
    iteration : int
        Steps made so far.
    defaults : dict
        The options of the method.
    slots : tuple of str
        What is kept for each parameter: arrays of its shape, or how often something happened.

    Raises
    ------
    ValueError
        An option out of range, unknown or missing, or a parameter that is given twice.
    TypeError
        Something that is not a Tensor.
    """

    defaults: Mapping[str, Any]
    slots: tuple[str, ...]

    def __init__(
        self, params: Iterable[Tensor] | Iterable[Mapping[str, Any]], *values: Any, **options: Any
    ) -> None:
        params = _listed(params, type(self).__name__)
        if not all(isinstance(entry, Mapping) for entry in params):
            params = [{"params": params}]
        defaults = {**self.defaults, **dict(zip(self.defaults, values, strict=False)), **options}
        if len(defaults) > len(self.defaults) or len(values) > len(defaults):
            known = ", ".join(self.defaults)
            raise ValueError(f"{type(self).__name__}: expected any of {known}; got {options}")
        self.groups = [_group(number, defaults, given) for number, given in enumerate(params)]
        self.iteration = 0
        self._state: dict[int, dict[str, Any]] = {}  # by id: the groups keep the parameters alive
        seen: set[int] = set()
        for parameter in self.parameters():
            if id(parameter) in seen:
                raise ValueError(f"parameter {parameter.name!r} is given twice")
            seen.add(id(parameter))

    @abstractmethod
    def update(self, parameter: Tensor, g: Any, rate: float, decay: float, options: Mapping) -> None:
        """Update one parameter in place, by its gradient (an array or `Factors`), and what is kept for it."""

    def parameters(self) -> Iterator[Tensor]:
        """All parameters, group by group."""
        for group in self.groups:
            yield from group["params"]

    def learning_rate(self, group: int = 0) -> float:
        """The rate that the next update of a group uses."""
        options = self.groups[group]
        factor = options["schedule"](self.iteration) if options["schedule"] else 1.0
        return float(options["lr"] * factor / (1 + options["decay"] * self.iteration))

    def step(self) -> None:
        """Update all groups and count the iteration."""
        for number in range(len(self.groups)):
            self.update_group(number)
        self.advance()

    def advance(self) -> None:
        """Count an iteration. `step` does; who calls `update_group` instead does it at the step's end."""
        self.iteration += 1

    def update_group(self, group: int) -> None:
        """Update one group in place, without counting an iteration: it may be updated several times in one.

        ValueError: a gradient has another shape than its parameter.
        """
        rate, options = self.learning_rate(group), self.groups[group]
        for parameter in options["params"]:
            factors = getattr(parameter, "factors", None)
            gradient = parameter.grad if factors is None else factors
            if gradient is None:
                continue
            if gradient.shape != parameter.data.shape:
                raise ValueError(
                    f"{parameter.name or 'parameter'}: gradient of shape {gradient.shape}, "
                    f"expected {parameter.data.shape}"
                )
            decay = options["weight_decay"] if getattr(parameter, "decay", True) else 0.0
            self.update(parameter, gradient, rate, decay, options)
            parameter.changes.count += 1

    def state_of(self, parameter: Tensor) -> dict[str, Any]:
        """What is kept for a parameter, by slot."""
        return self._state.setdefault(id(parameter), {})

    def kept(self, parameter: Tensor, slot: str) -> Any:
        """The array of a slot, zeros at first."""
        state = self._state.get(id(parameter))
        if state is None or slot not in state:
            state, data = self.state_of(parameter), parameter.data
            state[slot] = array_module(data).zeros(data.shape, data.dtype)
        return state[slot]

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """``{"iteration": int, slot: {parameter name: copy of what is kept for it}, ...}``

        ValueError: a parameter has no name, or two have the same.
        """
        found = {name: self._state.get(id(parameter), {}) for name, parameter in self._by_name().items()}
        return {"iteration": self.iteration} | {
            slot: {name: copy(state[slot]) for name, state in found.items() if slot in state}
            for slot in self.slots
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`; a part of a parameter cuts its slice out of an array for the whole.

        KeyError: state of another optimiser, or of a parameter that is not here.
        ValueError: an array of the wrong shape. Nothing has been changed then.
        """
        expected = ["iteration", *self.slots]
        if sorted(state) != sorted(expected):
            raise KeyError(f"state does not fit {type(self).__name__}: has {[*state]}, expected {expected}")
        parameters = self._by_name()
        taken: dict[int, dict[str, Any]] = {}
        for slot in self.slots:
            unexpected = [name for name in state[slot] if name not in parameters]
            if unexpected:
                raise KeyError(f"state does not fit the optimiser: unexpected {unexpected}")
            for name, value in state[slot].items():
                taken.setdefault(id(parameters[name]), {})[slot] = _part(parameters[name], slot, value)
        self._state = taken
        self.iteration = int(state["iteration"])

    def _by_name(self) -> dict[str, Tensor]:
        names: dict[str, Tensor] = {}
        for parameter in self.parameters():
            if not parameter.name or parameter.name in names:
                raise ValueError(
                    f"the state is kept by parameter name, but {parameter.name!r} is no name of one parameter"
                )
            names[parameter.name] = parameter
        return names


def _part(parameter: Tensor, slot: str, value: Any) -> Any:
    """A loaded value as `parameter` needs it: a count, or an array of its own."""
    if np.dtype(getattr(value, "dtype", int)).kind in "iu":
        return int(value)
    if value.shape != parameter.shape and value.shape == getattr(parameter, "full_shape", None):
        value = value[parameter.slices]
    if value.shape != parameter.shape:
        raise ValueError(f"{parameter.name}: {slot} of shape {value.shape}, expected {parameter.shape}")
    xp = array_module(parameter.data)
    return xp.array(to_device(value, xp), dtype=parameter.data.dtype, order="C")


def _listed(params: Any, where: str) -> list[Any]:
    """As a list; a tensor, a model and a mapping are refused: to iterate over them gives no parameters."""
    single = isinstance(params, (Tensor, Mapping)) or hasattr(params, "parameters")
    if single or not isinstance(params, Iterable):
        kind = type(params).__name__
        raise TypeError(f"{where}: expected a list, model.parameters() or [w], got a single {kind}")
    return list(params)


def _group(number: int, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [key for key in given if key not in ("params", *defaults)]
    if unknown or "params" not in given:
        known = ", ".join(defaults)
        raise ValueError(f"group {number}: expected params and any of {known}; got {', '.join(given)}")
    group = {**defaults, **given, "params": _listed(given["params"], f"group {number}")}
    for parameter in group["params"]:
        if not isinstance(parameter, Tensor):
            kind = type(parameter).__name__
            raise TypeError(f"group {number}: expected tensors, as in model.parameters(), got {kind}")
    if group["lr"] is None or not group["lr"] >= 0:
        raise ValueError(f"group {number}: needs a learning rate of at least 0, got {group['lr']}")
    for name in group.keys() & {"momentum", "beta", "beta1", "beta2"}:
        if not 0 <= group[name] < 1:
            raise ValueError(f"group {number}: {name} must be in [0, 1), got {group[name]}")
    if group.get("nesterov") and not group["momentum"]:
        raise ValueError(f"group {number}: Nesterov's form needs a momentum")
    if not group.get("eps", 1) > 0:
        raise ValueError(f"group {number}: eps must be positive, got {group['eps']}")
    if not (group["weight_decay"] >= 0 and group["decay"] >= 0):
        raise ValueError(f"group {number}: weight_decay and decay must not be negative")
    return group
