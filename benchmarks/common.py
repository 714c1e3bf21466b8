"""What all measurements share: who measures, worker processes that are asked in turn, and medians with their spread.

A ratio of two programs is honest on a shared machine only if both run at the same time of day. So each program
lives in a worker process of its own (BLAS and OpenMP pools of one would disturb the other), all stay alive,
and one after the other is asked for a few steps, round by round. The ratio is taken within each round; what is
printed is the median of these ratios with the first and third quartile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 0.05  # seconds before a worker is asked: threads of the one before still spin for some milliseconds
NO_TORCH = "PyTorch is not installed (pip install torch==2.13.0): its columns are empty."
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


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


def environment(threads: int | None, **variables: str) -> dict[str, str]:
    """This process's environment with so many BLAS threads (None: whatever the program chooses itself)."""
    result = {k: v for k, v in os.environ.items() if k not in THREAD_VARIABLES}
    if threads is not None:
        result |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    result["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return result | variables


def mpirun(ranks: int) -> list[str]:
    """The launcher's part of a command: the one beside this Python, or on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which("mpirun", path=path)
    if found is None:
        raise SystemExit('no mpirun found: pip install "minidnn[mpi]"')
    return [found, "-n", str(ranks)]


class Worker:
    """A process, or a group of them, that is asked for measurements over a socket (`benchmarks.workers`).

    Parameters
    ----------
    kind : str
        A function of `benchmarks.workers`, or of `benchmarks.torch_workers` if it begins with "torch".
    options : dict
        For that function.
    threads : int, optional
        BLAS threads of each process.
    ranks : int
        Processes; more than one are started by mpirun, or singly if `kind` begins with "torch".
    timeout : float
        Seconds that a start or an answer may take; then everything is killed and `TimeoutError` raised.
    """

    def __init__(
        self,
        kind: str,
        options: Mapping[str, Any],
        threads: int | None = 1,
        ranks: int = 1,
        timeout: float = 300.0,
        **variables: str,
    ) -> None:
        self.kind, self.folder = kind, tempfile.TemporaryDirectory(prefix="benchmark")
        self.errors = open(Path(self.folder.name, "stderr"), "w+")  # noqa: SIM115 - closed by close()
        self.processes: list[subprocess.Popen] = []
        self.files: list[Any] = []
        path = str(Path(self.folder.name, "socket"))
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen()
        server.settimeout(timeout)
        is_torch = kind.startswith("torch")
        module = "benchmarks.torch_workers" if is_torch else "benchmarks.workers"
        command = [sys.executable, "-m", module, path, kind, json.dumps(options)]
        launcher = mpirun(ranks) if ranks > 1 and not is_torch else []
        for rank in range(ranks if is_torch else 1):
            place = (
                {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MEETING": f"{path}.meeting"}
                if is_torch
                else {}
            )
            self.processes.append(
                subprocess.Popen(
                    launcher + command,
                    env=environment(threads, **variables, **place),
                    stdin=subprocess.DEVNULL,
                    stdout=self.errors,
                    stderr=self.errors,
                    start_new_session=True,
                    cwd=ROOT,
                )
            )
        try:
            for _ in range(ranks):
                connection = self._accept(server, time.monotonic() + timeout)
                connection.settimeout(timeout)
                self.files.append(connection.makefile("rw"))
                connection.close()  # the file keeps it open
            self.ready = self._answers()
        except BaseException:
            self.close()
            raise
        finally:
            server.close()

    def _accept(self, server: socket.socket, deadline: float) -> socket.socket:
        server.settimeout(0.5)
        while True:
            try:
                return server.accept()[0]
            except TimeoutError:
                if any(process.poll() is not None for process in self.processes):
                    raise RuntimeError(f"{self.kind} ended before it was ready\n{self._printed()}") from None
                if time.monotonic() > deadline:
                    raise

    def _printed(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-3000:]

    def _answers(self) -> list[dict[str, Any]]:
        lines = [file.readline() for file in self.files]
        if not all(lines):
            raise RuntimeError(f"{self.kind} ended\n{self._printed()}")
        return [json.loads(line) for line in lines]

    def ask(self, **request: Any) -> dict[str, Any]:
        """Let all processes do one thing; the answer of the first, with "seconds" the slowest's, step by step."""
        time.sleep(PAUSE)
        for file in self.files:
            file.write(json.dumps(request) + "\n")
            file.flush()
        answers = self._answers()
        if "seconds" in answers[0]:
            answers[0]["seconds"] = [max(step) for step in zip(*(a["seconds"] for a in answers), strict=True)]
        return answers[0] | {"ranks": answers}

    def close(self) -> None:
        """Let the processes end; kill what is left of them."""
        for file in self.files:
            file.close()
        for process in self.processes:
            try:
                process.wait(10 if self.files else 0.1)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.errors.close()
        self.folder.cleanup()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


Times = dict[str, list[float]]


def alternate(programs: Mapping[str, Callable[[], float]], rounds: int) -> Times:
    """Seconds of each program in each round; every round runs them all, every other one backwards."""
    times: Times = {name: [] for name in programs}
    for number in range(rounds):
        order = list(programs) if number % 2 == 0 else list(programs)[::-1]
        for name in order:
            times[name].append(programs[name]())
    return times


def steps_of(worker: Worker, steps: int, **request: Any) -> Callable[[], float]:
    """A program for `alternate`: the median of so many steps of a worker."""
    return lambda: statistics.median(worker.ask(steps=steps, **request)["seconds"])


def start_all(stack: ExitStack, workers: Mapping[str, Callable[[], Worker]]) -> dict[str, Worker]:
    """Start workers one after the other; `stack` closes them."""
    return {name: stack.enter_context(make()) for name, make in workers.items()}


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
