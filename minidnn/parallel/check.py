"""Static checks of a plan, before anything runs; and the timing of its events in units.

The events of all ranks are walked at once under rendezvous semantics: a message moves only when both of its ends
have been posted. If no rank can go on, the cycle is reported: who waits for whom, and for what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .events import Compute, Event, Metrics, Post, PostSum, Share, Wait
from .messages import statistics_tag
from .plan import Plan
from .schedule import Backward, Forward, peak_activations


class ScheduleError(RuntimeError):
    """A schedule that would not run: work left out, unmatched messages, a cyclic wait, too many live activations."""


@dataclass(frozen=True)
class Timing:
    """When each event of each rank ran, in units of the given durations, whose sum is what a rank is `busy`."""

    spans: dict[int, list[tuple[Event, float, float]]]
    makespan: float
    busy: dict[int, float]

    @property
    def bubble(self) -> float:
        """The idle share of all ranks' time, in 0..1: (p - 1)/(m + p - 1) for GPipe and 1F1B with equal stages."""
        return 1 - sum(self.busy.values()) / (len(self.busy) * self.makespan)


def check_plan(plan: Plan) -> None:
    """Raise ScheduleError unless every stage runs forward and backward on each micro-batch once, every message has
    both its ends, no ranks wait for one another for ever, and no rank holds more activations than the plan
    declares."""
    for rank in range(plan.size):
        _check_work(plan, rank)
    _check_messages(plan)
    run_events(plan)


def _check_work(plan: Plan, rank: int) -> None:
    """Every micro-batch of every stage that a rank runs goes forward once, then backward once; few enough are alive."""
    done: dict[tuple[int, int], list[str]] = {}
    for action in plan.schedules[rank]:
        if isinstance(action, Forward | Backward):
            part = "forward" if isinstance(action, Forward) else action.part
            done.setdefault((action.stage, action.micro_batch), []).append(part)
    place = plan.mesh.coordinate(rank, "stage")
    due = {(s.index, i) for s in plan.stages if s.at in (None, place) for i in range(len(s.micro_batches))}
    for stage, i in sorted(due | set(done)):
        order = done.get((stage, i), [])
        if (stage, i) not in due or order not in (["forward", "both"], ["forward", "input", "weight"]):
            text = f"rank {rank} runs micro-batch {i} of stage {stage} as {', '.join(order) or 'nothing'}"
            wanted = "forward, then backward" if (stage, i) in due else "nothing"
            raise ScheduleError(f"{text}: expected {wanted}")
    for stage in plan.stages:
        alive = peak_activations(plan.schedules[rank], stage.index)
        if alive > stage.alive:
            text = f"rank {rank} holds the activations of {alive} micro-batches of stage {stage.index}"
            raise ScheduleError(f"{text}, declared {stage.alive}")


def _check_messages(plan: Plan) -> None:
    """Every message that is received is sent exactly once, under the same tag and with the same size."""
    more_sent: Counter = Counter()
    for m in (m for rank in range(plan.size) for m in plan.messages(rank)):
        ends, sign = ((m.rank, m.peer), 1) if m.kind == "send" else ((m.peer, m.rank), -1)
        more_sent[*ends, m.phase, m.layer, m.op, m.micro_batch, m.index, m.bytes, m.tag] += sign
    for (source, dest, phase, layer, op, number, index, n_bytes, _), more in more_sent.items():
        if more:
            raise ScheduleError(
                f"{op} of {layer} ({phase}, micro-batch {number}, round {index}): {n_bytes} bytes from rank {source} "
                f"to rank {dest} are never {'received' if more > 0 else 'sent'}"
            )


def run_events(plan: Plan, duration: Callable[[int, Event], float] = lambda rank, event: 0.0) -> Timing:
    """Walk the events of all ranks, under rendezvous semantics, with messages that take no time.

    Parameters
    ----------
    duration : callable
        (rank, event) -> how long it computes.

    Raises
    ------
    ScheduleError
        No rank can go on.
    """
    left = {rank: list(reversed(events)) for rank, events in plan.events.items()}
    clock, busy = dict.fromkeys(left, 0.0), dict.fromkeys(left, 0.0)
    spans: dict[int, list] = {rank: [] for rank in left}
    posted: dict[tuple, dict[int, float]] = {}  # by what is met over: when each rank came to it
    moved = True
    while moved:
        moved = False
        for rank, own in left.items():
            while own:
                event = own[-1]
                key, posts, others = _meeting(plan, rank, event)
                if posts:
                    posted.setdefault(key, {}).setdefault(rank, clock[rank])
                there = [posted.get(key, {}).get(r) for r in others]
                if None in there:
                    break
                begin, time = max([clock[rank], *there]), duration(rank, event)
                clock[rank] = begin + time
                busy[rank] += time
                if time:
                    spans[rank].append((event, begin, clock[rank]))
                own.pop()
                moved = True
    stuck = []
    for rank, own in left.items():
        if own:
            key, _, others = _meeting(plan, rank, own[-1])
            missing = sorted(set(others) - set(posted.get(key, ())))
            stuck.append(f"rank {rank} at {own[-1]} waits for rank {', '.join(map(str, missing))}")
    if stuck:
        raise ScheduleError(f"no rank can go on: {'; '.join(stuck)}")
    return Timing(spans, max(clock.values()), busy)


def _meeting(plan: Plan, rank: int, event: Event) -> tuple[tuple, bool, tuple[int, ...]]:
    """What an event meets others over, whether it lets them go on, and those that have to have come to it."""
    match event:
        case Post(exchange, direction, number):
            return ("move", exchange.tag_of(number, direction)), True, ()
        case Wait(Post(_, _, _, transfers) as post):
            return _meeting(plan, rank, post)[0], False, tuple({r for t in transfers for r in t.meets(rank)})
        case Wait(PostSum(bucket) as post):
            return _meeting(plan, rank, post)[0], False, plan.mesh.group(rank, bucket.axes)
        case Compute(layer, phase, number) if layer.norms and phase != "weight":
            key = "statistics", statistics_tag(layer, number, 0), phase == "forward"
            return key, True, plan.mesh.group(rank, layer.derived.statistics)
        case PostSum(bucket) | Share(bucket):
            group = plan.mesh.group(rank, bucket.axes)
            return (type(event), bucket.tag, group), True, () if isinstance(event, PostSum) else group
        case Metrics():
            return ("metrics",), True, tuple(range(plan.size))
    return (), False, ()
