"""The process mesh: ranks along named axes, and the groups that differ along some of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
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


def cut(n: int, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Start and stop of the parts of `n` split into ``sizes[0]`` parts, each of them into ``sizes[1]``, and so on."""
    found = [(0, n)]
    for size in sizes:
        parts = [(start, bounds(stop - start, size, i)) for start, stop in found for i in range(size)]
        found = [(start + a, start + b) for start, (a, b) in parts]
    return tuple(found)


@lru_cache(maxsize=65536)
def numbers(sizes: tuple[int, ...], places: tuple[int | None, ...]) -> tuple[int, ...]:
    """The numbers, in rising order, of the points of a grid at these places along each axis; None: at all of them."""
    found = [0]
    for size, place in zip(sizes, places, strict=True):
        own = range(size) if place is None else (place,)
        found = [k * size + i for k in found for i in own]
    return tuple(found)


@dataclass(frozen=True, init=False)
class Mesh:
    """``Mesh(data=2, stage=2, model=2)`` is ``arange(8).reshape(2, 2, 2)``: the last axis counts fastest."""

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
        found = [re.fullmatch(r"\s*([^\W\d]\w*)\s*=\s*(\d{1,9})\s*", part) for part in text.split(",")]
        axes = {part[1]: int(part[2]) for part in found if part}
        if len(axes) < len(found) or 0 in axes.values():
            raise InputError.about("mesh", text, "axes and their sizes, as in data=2,stage=2,model=2")
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

    def group(self, rank: int, axes: Sequence[str]) -> tuple[int, ...]:
        """The ranks that differ from `rank` along `axes` only, in rising order."""
        at = zip(self.names, self.coordinates[rank], strict=True)
        return numbers(self.sizes, tuple(None if name in axes else i for name, i in at))

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in zip(self.names, self.sizes, strict=True))

    __repr__ = __str__
