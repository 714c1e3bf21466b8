"""The dimensions of a layer, stated as in einsum: what a strategy may split, and what follows where it does.

``"n ... i, i o, o -> n ... o"`` says of a linear layer: the input has samples n and features i, the first variable (W)
is (i, o), the second (b) is (o,), and the output has samples n and features o.  Operands are the inputs, in order,
then the layer's own variables, in order; a variable that is not listed has none of the letters.

- ``...`` stands for the axes that are left: n first, then h w (of images) or t (of sequences), c for the last.
- ``(g o)`` is one axis made of several; only its first letter can be split, as only that leaves parts in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from minidnn.errors import InputError

Axis = tuple[str, ...]  # the letters of one axis, outermost first
INNER = {2: (), 3: ("t",), 4: ("h", "w")}  # what lies between samples and features, by the number of axes
FEATURES = ("c", "o")  # either asks for the output's features, whatever letter the layer has for them


@dataclass(frozen=True)
class Dimensions:
    """A parsed statement: for each operand the letters of each of its axes."""

    inputs: tuple[tuple[Axis, ...], ...]
    variables: tuple[tuple[Axis, ...], ...]
    output: tuple[Axis, ...]

    def axis_of(self, letter: str, operand: Sequence[Axis]) -> int | None:
        """The axis of `operand` that begins with `letter`; None where it has none."""
        return next((i for i, axis in enumerate(operand) if axis and axis[0] == letter), None)

    def letter(self, asked: str) -> str:
        """The layer's own letter for what a strategy asks for: "c" and "o" mean the output's features, whatever it
        calls them, and of grouped ones whole groups; "i" means the input's."""
        own = _letters(*self.inputs, *self.variables, self.output)
        features = self.output[-1] if self.output else ()
        if asked in FEATURES and (features[:1] == ("g",) or (asked not in own and len(features) == 1)):
            return features[0]
        if asked == "i" and asked not in own and len(self.inputs[0][-1]) == 1:
            return self.inputs[0][-1][0]
        return asked

    @property
    def summed(self) -> frozenset[str]:
        """Letters that the output lacks: an input and a variable are multiplied and summed over them."""
        return frozenset((_letters(*self.inputs) & _letters(*self.variables)) - _letters(self.output))


def _letters(*operands: Sequence[Axis]) -> set[str]:
    return {letter for operand in operands for axis in operand for letter in axis}


@lru_cache(maxsize=1024)
def parse(text: str, shapes: tuple[tuple[int, ...], ...]) -> Dimensions:
    """Parse a statement for inputs of the given shapes of one sample.

    InputError: text that is no statement, or one of other inputs.
    """
    left, arrow, right = text.partition("->")
    operands = [part.split() for part in left.replace("(", " ( ").replace(")", " ) ").split(",")]
    if not arrow or len(operands) < len(shapes) or not all(operands):
        raise InputError(
            f"dims {text!r}: expected {len(shapes)} input{'s' * (len(shapes) > 1)}, variables, '->', the output, as in "
            "'n ... i, i o, o -> n ... o'"
        )
    rest = _rest(operands[0], len(shapes[0]) + 1)
    inputs = tuple(_axes(words, rest) for words in operands[: len(shapes)])
    for axes, shape in zip(inputs, shapes, strict=True):
        if len(axes) != len(shape) + 1:
            raise InputError(
                f"dims {text!r}: {len(axes)} axes for an input of shape (n, {', '.join(map(str, shape))})"
            )
    # an axis of one entry, such as the height of a 1 x 1 image, is no obstacle to splitting what follows it
    ones = {
        axis[0] for axes, shape in zip(inputs, shapes, strict=True)
        for axis, n in zip(axes[1:], shape, strict=True) if n == 1 and len(axis) == 1
    }  # fmt: skip
    output = _axes(right.replace("(", " ( ").replace(")", " ) ").split(), rest)
    output = tuple(
        tuple(x for x in axis if x not in ones) or axis[-1:] if len(axis) > 1 else axis for axis in output
    )
    return Dimensions(inputs, tuple(_axes(words, rest) for words in operands[len(shapes) :]), output)


def _rest(words: list[str], n: int) -> tuple[str, ...]:
    """The letters that ``...`` stands for in an input of n axes."""
    if "..." not in words:
        return ()
    before = words.index("...")
    after = len(words) - before - 1
    names = ("n", *INNER.get(n, tuple(f"d{i}" for i in range(1, n - 1))), "c")[:n]
    return names[before : n - after]


def _axes(words: list[str], rest: tuple[str, ...]) -> tuple[Axis, ...]:
    axes: list[Axis] = []
    group: list[str] | None = None
    for word in words:
        if word == "(":
            group = []
        elif word == ")":
            axes.append(tuple(group or ()))
            group = None
        elif group is not None:
            group += rest if word == "..." else [word]
        else:
            axes += [(x,) for x in rest] if word == "..." else [(word,)]
    return tuple(axes)


@dataclass(frozen=True)
class Part:
    """What a rank computes of a layer, for `Module.localise`: start and stop along each axis of one sample."""

    box: tuple[tuple[int, int], ...]  # of the output
    read: tuple[tuple[int, int], ...]  # of the first input
    out: tuple[int, ...]  # the shape of the whole output
    shape: tuple[int, ...]  # and of the whole input
