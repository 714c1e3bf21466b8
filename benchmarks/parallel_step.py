"""The time of a step on two ranks: the strategies against each other, one process, and PyTorch's DDP.

    python -m benchmarks.parallel_step [--quick]

Global batch 16, AlexNet (thesis variant), one BLAS thread a rank, against one process with two. PyTorch's peer is
DistributedDataParallel over gloo, two processes with one thread each.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.common import Times, alternate, installed, judged, milliseconds, program, ratios, spread
from benchmarks.processes import Worker, start_all, steps_of
from minidnn.text import size, table

BATCH = 16
STRATEGIES = {
    "data parallel": ("data", {}),
    "layer split, 1F1B, m = 4": ("layer_split", {"micro_batches": 4, "schedule": "1f1b"}),
    "OWT (a)": ("owt", {"scheme": "a"}),
}
ONE, DDP = "one process, 2 threads", "PyTorch DDP"
TARGETS = {
    (56, "OWT (a)"): 0.30,
    (128, "OWT (a)"): 0.50,
    (56, "data parallel"): 0.60,
    (128, "data parallel"): 0.60,
}


def job(image: int, strategy: str, parallel: dict[str, Any], quick: bool) -> dict[str, Any]:
    """The options of a worker of kind "executor" (the peers ignore the strategy)."""
    options = {"image": image, "classes": 200, "width": 0.125 if quick else 1.0}
    return {
        "model": "alexnet",
        "options": options,
        "batch": BATCH,
        "strategy": strategy,
        "parallel": parallel,
    }


def measure(image: int, rounds: int, steps: int, quick: bool) -> tuple[Times, dict[str, int]]:
    """Seconds of a step of everything on two cores, and the bytes that a rank sends."""
    makers = {ONE: partial(Worker, "executor", job(image, "sequential", {}, quick), 2)}
    for name, (strategy, parallel) in STRATEGIES.items():
        makers[name] = partial(Worker, "executor", job(image, strategy, parallel, quick), 1, 2)
    if installed("torch"):
        makers[DDP] = partial(Worker, "torch_ddp", job(image, "data", {}, quick), 1, 2)
    with ExitStack() as stack:
        workers = start_all(stack, makers)
        times = alternate({name: steps_of(worker, steps) for name, worker in workers.items()}, rounds)
        answers = {name: workers[name].ask(steps=0)["ranks"] for name in STRATEGIES}
    return times, {name: max(rank["sent"] for rank in ranks) for name, ranks in answers.items()}


def run(quick: bool = False) -> str:
    """The strategies, one process and DDP, alternating in one run for each size of image."""
    rows = []
    for image in (56,) if quick else (56, 128):
        times, sent = measure(image, 2 if quick else 25, 1 if quick else 5, quick)
        for name in times:
            to_ddp, target = ratios(times, name, DDP) if name != DDP else [], TARGETS.get((image, name))
            to_one = ratios(times, name, ONE) if name != ONE else []
            rows.append(
                [
                    f"{image} px" if name == ONE else "",
                    name,
                    milliseconds(times[name]),
                    size(sent[name]) if name in sent else "",
                    spread(to_one),
                    spread(to_ddp),
                    f"<= {target:.2f}" if target else "",
                    judged(to_ddp, target) if target else "",
                ]
            )
        versus = ratios(times, "OWT (a)", "data parallel")
        rows += [["", "OWT (a) / data parallel", spread(versus), "", "", "", "", ""], []]
    header = [
        "image",
        "2 ranks x 1 thread",
        "step, ms",
        "sent a rank",
        "/ one process",
        "/ DDP",
        "target",
        "met",
    ]
    title = f"A step of AlexNet (thesis), global batch {BATCH}: medians (quartiles) of alternating rounds"
    return table(rows[:-1], header, title)


if __name__ == "__main__":
    program(run, __doc__)
