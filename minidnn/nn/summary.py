"""A table of a model: shapes, parameters, multiply-accumulates and activation bytes, from shapes alone."""

import math
from dataclasses import dataclass

import numpy as np

from minidnn.nn.module import Module, Shape
from minidnn.nn.sequential import Sequential


@dataclass(frozen=True)
class SummaryRow:
    """One layer."""

    name: str  # dotted
    kind: str  # class
    output_shape: Shape  # of one sample
    parameters: int  # trained values
    macs: int  # of the forward pass per sample; the backward pass has about twice as many
    activation_bytes: int  # of the output of the whole batch


def summary_rows(
    model: Module, input_shape: Shape, batch: int = 1, dtype: str | np.dtype | type = np.float32
) -> list[SummaryRow]:
    """One row per layer for samples of ``input_shape`` (without n); ValueError where it does not fit."""
    itemsize = np.dtype(dtype).itemsize
    layers = model if isinstance(model, Sequential) else Sequential({model.label: model})
    rows = []
    for name, layer, inputs, shape in layers.shapes(input_shape):
        numbers = (
            sum(p.size for p in layer.parameters()),
            layer.macs(*inputs),
            batch * math.prod(shape) * itemsize,
        )
        rows.append(SummaryRow(name, type(layer).__name__, shape, *numbers))
    return rows


def summary(
    model: Module, input_shape: Shape, batch: int = 1, dtype: str | np.dtype | type = np.float32
) -> str:
    """The rows of `summary_rows` as text, with totals.

    >>> from minidnn.nn import Linear, Sequential
    >>> print(summary(Sequential(Linear(2, 3)), (2,)))
    layer    kind    output  parameters  MACs  activation bytes
    -----------------------------------------------------------
    linear1  Linear  3                9     6                12
    -----------------------------------------------------------
    total                             9     6                12
    """
    rows = summary_rows(model, input_shape, batch, dtype)
    cells = [("layer", "kind", "output", "parameters", "MACs", "activation bytes")]
    numbers = [(row.parameters, row.macs, row.activation_bytes) for row in rows]
    for row, counts in zip(rows, numbers, strict=True):
        cells.append((row.name, row.kind, "x".join(map(str, row.output_shape)), *(f"{n:,}" for n in counts)))
    totals = [sum(counts[i] for counts in numbers) for i in range(3)]
    cells.append(("total", "", "", *(f"{n:,}" for n in totals)))
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
