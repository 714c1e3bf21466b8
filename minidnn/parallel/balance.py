"""Where to cut a chain of layers so that the slowest stage is as fast as it can be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ..errors import InputError


def balanced_starts(costs: Sequence[float], stages: int) -> list[int]:
    """The numbers of the layers that begin stages 1, 2, ...

    Minimises the largest sum of costs over all ways to cut into `stages` non-empty runs, by dynamic
    programming over (first layers, stages): ``best[k][j] = min over i of max(best[k-1][i], sum(costs[i:j]))``.
    """
    n = len(costs)
    if not 1 <= stages <= n:
        raise InputError(f"cannot cut {n} layers into {stages} stages")
    total = [0.0, *accumulate(costs)]
    best = [0.0] + [float("inf")] * n
    cuts: list[list[int]] = []
    for k in range(1, stages + 1):
        row, cut = [float("inf")] * (n + 1), [0] * (n + 1)
        for j in range(k, n + 1):
            for i in range(k - 1, j):
                worst = max(best[i], total[j] - total[i])
                if worst < row[j]:
                    row[j], cut[j] = worst, i
        best = row
        cuts.append(cut)
    starts, j = [], n
    for cut in reversed(cuts):
        j = cut[j]
        starts.append(j)
    return starts[::-1][1:]
