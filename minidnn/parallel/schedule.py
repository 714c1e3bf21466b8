"""Schedules of one training step, as data: the order in which a rank runs the parts of the model.

The model is cut into *stages* (consecutive layers), and the batch, for each stage, into *micro-batches*.  A schedule
says when a stage runs forward and backward on which micro-batch; what has to be sent, received and summed for that
follows (:mod:`.events`).

======================  ===========================================================================
GPipe                   Huang et al. 2019, arXiv 1811.06965: all forwards, then all backwards
1F1B                    Narayanan et al. 2019 (PipeDream-flush): at most p activations are alive
ZB-H1                   Qi et al. 2024, arXiv 2401.10241, sec. 3: backward in two halves, the
                        weight half fills the bubble at 1F1B's memory
OWT (a), (b), (c)       Krizhevsky 2014, arXiv 1404.5997, sec. 4
======================  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class Forward:
    """Run a stage's layers on a micro-batch."""

    stage: int
    micro_batch: int


@dataclass(frozen=True)
class Backward:
    """Run a stage's backward on a micro-batch.

    `part` is "both"; or "input", the half that other stages wait for, and later "weight", the half that nobody waits
    for.
    """

    stage: int
    micro_batch: int
    part: str = "both"


@dataclass(frozen=True)
class Prefetch:
    """Begin to bring what a stage will need of a micro-batch, so that the work until then hides it."""

    stage: int
    micro_batch: int


@dataclass(frozen=True)
class Update:
    """Let the optimiser step a group of parameters ("conv", "fc", ...) once their gradients are summed.

    `micro_batch` says that the step is made on the gradient of that micro-batch alone; there is none where it has no
    samples, as of a small last batch.
    """

    group: str
    micro_batch: int | None = None


Action = Forward | Backward | Prefetch | Update


def accumulate(micro_batches: int) -> list[Action]:
    """One stage; with several micro-batches, gradients accumulate."""
    return [action for i in range(micro_batches) for action in (Forward(0, i), Backward(0, i))]


def one_weird_trick(scheme: str, micro_batches: int, update_each: bool) -> list[Action]:
    """OWT on every rank: stage 0 is convolutional, stage 1 fully connected.

    Scheme (a) is one micro-batch.  In (b) and (c) micro-batch j + 1 begins to travel before the fully connected work
    on j, and the gradients of j travel during the work on j + 1.
    """
    if scheme == "a" and micro_batches != 1:
        raise InputError(f"scheme (a) exchanges the whole batch at once: 1 micro-batch, got {micro_batches}")
    actions: list[Action] = [Forward(0, 0), Prefetch(1, 0)]
    for i in range(micro_batches):
        if i + 1 < micro_batches:
            actions.append(Prefetch(1, i + 1))
        actions += [Forward(1, i), Backward(1, i)]
        if update_each:
            actions.append(Update("fc", i))
    return [*actions, Backward(0, 0)]


def pipeline(schedule: str, stages: int, stage: int, micro_batches: int) -> list[Action]:
    """The actions of one stage of a pipeline; `schedule` is one of `PIPELINES`."""
    order = PIPELINES[schedule](stages, stage, micro_batches)
    parts = {"B": "both", "I": "input", "W": "weight"}
    return [Forward(stage, i) if kind == "F" else Backward(stage, i, parts[kind]) for kind, i in order]


def _naive(stages: int, stage: int, micro_batches: int) -> list[tuple[str, int]]:
    return [(kind, i) for i in range(micro_batches) for kind in "FB"]


def _gpipe(stages: int, stage: int, micro_batches: int) -> list[tuple[str, int]]:
    return [("F", i) for i in range(micro_batches)] + [("B", i) for i in range(micro_batches)]


def _one_f_one_b(stages: int, stage: int, micro_batches: int) -> list[tuple[str, int]]:
    warm_up = min(stages - 1 - stage, micro_batches)
    order = [("F", i) for i in range(warm_up)]
    for i in range(micro_batches - warm_up):
        order += [("F", warm_up + i), ("B", i)]
    return order + [("B", i) for i in range(micro_batches - warm_up, micro_batches)]


def _zero_bubble_h1(stages: int, stage: int, micro_batches: int) -> list[tuple[str, int]]:
    """1F1B with the weight halves of stage s put off by s micro-batches.

    A micro-batch counts as alive until its weight half is done; with this delay every stage has at most `stages` alive,
    what the first stage of 1F1B has, and the last stages have weight work left to fill the bubble at the end.
    """
    warm_up = min(stages - 1 - stage, micro_batches)
    order = [("F", i) for i in range(warm_up)]
    weight = 0
    for i in range(micro_batches):
        if warm_up + i < micro_batches:
            order.append(("F", warm_up + i))
        order.append(("I", i))
        if i >= stage:
            order.append(("W", weight))
            weight += 1
    return order + [("W", i) for i in range(weight, micro_batches)]


PIPELINES = {"naive": _naive, "gpipe": _gpipe, "1f1b": _one_f_one_b, "zb-h1": _zero_bubble_h1}


def live_activations(schedule: str, stages: int, stage: int, micro_batches: int) -> int:
    """What a pipeline schedule declares: of how many micro-batches a stage keeps the activations at once, at most."""
    limits = {"naive": 1, "gpipe": micro_batches, "1f1b": stages - stage, "zb-h1": stages}
    return min(limits[schedule], micro_batches)


def peak_activations(actions: Sequence[Action], stage: int) -> int:
    """The largest number of micro-batches of `stage` whose activations are alive at once."""
    alive = peak = 0
    for action in actions:
        if isinstance(action, Forward) and action.stage == stage:
            alive += 1
            peak = max(peak, alive)
        elif isinstance(action, Backward) and action.stage == stage and action.part != "input":
            alive -= 1
    return peak
