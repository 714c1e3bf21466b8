"""Is a backward the derivative of its forward? Compared with central differences, in float64.

Two ways:

- `gradcheck` projects: for a random r, the number <r, f(x)> is differentiated along a random direction of
  each input. Two evaluations per direction, whatever the size of the arrays, and a wrong element shows with
  probability 1.
- `gradcheck_table` differentiates by every element of one input and lists them all: the way to see it happen.

``minidnn gradcheck`` runs `gradcheck` on every operation of `minidnn.functional`, by `CASES`.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from minidnn.errors import InputError
from minidnn.gradcases import CASES, Case
from minidnn.random import rng
from minidnn.tensor import Tape, Tensor, no_grad

__all__ = [
    "CASES",
    "Case",
    "CaseResult",
    "GradientError",
    "GradientTable",
    "gradcheck",
    "gradcheck_report",
    "gradcheck_table",
    "run_gradcheck_cases",
]

LIMIT = 1e-6  # of the relative error; central differences in float64 leave 1e-7, a wrong formula far more


class GradientError(AssertionError):
    """A backward does not agree with finite differences."""


@dataclasses.dataclass(frozen=True)
class GradientTable:
    """One row per element of an input: (index, analytic, numeric, relative error)."""

    rows: list[tuple[tuple[int, ...], float, float, float]]

    @property
    def error(self) -> float:
        """The largest relative error."""
        return max((row[3] for row in self.rows), default=0.0)

    def __str__(self) -> str:
        lines = [f"{'index':>14} {'analytic':>16} {'numeric':>16} {'relative error':>15}"]
        for index, analytic, numeric, error in self.rows:
            place = ", ".join(map(str, index))
            lines.append(f"{place:>14} {analytic:16.9f} {numeric:16.9f} {error:15.1e}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """A case of `CASES` and its largest relative error (or the exception it ended with)."""

    case: Case
    error: float
    exception: str = ""

    @property
    def ok(self) -> bool:
        return not self.exception and self.error <= LIMIT


class _Projection:
    """The number <r, f(inputs)> for a fixed random r, its gradients, and its change along a direction."""

    def __init__(self, f: Callable[..., Any], inputs: Sequence[Any], seed: int) -> None:
        self.f = f
        # A stream of its own: inputs drawn from default_rng(seed), too, would be the projection itself.
        self.random = rng(seed, "gradcheck")
        self.arrays = [np.array(x.numpy() if isinstance(x, Tensor) else x, dtype=np.float64) for x in inputs]
        with no_grad():
            outputs = self._outputs(self.arrays)
        self.r = [self.random.standard_normal(y.shape) for y in outputs]

    def _outputs(self, arrays: Sequence[np.ndarray], requires_grad: bool = False) -> list[Tensor]:
        self.leaves = [Tensor(a, requires_grad, f"input {i}") for i, a in enumerate(arrays)]
        outputs = self.f(*self.leaves)
        return [outputs] if isinstance(outputs, Tensor) else [y for y in outputs if isinstance(y, Tensor)]

    def value(self, i: int, change: np.ndarray) -> float:
        """With `change` added to input i."""
        arrays = list(self.arrays)
        arrays[i] = arrays[i] + change
        with no_grad():
            outputs = self._outputs(arrays)
        return float(sum((r * y.numpy()).sum() for r, y in zip(self.r, outputs, strict=True)))

    def slope(self, i: int, direction: np.ndarray, eps: float) -> float:
        """Central difference along `direction` of input i."""
        return (self.value(i, eps * direction) - self.value(i, -eps * direction)) / (2 * eps)

    def gradients(self) -> list[np.ndarray]:
        """By backward; zeros for an input that got none."""
        with Tape() as tape:
            outputs = self._outputs(self.arrays, requires_grad=True)
        used = [(y, r) for y, r in zip(outputs, self.r, strict=True) if y.requires_grad]
        tape.backward([y for y, _ in used], [r for _, r in used])
        return [np.zeros_like(t.data) if t.grad is None else t.grad for t in self.leaves]


def relative_error(analytic: float, numeric: float) -> float:
    """|analytic - numeric| relative to the larger of the two; absolute where both are below 1e-4."""
    if not np.isfinite(analytic) or not np.isfinite(numeric):
        return float("inf")
    return abs(analytic - numeric) / max(abs(analytic), abs(numeric), 1e-4)


def gradcheck(
    f: Callable[..., Any],
    *inputs: Any,
    eps: float = 1e-6,
    limit: float = LIMIT,
    directions: int = 3,
    seed: int = 0,
) -> float:
    """Compare backward of `f` with central differences along random directions.

    Parameters
    ----------
    f : callable
        From tensors to a tensor or a tuple of them (what is no tensor in it is left out). Smooth near
        `inputs`.
    inputs : arrays or tensors
        Converted to float64; the gradient is checked with respect to each.
    eps : float
        Half the step. The error of the difference is about eps^2 + 1e-16 / eps.
    limit : float
        Of the relative error.
    directions : int
        How many for each input.
    seed : int
        Of the projection and the directions.

    Returns
    -------
    float
        The largest relative error.

    Raises
    ------
    GradientError
        It is above `limit`.
    """
    projection = _Projection(f, inputs, seed)
    worst = 0.0
    for i, gradient in enumerate(projection.gradients()):
        for _ in range(directions):
            direction = projection.random.standard_normal(gradient.shape)
            with np.errstate(invalid="ignore"):  # inf - inf in a backward that is wrong
                analytic = float((gradient * direction).sum())
            numeric = projection.slope(i, direction, eps)
            error = relative_error(analytic, numeric)
            if error > limit:
                raise GradientError(
                    f"input {i}: backward gives {analytic:.9g} along a random direction, central differences "
                    f"{numeric:.9g}: relative error {error:.1e}, limit {limit:.1e}"
                )
            worst = max(worst, error)
    return worst


def gradcheck_table(
    f: Callable[..., Any], *inputs: Any, wrt: int = 0, eps: float = 1e-6, seed: int | None = None
) -> GradientTable:
    """The gradient of sum(f) by every element of input `wrt`, from backward and from central differences.

    With `seed` it is that of <r, f> for a random r, which also sees what cancels in a sum (softmax, for one).
    """
    projection = _Projection(f, inputs, seed or 0)
    if seed is None:
        projection.r = [np.ones_like(r) for r in projection.r]
    gradient = projection.gradients()[wrt]
    rows = []
    for index in np.ndindex(gradient.shape):
        direction = np.zeros_like(gradient)
        direction[index] = 1
        analytic, numeric = float(gradient[index]), projection.slope(wrt, direction, eps)
        rows.append((index, analytic, numeric, relative_error(analytic, numeric)))
    return GradientTable(rows)


def run_gradcheck_cases(cases: Sequence[Case] = CASES, seed: int = 0) -> list[CaseResult]:
    """`gradcheck` of each case; a case that raises is a result, too."""
    results = []
    for case in cases:
        try:
            error = gradcheck(case.function, *case.inputs(seed), limit=float("inf"), seed=seed)
            results.append(CaseResult(case, error))
        except Exception as exception:
            results.append(CaseResult(case, float("inf"), f"{type(exception).__name__}: {exception}"))
    return results


def gradcheck_report(operations: Sequence[str] = (), cases: Sequence[Case] = CASES) -> tuple[str, bool]:
    """The table that ``minidnn gradcheck`` prints, and whether every case passed.

    Parameters
    ----------
    operations : sequence of str
        Check only these.

    Raises
    ------
    InputError
        An operation without a case; the message lists those that have one.
    """
    known = sorted({case.operation for case in cases})
    for name in operations:
        if name not in known:
            raise InputError(f"gradcheck: unknown operation {name!r}; known are {', '.join(known)}")
    results = run_gradcheck_cases([c for c in cases if not operations or c.operation in operations])
    width = max(len(r.case.operation) for r in results)
    rest = max(len(r.case.label) for r in results)
    lines = [f"{'operation':{width}}  {'case':{rest}}  relative error"]
    for r in results:
        verdict = "" if r.ok else f"  WRONG {r.exception}".rstrip()
        lines.append(f"{r.case.operation:{width}}  {r.case.label:{rest}}  {r.error:14.1e}{verdict}")
    wrong = sum(not r.ok for r in results)
    checked, worst = len({r.case.operation for r in results}), max(r.error for r in results)
    lines.append(
        f"gradcheck: {len(results)} cases of {checked} operations, largest relative error {worst:.1e}, "
        f"limit {LIMIT:.0e}: {f'{wrong} WRONG' if wrong else 'ok'}"
    )
    return "\n".join(lines), not wrong


class _Callable(ModuleType):
    """This module, which is a function, too: ``minidnn.gradcheck(f, x)`` is ``gradcheck`` from here."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return gradcheck(*args, **options)


sys.modules[__name__].__class__ = _Callable
