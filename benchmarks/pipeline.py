"""The idle share of pipeline schedules, measured, beside the formula.

    python -m benchmarks.pipeline

Stages that sleep in place of computing take equal times on any machine and need no core of their own, so
schedules over more stages than cores can be measured honestly: messages, waits and the executor are the real ones.
One layer a stage; forward, input gradient and weight gradient sleep the same time. GPipe and 1F1B should idle
(p - 1)/(m + p - 1) of the time, ZB-H1 (p - 1)(TF + TB - TW) of a stage's, which is a third of that.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from benchmarks.common import header
from minidnn import nn
from minidnn.comm import threads
from minidnn.parallel import Executor, Options, make_strategy
from minidnn.tensor import Function
from minidnn.text import table


class _Sleep(Function):
    """y = x, slowly        x (n, f)   W (1,)"""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def forward(self, x, W):
        time.sleep(self.seconds)
        self.dtype = W.dtype
        return x.copy()

    def backward_input(self, gy):
        time.sleep(self.seconds)
        return (gy,)

    def backward_weight(self, gy):
        time.sleep(self.seconds)
        return (np.zeros(1, self.dtype),)


class Stage(nn.Module):
    """A layer that takes `seconds` for each of its three parts."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.W = seconds, nn.Parameter((1,))

    def forward(self, x):
        return _Sleep(self.seconds)(x, self.W)


def measure(schedule: str, stages: int, micro_batches: int, seconds: float, steps: int) -> list[float]:
    """The idle share of each of `steps` training steps."""
    options = Options(micro_batches=micro_batches, schedule=schedule)

    def main(comm):
        model = nn.Sequential({f"stage{i}": Stage(seconds) for i in range(stages)})
        strategy = make_strategy("layer_split", model, (4,), stages, options)
        executor = Executor(model, (4,), strategy, comm, micro_batches)
        start, stop = executor.plan.input_rows(comm.rank)
        x, labels = np.ones((micro_batches, 4), np.float32)[start:stop], np.zeros(micro_batches, int)
        shares = []
        for _ in range(steps + 1):
            comm.barrier()
            begin = time.perf_counter()
            executor.step(x, labels)
            comm.barrier()
            shares.append(1 - 3 * micro_batches * seconds / (time.perf_counter() - begin))
        return shares[1:]

    return threads.run(stages, main)[0]


def run(seconds: float = 0.06, steps: int = 5, quick: bool = False) -> str:
    """The table."""
    rows = []
    if quick:
        seconds, steps = min(seconds, 0.005), 1
    for stages, micro_batches in ((2, 4),) if quick else ((2, 4), (2, 8), (4, 8)):
        for schedule in ("naive", "gpipe", "1f1b", "zb-h1"):
            shares = measure(schedule, stages, micro_batches, seconds, steps)
            p, m = stages, micro_batches
            formula = {"naive": (p - 1) / p, "zb-h1": (p - 1) / (3 * m + p - 1)}.get(
                schedule, (p - 1) / (m + p - 1)
            )
            middle = statistics.median(shares)
            spread = f"{100 * min(shares):.1f} to {100 * max(shares):.1f}"
            rows.append([schedule, p, m, f"{100 * formula:.1f}", f"{100 * middle:.1f}", spread])
    header = ["schedule", "stages", "micro-batches", "formula, %", "measured, %", "min to max"]
    return table(
        rows, header, f"Idle share with equal stages of 3 x {1e3 * seconds:g} ms, median of {steps} steps"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.06)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="little work, to see that it runs")
    arguments = parser.parse_args()
    print(header() + "\n\n" + run(arguments.seconds, arguments.steps, arguments.quick))
