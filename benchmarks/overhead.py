"""What the framework itself costs: importing it, the tape, counting and tracing.

    python -m benchmarks.overhead [--quick]

Imports in fresh processes; small layers, where the tape is what takes the time; and a step on two ranks with a
ledger that keeps nothing, one that counts (as always), and one that records every message and span.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from contextlib import ExitStack
from functools import partial

from benchmarks.common import alternate, installed, judged, milliseconds, program, ratios, spread
from benchmarks.parallel_step import job
from benchmarks.processes import ROOT, Worker, environment, start_all, steps_of
from minidnn.text import table

IMPORT, TAPE, TRACE, COUNTERS = 1.5, 0.8, 2.0, 0.3  # targets: two ratios, two percentages
MLP = {"model": "mlp", "options": {"features": 64, "hidden": [64, 64], "classes": 64}, "batch": 32}
TIMER = "import time; begin = time.perf_counter(); import {0}; print(time.perf_counter() - begin)"
# the bare package loads its parts when they are first used; then all that training in one process needs
IMPORTS = ("numpy", "minidnn", "minidnn.nn, minidnn.optim")
LOADED = f"import sys, numpy.random; old = set(sys.modules); import {IMPORTS[-1]}; print(*(set(sys.modules) - old))"


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment(1), cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def imports(quick: bool) -> str:
    """`import minidnn` against `import numpy`."""
    programs = {what: lambda what=what: float(python(TIMER.format(what))) for what in IMPORTS}
    for one in programs.values():
        one()  # writes the byte code
    times = alternate(programs, 3 if quick else 25)
    rows = []
    for what in IMPORTS:
        ratio = ratios(times, what, "numpy") if what != "numpy" else []
        target = f"<= {IMPORT}" if what == "minidnn" else ""
        rows.append(
            [
                f"import {what}",
                milliseconds(times[what]),
                spread(ratio),
                target,
                judged(ratio, IMPORT) if target else "",
            ]
        )
    names = {name.partition(".")[0] for name in python(LOADED).split()} - set(sys.stdlib_module_names)
    extra = f"The last one loads, beside NumPy and the standard library: {', '.join(sorted(names))}"
    return table(rows, ["fresh process", "ms", "/ numpy", "target", "met"], "Importing") + "\n" + extra


def tape(quick: bool) -> str:
    """A small multilayer perceptron."""
    rows, steps = [], 20 if quick else 300
    for threads in (1,) if quick else (1, 2):
        makers = {"minidnn": partial(Worker, "training", MLP, threads)}
        if installed("torch"):
            makers["PyTorch"] = partial(Worker, "torch", MLP, threads)
        with ExitStack() as stack:
            workers = start_all(stack, makers)
            times = alternate(
                {n: steps_of(worker, steps) for n, worker in workers.items()}, 3 if quick else 25
            )
        ratio = ratios(times, "minidnn", "PyTorch")
        cells = [spread(times.get(name, ()), 0, 1e6) for name in ("minidnn", "PyTorch")]
        rows.append([threads, *cells, spread(ratio), f"<= {TAPE:.2f}", judged(ratio, TAPE)])
    header = ["threads", "ours, us", "PyTorch, us", "ours / PyTorch", "target", "met"]
    return table(
        rows, header, "A step of a 64-64-64-64 perceptron, batch 32: forward, loss, backward, update"
    )


def ledger(quick: bool) -> str:
    """A step with and without counting and tracing, on two ranks."""
    rows = []
    for name, strategy in (("data parallel", "data"), ("OWT (a)", "owt"))[quick:]:
        with Worker("executor", job(56, strategy, {}, quick), 1, 2) as worker:
            modes = ("silent", "counters", "trace")
            times = alternate({m: steps_of(worker, 3, ledger=m) for m in modes}, 3 if quick else 60)
            counted = max(worker.ask(ledger="calls")["ranks"], key=lambda rank: rank["cost"])
        step = statistics.median(times["counters"])
        share, calls = 100 * counted["cost"] / step, sum(counted["calls"].values())
        for mode, base, target in (("counters", "silent", ""), ("trace", "counters", f"<= {TRACE:g} %")):
            extra = [100 * (ratio - 1) for ratio in ratios(times, mode, base)]
            met = judged(extra, TRACE) if target else ""
            rows.append(
                [name, f"{mode} / {base}", milliseconds(times[mode]), f"{spread(extra)} %", target, met]
            )
        what = f"counters: {calls} calls x their time alone"
        rows.append(
            [
                name,
                what,
                f"{1e3 * counted['cost']:.3f}",
                f"{share:.2f} %",
                f"<= {COUNTERS} %",
                judged([share], COUNTERS),
            ]
        )
    header = ["AlexNet, 56 px, batch 16, 2 ranks", "what", "ms", "extra", "target", "met"]
    return table(rows, header, "The ledger: medians (quartiles) of alternating rounds in one run")


def run(quick: bool = False) -> str:
    """The three tables."""
    return "\n\n".join(part(quick) for part in (imports, tape, ledger))


if __name__ == "__main__":
    program(run, __doc__)
