"""Where a tensor lives on a group of ranks.

The words are those of PyTorch's DTensor: a tensor is split along an axis (`Shard`), the same on
every member (`Replicate`), or still to be summed (`Partial`); `OnRank` is held by one member only.
The placement of a *layer* is the placement of its output:

=============  ============================================  ==================================
output         what each member computes                     weights
=============  ============================================  ==================================
Shard(0)       its rows of the batch (data parallel)         whole on every member
Shard(-1)      its output features (column-parallel)         split by output features
Partial()      a sum over its input features (row-parallel)  split by input features
Replicate()    everything                                    whole on every member
OnRank(r)      everything, on member r alone                 on member r
=============  ============================================  ==================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shard:
    """Split along `axis`: 0 is the samples, -1 the features (channels of an image)."""

    axis: int

    def __post_init__(self) -> None:
        if self.axis not in (0, -1):
            raise ValueError(f"Shard({self.axis}): the axis is 0 (samples) or -1 (features)")

    def __str__(self) -> str:
        return f"Shard({self.axis})"


@dataclass(frozen=True)
class Replicate:
    """The same on every member."""

    def __str__(self) -> str:
        return "Replicate"


@dataclass(frozen=True)
class Partial:
    """Every member holds a term of a sum still to be made."""

    def __str__(self) -> str:
        return "Partial"


@dataclass(frozen=True)
class OnRank:
    """Held by member `rank` of the group alone."""

    rank: int

    def __str__(self) -> str:
        return f"OnRank({self.rank})"


Placement = Shard | Replicate | Partial | OnRank


def split(n: int, parts: int) -> tuple[int, ...]:
    """The sizes of `parts` nearly equal parts of `n`: the first ``n % parts`` get one more."""
    return tuple(n // parts + (i < n % parts) for i in range(parts))


def offsets(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The start of each part: ``(3, 2, 2) -> (0, 3, 5)``."""
    return tuple(int(x) for x in np.cumsum((0, *sizes[:-1])))


def bounds(n: int, parts: int, index: int) -> tuple[int, int]:
    """Start and stop of part `index` of `split(n, parts)`."""
    sizes = split(n, parts)
    start = sum(sizes[:index])
    return start, start + sizes[index]


@dataclass(frozen=True)
class Grid:
    """The process grid ``arange(dp * mp).reshape(dp, mp)``.

    A *row* is a model group: its `mp` members share one part of the batch, and placements speak of
    them. A *column* holds the `dp` ranks that hold the same part of the model.
    """

    dp: int
    mp: int

    @property
    def size(self) -> int:
        return self.dp * self.mp

    def row(self, rank: int) -> tuple[int, ...]:
        start = rank // self.mp * self.mp
        return tuple(range(start, start + self.mp))

    def column(self, rank: int) -> tuple[int, ...]:
        return tuple(range(rank % self.mp, self.size, self.mp))

    def world(self, rank: int) -> tuple[int, ...]:
        return tuple(range(self.size))

    def __str__(self) -> str:
        return f"{self.dp} x {self.mp}" if self.dp > 1 else f"{self.mp}"
