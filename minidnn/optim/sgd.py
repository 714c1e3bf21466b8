"""Stochastic gradient descent with momentum, Nesterov's form, weight decay and learning-rate decay."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from minidnn.backend import array_module, to_device
from minidnn.functional.factors import Factors
from minidnn.optim.schedules import Schedule
from minidnn.optim.update import factored_update, momentum_update
from minidnn.tensor import Tensor

_OPTIONS = ("lr", "momentum", "nesterov", "weight_decay", "decay", "schedule")


class SGD:
    """d = g + weight_decay w;  v <- momentum v + d;  w <- w - lr v, or w - lr (momentum v + d) for Nesterov

    This is PyTorch's form: the learning rate multiplies the velocity. In AlexNet's (2012 paper, sec. 5) it
    is inside the velocity; the two are equal while the rate is constant. The rate of iteration i, counted
    from 0, is ``lr * schedule(i) / (1 + decay * i)``; the second factor is Keras's ``decay``.

    Parameters
    ----------
    params : iterable of Tensor, or of groups ``{"params": [...], "lr": ...}``
        A group may override each of the options below. Weight decay leaves out parameters whose ``decay``
        attribute is False. A parameter without gradient is not updated.
    lr : float
        Learning rate; optional where every group has its own.
    momentum, weight_decay, decay : float
    nesterov : bool
        Needs a momentum.
    schedule : callable, optional
        From the iteration to a factor: see `minidnn.optim.schedules`.

    Attributes
    ----------
    groups : list of dict
        All options of each group, and its "params"; options may be changed between steps.
    iteration : int
        Steps made so far.

    Raises
    ------
    ValueError
        An option out of range, unknown or missing, or a parameter that is given twice.
    TypeError
        Something that is not a Tensor.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Mapping[str, Any]],
        lr: float | None = None,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decay: float = 0.0,
        schedule: Schedule | Callable[[int], float] | None = None,
    ) -> None:
        defaults = dict(zip(_OPTIONS, (lr, momentum, nesterov, weight_decay, decay, schedule), strict=True))
        params = _listed(params, "SGD")
        if not all(isinstance(entry, Mapping) for entry in params):
            params = [{"params": params}]
        self.groups = [_group(number, defaults, given) for number, given in enumerate(params)]
        self.iteration = 0
        self._velocity: dict[int, Any] = {}  # by id: the groups keep the parameters alive
        seen: list[int] = []
        for parameter in self.parameters():
            if id(parameter) in seen:
                raise ValueError(f"parameter {parameter.name!r} is given twice")
            seen.append(id(parameter))

    def parameters(self) -> Iterator[Tensor]:
        """All parameters, group by group."""
        for group in self.groups:
            yield from group["params"]

    def learning_rate(self, group: int = 0) -> float:
        """The rate that the next update of a group uses."""
        options = self.groups[group]
        factor = options["schedule"](self.iteration) if options["schedule"] else 1.0
        return float(options["lr"] * factor / (1 + options["decay"] * self.iteration))

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.zero_grad()

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

        Raises
        ------
        ValueError
            A gradient has another shape than its parameter.
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
            self._update(parameter, gradient, rate, options)
            parameter.changes.count += 1

    def _update(self, parameter: Tensor, g: Any, rate: float, options: Mapping[str, Any]) -> None:
        decay = options["weight_decay"] if getattr(parameter, "decay", True) else 0.0
        velocity = self._velocity_of(parameter) if options["momentum"] else None
        rule = rate, options["momentum"], options["nesterov"], decay
        if isinstance(g, Factors):
            factored_update(parameter.data, g.x, g.gy, velocity, *rule)
        else:
            momentum_update(parameter.data, g, velocity, *rule)

    def _velocity_of(self, parameter: Tensor) -> Any:
        velocity = self._velocity.get(id(parameter))
        if velocity is None:
            xp = array_module(parameter.data)
            velocity = self._velocity[id(parameter)] = xp.zeros(parameter.data.shape, parameter.data.dtype)
        return velocity

    def state_dict(self) -> dict[str, Any]:
        """``{"iteration": int, "velocity": {parameter name: copy of its momentum}}``.

        Raises
        ------
        ValueError
            A parameter has no name, or two have the same.
        """
        velocity = {
            name: self._velocity[id(parameter)].copy()
            for name, parameter in self._by_name().items()
            if id(parameter) in self._velocity
        }
        return {"iteration": self.iteration, "velocity": velocity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`; a part of a parameter cuts its slice out of a whole momentum.

        Raises
        ------
        KeyError
            A momentum of a parameter that is not here.
        ValueError
            A momentum of the wrong shape. Nothing has been changed then.
        """
        parameters, velocity = self._by_name(), {}
        unexpected = [name for name in state["velocity"] if name not in parameters]
        if unexpected:
            raise KeyError(f"state does not fit the optimiser: unexpected {unexpected}")
        for name, value in state["velocity"].items():
            parameter = parameters[name]
            if value.shape != parameter.shape and value.shape == getattr(parameter, "full_shape", None):
                value = value[parameter.slices]
            if value.shape != parameter.shape:
                raise ValueError(f"{name}: momentum of shape {value.shape}, expected {parameter.shape}")
            xp = array_module(parameter.data)
            velocity[id(parameter)] = xp.array(to_device(value, xp), dtype=parameter.data.dtype, order="C")
        self._velocity = velocity
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


def _listed(params: Any, where: str) -> list[Any]:
    """As a list; a tensor, a model and a mapping are refused: to iterate over them gives no parameters."""
    if (
        isinstance(params, (Tensor, Mapping))
        or hasattr(params, "parameters")
        or not isinstance(params, Iterable)
    ):
        raise TypeError(
            f"{where}: expected a list, model.parameters() or [w], got a single {type(params).__name__}"
        )
    return list(params)


def _group(number: int, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [key for key in given if key not in ("params", *_OPTIONS)]
    if unknown or "params" not in given:
        raise ValueError(
            f"group {number}: expected params and any of {', '.join(_OPTIONS)}; got {', '.join(given)}"
        )
    group = {**defaults, **given, "params": _listed(given["params"], f"group {number}")}
    for parameter in group["params"]:
        if not isinstance(parameter, Tensor):
            kind = type(parameter).__name__
            raise TypeError(f"group {number}: expected tensors, as in model.parameters(), got {kind}")
    if group["lr"] is None or not group["lr"] >= 0:
        raise ValueError(f"group {number}: needs a learning rate of at least 0, got {group['lr']}")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"group {number}: momentum must be in [0, 1), got {group['momentum']}")
    if group["nesterov"] and not group["momentum"]:
        raise ValueError(f"group {number}: Nesterov's form needs a momentum")
    if not (group["weight_decay"] >= 0 and group["decay"] >= 0):
        raise ValueError(f"group {number}: weight_decay and decay must not be negative")
    return group
