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

from collections.abc import Callable, Sequence
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

    `part` is "both"; or "input", the half that other stages wait for, and later "weight", the other half.
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
    """The actions of one stage of a pipeline; `schedule` is one of `PIPELINES`.

    After some forwards to warm up, each backward follows a forward as long as there are any. With one stage, "naive"
    is the accumulation of gradients. ZB-H1 puts the weight
    halves of stage s off by s micro-batches: every stage has then at most `stages` alive, what the first stage of
    1F1B has, and the last stages have weight work left to fill the bubble at the end.
    """
    warm_up, delay = PIPELINES[schedule](stages, stage, micro_batches)
    actions: list[Action] = []
    for i in range(-warm_up, micro_batches + delay):
        if i + warm_up < micro_batches:
            actions.append(Forward(stage, i + warm_up))
        if 0 <= i < micro_batches:
            actions.append(Backward(stage, i, "input" if schedule == "zb-h1" else "both"))
        if schedule == "zb-h1" and i >= delay:
            actions.append(Backward(stage, i - delay, "weight"))
    return actions


# How many forwards come before the first backward, and by how many micro-batches a weight half is put off.
PIPELINES: dict[str, Callable[[int, int, int], tuple[int, int]]] = {
    "naive": lambda stages, stage, micro_batches: (0, 0),
    "gpipe": lambda stages, stage, micro_batches: (micro_batches, 0),
    "1f1b": lambda stages, stage, micro_batches: (stages - 1 - stage, 0),
    "zb-h1": lambda stages, stage, micro_batches: (stages - 1 - stage, stage),
}


def live_activations(schedule: str, stages: int, stage: int, micro_batches: int) -> int:
    """What a pipeline schedule declares: of how many micro-batches a stage keeps the activations at once, at most."""
    return min(1 + sum(PIPELINES[schedule](stages, stage, micro_batches)), micro_batches)


def peak_activations(actions: Sequence[Action], stage: int) -> int:
    """The largest number of micro-batches of `stage` whose activations are alive at once."""
    alive = peak = 0
    for action in actions:
        if isinstance(action, Forward | Backward) and action.stage == stage:
            alive += 1 if isinstance(action, Forward) else -(action.part != "input")
            peak = max(peak, alive)
    return peak
