"""`minidnn profile`: where the time of a training step goes, layer by layer, against what the machine can do.

Forward is timed around each layer, backward between the first node of a layer and that of the next, and the
peak is a large matrix product in the same run. Every number is the median over the steps.
"""

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from minidnn import functional as F
from minidnn import nn
from minidnn.backend import kernels, workers
from minidnn.console import count
from minidnn.functional.products import product
from minidnn.nn.sequential import INPUT, Sequential
from minidnn.nn.summary import summary_rows
from minidnn.optim import SGD
from minidnn.tensor import Tape, Tensor
from minidnn.text import size, table

LOSS, UPDATE = "loss", "update"


@dataclass
class LayerProfile:
    """One layer: what it computes and holds, and the seconds of its forward and backward in each step."""

    name: str
    output: str = ""
    forward_flops: int = 0
    backward_flops: int = 0
    weight_bytes: int = 0
    output_bytes: int = 0
    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)


def profile_model(
    model: Sequential,
    shape: tuple[int, ...],
    batch: int,
    classes: int,
    steps: int = 5,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> list[LayerProfile]:
    """Train `model` on random images for `warmup + steps` steps of momentum SGD, and time its layers.

    Returns
    -------
    list of LayerProfile
        In the order of the model, then "loss" and "update" (whose time is its forward's).
    """
    rows = _rows(model, shape, batch)
    optimiser = SGD(model.parameters(), lr=1e-4, momentum=0.9)
    random = np.random.default_rng(0)
    images = Tensor(random.standard_normal((batch, *shape), np.float32))
    labels = random.integers(0, classes, batch)
    for step in range(warmup + steps):
        seen = rows if step >= warmup else {name: LayerProfile(name) for name in rows}
        with nn.context(training=True, seed=0, step=step, samples=np.arange(batch)):
            loss, tape = _forward(model, images, labels, seen, clock)
        _backward(tape, loss, seen, clock)
        _note_factors(model, seen)
        start = clock()
        optimiser.step()
        seen[UPDATE].forward.append(clock() - start)
        for parameter in model.parameters():
            parameter.zero_grad()
    return list(rows.values())


def _rows(model: Sequential, shape: tuple[int, ...], batch: int) -> dict[str, LayerProfile]:
    rows, first = {}, True
    for row in summary_rows(model, shape, batch):
        flops = 2 * row.macs * batch
        backward = flops if first else 2 * flops  # the first layer with weights makes no input gradient
        first = first and not row.parameters
        output = "x".join(map(str, row.output_shape))
        weights = 4 * row.parameters
        rows[row.name] = LayerProfile(row.name, output, flops, backward, weights, row.activation_bytes)
    return rows | {LOSS: LayerProfile(LOSS), UPDATE: LayerProfile(UPDATE)}


def _forward(
    model: Sequential, x: Tensor, labels: np.ndarray, rows: dict[str, LayerProfile], clock: Callable
) -> tuple[Tensor, Tape]:
    kept = {INPUT: x}
    wanted = {also for _, layer in model for also in layer.also}
    with Tape() as tape:
        for name, layer in model:
            tape.layer = name
            start = clock()
            x = layer(x, *(kept[also] for also in layer.also))
            rows[name].forward.append(clock() - start)
            if name in wanted:
                kept[name] = x
        tape.layer = LOSS
        start = clock()
        loss = F.softmax_cross_entropy(x, labels)
        rows[LOSS].forward.append(clock() - start)
    return loss, tape


def _backward(tape: Tape, loss: Tensor, rows: dict[str, LayerProfile], clock: Callable) -> None:
    spent = dict.fromkeys(rows, 0.0)
    current, start = LOSS, clock()

    def observe(node) -> None:
        nonlocal current, start
        if node.layer != current:
            now = clock()
            spent[current] += now - start
            current, start = node.layer, now

    tape.backward(loss, observer=observe)
    spent[current] += clock() - start
    for name, seconds in spent.items():
        rows[name].backward.append(seconds)


def _note_factors(model: Sequential, rows: dict[str, LayerProfile]) -> None:
    """Weight gradients that backward left as factors are multiplied in the update: count them there."""
    for name, layer in model:
        row = rows[name]
        if any(p.factors is not None for p in layer.parameters()) and row.backward_flops > row.forward_flops:
            row.backward_flops -= row.forward_flops
            rows[UPDATE].forward_flops += row.forward_flops


def peak_gflops(n: int = 2048, repeats: int = 5, clock: Callable[[], float] = time.perf_counter) -> float:
    """Billions of float32 operations a second in a product of two n x n matrices: the best of some."""
    a = np.random.default_rng(0).standard_normal((n, n), np.float32)
    product(a, a)
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        product(a, a)
        best = min(best, clock() - start)
    return 2 * n**3 / best / 1e9


def profile_text(rows: Sequence[LayerProfile], peak: float, title: str = "") -> str:
    """The table, with totals, and below it the share of the peak that the products of the step reach."""
    lines: list[list[object]] = []
    for row in rows:
        forward, backward = median(row.forward), median(row.backward or [0.0])
        lines.append(
            [
                row.name,
                row.output,
                *_rates(forward, row.forward_flops, peak),
                *_rates(backward, row.backward_flops, peak),
                size(row.weight_bytes) if row.weight_bytes else "",
                size(row.output_bytes) if row.output_bytes else "",
            ]
        )
    forward = sum(median(row.forward) for row in rows)
    backward = sum(median(row.backward or [0.0]) for row in rows)
    flops = sum(row.forward_flops for row in rows), sum(row.backward_flops for row in rows)
    totals = [sum(getattr(row, key) for row in rows) for key in ("weight_bytes", "output_bytes")]
    lines += [[], ["total", "", *_rates(forward, flops[0], peak), *_rates(backward, flops[1], peak)]]
    lines[-1] += [size(total) for total in totals]
    header = ["layer", "output", "forward ms", "GFLOP/s", "peak %", "backward ms", "GFLOP/s", "peak %"]
    header += ["weights", "output bytes"]
    step, work = forward + backward, sum(flops)
    products = sum(median(row.forward) + median(row.backward or [0.0]) for row in rows if row.forward_flops)
    below = (
        f"step {1e3 * step:.1f} ms, {work / step / 1e9:.0f} GFLOP/s: {work / step / peak / 1e7:.0f} % of the "
        f"peak of {peak:.0f} (a large product in this run); layers with products alone: "
        f"{work / products / peak / 1e7:.0f} %"
    )
    return "\n".join([table(lines, header, title), "", below])


def _rates(seconds: float, flops: int, peak: float) -> tuple[str, str, str]:
    if not flops or not seconds:
        return f"{1e3 * seconds:.2f}", "", ""
    rate = flops / seconds / 1e9
    return f"{1e3 * seconds:.2f}", f"{rate:.0f}", f"{100 * rate / peak:.0f}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `minidnn profile`, beside those that choose the model."""
    parser.add_argument(
        "--steps", type=count(), default=5, help="steps that are timed (after two that are not)"
    )
    parser.add_argument("--threads", type=count(1, 1024), help="cores to use (default: as many as BLAS)")


def run(args: argparse.Namespace, model: Sequential, shape: tuple[int, ...]) -> int:
    """Time the layers of `model` on ``args.batch`` images of a shape; print the table."""
    if args.threads:
        workers.set_threads(args.threads)
    batch = args.batch
    classes = model.output_shape(shape)[-1]
    model.init(0)
    rows = profile_model(model, shape, batch, classes, args.steps)
    kind = "fast" if kernels.fast_in_use() else "plain"
    title = (
        f"{args.model}, {shape[0]} px, batch {batch}, float32; {workers.threads()} threads, {kind} kernels; "
        f"NumPy {np.__version__}, {platform.processor() or platform.machine()}\n"
    )
    print(profile_text(rows, peak_gflops(), title))
    return 0
