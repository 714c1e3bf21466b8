"""The process mesh: ranks along named axes, and the groups that differ along some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from ..errors import InputError


def split(n: int, parts: int) -> tuple[int, ...]:
    """The sizes of `parts` nearly equal parts of `n`: the first ``n % parts`` get one more."""
    return tuple(n // parts + (i < n % parts) for i in range(parts))


def bounds(n: int, parts: int, index: int) -> tuple[int, int]:
    """Start and stop of part `index` of `split(n, parts)`."""
    least, more = divmod(n, parts)
    start = index * least + min(index, more)
    return start, start + least + (index < more)


@dataclass(frozen=True, init=False)
class Mesh:
    """``Mesh(data=2, stage=2, model=2)`` is ``arange(8).reshape(2, 2, 2)``: the last axis counts fastest.

    Attributes
    ----------
    names, sizes : tuple
        Of the axes, in order.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __init__(self, **axes: int) -> None:
        for name, size in axes.items():
            if size < 1:
                raise InputError(f"mesh: axis {name!r} has {size} ranks, expected 1 or more")
        object.__setattr__(self, "names", tuple(axes))
        object.__setattr__(self, "sizes", tuple(axes.values()))

    @classmethod
    def parse(cls, text: str) -> Mesh:
        """The mesh of ``"data=2,stage=2,model=2"``."""
        axes: dict[str, int] = {}
        for part in text.split(","):
            name, equals, size = (word.strip() for word in part.partition("="))
            number = int(size) if equals and size.isdecimal() and len(size) < 10 else 0
            if not name.isidentifier() or not number or name in axes:
                raise InputError.about("mesh", text, "axes and their sizes, as in data=2,stage=2,model=2")
            axes[name] = number
        return cls(**axes)

    @cached_property
    def size(self) -> int:
        return prod(self.sizes)

    def axis_size(self, name: str) -> int:
        """Ranks along an axis; 1 where there is no such axis."""
        return self.sizes[self.names.index(name)] if name in self.names else 1

    @cached_property
    def coordinates(self) -> tuple[tuple[int, ...], ...]:
        """The place of every rank along each axis."""
        return tuple(product(*(range(n) for n in self.sizes)))

    def coordinate(self, rank: int, axis: str) -> int:
        """The place of a rank along one axis; 0 where there is no such axis."""
        return self.coordinates[rank][self.names.index(axis)] if axis in self.names else 0

    def index(self, at: Sequence[int], axes: Sequence[str]) -> int:
        """The number, in its `group` along `axes`, of the rank at these coordinates."""
        number = 0
        for name, size, i in zip(self.names, self.sizes, at, strict=True):
            if name in axes:
                number = number * size + i
        return number

    def group(self, rank: int, axes: Sequence[str]) -> tuple[int, ...]:
        """The ranks that differ from `rank` along `axes` only, in rising order."""
        ranks, stride = [0], self.size
        for name, size, at in zip(self.names, self.sizes, self.coordinates[rank], strict=True):
            stride //= size
            steps = range(size) if name in axes else (at,)
            ranks = [r + stride * i for r in ranks for i in steps]
        return tuple(ranks)

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in zip(self.names, self.sizes, strict=True))

    __repr__ = __str__
