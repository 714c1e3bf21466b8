"""The table at the end of a run: where the time went, and every byte against the plan."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import numpy as np

from ..comm.communicator import Communicator
from ..comm.ledger import Ledger
from ..errors import InputError
from ..parallel import Plan
from ..text import size, table

STATES = {
    "input": "input",
    "compute": "compute",
    "comm": "communication",
    "wait": "idle (waiting)",
    "other": "other",
}


class Meter:
    """What the training steps alone cost: differences of the ledger's counters around each step."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.seconds = dict.fromkeys(STATES, 0.0)
        self.in_flight = 0.0
        self.traffic: dict[tuple[str, str, str], np.ndarray] = {}
        self.batches: Counter[int] = Counter()

    def begin(self) -> None:
        """Before a run of training steps."""
        self._seconds, self._in_flight = _by_state(self.ledger), self.ledger.in_flight
        self._traffic = {key: np.array(cell) for key, cell in self.ledger.traffic.items()}

    def end(self) -> None:
        """After it."""
        for state, seconds in _by_state(self.ledger).items():
            self.seconds[state] += seconds - self._seconds[state]
        self.in_flight += self.ledger.in_flight - self._in_flight
        for key, cell in self.ledger.traffic.items():
            gained = np.array(cell) - self._traffic.get(key, 0)
            self.traffic[key] = self.traffic.get(key, 0) + gained

    @property
    def steps(self) -> int:
        return sum(self.batches.values())

    @property
    def exposed(self) -> float:
        """Seconds in which this rank posted messages or waited for them."""
        return self.seconds["comm"] + self.seconds["wait"]

    @property
    def hidden(self) -> float:
        """Seconds in which messages were under way while this rank did other work."""
        return max(0.0, self.in_flight - self.exposed)


def _by_state(ledger: Ledger) -> dict[str, float]:
    seconds = dict.fromkeys(STATES, 0.0)
    for (state, _, _), value in ledger.times().items():
        seconds[state] += value
    return seconds


def alone(comm: Communicator, *works: Callable[[], None]) -> str:
    """Let rank 0 work while the others wait for it; every rank calls this.

    Returns
    -------
    str
        On every rank what the first work that raised an InputError complains about; empty if none did.
    """
    complaints = []
    for work in () if comm.rank else works:
        try:
            work()
        except InputError as error:
            complaints.append(str(error))
    return comm.exchange_texts("".join(complaints[:1]))[0]


def time_table(comm: Communicator, meter: Meter) -> tuple[str, np.ndarray]:
    """Milliseconds per step in each state, for every rank; and the numbers (ranks, states).

    Communication and waiting are what a rank sees of its messages ("exposed"); the last row is what it does not,
    since it computes meanwhile.
    """
    mine = np.array([*(meter.seconds[s] for s in STATES), meter.hidden])
    everyone = comm.exchange(1e3 * mine / max(1, meter.steps))
    hidden, everyone = everyone[:, -1], everyone[:, :-1]
    rows = [[title, *(f"{v:.2f}" for v in everyone[:, i])] for i, title in enumerate(STATES.values())]
    rows += [[], ["step", *(f"{v:.2f}" for v in everyone.sum(axis=1))]]
    rows += [["messages hidden by computing", *(f"{v:.2f}" for v in hidden)]]
    header = ["ms per step", *(f"rank {r}" for r in range(comm.size))]
    return table(rows, header, f"Time of a step, mean of {meter.steps}"), everyone


def traffic_table(comm: Communicator, meter: Meter, plans: dict[int, Plan]) -> tuple[str, bool]:
    """Messages and bytes sent per step by layer and phase, all ranks together, against the plan.

    Returns
    -------
    text, ok
        `ok` is False on every rank if any count of any rank differs from its plan's.
    """
    planned: dict[tuple[str, str, str], np.ndarray] = {}
    for batch, times in meter.batches.items():
        for m in plans[batch].messages(comm.rank):
            key = (m.layer, m.phase, m.op)
            cell = planned.setdefault(key, np.zeros(4, np.int64))
            first = 0 if m.kind == "send" else 2
            cell[first] += times
            cell[first + 1] += m.bytes * times
    keys = list(planned)
    keys += [k for k, cell in meter.traffic.items() if k not in planned and np.any(cell)]
    differs = any(
        np.any(np.asarray(meter.traffic.get(k, np.zeros(4))) != planned.get(k, np.zeros(4))) for k in keys
    )
    ok = not comm.exchange(np.array([differs])).any()
    names = _all_keys(comm, keys)
    zero = np.zeros(4, np.int64)
    mine = np.array(
        [np.concatenate([meter.traffic.get(k, zero), planned.get(k, zero)]) for k in names], np.int64
    ).reshape(len(names), 8)
    total = comm.exchange(mine).sum(axis=0)
    steps = max(1, meter.steps)
    rows = []
    for (layer, phase, op), cell in zip(names, total, strict=True):
        same = "equal" if (cell[:2] == cell[4:6]).all() else "DIFFERS"
        rows.append(
            [layer, phase, op, f"{cell[0] / steps:g}", size(cell[1] / steps), size(cell[5] / steps), same]
        )
    whole = total.sum(axis=0)
    rows += [
        [],
        ["all", "", "", f"{whole[0] / steps:g}", size(whole[1] / steps), size(whole[5] / steps), _word(ok)],
    ]
    title = f"Sent in a step, {comm.size} ranks together, against the plan's closed form"
    return table(rows, ["layer", "phase", "operation", "messages", "bytes", "plan", ""], title), ok


def _word(ok: bool) -> str:
    return "equal" if ok else "DIFFERS"


def _all_keys(comm: Communicator, keys: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The keys of all ranks, in the order of the first rank that has them."""
    everyone = [json.loads(text) for text in comm.exchange_texts(json.dumps(keys))]
    return list(dict.fromkeys(tuple(key) for theirs in everyone for key in theirs))
