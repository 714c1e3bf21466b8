"""What all measurements share: who measures, programs that take turns, and medians with their spread.

A ratio of two programs is honest on a shared machine only if both run at the same time of day. So they take
turns, round by round, and the ratio is taken within each round; what is printed is the median of these ratios with
the first and third quartile. `benchmarks.processes` gives each program a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

NO_TORCH = "PyTorch is not installed (pip install torch==2.13.0): its columns are empty."


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def header() -> str:
    """The machine and the versions, in two lines, and what is missing."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        memory = f"{int(Path('/proc/meminfo').read_text().split()[1]) / 2**20:.0f} GiB"
    except (OSError, StopIteration):
        memory = "unknown memory"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ("numpy", "numba", "torch", "mpi4py", "mpich", "pillow")
    versions = [f"{name} {_version(name)}" for name in packages]
    load = f"load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    lines = [
        f"{model}, {cores} cores, {memory}; {platform.system()} {platform.release()}; {load}",
        f"Python {platform.python_version()}, {', '.join(versions)}",
    ]
    return "\n".join(lines if installed("torch") else [*lines, NO_TORCH])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


Times = dict[str, list[float]]


def alternate(programs: Mapping[str, Callable[[], float]], rounds: int) -> Times:
    """Seconds of each program in each round; every round runs them all, every other one backwards."""
    times: Times = {name: [] for name in programs}
    for number in range(rounds):
        order = list(programs) if number % 2 == 0 else list(programs)[::-1]
        for name in order:
            times[name].append(programs[name]())
    return times


def ratios(times: Times, a: str, b: str) -> list[float]:
    """a ÷ b, round by round; empty where one of them did not run."""
    return [x / y for x, y in zip(times.get(a, ()), times.get(b, ()), strict=False)]


def spread(values: Sequence[float], digits: int = 2, scale: float = 1.0) -> str:
    """The median and the quartiles, "0.71 (0.69-0.74)"; empty without values."""
    if not values:
        return ""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [*values]
    )
    return f"{scale * middle:.{digits}f} ({scale * low:.{digits}f}-{scale * high:.{digits}f})"


def milliseconds(values: Sequence[float]) -> str:
    """The median and the quartiles of seconds, in milliseconds."""
    if not values:
        return ""
    return spread(values, 1 if statistics.median(values) < 0.1 else 0, 1e3)


def judged(values: Sequence[float], target: float) -> str:
    """Whether the median meets a target that is an upper limit."""
    return "" if not values else "yes" if statistics.median(values) <= target else "no"


def program(run: Callable[[bool], str], description: str | None) -> None:
    """The command line of a measurement that has no options of its own but --quick."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--quick", action="store_true", help="little work, to see that it runs; not for publication"
    )
    args = p.parse_args()
    print(header() + "\n\n" + run(args.quick))
