"""Learning-rate schedules: callables from the iteration number to a factor on the learning rate.

>>> schedule = warmup(4, cosine(100))
>>> [round(schedule(i), 2) for i in (0, 1, 4, 50, 100)]
[0.25, 0.5, 1.0, 0.5, 0.0]
"""

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[int], float]


def constant(iteration: int) -> float:
    """Always 1."""
    return 1.0


def step(every: int | Sequence[int], factor: float = 0.1) -> Schedule:
    """Multiply by ``factor`` after each ``every`` iterations, or at each of the iterations listed.

    AlexNet divided by 10 three times (Krizhevsky et al. 2012, sec. 5).

    Raises
    ------
    ValueError
        ``every`` or one of the iterations is not positive.
    """
    numbers = [every] if isinstance(every, int) else sorted(every)
    if any(number < 1 for number in numbers):
        raise ValueError(f"step: iterations must be positive, got {every}")

    def schedule(iteration: int) -> float:
        passed = iteration // every if isinstance(every, int) else sum(iteration >= n for n in numbers)
        return factor**passed

    return schedule


def cosine(iterations: int, minimum: float = 0.0) -> Schedule:
    """From 1 to ``minimum`` along half a cosine, then constant (Loshchilov and Hutter 2017, eq. 5).

    Raises
    ------
    ValueError
        ``iterations`` is not positive.
    """
    if iterations < 1:
        raise ValueError(f"cosine: iterations must be positive, got {iterations}")

    def schedule(iteration: int) -> float:
        done = min(iteration / iterations, 1.0)
        return minimum + (1 - minimum) * (1 + math.cos(math.pi * done)) / 2

    return schedule


def warmup(iterations: int, then: Schedule = constant) -> Schedule:
    """``then`` times (i + 1) / iterations for the first ``iterations``, then alone (Goyal et al. 2017, 2.2).

    ``then`` sees the iteration counted from the start of the run: its first part is under the warm-up.

    Raises
    ------
    ValueError
        ``iterations`` is negative.
    """
    if iterations < 0:
        raise ValueError(f"warmup: iterations must not be negative, got {iterations}")

    def schedule(iteration: int) -> float:
        ramp = min(1.0, (iteration + 1) / iterations) if iterations else 1.0
        return ramp * then(iteration)

    return schedule
