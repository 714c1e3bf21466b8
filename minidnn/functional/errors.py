"""One form for the message of a wrong shape: layer, operation, what came, what was expected."""

from minidnn.tape import current_tape


def place(operation: str) -> str:
    """`operation`, with the layer that the tape is in where it has a label."""
    layer = current_tape().layer
    return f"{layer} ({operation})" if layer else operation


def wrong_shape(operation: str, got: str, expected: str) -> ValueError:
    """The error to raise for arrays that do not fit an operation."""
    return ValueError(f"{place(operation)}: got {got}, expected {expected}")
