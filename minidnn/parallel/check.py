"""Static checks of a plan's schedules, before anything runs; and their timing in units.

A schedule is walked under rendezvous semantics: a message moves only when both of its ends have been
posted. If no rank can go on, the cycle is reported: who waits for whom, and for what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .plan import Plan
from .schedule import (
    Action,
    Backward,
    BackwardInput,
    BackwardWeight,
    Finish,
    Forward,
    Metrics,
    ReduceGradients,
    Start,
    Update,
    peak_activations,
)


class ScheduleError(RuntimeError):
    """A schedule that would not run: unmatched messages, a cyclic wait, or too many live activations."""


@dataclass(frozen=True)
class Timing:
    """When each action of each rank ran, in units of the given durations.

    `busy` is the sum of a rank's durations; the bubble is what is left of the makespan.
    """

    spans: dict[int, list[tuple[Action, float, float]]]
    makespan: float
    busy: dict[int, float]

    @property
    def bubble(self) -> float:
        """The idle share of all ranks' time, in 0..1: (p - 1)/(m + p - 1) for GPipe and 1F1B with equal stages."""
        return 1 - sum(self.busy.values()) / (len(self.busy) * self.makespan)


def check_plan(plan: Plan) -> None:
    """Raise ScheduleError unless every message has both its ends, no ranks wait for one another for ever, and no
    rank holds the activations of more chunks than the plan declares."""
    _check_messages(plan)
    run_schedules(plan)
    for segment, limit in enumerate(plan.alive):
        for rank, actions in plan.schedules.items():
            alive = peak_activations(list(actions), segment)
            if alive > limit:
                raise ScheduleError(
                    f"rank {rank} holds the activations of {alive} chunks of segment {segment}, declared {limit}"
                )


def _check_messages(plan: Plan) -> None:
    """Every message that is received is sent exactly once, with the same size."""
    sent, received = Counter(), Counter()
    for rank in range(plan.size):
        for m in plan.messages(rank):
            ends = (m.rank, m.peer) if m.kind == "send" else (m.peer, m.rank)
            key = (*ends, m.phase, m.layer, m.op, m.chunk, m.index, m.bytes)
            (sent if m.kind == "send" else received)[key] += 1
    for key in (sent - received) + (received - sent):
        source, dest, phase, layer, op, chunk, index, n_bytes = key
        side = "received" if sent[key] > received[key] else "sent"
        raise ScheduleError(
            f"{op} of {layer} ({phase}, chunk {chunk}, round {index}): {n_bytes} bytes from rank {source} to "
            f"rank {dest} are never {side}"
        )


def run_schedules(plan: Plan, duration: Callable[[int, Action], float] = lambda rank, action: 0.0) -> Timing:
    """Walk all schedules at once, under rendezvous semantics, with messages that take no time.

    Parameters
    ----------
    duration : callable
        (rank, action) -> how long it computes.

    Raises
    ------
    ScheduleError
        No rank can go on.
    """
    schedules = plan.schedules
    position = dict.fromkeys(schedules, 0)
    clock = dict.fromkeys(schedules, 0.0)
    posted: dict[tuple, dict[int, float]] = {}
    spans: dict[int, list] = {rank: [] for rank in schedules}
    busy = dict.fromkeys(schedules, 0.0)
    moved = True
    while moved:
        moved = False
        for rank, actions in schedules.items():
            while position[rank] < len(actions):
                action = actions[position[rank]]
                key, partners = _meeting(plan, rank, action)
                if key is not None and (not isinstance(action, Finish) or partners):
                    posted.setdefault(key, {}).setdefault(rank, clock[rank])
                if not isinstance(action, Start) and not all(p in posted.get(key, ()) for p in partners):
                    break
                begin = (
                    max([clock[rank], *(posted[key][p] for p in partners)])
                    if partners and not isinstance(action, Start)
                    else clock[rank]
                )
                time = duration(rank, action)
                clock[rank] = begin + time
                busy[rank] += time
                if time:
                    spans[rank].append((action, begin, clock[rank]))
                position[rank] += 1
                moved = True
    stuck = [r for r in schedules if position[r] < len(schedules[r])]
    if stuck:
        lines = []
        for rank in stuck:
            action = schedules[rank][position[rank]]
            key, partners = _meeting(plan, rank, action)
            missing = [p for p in partners if p not in posted.get(key, ())]
            lines.append(f"rank {rank} at {action} waits for rank {', '.join(map(str, missing))}")
        raise ScheduleError("no rank can go on: " + "; ".join(lines))
    return Timing(spans, max(clock.values()), busy)


def _meeting(plan: Plan, rank: int, action: Action) -> tuple[tuple | None, Sequence[int]]:
    """What `action` communicates about, and the other ranks that have to come to it."""
    row = plan.group("row", rank)
    match action:
        case Start(boundary, chunk, direction) | Finish(boundary, chunk, direction):
            return ("boundary", boundary, chunk, direction, row), _partners(
                plan, rank, boundary, chunk, direction, row
            )
        case Forward(segment, chunk) | Backward(segment, chunk) | BackwardInput(segment, chunk):
            direction = "forward" if isinstance(action, Forward) else "backward"
            part = plan.chunks_of(rank)[segment][chunk]
            meets: set[int] = set()
            for layer in plan.segments[segment].layers:
                if layer.sync:
                    meets |= set(plan.group(layer.sync, rank))
                for exchange in layer.exchanges:
                    transfer = exchange and (
                        exchange.forward(part) if direction == "forward" else exchange.backward(part)
                    )
                    if transfer and transfer.rounds(rank % plan.grid.mp):
                        meets |= set(_transfer_ends(transfer, row))
            return (direction, segment, chunk), sorted(meets - {rank})
        case ReduceGradients(bucket):
            # by its contents: with uneven shards, members may number their buckets differently
            group, names = next((b.group, b.names) for b in plan.buckets[rank] if b.index == bucket)
            members = plan.group(group, rank)
            return ("bucket", names, members), [r for r in members if r != rank]
        case Metrics():
            return ("metrics",), [r for r in range(plan.size) if r != rank]
        case Update() | BackwardWeight():
            return None, ()


def _partners(
    plan: Plan, rank: int, boundary: int, chunk: int, direction: str, row: Sequence[int]
) -> list[int]:
    part = plan.chunks_of(rank)[boundary + 1][chunk]
    ends: set[int] = set()
    for exchange in plan.boundaries[boundary].exchanges:
        transfer = exchange.forward(part) if direction == "forward" else exchange.backward(part)
        if transfer is not None and transfer.rounds(rank % plan.grid.mp):
            ends |= set(_transfer_ends(transfer, row))
    return sorted(ends - {rank})


def _transfer_ends(transfer, row: Sequence[int]) -> Sequence[int]:
    if transfer.op == "send":
        return [row[transfer.src.rank], row[transfer.dst.rank]]
    return row
