"""One Weird Trick's three schemes on two ranks: communication that a rank waits for, and that computing hides.

    python -m benchmarks.schemes [--quick]

Exposed is the time in which a rank posts messages or waits for them; hidden, that in which messages are under way
while it computes, until it notices that they have arrived.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from functools import partial

from benchmarks.common import alternate, milliseconds, program, ratios, spread
from benchmarks.parallel_step import job
from benchmarks.processes import Worker, start_all
from minidnn.text import table

SCHEMES = {
    f"({s}), {update}": {"scheme": s, "fc_update": update} for s in "abc" for update in ("once", "each")
}


def run(quick: bool = False) -> str:
    """All schemes, alternating."""
    makers = {
        name: partial(Worker, "executor", job(56, "owt", options, quick) | {"batch": 128}, 1, 2)
        for name, options in list(SCHEMES.items())[: 2 if quick else None]
    }
    rounds, steps = (2, 1) if quick else (15, 4)
    parts: dict[str, dict[str, list[float]]] = {name: {"exposed": [], "hidden": []} for name in makers}
    with ExitStack() as stack:
        workers = start_all(stack, makers)

        def program_of(name: str) -> float:
            answer = workers[name].ask(steps=steps)
            for part, values in parts[name].items():
                values.append(statistics.mean(rank[part] for rank in answer["ranks"]))
            return statistics.median(answer["seconds"])

        times = alternate({name: partial(program_of, name) for name in makers}, rounds)
    first = next(iter(makers))
    rows = [
        [
            name,
            milliseconds(times[name]),
            *(milliseconds(parts[name][part]) for part in ("exposed", "hidden")),
            spread(ratios(times, name, first)) if name != first else "",
        ]
        for name in makers
    ]
    header = ["scheme, FC update", "step, ms", "exposed, ms", "hidden, ms", f"/ {first}"]
    title = "One Weird Trick, 56 px, 64 images on each of 2 ranks: communication that is waited for, and that is not"
    return table(rows, header, title)


if __name__ == "__main__":
    program(run, __doc__)
