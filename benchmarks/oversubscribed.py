"""The time of a step on four ranks where there are two cores, against that on two ranks.

    python -m benchmarks.oversubscribed [--quick]

BLAS threads are as many as minidnn chooses itself. What four ranks cost on two cores is what each rank does however
small its part of the batch: data parallelism reads and updates all weights on every rank.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from benchmarks.common import alternate, judged, milliseconds, program, ratios, spread
from benchmarks.parallel_step import BATCH, STRATEGIES, job
from benchmarks.processes import Worker, start_all, steps_of
from minidnn.text import table
from minidnn.train.options import BATCH as DEFAULT_BATCH

LIMIT = 1.5


def run(quick: bool = False) -> str:
    """Four ranks against two, alternating."""
    rows = []
    factors = {"fc_gradients": "factors"}
    choices = STRATEGIES | {
        "data parallel, sharded momentum": ("data", {"sharded_momentum": True, "bucket_mib": 8.0}),
        "data parallel, factors": ("data", factors),
        "data parallel, factors, sharded momentum": ("data", factors | {"sharded_momentum": True}),
    }
    work_of = {
        f"{name}, batch {batch}": job(56, *choice, quick) | {"batch": batch}
        for batch in (BATCH, DEFAULT_BATCH)
        for name, choice in choices.items()
    }
    for name, work in list(work_of.items())[: 1 if quick else None]:
        makers = {str(ranks): partial(Worker, "executor", work, None, ranks) for ranks in (2, 4)}
        with ExitStack() as stack:
            workers = start_all(stack, makers)
            rounds, steps = (2, 1) if quick else (15, 5)
            times = alternate({n: steps_of(worker, steps) for n, worker in workers.items()}, rounds)
        ratio = ratios(times, "4", "2")
        cells = (
            milliseconds(times["2"]),
            milliseconds(times["4"]),
            spread(ratio),
            f"<= {LIMIT}",
            judged(ratio, LIMIT),
        )
        rows.append([name, *cells])
    header = ["strategy", "2 ranks, ms", "4 ranks, ms", "4 / 2", "target", "met"]
    title = "More ranks than cores: 56 px, BLAS threads chosen by minidnn"
    return table(rows, header, title)


if __name__ == "__main__":
    program(run, __doc__)
