"""One rank's share of training a model: the plan, the layers it holds, its optimiser, and steps (:mod:`.run`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

import numpy as np

from .. import nn
from ..backend import to_host, workers
from ..comm.communicator import Communicator
from ..errors import InputError
from ..optim import SGD
from ..tensor import Tensor, no_grad
from .check import check_plan
from .fingerprint import check_same
from .gradients import BucketSum, FactorExchange
from .plan import Plan
from .planner import Shapes, make_plan
from .replica import Replica
from .run import Result, Run
from .schedule import Update
from .strategy import Strategy


class Executor:
    """One rank's share of training a model by a strategy.

    Parameters
    ----------
    model : Sequential
        The whole model, without weights; the same on every rank.
    shape, batch
        As of `make_plan`.
    strategy : Strategy
        With the options that it was made of.
    comm : Communicator
        As large as the strategy's mesh.
    seed : int
        Of weights and dropout.
    optimiser : callable, optional
        ``{group: parameters} -> SGD`` whose groups are in that order.
    xp : module
        numpy or cupy.

    Attributes
    ----------
    plan : Plan
    replica : Replica
        The layers that this rank holds.
    groups : dict
        A communicator for each set of axes of the mesh along which anything moves.
    watch : callable, optional
        Called with the name and the output of every layer that has run forward.

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
        shape: Shapes,
        strategy: Strategy,
        comm: Communicator,
        batch: int,
        seed: int = 0,
        optimiser: Callable[[Mapping[str, list]], SGD] | None = None,
        xp: Any = np,
        title: str = "model",
    ) -> None:
        size = strategy.mesh.size
        if comm.size != size:
            raise ValueError(f"strategy {strategy.name!r} is made for {size} ranks, not {comm.size}")
        self.model, self.strategy, self.comm, self.seed, self.xp = model, strategy, comm, seed, xp
        self.shapes = model.input_shapes(shape)
        self.title, self.options, self.rank, self.ledger = title, strategy.options, comm.rank, comm.ledger
        self.dtype = np.dtype(self.options.dtype)
        check_same(comm, self._settings(batch))
        self._plans, self._planning = {}, Lock()  # the loader's thread asks for plans, too
        self.plan = self.plan_for(batch, training=True)
        if self.plan.repeats:
            check_same(comm, {"the number of BLAS threads (replicas round by it)": workers.threads()})
        self.groups: dict[tuple[str, ...], Communicator] = {}
        for axes in self.plan.groups:  # the same ones, in one order, on every rank
            ranks = self.plan.mesh.group(self.rank, axes)
            self.groups[axes] = comm if len(ranks) == comm.size else comm.split(ranks[0], self.rank)
        self.replica = Replica(self.plan, self.rank, seed, xp)
        self.sums: list[BucketSum] = []
        for bucket in self.plan.buckets[self.rank]:
            parameters, group = [self.replica.variables[n] for n in bucket.names], self.groups[bucket.axes]
            make = FactorExchange if bucket.matrix else BucketSum
            self.sums.append(make(bucket, parameters, group, self.options.algorithms, xp))
        cut = {name for s in self.sums if s.bucket.sharded for name in s.bucket.names}
        # what the optimiser steps: parameters, or pieces of those whose bucket is sharded
        self.update_groups: dict[str, list[Tensor]] = {name: [] for name in strategy.update_groups}
        for p in self.plan.held[self.rank]:
            if p.trained and p.name not in cut:
                self.update_groups[self.plan.by_name[p.layer].update].append(self.replica.variables[p.name])
        for owned in self.sums:
            self.update_groups[owned.bucket.update] += owned.pieces
        default = [{"params": params} for params in self.update_groups.values()]
        self.optimiser = optimiser(self.update_groups) if optimiser else SGD(default, lr=0.01, momentum=0.9)
        self.sub_steps = any(isinstance(a, Update) for a in self.plan.schedules[self.rank])
        self.watch: Callable[[str, Any], None] | None = None
        self.iteration = 0

    def _settings(self, batch: int) -> dict[str, object]:
        """What must be the same on every rank."""
        strategy = self.strategy
        schedules = (strategy.schedule(i) for i in range(strategy.mesh.axis_size("stage")))
        return {
            "the model": repr(self.model),
            "the image shape": self.shapes,
            "the batch": batch,
            "the seed": self.seed,
            "the strategy": strategy.name,
            "the mesh": str(strategy.mesh),
            "the number of micro-batches": strategy.micro_batches,
            "the axis of micro-batches": strategy.by_member,
            "the first layers of the stages": strategy.starts,
            "the splits": "\n".join(f"{name}: {split}" for name, split in strategy.splits.items()),
            "the parameter groups": dict(strategy.updates),
            "the schedule": "\n".join(map(repr, schedules)),
        } | {f"the option {name}": value for name, value in vars(self.options).items()}

    def step(self, images: Any, labels: np.ndarray) -> Result:
        """One training step.

        Parameters
        ----------
        images : array, dict of arrays, or None
            The images of `plan.input_rows(rank)`, (n, H, W, C), or each input of the model by name; None where this
            rank needs none.
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
        for variable in self.replica.variables.values():
            variable.grad = None
        for owned, bucket in zip(self.sums, plan.buckets[self.rank], strict=True):
            owned.bucket = bucket  # with another batch, other rows bring the factors
        result = self._run(plan, images, labels, training=True)
        self.optimiser.advance()
        self.iteration += 1
        return result

    def evaluate(self, images: Any, labels: np.ndarray) -> Result:
        """Loss and correct answers on a batch, without dropout."""
        with no_grad():
            return self._run(self.plan_for(len(labels), training=False), images, labels, training=False)

    def plan_for(self, batch: int, training: bool) -> Plan:
        """The plan of a batch of another size, such as the last one of an epoch."""
        key = (batch, training)
        with self._planning:
            if key not in self._plans:
                strategy = self.strategy if training else self.strategy.once()
                what = self.model, self.shapes, strategy, batch, self.title, self.comm.nodes
                plan = make_plan(*what, check=not self._plans)
                if training:
                    check_plan(plan)
                self._plans[key] = plan
            return self._plans[key]

    def _run(self, plan: Plan, images: Any, labels: np.ndarray, training: bool) -> Result:
        events = plan.events if training else plan.evaluation
        given = images if isinstance(images, Mapping) else {self.model.inputs[0]: images}
        self._check_images(plan, given, len(labels))
        run = Run(self, plan, given, np.asarray(labels), training)
        with nn.context(training=training, seed=self.seed, step=self.iteration):
            for event in events[self.rank]:
                run.do(event)
        run.settle()
        return run.result

    def _check_images(self, plan: Plan, images: Mapping[str, Any], batch: int) -> None:
        """Refuse images that are not those of `plan.input_rows`: training would go on, with wrong pairs."""
        for name, given in plan.inputs.items():
            start, stop = plan.input_rows(self.rank) if plan.region(given.layout, (), self.rank) else (0, 0)
            x, expected = images.get(name), (stop - start, *given.shape)
            fits = x is None or x.dtype == self.dtype or x.dtype.kind in "iu"
            if (x.shape if x is not None else (0, *given.shape)) == expected and fits:
                continue
            got = "none" if x is None else f"{x.dtype} {x.shape}"
            wanted = f"{self.dtype} {expected}" if start < stop else "none (None)"
            what = "images" if len(plan.inputs) == 1 else f"input {name!r}"
            raise InputError(
                f"rank {self.rank}: got {what} {got}, expected {wanted}: rows {start} to {stop} of the batch of "
                f"{batch}, of which it is given all labels"
            )

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the parameters held here, on the host, by name."""
        held = (p.name for p in self.plan.held[self.rank] if not p.buffer)
        return {name: to_host(self.replica.variables[name].data).copy() for name in held}
