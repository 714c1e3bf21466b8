"""The peak memory of training steps, ours and PyTorch's, each in a fresh process.

    python -m benchmarks.memory [--quick]

"Step" is the process's peak resident memory less what it held after its imports: weights, momenta, gradients,
activations and work space. "Process" is the peak itself, the libraries included.
"""

from __future__ import annotations

from benchmarks.common import installed, judged, program, spread
from benchmarks.processes import Worker
from benchmarks.step_time import CASES, QUICK, THREADS
from minidnn.text import table

MIB = 1 << 20
TARGET = 1.0


def run(quick: bool = False) -> str:
    """The table; each cell is a median over fresh processes."""
    rows, repeats = [], 1 if quick else 3
    kinds = ("training", "torch") if installed("torch") else ("training",)
    for name, options, batch, *_ in QUICK if quick else CASES:
        step: dict[str, list[float]] = {kind: [] for kind in kinds}
        whole: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(repeats):
            for kind in kinds:
                job = {"model": "alexnet", "options": options, "batch": batch, "warmup": 3}
                with Worker(kind, job, THREADS) as worker:
                    answer = worker.ask(steps=3)
                step[kind].append((answer["peak"] - answer["base"]) / MIB)
                whole[kind].append(answer["peak"] / MIB)
        ratio = [a / b for a, b in zip(step["training"], step.get("torch", ()), strict=False)]
        cells = [
            spread(values.get(kind, ()), 0) for values in (step, whole) for kind in ("training", "torch")
        ]
        rows.append([name, *cells, spread(ratio), f"<= {TARGET:.2f}", judged(ratio, TARGET)])
    header = [
        "AlexNet",
        "step, MiB",
        "PyTorch",
        "process, MiB",
        "PyTorch",
        "step, ours / PyTorch",
        "target",
        "met",
    ]
    return table(
        rows, header, f"Peak resident memory, {THREADS} threads: medians (quartiles) of {repeats} processes"
    )


if __name__ == "__main__":
    program(run, __doc__)
