"""`--trace` and `--explain`: recording a run, and writing its views at the end."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np

from ..comm import trace_files
from ..launch import alive
from ..launch.threads import status
from ..parallel import Result
from ..parallel.memory import rank_memory
from ..report.explain import explain
from ..report.live import gather
from ..report.plan_rows import rows_of
from ..report.tables import report
from ..report.trace import load
from ..report.views import FILES, write_views
from .session import Session

EXPLAINED_STEP = 1  # the second one: the first also pays for warming up


class Tracing:
    """Records what `--trace` and `--explain` ask for, and nothing otherwise.

    Raises
    ------
    InputError
        Before training: the folder holds another run, or cannot be written to.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.args, self.comm = session, session.args, session.comm
        self.ledger = session.ledger
        self.run = ""
        self.explain = self.args.explain
        if self.args.trace:
            self.run = trace_files.prepare(self.comm, self.args.trace, self.args.overwrite, FILES)
            self.ledger.trace(self.args.trace_steps)
        elif self.explain:
            self.ledger.trace(EXPLAINED_STEP + 1)

    def begin_step(self, step: int) -> None:
        """Before a batch is loaded."""
        self.ledger.begin_step(step)

    def end_step(self, result: Result) -> None:
        """After the update."""
        ledger = self.ledger
        step = ledger.labels.step
        ledger.end_step(result.loss, result.samples)
        last = len(self.session.train) == 1 and self.args.epochs == 1
        if self.explain and step == (0 if last else EXPLAINED_STEP):
            self.explain = False
            self._tell(step)

    def abandon_step(self) -> bool:
        """Let a step that is going on end here; whether there was one."""
        going_on = self.ledger.labels.step is not None
        if going_on:
            self.ledger.end_step()
        return going_on

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no part of a step: validation, the twin."""
        tracing, self.ledger.tracing = self.ledger.tracing, False
        labels = self.ledger.labels
        try:
            yield
        finally:
            self.ledger.times()  # what went by belongs to no record
            self.ledger.tracing, self.ledger.labels = tracing, labels

    def _tell(self, step: int) -> None:
        """Print the story of a step of all ranks, and stop recording unless a trace is wanted."""
        with self.paused():
            trace = gather(self.comm)
            if trace is not None:
                self.session.say("\n" + explain(trace, step) + "\n")
        if not self.args.trace:
            self.ledger.tracing = False

    def write(self, history) -> None:
        """Write the trace; InputError on every rank where one cannot."""
        if not self.args.trace:
            return
        memory = asdict(rank_memory(self.session.executor.plan, self.comm.rank))
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.ledger.note("memory", **memory, **{"peak of the process": peak})
        self.ledger.tracing = False
        trace_files.write(self.comm, self.args.trace, self.run, self._info(history))

    def show(self) -> None:
        """On one rank: print the tables of the trace, and write its views."""
        if not self.args.trace:
            return
        trace = load(self.args.trace)
        alive()
        self.session.say("\n" + report(trace) + "\n")
        alive()
        self.session.say("\n".join(write_views(trace)))

    def _info(self, history) -> dict:
        """What goes into run.json."""
        plan, args = self.session.executor.plan, self.args
        return {
            "command": sys.orig_argv[1:],
            "model": args.model,
            "strategy": plan.strategy,
            "ranks": self.comm.size,
            "batch": plan.batch,
            "dtype": args.dtype,
            "dataset": repr(self.session.dataset),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
            "threads": status(),
            "versions": {"python": platform.python_version(), "numpy": np.__version__},
            "options": {key: value for key, value in vars(args).items() if value is not None},
            "plan": str(plan),
            "plan_rows": rows_of(plan),
            "history": history.epochs,
            "losses": history.losses,
        }
