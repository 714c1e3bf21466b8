"""Learning-rate schedules: callables from the iteration number to a factor on the learning rate.

>>> schedule = warmup(4, cosine(100))
>>> [round(schedule(i), 2) for i in (0, 1, 4, 50, 100)]
[0.25, 0.5, 1.0, 0.5, 0.0]
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Schedule = Callable[[int], float]


def constant(iteration: int) -> float:
    """Always 1."""
    return 1.0


def step(every: int | Sequence[int], factor: float = 0.1) -> Schedule:
    """Multiply by ``factor`` after each ``every`` iterations, or at each of the iterations listed.

    AlexNet divided by 10 three times (Krizhevsky et al. 2012, sec. 5).
    ValueError where one of them is not positive.
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
    ValueError where ``iterations`` is not positive.
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
    ValueError where ``iterations`` is negative.
    """
    if iterations < 0:
        raise ValueError(f"warmup: iterations must not be negative, got {iterations}")

    def schedule(iteration: int) -> float:
        ramp = min(1.0, (iteration + 1) / iterations) if iterations else 1.0
        return ramp * then(iteration)

    return schedule


def one_cycle(iterations: int, rising: float = 0.3, start: float = 25.0, end: float = 1e4) -> Schedule:
    """From 1 / ``start`` to 1 and down to 1 / (``start`` ``end``), each along half a cosine (Smith and Topin 2018).

    The rate given to the optimiser is the largest; it is reached after the share ``rising`` of the iterations.
    ValueError where there is less than one iteration for the rise or the fall.
    """
    top = rising * iterations - 1
    if not 0 < top < iterations - 1:
        raise ValueError(f"one_cycle: no iteration must be left out, got {iterations} with rising={rising}")

    def schedule(iteration: int) -> float:
        up = iteration <= top
        done = iteration / top if up else min((iteration - top) / (iterations - 1 - top), 1.0)
        first, last = (1 / start, 1.0) if up else (1.0, 1 / (start * end))
        return last + (first - last) * (1 + math.cos(math.pi * done)) / 2

    return schedule


@dataclass
class Plateau:
    """A schedule that multiplies by ``factor`` when a loss has not fallen for more than ``patience`` observations.

    ``observe`` takes the loss, after each epoch for example: the same on every rank. All fields are its state.

    Attributes
    ----------
    threshold : float
        Share of the best loss by which it must fall to count.
    minimum : float
        The schedule does not fall below.
    """

    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    minimum: float = 0.0
    value: float = 1.0
    best: float = math.inf
    waited: int = 0

    def __call__(self, iteration: int) -> float:
        return self.value

    def observe(self, loss: float) -> None:
        """Note a loss, and lower the schedule if that was one too many without a fall."""
        self.waited += 1
        if loss < self.best * (1 - self.threshold):
            self.best, self.waited = loss, 0
        if self.waited > self.patience:
            self.value, self.waited = max(self.value * self.factor, self.minimum), 0
