"""The time of a training step in one process against PyTorch's.

    python -m benchmarks.step_time [--quick]

AlexNet, float32, two threads: forward, backward and momentum-SGD update, dropout and response normalisation
included. Ours with the plain kernels (MINIDNN_FAST=0) and with the fast ones (the default).
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.common import alternate, installed, judged, milliseconds, program, ratios, spread
from benchmarks.processes import Worker, start_all, steps_of
from minidnn.text import table

THREADS = 2
# what it is called, model options, batch, target, rounds, steps a round
CASES = (
    ("thesis, 56 px, batch 16", {"image": 56, "classes": 200}, 16, 0.60, 15, 4),
    ("thesis, 128 px, batch 16", {"image": 128, "classes": 200}, 16, 0.70, 15, 3),
    ("thesis, 128 px, batch 128", {"image": 128, "classes": 200}, 128, 0.90, 5, 1),
    ("2012, 227 px, batch 32", {"image": 227, "classes": 1000, "variant": "2012"}, 32, 0.70, 5, 1),
)
QUICK = (("thesis, 56 px, batch 2, width 1/8", {"image": 56, "classes": 10, "width": 0.125}, 2, 0.60, 2, 2),)
LEVELS = {"plain": "0", "fast": "1"}


def case(options: dict[str, Any], batch: int, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of a step at each of our levels and of PyTorch, round by round."""
    job = {"model": "alexnet", "options": options, "batch": batch}
    makers = {
        name: partial(Worker, "training", job, THREADS, MINIDNN_FAST=level) for name, level in LEVELS.items()
    }
    if installed("torch"):
        makers["torch"] = partial(Worker, "torch", job, THREADS)
    with ExitStack() as stack:
        workers = start_all(stack, makers)
        return alternate({name: steps_of(worker, steps) for name, worker in workers.items()}, rounds)


def against_peak(options: dict[str, Any], batch: int, rounds: int) -> str:
    """The rate of the layers with matrix products against a large product in the same process."""
    job = {"model": "alexnet", "options": options, "batch": batch}
    with Worker("training", job, THREADS) as worker:
        found = [worker.ask(profile=True) for _ in range(rounds)]
    rows = [
        ["a product of 2048 x 2048 matrices, the peak", spread([f["peak"] for f in found], 0), "", "", ""],
        ["conv and FC layers, forward and backward"],
        ["the whole step, update included"],
    ]
    for row, key, target in ((rows[1], "products", 80), (rows[2], "step", None)):
        shares = [100 * f[key] / f["peak"] for f in found]
        reached = judged([-share for share in shares], -target) if target else ""
        row += [
            spread([f[key] for f in found], 0),
            spread(shares, 0),
            f">= {target}" if target else "",
            reached,
        ]
    return table(rows, ["", "GFLOP/s", "% of the peak", "target", "met"])


def run(quick: bool = False) -> str:
    """The tables."""
    rows = []
    for name, options, batch, target, rounds, steps in QUICK if quick else CASES:
        times = case(options, batch, rounds, steps)
        for level in LEVELS:
            ratio, last = ratios(times, level, "torch"), level == list(LEVELS)[-1]
            ours, peer = milliseconds(times[level]), milliseconds(times.get("torch", ())) if last else ""
            wanted = f"<= {target:.2f}" if last else ""
            rows.append(
                [
                    name if last else "",
                    level,
                    ours,
                    peer,
                    spread(ratio),
                    wanted,
                    judged(ratio, target) if last else "",
                ]
            )
        rows.append([])
    header = ["AlexNet", "kernels", "ours, ms", "PyTorch, ms", "ours / PyTorch", "target", "met"]
    title = f"A training step in one process, {THREADS} threads: medians (quartiles) of alternating rounds"
    name, options, batch = (QUICK[0] if quick else CASES[2])[:3]
    below = f"Rates of {name}, {THREADS} threads: medians (quartiles)"
    return "\n\n".join(
        [table(rows[:-1], header, title), below, against_peak(options, batch, 2 if quick else 7)]
    )


if __name__ == "__main__":
    program(run, __doc__)
