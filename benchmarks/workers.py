"""minidnn's side of the measurements: a process, or a rank, that steps when it is asked to.

    python -m benchmarks.workers SOCKET KIND JSON

`benchmarks.processes.Worker` starts it. Each request is a line of JSON, and so is each answer.
"""

from __future__ import annotations

import json
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minidnn import functional as F
from minidnn import nn
from minidnn.tensor import Tensor

Handler = Callable[[dict[str, Any]], dict[str, Any]]
RATE, MOMENTUM = 1e-4, 0.9


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_memory() -> int:
    """Bytes that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def model_of(options: dict[str, Any]) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A model by name with the options of its builder, and its input's shape."""
    name, own = options["model"], options.get("options", {})
    model = nn.build(name, **own)
    return model, (own["image"], own["image"], 3) if "image" in own else (own["features"],)


def timed(step: Callable[[], object], count: int, before: Callable[[], object] = lambda: None) -> list[float]:
    """The seconds of each of `count` steps; `before` is not timed."""
    seconds = []
    for _ in range(count):
        before()
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return seconds


def training(options: dict[str, Any]) -> Handler:
    """Forward, backward and momentum update in one process, without parallel machinery."""
    from minidnn.optim import SGD

    base = resident_memory()
    model, shape = model_of(options)
    model.init(0)
    batch, classes = options["batch"], options.get("options", {}).get("classes", 10)
    optimiser = SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    random = np.random.default_rng(0)
    images = random.standard_normal((batch, *shape), np.float32)
    labels = random.integers(0, classes, batch)

    def step() -> None:
        optimiser.zero_grad()
        F.softmax_cross_entropy(model(Tensor(images)), labels).backward()
        optimiser.step()

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        if "profile" in request:
            return efficiency(model, shape, batch, classes)
        seconds = timed(step, request["steps"])
        return {"seconds": seconds, "peak": peak_memory(), "base": base}

    timed(step, options.get("warmup", 2))
    return handle


def efficiency(model: nn.Sequential, shape: tuple[int, ...], batch: int, classes: int) -> dict[str, Any]:
    """Rates in GFLOP/s: the machine's peak, the whole step's, and that of the layers with products alone."""
    from minidnn.report.profile import peak_gflops, profile_model

    peak = peak_gflops()
    rows = profile_model(model, shape, batch, classes, steps=1, warmup=1)
    step = sum(sum(row.forward) + sum(row.backward) for row in rows)
    products = sum(sum(row.forward) + sum(row.backward) for row in rows if row.forward_flops)
    work = sum(row.forward_flops + row.backward_flops for row in rows)
    return {"peak": peak, "step": work / step / 1e9, "products": work / products / 1e9}


def executor(options: dict[str, Any]) -> Handler:
    """Training by a strategy, on this rank; under mpirun all ranks are asked the same."""
    from minidnn.comm.mpi import world
    from minidnn.optim import SGD
    from minidnn.parallel import Executor, Options, make_strategy
    from minidnn.train.closing import Meter

    comm, batch = world(), options["batch"]
    model, shape = model_of(options)
    planned = Options(**{"batch": batch} | options.get("parallel", {}))
    strategy = make_strategy(options["strategy"], model, shape, comm.size, planned)

    def optimiser(groups):
        return SGD([{"params": p, "lr": RATE} for p in groups.values()], momentum=MOMENTUM)

    training = Executor(model, shape, strategy, comm, batch, 0, optimiser)
    start, stop = training.plan.input_rows(comm.rank)
    random = np.random.default_rng(0)
    images = random.standard_normal((batch, *shape), np.float32)[start:stop] if start < stop else None
    labels = random.integers(0, options["options"]["classes"], batch)
    ledger, counting = comm.ledger, type(comm.ledger)

    def step() -> None:
        ledger.begin_step(training.iteration)
        result = training.step(images, labels)
        ledger.end_step(result.loss, result.samples)

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        mode = request.get("ledger", "counters")
        if mode == "calls":
            from benchmarks.silent import calls_of

            return calls_of(ledger, step)
        if mode == "silent":
            from benchmarks.silent import SilentLedger

            ledger.__class__ = SilentLedger
        if mode == "trace":
            ledger.trace(20)
        meter = Meter(ledger)

        def counted() -> None:
            meter.begin()
            step()
            meter.end()

        seconds = timed(counted, request["steps"], comm.barrier)
        ledger.tracing, ledger.__class__ = False, counting
        return {
            "seconds": seconds,
            "peak": peak_memory(),
            "sent": training.plan.bytes_sent(comm.rank),
            "exposed": meter.exposed / max(1, request["steps"]),
            "hidden": meter.hidden / max(1, request["steps"]),
        }

    timed(step, options.get("warmup", 2), comm.barrier)
    return handle


def all_reduce(options: dict[str, Any]) -> Handler:
    """Sums of float32 arrays over the ranks, in place: by an algorithm of ours, or by one call of the library.

    A step is one sum, or as many, one after the other, as ``calls`` says.
    """
    from minidnn.comm.collectives import all_reduce_inplace
    from minidnn.comm.mpi import world

    comm = world()
    values = np.ones(options["count"], np.float32)

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        part, algorithm = values[: request["count"]], request["algorithm"]
        calls = request.get("calls", 1)

        def one_call() -> None:
            comm.comm.Allreduce(comm.mpi.IN_PLACE, part, comm.mpi.SUM)

        def ours() -> None:
            all_reduce_inplace(comm, part, algorithm)

        def before() -> None:
            part[:] = 1  # else the sums grow without bound
            comm.comm.Barrier()

        def step() -> None:
            for _ in range(calls):
                one()

        one = one_call if algorithm == "library" else ours
        seconds = timed(step, request["steps"], before)
        if not (part == float(comm.size) ** calls).all():
            raise ValueError(f"{algorithm}: wrong sum")
        return {"seconds": [each / calls for each in seconds]}

    return handle


KINDS: dict[str, Callable[[dict[str, Any]], Handler]] = {
    "training": training,
    "executor": executor,
    "all_reduce": all_reduce,
}


def serve(kinds: dict[str, Callable[[dict[str, Any]], Handler]]) -> None:
    """Connect, prepare, say so, and answer until the other side hangs up."""
    path, kind, options = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        with connection.makefile("rw") as file:
            handle = kinds[kind](json.loads(options))
            file.write(json.dumps({"ready": kind}) + "\n")
            file.flush()
            for line in file:
                file.write(json.dumps(handle(json.loads(line))) + "\n")
                file.flush()


if __name__ == "__main__":
    serve(KINDS)
