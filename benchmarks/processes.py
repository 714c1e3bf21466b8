"""Programs that are measured in processes of their own, kept alive and asked for a few steps at a time.

In one process the thread pools of two frameworks (OpenBLAS, OpenMP) would disturb each other. A worker blocks in
the kernel until it is asked, so it costs nothing meanwhile.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAUSE = 0.05  # seconds before a worker is asked: threads of the one before still spin for some milliseconds
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def environment(threads: int | None, root: Path = ROOT, **variables: str) -> dict[str, str]:
    """This process's environment with so many BLAS threads (None: whatever the program chooses itself)."""
    result = {k: v for k, v in os.environ.items() if k not in THREAD_VARIABLES}
    if threads is not None:
        result |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    result["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
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
    root : Path
        The checkout whose code runs.
    """

    def __init__(
        self,
        kind: str,
        options: Mapping[str, Any],
        threads: int | None = 1,
        ranks: int = 1,
        timeout: float = 300.0,
        root: Path = ROOT,
        **variables: str,
    ) -> None:
        self.kind, self.folder = kind, tempfile.TemporaryDirectory(prefix="benchmark")
        self.errors = open(Path(self.folder.name, "stderr"), "w+")
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
                    env=environment(threads, root, **variables, **place),
                    stdin=subprocess.DEVNULL,
                    stdout=self.errors,
                    stderr=self.errors,
                    start_new_session=True,
                    cwd=root,
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
            for process in self.processes:  # the connection ends before the traceback is printed
                with suppress(subprocess.TimeoutExpired):
                    process.wait(5)
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


def steps_of(worker: Worker, steps: int, **request: Any) -> Callable[[], float]:
    """A program for `alternate`: the median of so many steps of a worker."""
    return lambda: statistics.median(worker.ask(steps=steps, **request)["seconds"])


def start_all(stack: ExitStack, workers: Mapping[str, Callable[[], Worker]]) -> dict[str, Worker]:
    """Start workers one after the other; `stack` closes them."""
    return {name: stack.enter_context(make()) for name, make in workers.items()}
