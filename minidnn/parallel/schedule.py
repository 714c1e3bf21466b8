"""Schedules of one training step, as data: what one rank does, in order.

The model is cut into *segments* (consecutive layers) and the batch into *chunks*.  Between two
segments lies a *boundary*; `Start` posts its transfer for a chunk and `Finish` waits for it, so
that work placed between the two hides the communication.

======================  ===========================================================================
GPipe                   Huang et al. 2019, arXiv 1811.06965: all forwards, then all backwards
1F1B                    Narayanan et al. 2019 (PipeDream-flush): at most p activations are alive
ZB-H1                   Qi et al. 2024, arXiv 2401.10241, sec. 3: backward in two halves, the
                        weight half fills the bubble at 1F1B's memory
OWT (a), (b), (c)       Krizhevsky 2014, arXiv 1404.5997, sec. 4
======================  ===========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class Forward:
    """Run a segment's layers on a chunk."""

    segment: int
    chunk: int


@dataclass(frozen=True)
class Backward:
    """Run a segment's backward on a chunk: input and weight gradients."""

    segment: int
    chunk: int


@dataclass(frozen=True)
class BackwardInput:
    """The half of backward that other stages wait for: the gradient of the input."""

    segment: int
    chunk: int


@dataclass(frozen=True)
class BackwardWeight:
    """The other half: the gradient of the weights, which nobody waits for."""

    segment: int
    chunk: int


@dataclass(frozen=True)
class Start:
    """Post the messages of a boundary for a chunk; `direction` is "forward" or "backward"."""

    boundary: int
    chunk: int
    direction: str


@dataclass(frozen=True)
class Finish:
    """Wait until the messages of a boundary for a chunk have arrived."""

    boundary: int
    chunk: int
    direction: str


@dataclass(frozen=True)
class ReduceGradients:
    """Sum one bucket of gradients over its group (wait for it, where it started in backward)."""

    bucket: int


@dataclass(frozen=True)
class Metrics:
    """Sum loss, correct answers and count over all ranks; stops a run whose loss is not finite."""


@dataclass(frozen=True)
class Update:
    """Let the optimiser step a group of parameters ("conv", "fc", ...).

    `chunk` says that the step is made on the gradient of that chunk alone; there is none where the chunk of
    a small last batch has no samples.
    """

    group: str
    chunk: int | None = None


Action = (
    Forward | Backward | BackwardInput | BackwardWeight | Start | Finish | ReduceGradients | Metrics | Update
)


def accumulate(chunks: int) -> list[Action]:
    """One segment; with several chunks, gradients accumulate over micro-batches."""
    return [action for c in range(chunks) for action in (Forward(0, c), Backward(0, c))]


def one_weird_trick(scheme: str, chunks: int, update_each: bool) -> list[Action]:
    """OWT on every rank: segment 0 is convolutional, segment 1 fully connected.

    Scheme (a) is one chunk.  In (b) and (c) the transfer of chunk j + 1 is posted before the fully
    connected work on chunk j, and the gradients of chunk j travel during the work on j + 1.
    """
    if scheme == "a" and chunks != 1:
        raise InputError(f"scheme (a) exchanges the whole batch at once: 1 chunk, got {chunks}")
    actions: list[Action] = [Forward(0, 0), Start(0, 0, "forward")]
    for c in range(chunks):
        if c + 1 < chunks:
            actions.append(Start(0, c + 1, "forward"))
        actions += [Finish(0, c, "forward"), Forward(1, c), Backward(1, c), Start(0, c, "backward")]
        if update_each:
            actions.append(Update("fc", c))
    actions += [Finish(0, c, "backward") for c in range(chunks)]
    return [*actions, Backward(0, 0)]


def pipeline(schedule: str, stages: int, stage: int, chunks: int) -> list[Action]:
    """The actions of one stage of a layer split; `schedule` is one of `PIPELINES`."""
    order = PIPELINES[schedule](stages, stage, chunks)
    actions: list[Action] = []
    for kind, chunk in order:
        if kind == "F":
            if stage > 0:
                actions += [Start(stage - 1, chunk, "forward"), Finish(stage - 1, chunk, "forward")]
            actions.append(Forward(stage, chunk))
            if stage < stages - 1:
                actions.append(Start(stage, chunk, "forward"))
        elif kind == "W":
            actions.append(BackwardWeight(stage, chunk))
        else:
            if stage < stages - 1:
                actions += [Start(stage, chunk, "backward"), Finish(stage, chunk, "backward")]
            actions.append(BackwardInput(stage, chunk) if kind == "I" else Backward(stage, chunk))
            if stage > 0:
                actions.append(Start(stage - 1, chunk, "backward"))
    return actions


def _naive(stages: int, stage: int, chunks: int) -> list[tuple[str, int]]:
    return [(kind, c) for c in range(chunks) for kind in "FB"]


def _gpipe(stages: int, stage: int, chunks: int) -> list[tuple[str, int]]:
    return [("F", c) for c in range(chunks)] + [("B", c) for c in range(chunks)]


def _one_f_one_b(stages: int, stage: int, chunks: int) -> list[tuple[str, int]]:
    warm_up = min(stages - 1 - stage, chunks)
    order = [("F", c) for c in range(warm_up)]
    for c in range(chunks - warm_up):
        order += [("F", warm_up + c), ("B", c)]
    return order + [("B", c) for c in range(chunks - warm_up, chunks)]


def _zero_bubble_h1(stages: int, stage: int, chunks: int) -> list[tuple[str, int]]:
    """1F1B with the weight halves of stage s put off by s micro-batches.

    A chunk counts as alive until its weight half is done; with this delay every stage has at most
    `stages` alive, what the first stage of 1F1B has, and the last stages have weight work left to
    fill the bubble at the end.
    """
    warm_up = min(stages - 1 - stage, chunks)
    order = [("F", c) for c in range(warm_up)]
    weight = 0
    for c in range(chunks):
        if warm_up + c < chunks:
            order.append(("F", warm_up + c))
        order.append(("I", c))
        if c >= stage:
            order.append(("W", weight))
            weight += 1
    return order + [("W", c) for c in range(weight, chunks)]


PIPELINES = {"naive": _naive, "gpipe": _gpipe, "1f1b": _one_f_one_b, "zb-h1": _zero_bubble_h1}


def live_activations(schedule: str, stages: int, stage: int, chunks: int) -> int:
    """What a pipeline schedule declares: of how many micro-batches a stage keeps the activations at once, at most."""
    limits = {"naive": 1, "gpipe": chunks, "1f1b": stages - stage, "zb-h1": stages}
    return min(limits[schedule], chunks)


def peak_activations(actions: list[Action], segment: int) -> int:
    """The largest number of chunks of `segment` whose activations are alive at once."""
    alive = peak = 0
    for action in actions:
        if getattr(action, "segment", None) != segment:
            continue
        if isinstance(action, Forward):
            alive += 1
            peak = max(peak, alive)
        elif isinstance(action, Backward | BackwardWeight):
            alive -= 1
    return peak
