"""Threads for NumPy: a kernel cuts its work into parts, and each core takes parts until none is left.

NumPy releases Python's lock inside large operations, so threads do run at the same time. Element-wise
operations use one core otherwise; products use all of them, but a product per core, each on images that fit
its cache, is faster than one product over all cores, and keeps working when another program takes a core away
(OpenBLAS's threads wait for each other by spinning).

The pool has as many threads as BLAS would use (``OPENBLAS_NUM_THREADS``, or the cores that this rank has for
itself); with one, everything runs inline. How work is cut depends on sizes and on the number of threads
only, never on timing: the same numbers at every run.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from minidnn.backend import openblas


class _Job:
    """`function` of each of `items`; any number of threads may `work` on it."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.function, self.items = function, items
        self.results: list[Any] = [None] * len(items)
        self.error: BaseException | None = None
        self.next = self.done = 0
        self.lock = threading.Lock()
        self.finished = threading.Lock()
        self.finished.acquire()

    def work(self) -> None:
        """Take items until none is left. Whoever finishes the last one says so."""
        while True:
            with self.lock:
                i = self.next
                if i == len(self.items):
                    return
                self.next += 1
            try:
                self.results[i] = self.function(self.items[i])
            except BaseException as error:
                self.error = error
            with self.lock:
                self.done += 1
                if self.done == len(self.items):
                    self.finished.release()


class _Workers:
    """Daemon threads that work on whatever job is in the queue."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.workers = 0
        self.threads: int | None = None
        self.inside = threading.local()

    def grow(self, workers: int) -> None:
        while self.workers < workers:
            self.workers += 1
            threading.Thread(target=self._serve, name=f"minidnn-{self.workers}", daemon=True).start()

    def _serve(self) -> None:
        self.inside.worker = True
        while True:
            self.jobs.get().work()


_workers = _Workers()


def _forget() -> None:
    """In a forked child there are no threads."""
    global _workers
    threads = _workers.threads
    _workers = _Workers()
    _workers.threads = threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def threads() -> int:
    """Threads that share the work, this one included."""
    if _workers.threads is None:
        _workers.threads = openblas.get_threads() or 1
    return _workers.threads


def set_threads(n: int | None) -> None:
    """Share the work among `n` threads from now on; None: as many as BLAS uses."""
    if n is not None and n < 1:
        raise ValueError(f"set_threads({n}): at least one")
    if n is not None and n > 1 and openblas.get_threads() is None:
        n = 1  # products inside would use all cores each
    _workers.threads = n


def each(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """``[function(item) for item in items]``, on all threads; BLAS is single-threaded meanwhile.

    The caller works, too, so it never waits for a thread that is busy with another job. An exception is raised
    when all items are done (the last one, if there are several). Inside a part, `each` runs inline.
    """
    items = items if isinstance(items, Sequence) else list(items)
    helpers = min(threads(), len(items)) - 1
    if helpers < 1 or getattr(_workers.inside, "worker", False):
        return [function(item) for item in items]
    _workers.grow(helpers)
    job = _Job(function, items)
    _workers.inside.worker = True
    try:
        with openblas.single_threaded:
            for _ in range(helpers):
                _workers.jobs.put(job)
            job.work()
            job.finished.acquire()
    finally:
        _workers.inside.worker = False
    if job.error is not None:
        raise job.error
    return job.results


def spans(n: int, largest: int | None = None, least: int = 1) -> list[slice]:
    """range(n) in equal parts for `each`: a multiple of `threads()` of them, or fewer if too small.

    Parameters
    ----------
    largest : int, optional
        No part is larger.
    least : int
        No part is smaller, unless n is.
    """
    count = threads()
    if largest is not None:
        count *= -(-n // (count * largest)) or 1
    count = max(1, min(count, n // max(least, 1)))
    return [slice(n * i // count, n * (i + 1) // count) for i in range(count)]
