"""What every training program sets up: data, model, strategy, executor, and how it ends."""

from __future__ import annotations

import argparse
import faulthandler
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import nn
from ..backend import get_array_module
from ..comm.communicator import Communicator
from ..comm.tuning import measure
from ..console import any_text, drop_output
from ..data import Augment, DataLoader, Shapes, open_dataset
from ..data.dataset import Dataset
from ..errors import InputError
from ..launch import alive
from ..launch.threads import status
from ..optim import SGD
from ..parallel import Executor, make_strategy
from ..parallel.costs import measured_costs
from ..parallel.fingerprint import check_same
from ..pictures import check_target
from .options import default_image, parallel_options, speaking_of_flags
from .planning import apart, batch_of, build_model, normalises, without_effect
from .reference import Reference
from .twin import Twin, micro_batch_rows

NO_PREFETCH_THREAD = 0
LOCAL = ("config", "data", "plot", "trace")  # options that may differ from host to host


class Session:
    """Everything that one rank needs to train, made from the options.

    Attributes
    ----------
    executor : Executor
    dataset : Dataset
    train, validation : DataLoader
        This rank's rows; `validation` is None with ``--validation 0``.
    """

    def __init__(self, comm: Communicator, args: argparse.Namespace) -> None:
        self.comm, self.args = comm, args
        self.unheard: InputError | None = None  # why something could not be printed
        any_text(sys.stdout)
        if not faulthandler.is_enabled():  # a file of the cache that is cut meanwhile kills by a signal
            faulthandler.enable(sys.__stderr__)
        if args.plot and comm.rank == 0:
            check_target(args.plot)
        options = {name: value for name, value in vars(args).items() if name not in LOCAL}
        settings = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
        check_same(comm, settings | {"--trace": "given" if args.trace else "not given"})
        comm.debug = args.debug_comm
        self.ledger = comm.ledger
        self.xp = get_array_module(args.device)
        with self.ledger.during("input"):
            self.dataset = self._dataset()
            check_same(comm, {"the data set": self.dataset.fingerprint()})
        alive()
        self.batch = batch_of(args, comm.size)
        self.model = self.new_model()
        shape = (self.dataset.image, self.dataset.image, 3)
        self.options = parallel_options(args, **self._measured(shape))
        with speaking_of_flags():
            self.strategy = make_strategy(args.strategy, self.model, shape, comm.size, self.options)
        self.executor = Executor(
            self.model, shape, self.strategy, comm, self.batch, args.seed, self.optimiser, self.xp, args.model
        )
        if args.check:
            self._check_comparable()
        self.train = self.loader(training=True)
        self.validation = self.loader(training=False) if args.validation else None

    def say(self, *text: object, **options: Any) -> None:
        """Print, on rank 0."""
        try:
            if self.comm.rank == 0:
                print(*text, flush=True, **options)
        except OSError as error:  # the run goes on, for its files; a reader such as `head` has seen enough
            drop_output()
            if not isinstance(error, BrokenPipeError):
                self.unheard = InputError(f"cannot print: {error.strerror or error}")

    def _dataset(self) -> Dataset:
        args = self.args
        if args.data is None:
            image = args.image or default_image(args.variant)
            return Shapes(args.classes, image, args.images, max(1, args.validation), seed=args.seed)
        show = None if self.comm.rank == 0 else False
        return open_dataset(args.data, args.image, progress=show)

    def new_model(self) -> nn.Sequential:
        """The model that the options ask for, without weights."""
        return build_model(self.args, self.dataset.image, len(self.dataset.classes))

    def _measured(self, shape: tuple[int, ...]) -> dict[str, object]:
        """Options that come from this machine, the same on every rank."""
        found: dict[str, object] = {"batch": self.batch}
        if self.args.balance == "measured":
            costs = measured_costs(self.new_model(), shape, self.batch, self.args.micro_batches)
            found["costs"] = tuple(self.comm.exchange(np.array(costs))[0].tolist())
        if self.args.all_reduce == "auto":
            found["link"] = measure(self.comm)
        return found

    def _check_comparable(self) -> None:
        """Refuse --check where batch norm sees other samples than in one process."""
        plan = self.executor.plan
        norms = [x for x in plan.layers if normalises(x)]
        local = any(apart(x, plan.mesh) and not x.derived.statistics for x in norms)
        if local or any(len(plan.stages[x.stage].micro_batches) > 1 for x in norms):
            raise InputError(
                "--check with batch norm: its statistics are those of a micro-batch (or of a rank, with "
                "--local-batch-norm), one process has those of the whole batch: use --micro-batches 1, or --norm lrn"
            )

    def optimiser(self, groups: Mapping[str, list]) -> SGD:
        """Momentum SGD with one group for each update group of the strategy."""
        args = self.args
        scale = {"conv": args.conv_lr_scale}
        return SGD(
            [{"params": p, "lr": args.lr * scale.get(name, 1.0)} for name, p in groups.items()],
            momentum=args.momentum,
            weight_decay=args.weight_decay,
            decay=args.decay,
        )

    def loader(self, training: bool, whole: bool = False) -> DataLoader:
        """Batches of the training or validation split; `whole`: all rows, for the twin."""
        args, executor, rank = self.args, self.executor, self.comm.rank
        first, last = executor.plan.input_rows(rank)

        def rows(size: int) -> slice:
            return slice(*executor.plan_for(size, training).input_rows(rank))

        split = self.dataset.train if training else self.dataset.validation
        options: dict[str, Any] = {"seed": args.seed, "shuffle": True, "dtype": args.dtype}
        if training:
            options |= {"steps": args.steps, "augment": Augment() if args.augment else None}
        else:
            # A part of the split is drawn, the same one every time: some archives list one class after the other.
            # Nor does it depend on the number of ranks, though the batches may.
            options |= {"limit": args.validation}
            batch = max(self.batch, 16 * self.comm.size)
            return DataLoader(split, batch, rows=rows if first < last else None, **options)
        if whole:
            return DataLoader(split, self.batch, prefetch=NO_PREFETCH_THREAD, **options)
        return DataLoader(split, self.batch, rows=rows if first < last else None, **options)

    def twin(self) -> Twin | None:
        """The one-process twin, on rank 0; for a trace, on every rank, with all its values."""
        if self.comm.rank > 0 and not self.args.trace:
            return None
        args, fc_start, rows = self.args, None, None
        if self.strategy.update_groups == ("conv", "fc"):
            fc_start = next(name for name, group in self.strategy.updates.items() if group == "fc")
            if self.executor.sub_steps:
                mesh = self.strategy.mesh
                rows = micro_batch_rows(args.scheme, dict(zip(mesh.names, mesh.sizes, strict=True)))
        own = self.new_model(), self.optimiser, args.seed, args.dtype, fc_start, rows
        return Reference(self.executor, *own) if args.trace else Twin(*own)

    def describe(self) -> str:
        """What runs where, in a line or two, and which options have no effect."""
        nodes = len(set(self.comm.nodes))
        where = f"{self.comm.size} rank{'s' * (self.comm.size > 1)} on {nodes} host{'s' * (nodes > 1)}"
        lines = [f"{where}, {status()}, {self.args.device}", repr(self.dataset)]
        if self.comm.rank == 0:
            shape = self.executor.shapes[nn.sequential.INPUT]
            lines += without_effect(self.args, self.model, shape, self.comm.size)
        return "\n".join(lines)
