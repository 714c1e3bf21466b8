"""How far every message is from the one-process run: `--trace DIR --check`.

Every rank has a `Reference` of its own and lets it make each step before the ranks make theirs.  So a block
is compared in the moment in which it is sent, and no message is added.  The price is a step on the whole batch
for each rank, with all its values kept, and the time of comparing, which the trace shows as "other".

A partial sum, as in the first half of a ring all_reduce or of the gradient of a halo, has no counterpart: one
process never forms it.
Neither have the statistics of a batch norm, the metrics, and what the MPI library sends out of sight.
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..backend import to_host
from ..comm.communicator import Communicator
from ..comm.engine import Note
from ..comm.ledger import Labels
from ..parallel import Executor
from ..parallel.planned import Bucket, Exchange
from ..report.provenance import provenance
from .reference import Reference

SUMS = ("all_reduce", "reduce_scatter", "reduce")
_history = lru_cache(maxsize=256)(provenance)


class Expected(NamedTuple):
    """The flat buffer of one collective, as it is when all is summed; its counts and its root."""

    flat: np.ndarray
    counts: Any
    root: int = 0


class Comparison:
    """Answers an executor's ledger how far what is sent is from a reference's values.

    >>> comparison = Comparison(executor, reference)
    >>> comparison.step(images, labels)  # of the whole batch
    >>> executor.step(own_images, labels)  # messages recorded now have their difference
    """

    def __init__(self, executor: Executor, reference: Reference) -> None:
        self.executor, self.reference, self.rank = executor, reference, executor.comm.rank
        executor.ledger.reference = self.difference

    def step(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Let the reference make the next step; returns its loss."""
        self.expected: dict[tuple, tuple[Labels, Expected | None]] = {}
        self.turns: Counter = Counter()
        return self.reference.step(images, labels)

    def difference(
        self, comm: Communicator, note: Note, tag: int, block: Any, span: tuple[int, int]
    ) -> float | None:
        """The largest absolute difference of a block about to be sent; None if it has no counterpart.

        One that is not finite is the largest float: JSON knows no infinity.
        """
        before = comm.ledger.restore(comm.ledger.place("other", note.labels))
        key = id(note.labels), tag, note.op  # every collective that is started has labels of its own
        if key not in self.expected:
            self.expected[key] = note.labels, self._expect(comm, note)
        (_, expected), largest = self.expected[key], None
        if expected is not None and self._complete(comm, note, expected, span):
            largest = float(np.abs(to_host(block) - expected.flat[slice(*span)]).max())
            largest = largest if np.isfinite(largest) else sys.float_info.max
        comm.ledger.restore(before)
        return largest

    def _complete(self, comm: Communicator, note: Note, expected: Expected, span: tuple[int, int]) -> bool:
        """Whether nothing is left to be added to the block."""
        if note.op not in SUMS:
            return True
        what = note.op, note.algorithm, comm.size, expected.counts, expected.root
        return _history(*what, nodes=comm.nodes).complete(comm.rank, note.index, *span)

    def _expect(self, comm: Communicator, note: Note) -> Expected | None:
        plan, labels, value = self.reference.plan, note.labels, note.labels.tensor
        if labels.phase in ("gradient sync", "update"):
            return self._bucket(comm, labels, next(b for b in plan.buckets[self.rank] if b.tensor == value))
        layer = plan.by_name.get(labels.layer)
        if layer is None or not value:
            return None
        entries = [e for e in plan.stages[layer.stage].entries if (e.layer, e.value) == (layer.name, value)]
        within = [(e, self.reference.uses.get((layer.name, i))) for i, e in enumerate(layer.exchanges) if e]
        moves = [(e, self.reference.gradient(value, e.stage)) for e in entries] + within
        exchange, gradient = next((e, g) for e, g in moves if e.value == value)
        return self._transfer(comm, note, exchange, gradient)

    def _bucket(self, comm: Communicator, labels: Labels, bucket: Bucket) -> Expected | None:
        if bucket.matrix and labels.phase == "gradient sync":
            return self._factors(bucket)
        turn = self.turns[labels.phase, bucket]  # in one step, where each micro-batch is an update of its own
        self.turns[labels.phase, bucket] += 1
        variables, weights = self.executor.replica.variables, self.reference.weights
        which = 0 if labels.phase == "gradient sync" else 1
        parts = [weights[name][turn][which][variables[name].slices].reshape(-1) for name in bucket.names]
        counts = bucket.shard_counts(comm.size) if bucket.sharded else bucket.elements
        return Expected(np.concatenate(parts), counts)

    def _factors(self, bucket: Bucket) -> Expected | None:
        """x and gy of a linear layer, row by row, for all members of the group."""
        plan, reference = self.reference.plan, self.reference
        layer = plan.by_name[bucket.layer]
        x, gy = reference.values[layer.inputs[0]], reference.gradient(layer.name)
        if gy is None:
            return None
        inputs, outputs = self.executor.replica.variables[bucket.names[0]].slices
        blocks = []
        for rank in plan.mesh.group(self.rank, bucket.axes):
            batches = plan.stages[layer.stage].micro_batches
            rows = np.concatenate([plan.samples(layer.derived.inputs[0], rank, b) for b in batches])
            pair = [a[rows].reshape(-1, a.shape[-1])[:, part] for a, part in ((x, inputs), (gy, outputs))]
            blocks.append(np.concatenate(pair, axis=1).reshape(-1))
        return Expected(np.concatenate(blocks), bucket.factor_counts)

    def _transfer(self, comm: Communicator, note: Note, exchange: Exchange, gradient: Any) -> Expected | None:
        """Of the value that the labels name, or of its gradient; None of the terms of a sum that is made on arrival."""
        plan, labels = self.reference.plan, note.labels
        whole = self.reference.values[labels.tensor] if labels.phase == "forward" else gradient
        moves = plan.transfers(exchange, labels.phase, labels.micro_batch, self.rank)
        transfer = next(t for t in moves if t.op == note.op)
        if whole is None or transfer.adds:
            return None
        flat = transfer.expected(whole, comm.rank)
        known = transfer.operation
        return Expected(flat, known.elements(), known.root) if known else Expected(flat, flat.size)
