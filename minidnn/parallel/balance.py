"""Where to cut a chain of layers so that the slowest stage is as fast as it can be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ..errors import InputError


def balanced_starts(costs: Sequence[float], stages: int) -> list[int]:
    """The numbers of the layers that begin stages 1, 2, ...

    Minimises the largest sum of costs over all ways to cut into `stages` non-empty runs, by dynamic
    programming over (stages, first layers): ``best[j] = min over i of max(best before[i], sum(costs[i:j]))``.
    """
    n = len(costs)
    if not 1 <= stages <= n:
        raise InputError(f"cannot cut {n} layers into {stages} stages")
    total = [0.0, *accumulate(costs)]
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}  # by j: largest sum, first layers
    for k in range(1, stages + 1):
        row = {}
        for j in range(k, n + 1):
            worst, i = min((max(best[i][0], total[j] - total[i]), i) for i in best if i < j)
            row[j] = worst, [*best[i][1], i]
        best = row
    return best[n][1][1:]
