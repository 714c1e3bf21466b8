"""The training loop of the examples and of `minidnn train`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import isfinite
from time import perf_counter
from typing import Any

import numpy as np

from ..comm.communicator import Communicator
from ..data import Batch
from ..data.progress import ProgressBar
from ..errors import InputError
from ..launch import alive, launch
from ..parallel import Result, gather_weights, unequal_replicas
from ..parallel.nonfinite import NonFiniteError, wrong_weights
from ..text import size
from .closing import Meter, alone, time_table, traffic_table
from .comparison import Comparison
from .history import History
from .options import parse, parser
from .session import Session
from .tracing import Tracing
from .twin import LIMITS, largest_difference


def run(description: str, strategy: str | None, argv: Sequence[str] | None = None) -> None:
    """A whole program: options, guard, training, closing table.

    Exits with code 0, 1 (the check failed, or a rank raised) or 2 (bad input).
    """
    launch(_main, description, strategy, argv)


def _main(comm: Communicator, description: str, strategy: str | None, argv: Sequence[str] | None) -> None:
    args = parse(parser(description, strategy), argv)
    train(comm, args)


def train(comm: Communicator, args: argparse.Namespace) -> None:
    """Train as the options say, print the closing table, and exit with code 1 if a check failed."""
    session = Session(comm, args)
    session.say(session.describe())
    if not args.quiet:
        session.say(session.executor.plan, "\n")
    with Trainer(session) as trainer:
        for epoch in range(args.epochs):
            for batch in trainer.batches(epoch):
                trainer.record(batch, session.executor.step(batch.images, batch.labels))
            trainer.validate(epoch)


class Trainer:
    """What goes on around the steps: batches, the progress bar, validation, the twin, the closing table.

    At the end of the block come the table, the checks, trace and pictures; where the numbers stop being finite, what
    there is of trace and pictures is written on the way out.

    >>> with Trainer(session) as trainer:
    ...     for batch in trainer.batches(epoch):
    ...         result = executor.step(batch.images, batch.labels)
    ...         trainer.record(batch, result)
    ...     trainer.validate(epoch)
    """

    def __init__(self, session: Session) -> None:
        self.session, self.args = session, session.args
        self.executor, self.comm = session.executor, session.comm
        self.meter, self.history = Meter(session.ledger), History()
        self.tracing = Tracing(session)
        self.twin = session.twin() if self.args.check else None
        self.twin_batches = session.loader(training=True, whole=True) if self.twin else None
        self.comparison = Comparison(self.executor, self.twin) if self.twin and self.args.trace else None
        self.twin_loss = self.loss_difference = 0.0

    def __enter__(self) -> Trainer:
        # What is not finite is reported where it comes to light, naming the layer: no warnings before that.
        self._errstate = np.errstate(all="ignore")
        self._errstate.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self._errstate.__exit__(kind, error, trace)
        if error is None:
            self.close()
        elif isinstance(error, NonFiniteError):  # raised by every rank alike
            if self.tracing.abandon_step():
                self.meter.end()
            if self.epoch.losses:
                self.epoch.close()
                self._add_epoch(None)
            fault = self._write(time_table(self.comm, self.meter)[1])
            if fault:
                self.session.say(f"not written: {fault}")

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, this rank's images on the device; loading counts as input."""
        session, ledger = self.session, self.session.ledger
        total = len(session.train)
        source = session.train.epoch(epoch)
        self._twins = self.twin_batches.epoch(epoch) if self.twin else None
        self.epoch = _Epoch(epoch, self.args.epochs, total, show=self.comm.rank == 0)
        for _ in range(total):
            if self.comparison:
                self._twin_step(self.comparison.step)
            self.meter.begin()
            self.tracing.begin_step(self.executor.iteration)
            with ledger.scope(phase="input"), ledger.during("input", "", "input"):
                batch = next(source)
                if batch.images is not None:
                    batch = replace(batch, images=self.executor.xp.asarray(batch.images))
            yield batch
        self.epoch.close()

    def record(self, batch: Batch, result: Result) -> None:
        """Count a step that is done, draw the progress bar, and let the twin make the same step."""
        alive()
        self.tracing.end_step(result)
        self.meter.batches[len(batch.labels)] += 1
        self.meter.end()
        self.epoch.add(result, self.executor.plan.bytes_sent(self.comm.rank))
        if self.twin:
            if not self.comparison:
                self._twin_step(self.twin.step)
            self.loss_difference = float(np.maximum(self.loss_difference, abs(self.twin_loss - result.loss)))

    def _twin_step(self, step: Callable[[np.ndarray, np.ndarray], float]) -> None:
        """The step that the ranks have just made or, to compare their messages, are about to make."""
        with self.tracing.paused():
            whole = next(self._twins)
            self.twin_loss = step(whole.images, whole.labels)

    def validate(self, epoch: int) -> None:
        """Loss and accuracy on the validation split; prints the epoch's line.

        Raises
        ------
        NonFiniteError
            On every rank, where the last update has made a weight or the loss something else than a finite number.
        """
        with self.tracing.paused():
            validation = self._validation()
        self._check_finite(validation)
        self._add_epoch(validation)
        self.session.say(self.history.line(epoch))

    def _validation(self) -> tuple[float, float] | None:
        if self.session.validation is None:
            return None
        loss = correct = samples = 0.0
        for batch in self.session.validation.epoch(0):
            alive()
            images = None if batch.images is None else self.executor.xp.asarray(batch.images)
            result = self.executor.evaluate(images, batch.labels)
            loss += result.loss * result.samples
            correct += result.correct
            samples += result.samples
        return loss / samples, correct / samples

    def close(self) -> None:
        """The closing table, the pictures, and the verdict of the checks."""
        session, comm, args = self.session, self.comm, self.args
        plans = {n: self.executor.plan_for(n, True) for n in self.meter.batches}
        times, by_rank = time_table(comm, self.meter)
        traffic, counted = traffic_table(comm, self.meter, plans)
        same, replicas = self._replicas()
        session.say("\n" + times, "\n\n" + traffic + "\n")
        session.say(self.history.closing())
        session.say(f"replicas: {replicas}")
        ok, lines = counted and same, []
        if args.check:
            passed, lines = self._check()
            ok &= passed
        fault = self._write(by_rank)
        if lines:
            session.say(*lines, sep="\n")
        comm.barrier()  # until rank 0 has said everything: a rank that leaves for good may end the others
        if fault := fault or session.unheard:
            raise fault
        if not ok:
            raise SystemExit(1)

    def _replicas(self) -> tuple[bool, str]:
        """Whether the ranks hold the same bits of what they hold alike, and in words what differs."""
        unequal = unequal_replicas(self.executor)
        buffers = {p.name for held in self.executor.plan.held.values() for p in held if p.buffer}
        wrong = [name for name in unequal if name not in buffers or not self.args.local_batch_norm]
        if wrong:
            return False, f"DIFFER in {', '.join(wrong[:4])}{', ...' * (len(wrong) > 4)}"
        own = f", but for {len(unequal)} running statistics, which --local-batch-norm leaves to each rank"
        return True, f"equal bit for bit{own if unequal else ''}"

    def _write(self, by_rank: np.ndarray) -> InputError | None:
        """Trace and pictures, each whether or not another can be written; the first complaint."""
        args, comm, plan, fault = self.args, self.comm, self.executor.plan, None

        def plot() -> None:
            if args.plot:
                self.history.plot(args.plot, by_rank, f"{args.model}, {plan.strategy}, {comm.size} ranks")
                self.session.say(f"wrote {args.plot}")

        try:
            self.tracing.write(self.history)
        except InputError as error:
            fault = error
        text = alone(comm, plot, *([] if fault else [self.tracing.show]))
        return fault or (InputError(text) if text else None)

    def _add_epoch(self, validation: tuple[float, float] | None) -> None:
        e = self.epoch
        self.history.add(e.losses, e.accuracy, validation, e.seconds, e.samples)

    def _check_finite(self, validation: tuple[float, float] | None) -> None:
        layers, first = self.executor.plan.layers, wrong_weights(self.executor)
        if first < len(layers):
            what = f"weights of layer {layers[first].name!r} are"
        elif validation and not isfinite(validation[0]):
            what = "validation loss is"
        else:
            return
        raise NonFiniteError(
            f"step {self.executor.iteration - 1}: after the update the {what} not finite: lower the learning rate, or "
            "check the input"
        )

    def _check(self) -> tuple[bool, list[str]]:
        """The verdict of --check, the same on every rank, and in words what a run ends with."""
        weights = gather_weights(self.executor)
        difference = (
            largest_difference(weights, self.twin.model.state_dict()) if weights and self.twin else 0.0
        )
        loss, weight = self.comm.exchange(np.array([self.loss_difference, difference]))[0]
        limit = LIMITS[self.args.dtype]
        ok = bool(loss <= limit and weight <= limit)
        lines = [f"check: loss {loss:.1e} weights {weight:.1e} limit {limit:g} {'ok' if ok else 'FAILED'}"]
        if not ok and self.args.dtype == "float32":
            advice = "In float32, rounding can turn a ReLU on in one run that is off in the other, and from there they "
            lines.insert(0, advice + "part: --dtype float64 tells that from a mistake.")
        return ok, lines


class _Epoch:
    """The running numbers of one epoch, and their progress bar."""

    def __init__(self, number: int, epochs: int, steps: int, show: bool) -> None:
        self.name, self.steps = f"epoch {number + 1}/{epochs}", steps
        self.losses: list[float] = []
        self.correct = self.samples = 0
        self.begin = perf_counter()
        self.seconds = 0.0
        self.bar = ProgressBar(self.name, steps, None if show else False)

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples

    def add(self, result: Result, sent: int) -> None:
        self.losses.append(result.loss)
        self.correct += result.correct
        self.samples += result.samples
        rate = self.samples / (perf_counter() - self.begin)
        loss = sum(self.losses[-50:]) / len(self.losses[-50:])
        self.bar.label = (
            f"{self.name}  loss {loss:.4f}  accuracy {100 * self.accuracy:.1f} %  {rate:.0f} images/s  "
            f"{size(sent)} sent a step"
        )
        self.bar.update(len(self.losses))

    def close(self) -> None:
        self.seconds = perf_counter() - self.begin
        self.bar.close()
