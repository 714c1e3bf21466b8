"""A training step of this checkout against that of another one, such as an earlier commit's.

    git worktree add ../before COMMIT
    python -m benchmarks.against ../before [--quick]

Both checkouts' own workers are started and take turns; a ratio above 1 says that this checkout is slower. AlexNet is
the thesis's variant, float32; two ranks have one BLAS thread each, one process has one, too.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.common import alternate, header, milliseconds, ratios, spread
from benchmarks.parallel_step import STRATEGIES, job
from benchmarks.processes import ROOT, Worker, start_all, steps_of
from minidnn.text import table

ROWS = {
    f"{name}, {image} px": (image, strategy, options, ranks)
    for image in (56, 128)
    for name, strategy, options, ranks in [
        ("one process", "sequential", {}, 1),
        *((name, strategy, options, 2) for name, (strategy, options) in STRATEGIES.items()),
    ]
}


def run(other: Path, quick: bool = False) -> str:
    """The table."""
    rounds, steps = (2, 1) if quick else (15, 5)
    rows = []
    for name, (image, strategy, options, ranks) in ROWS.items():
        work = job(image, strategy, options, quick)
        roots = {"here": ROOT, "there": other}
        with ExitStack() as stack:
            makers = {k: partial(Worker, "executor", work, 1, ranks, root=root) for k, root in roots.items()}
            workers = start_all(stack, makers)
            times = alternate({k: steps_of(worker, steps) for k, worker in workers.items()}, rounds)
        rows.append([name, *(milliseconds(times[k]) for k in roots), spread(ratios(times, "here", "there"))])
    return table(rows, ["batch 16", "here, ms", "there, ms", "here / there"])


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("other", type=Path, help="the root of the other checkout")
    p.add_argument(
        "--quick", action="store_true", help="little work, to see that it runs; not for publication"
    )
    args = p.parse_args()
    print(header() + "\n\n" + run(args.other.resolve(), args.quick))
