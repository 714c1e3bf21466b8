"""Static checks of a plan, before anything runs; and the timing of its events in units.

The events of all ranks are walked at once under rendezvous semantics: a message moves only when both of its ends
have been posted. If no rank can go on, the cycle is reported: who waits for whom, and for what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .events import Compute, Event, Metrics, Post, PostSum, Share, Wait, WaitSum
from .messages import statistics_tag
from .plan import Plan
from .schedule import Backward, Forward, peak_activations


class ScheduleError(RuntimeError):
    """A schedule that would not run: work left out, unmatched messages, a cyclic wait, too many live activations."""


@dataclass(frozen=True)
class Timing:
    """When each event of each rank ran, in units of the given durations.

    `busy` is the sum of a rank's durations; the bubble is what is left of the makespan.
    """

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
    for rank, actions in plan.schedules.items():
        _check_work(plan, rank, actions)
        for stage in plan.stages:
            alive = peak_activations(actions, stage.index)
            if alive > stage.alive:
                raise ScheduleError(
                    f"rank {rank} holds the activations of {alive} micro-batches of stage {stage.index}, declared "
                    f"{stage.alive}"
                )
    _check_messages(plan)
    run_events(plan)


def _check_work(plan: Plan, rank: int, actions) -> None:
    """Every micro-batch of every stage that a rank runs goes forward once, and then backward once."""
    done: dict[tuple[int, int], list[str]] = {}
    for action in actions:
        if isinstance(action, Forward | Backward):
            part = "forward" if isinstance(action, Forward) else action.part
            done.setdefault((action.stage, action.micro_batch), []).append(part)
    place = plan.mesh.coordinate(rank, "stage")
    due = {(s.index, i) for s in plan.stages if s.at in (None, place) for i in range(len(s.micro_batches))}
    for stage, i in sorted(due | set(done)):
        order = done.get((stage, i), [])
        if (stage, i) not in due or order not in (["forward", "both"], ["forward", "input", "weight"]):
            wanted = "forward, then backward" if (stage, i) in due else "nothing"
            raise ScheduleError(
                f"rank {rank} runs micro-batch {i} of stage {stage} as {', '.join(order) or 'nothing'}: expected "
                f"{wanted}"
            )


def _check_messages(plan: Plan) -> None:
    """Every message that is received is sent exactly once, under the same tag and with the same size."""
    sent, received = Counter(), Counter()
    for rank in range(plan.size):
        for m in plan.messages(rank):
            ends = (m.rank, m.peer) if m.kind == "send" else (m.peer, m.rank)
            key = (*ends, m.phase, m.layer, m.op, m.micro_batch, m.index, m.bytes, m.tag)
            (sent if m.kind == "send" else received)[key] += 1
    for key in (sent - received) + (received - sent):
        source, dest, phase, layer, op, micro_batch, index, n_bytes, _ = key
        side = "received" if sent[key] > received[key] else "sent"
        raise ScheduleError(
            f"{op} of {layer} ({phase}, micro-batch {micro_batch}, round {index}): {n_bytes} bytes from rank {source} "
            f"to rank {dest} are never {side}"
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
    events = {rank: plan.events[rank] for rank in range(plan.size)}
    position = dict.fromkeys(events, 0)
    clock = dict.fromkeys(events, 0.0)
    busy = dict.fromkeys(events, 0.0)
    posted: dict[tuple, dict[int, float]] = {}
    spans: dict[int, list] = {rank: [] for rank in events}
    moved = True
    while moved:
        moved = False
        for rank, own in events.items():
            while position[rank] < len(own):
                event = own[position[rank]]
                posts, waits = _meeting(plan, rank, event)
                if posts is not None:
                    posted.setdefault(posts, {}).setdefault(rank, clock[rank])
                there = [posted.get(key, {}).get(r) for key, others in waits for r in others]
                if None in there:
                    break
                begin, time = max([clock[rank], *there]), duration(rank, event)
                clock[rank] = begin + time
                busy[rank] += time
                if time:
                    spans[rank].append((event, begin, clock[rank]))
                position[rank] += 1
                moved = True
    stuck = [r for r in events if position[r] < len(events[r])]
    if stuck:
        raise ScheduleError(
            "no rank can go on: "
            + "; ".join(_complaint(plan, r, events[r][position[r]], posted) for r in stuck)
        )
    return Timing(spans, max(clock.values()), busy)


def _complaint(plan: Plan, rank: int, event: Event, posted: dict) -> str:
    waits = _meeting(plan, rank, event)[1]
    missing = sorted({r for key, others in waits for r in others if r not in posted.get(key, ())})
    return f"rank {rank} at {event} waits for rank {', '.join(map(str, missing))}"


def _meeting(plan: Plan, rank: int, event: Event) -> tuple[tuple | None, list[tuple[tuple, tuple[int, ...]]]]:
    """What an event posts, and what it waits for: a key, and the ranks that have to have posted it."""
    match event:
        case Post(exchange, direction, number):
            return ("move", exchange.tag_of(number, direction)), []
        case Wait(post):
            key = "move", post.exchange.tag_of(post.micro_batch, post.direction)
            return None, [(key, t.meets(rank)) for t in post.transfers]
        case Compute(layer, phase, number) if layer.norms and phase != "weight":
            key = "statistics", statistics_tag(layer, number, 0), phase == "forward"
            return key, [(key, plan.mesh.group(rank, layer.derived.statistics))]
        case PostSum(bucket):
            return _of_bucket(plan, rank, bucket, "sum"), []
        case WaitSum(bucket) | Share(bucket):
            key = _of_bucket(plan, rank, bucket, "sum" if isinstance(event, WaitSum) else "share")
            return (None if isinstance(event, WaitSum) else key), [(key, plan.mesh.group(rank, bucket.axes))]
        case Metrics():
            return ("metrics",), [(("metrics",), tuple(range(plan.size)))]
    return None, []


def _of_bucket(plan: Plan, rank: int, bucket, what: str) -> tuple:
    return what, bucket.tag, plan.mesh.group(rank, bucket.axes)
