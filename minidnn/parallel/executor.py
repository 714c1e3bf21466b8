"""Runs a plan: one rank's walk through its schedule.

The executor knows no strategy. It runs layers on chunks, each (segment, chunk) on a tape of its own,
moves what passes a boundary, sums buckets of gradients and lets the optimiser step, in the order that
the schedule gives. Every wait and every message is labelled with the layer and phase it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import nn
from ..backend import to_host
from ..comm import collectives
from ..comm.communicator import Communicator
from ..errors import InputError
from ..optim import SGD
from ..tensor import Tensor, no_grad
from .boundaries import Boundaries
from .check import check_plan
from .fingerprint import check_same
from .gradients import BucketSum, FactorExchange, GradientSync
from .messages import METRICS_ALGORITHM
from .per_rank import forward_only
from .plan import Plan
from .planner import make_plan
from .replica import Replica
from .schedule import (
    Backward,
    BackwardInput,
    BackwardWeight,
    Finish,
    Forward,
    Metrics,
    ReduceGradients,
    Start,
    Update,
)
from .segments import Segments
from .step import Step
from .strategy import Options, Strategy


@dataclass
class Result:
    """What a step or an evaluation batch came to, over all ranks."""

    loss: float
    correct: int
    samples: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.samples if self.samples else float("nan")


class Executor:
    """One rank's share of training a model by a strategy.

    Parameters
    ----------
    model : Sequential
        The whole model, without weights; the same on every rank.
    shape : tuple of int
        One sample, (H, W, C).
    strategy : Strategy
    comm : Communicator
        As large as the strategy's grid.
    batch : int
        Samples of the whole step.
    seed : int
        Of weights and dropout.
    optimiser : callable, optional
        ``{group: parameters} -> SGD`` whose groups are in that order.
    xp : module
        numpy or cupy.

    Raises
    ------
    InputError
        On every rank: the ranks were not given the same program.
    ScheduleError
        The schedule would not run: see `check_plan`.
    """

    def __init__(
        self,
        model: nn.Sequential,
        shape: tuple[int, ...],
        strategy: Strategy,
        comm: Communicator,
        batch: int,
        options: Options | None = None,
        seed: int = 0,
        optimiser: Callable[[Mapping[str, list]], SGD] | None = None,
        xp: Any = np,
        title: str = "model",
    ) -> None:
        if comm.size != strategy.grid.size:
            raise ValueError(
                f"strategy {strategy.name!r} is made for {strategy.grid.size} ranks, not {comm.size}"
            )
        self.model, self.shape, self.strategy, self.comm = model, tuple(shape), strategy, comm
        self.options, self.seed, self.xp, self.title = options or Options(), seed, xp, title
        self.dtype = np.dtype(self.options.dtype)
        self.ledger = comm.ledger
        check_same(comm, self._settings(batch))
        self.plan = make_plan(model, self.shape, strategy, batch, self.options, title)
        check_plan(self.plan)
        self._plans: dict[tuple[int, bool], Plan] = {(batch, True): self.plan}
        grid, rank = strategy.grid, comm.rank
        self.member = rank % grid.mp
        self.row = comm if grid.dp == 1 else comm.split(rank // grid.mp, rank)
        self.column = comm.split(rank % grid.mp, rank) if grid.dp > 1 else None
        self.replica = Replica(self.plan, rank, seed, xp, self.group)
        buckets = [
            (FactorExchange if b.matrix else BucketSum)(
                b,
                [self.replica.parameters[n] for n in b.names],
                self.group(b.group),
                self.options.algorithms,
                xp,
            )
            for b in self.plan.buckets[rank]
        ]
        self.sync = GradientSync(buckets, overlap=self.options.bucket_mib > 0)
        self.segments = Segments(comm, self.row, self.replica, self.sync, self.shape, self.dtype, xp)
        self.boundaries = Boundaries(self.row, self.dtype, xp)
        self.groups = {name: self._update_parameters(name) for name in dict.fromkeys(strategy.update_groups)}
        make = optimiser or (
            lambda groups: SGD([{"params": p} for p in groups.values()], lr=0.01, momentum=0.9)
        )
        self.optimiser = make(self.groups)
        self.group_index = {name: i for i, name in enumerate(self.groups)}
        self.update_each = any(isinstance(a, Update) for a in strategy.schedule(self.member))
        self.iteration = 0

    def _settings(self, batch: int) -> dict[str, object]:
        """What must be the same on every rank."""
        placements = "\n".join(f"{name}: {p}" for name, p in self.strategy.placements.items())
        return {
            "the model": repr(self.model),
            "the image shape": self.shape,
            "the batch": batch,
            "the seed": self.seed,
            "the strategy": self.strategy.name,
            "the process grid": str(self.strategy.grid),
            "the placements": placements,
            "the cuts between segments": self.strategy.starts,
            "the number of chunks": self.strategy.chunks,
        } | {f"the option {name}": value for name, value in vars(self.options).items()}

    def group(self, name: str) -> Communicator:
        """The communicator of the group "row", "column" or "world"."""
        return {"row": self.row, "column": self.column, "world": self.comm}[name]

    def _update_parameters(self, name: str) -> list[Tensor]:
        """What the optimiser steps for an update group: parameters, or pieces where the bucket is sharded."""
        found: list[Tensor] = []
        for segment in self.plan.segments:
            if self.strategy.update_groups[segment.index] == name:
                found += [p for layer in segment.layers for p in self.replica.parameters_of(layer.name)]
        pieces: list[Tensor] = []
        for b in self.sync.buckets.values():
            if b.bucket.sharded:
                own = {id(p) for p in b.parameters}
                if any(id(p) in own for p in found):
                    found = [p for p in found if id(p) not in own]
                    pieces += b.pieces
        return found + pieces

    # -- steps ---------------------------------------------------------------------------------------

    def step(self, images: Any, labels: np.ndarray) -> Result:
        """One training step.

        Parameters
        ----------
        images : array or None
            The images of `plan.input_rows(rank)`, (n, H, W, C); None where this rank needs none.
        labels : int array
            Of the whole batch.

        Raises
        ------
        InputError
            Other images than those of the rows that this rank takes; on the rank concerned only.
        NonFiniteError
            On every rank where the loss is not a finite number; before the update, but for `fc_update="each"`.
        """
        plan = self.plan_for(len(labels), training=True)
        for p in self.replica.parameters.values():
            p.grad = None
        self.sync.begin(plan, self.comm.rank)
        result = self._run(plan, plan.schedules[self.comm.rank], images, labels, training=True)
        self.optimiser.advance()
        self.iteration += 1
        return result

    def evaluate(self, images: Any, labels: np.ndarray) -> Result:
        """Loss and correct answers on a batch, without dropout."""
        plan = self.plan_for(len(labels), training=False)
        with no_grad():
            return self._run(plan, forward_only(plan, self.comm.rank), images, labels, training=False)

    def plan_for(self, batch: int, training: bool) -> Plan:
        """The plan of a batch of another size, such as the last one of an epoch."""
        key = (batch, training)
        if key not in self._plans:
            strategy = self.strategy if training else self.strategy.once()
            plan = make_plan(self.model, self.shape, strategy, batch, self.options, self.title, check=False)
            if training:
                check_plan(plan)
            self._plans[key] = plan
        return self._plans[key]

    def _run(self, plan: Plan, schedule, images, labels, training: bool) -> Result:
        self._check_images(plan, images, len(labels))
        sub_steps = self.update_each and training
        step = Step(plan, plan.chunks_of(self.comm.rank), images, np.asarray(labels), training, sub_steps)
        result = None
        with nn.context(training=training, seed=self.seed, step=self.iteration):
            for action in schedule:
                done = self._do(step, action)
                result = done or result
        self._settle(step)
        return result

    def _check_images(self, plan: Plan, images: Any, batch: int) -> None:
        """Refuse images that are not those of `plan.input_rows`: training would go on, with wrong pairs."""
        start, stop = plan.input_rows(self.comm.rank)
        shape = (0, *self.shape) if images is None else images.shape
        if shape != (stop - start, *self.shape) or (images is not None and images.dtype != self.dtype):
            given = "none" if images is None else f"{images.dtype} {images.shape}"
            wanted = f"{self.dtype} {(stop - start, *self.shape)}" if start < stop else "none (None)"
            raise InputError(
                f"rank {self.comm.rank}: got images {given}, expected {wanted}: rows {start} to {stop} of the batch of "
                f"{batch}, of which it is given all labels"
            )

    def _do(self, step: Step, action) -> Result | None:
        match action:
            case Forward(segment, chunk):
                self.segments.forward(step, segment, chunk)
            case Backward(segment, chunk):
                self.segments.backward(step, segment, chunk)
            case BackwardInput(segment, chunk):
                self.segments.backward(step, segment, chunk, defer_weights=True)
            case BackwardWeight(segment, chunk):
                self.segments.backward_weights(step, segment, chunk)
            case Start(boundary, chunk, direction):
                self.boundaries.start(step, boundary, chunk, direction)
            case Finish(boundary, chunk, direction):
                self.boundaries.finish(step, boundary, chunk, direction)
            case ReduceGradients(bucket):
                self.sync.reduce(bucket)
            case Update(group, chunk):
                self._update(step, group, chunk)
            case Metrics():
                return self._metrics(step)
        return None

    def _settle(self, step: Step) -> None:
        """Wait for the sends that nothing has waited for."""
        for pending in (p for flying in step.flying.values() for p in flying):
            pending.wait()

    # -- the end of a step ---------------------------------------------------------------------------

    def _update(self, step: Step, group: str, chunk: int | None) -> None:
        if chunk is None or step.averaged_over(chunk):  # no samples, no step
            with self.ledger.scope(phase="update", layer=group):
                before = self.ledger.state("compute")
                self.optimiser.update_group(self.group_index[group])
                self.ledger.restore(before)
        self.sync.share_weights(group)
        for p in self.groups[group]:
            p.grad = None

    def _metrics(self, step: Step) -> Result:
        mine = np.array([step.loss, step.correct, step.samples], np.float64)
        if self.comm.size > 1:
            with self.ledger.scope(phase="metrics", layer="loss", cause="loss and accuracy"):
                mine = collectives.all_reduce(self.comm, mine, METRICS_ALGORITHM)
        result = Result(float(mine[0]), int(mine[1]), int(mine[2]))
        if step.training and not np.isfinite(result.loss):
            self._settle(step)
            self.sync.settle()
            from .nonfinite import diagnose

            raise diagnose(self, step.images, step.labels)
        return result

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the parameters held here, on the host, by name."""
        return {name: to_host(p.data).copy() for name, p in self.replica.parameters.items()}
