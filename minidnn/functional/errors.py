"""One form for the messages of a wrong shape or dtype: layer, operation, what came, what was expected."""

from typing import Any

import numpy as np

from minidnn.tape import current_tape


def place(operation: str) -> str:
    """`operation`, with the layer that the tape is in where it has a label."""
    layer = current_tape().layer
    return f"{layer} ({operation})" if layer else operation


def wrong_shape(operation: str, got: str, expected: str) -> ValueError:
    """The error to raise for arrays that do not fit an operation."""
    return ValueError(f"{place(operation)}: got {got}, expected {expected}")


def count(value: Any, name: str, operation: str, least: int = 1) -> int:
    """An integer of any type as an int; ValueError if it is none, or less than `least`."""
    if not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{place(operation)}: {name}={value!r}, expected an int >= {least}")
    return int(value)


def floating(operation: str, x: Any) -> Any:
    """`x`, a tensor or array of floating-point numbers; TypeError for another."""
    if x.dtype.kind != "f":
        raise TypeError(f"{place(operation)}: got dtype {x.dtype}, expected floats: use x.astype(np.float32)")
    return x
