"""How time, memory and bytes grow with batch, image size, width and ranks.

    python -m benchmarks.scaling [--quick]

The first table is measured, one fresh process a row; the second is planned: what the planner says for more ranks
than this machine has cores, without running them.
"""

from __future__ import annotations

import statistics
from collections import defaultdict

from benchmarks.common import milliseconds, program
from benchmarks.processes import Worker
from minidnn import nn
from minidnn.parallel import Options, make_plan, make_strategy
from minidnn.report.plan_compare import compare_plans
from minidnn.text import size, table

THREADS = 2
BASE = {"batch": 16, "image": 56, "width": 1.0}
SERIES = {"batch": (1, 4, 16, 64, 256), "image": (56, 96, 128, 192, 227), "width": (0.25, 0.5, 1.0, 1.5, 2.0)}
QUICK = {"batch": (1, 2), "image": (56, 64), "width": (0.125,)}


def grown(quick: bool) -> str:
    """A step's time, arithmetic and memory along each of the three."""
    base = BASE | ({"batch": 2, "width": 0.125} if quick else {})
    rows = []
    for name, values in (QUICK if quick else SERIES).items():
        for value in values:
            setting = base | {name: value}
            options = {"image": setting["image"], "classes": 200, "width": setting["width"]}
            model = nn.build("alexnet", **options)
            shape = (setting["image"], setting["image"], 3)
            macs = sum(layer.macs(*shapes) for _, layer, shapes, _ in model.shapes(shape))
            job = {"model": "alexnet", "options": options, "batch": setting["batch"]}
            with Worker("training", job, THREADS) as worker:
                answer = worker.ask(steps=2 if quick else 15)
            seconds, flops = answer["seconds"], 6 * macs * setting["batch"]
            step = statistics.median(seconds)
            rate = flops / step / 1e9
            memory = size(answer["peak"] - answer["base"])
            per_image = f"{1e3 * step / setting['batch']:.2f}"
            rows.append(
                [
                    f"{name} {value:g}",
                    milliseconds(seconds),
                    per_image,
                    f"{flops / 1e9:.1f}",
                    f"{rate:.0f}",
                    memory,
                ]
            )
        rows.append([])
    header = ["AlexNet", "step, ms", "ms an image", "GFLOP", "GFLOP/s", "peak memory of a step"]
    others = f"batch {base['batch']}, {base['image']} px, width {base['width']:g} where not said"
    title = f"Measured: one process, {THREADS} threads, {others}: medians (quartiles)"
    return table(rows[:-1], header, title)


def planned(quick: bool) -> str:
    """Bytes by cause of each strategy over ranks."""
    shape, plans = (227, 227, 3), defaultdict(list)
    for strategy in ("data", "owt", "hybrid", "layer_split"):
        for ranks in (2, 4) if quick else (2, 4, 8, 16):
            model = nn.build("alexnet", image=227, classes=1000)
            options = Options(micro_batches=4) if strategy == "layer_split" else Options()
            if strategy == "layer_split" and ranks > 8:
                continue  # AlexNet has eight layers with weights
            made = make_strategy(strategy, model, shape, ranks, options)
            plans[strategy].append(make_plan(model, shape, made, 128 * ranks))
    return "Planned, not run: AlexNet (thesis), 227 px, 128 images a rank\n" + compare_plans(plans)


def run(quick: bool = False) -> str:
    """Both tables."""
    return grown(quick) + "\n\n" + planned(quick)


if __name__ == "__main__":
    program(run, __doc__)
