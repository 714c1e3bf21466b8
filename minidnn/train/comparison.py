"""How far every message is from the one-process run: `--trace DIR --check`.

Every rank has a `Reference` of its own and lets it make each step before the ranks make theirs.  So a block
is compared in the moment in which it is sent, and no message is added.  The price is a step on the whole batch
for each rank, with all its values kept, and the time of comparing, which the trace shows as "other".

A partial sum, as in the first half of a ring all_reduce, has no counterpart: one process never forms it.
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
from ..parallel.move import layout
from ..parallel.plan import Bucket, Exchange
from ..report.provenance import provenance
from .reference import Reference

SUMS = ("all_reduce", "reduce_scatter", "reduce")
_history = lru_cache(maxsize=256)(provenance)


class Expected(NamedTuple):
    """The flat buffer of one collective, as it is when all is summed; its counts and its root."""

    flat: np.ndarray
    counts: Any
    root: int


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
        self.expected: dict[tuple[Labels, int], Expected | None] = {}
        self.turns: Counter = Counter()
        return self.reference.step(images, labels)

    def difference(
        self, comm: Communicator, note: Note, tag: int, block: Any, span: tuple[int, int]
    ) -> float | None:
        """The largest absolute difference of a block about to be sent; None if it has no counterpart.

        One that is not finite is the largest float: JSON knows no infinity.
        """
        before = comm.ledger.restore(comm.ledger.place("other", note.labels))
        key = note.labels, tag
        if key not in self.expected:
            self.expected[key] = self._expect(comm, note.labels)
        expected, largest = self.expected[key], None
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

    def _expect(self, comm: Communicator, labels: Labels) -> Expected | None:
        plan, layer, value = self.reference.plan, labels.layer, labels.tensor
        if labels.phase in ("gradient sync", "update"):
            return self._bucket(comm, labels, next(b for b in plan.buckets[self.rank] if b.tensor == value))
        for segment in plan.segments:
            for x in segment.layers:
                if x.name == layer and value in x.inputs:
                    i = x.inputs.index(value)
                    if x.exchanges[i] is not None:
                        gradient = self.reference.uses.get((layer, i))
                        return self._transfer(comm, labels, x.exchanges[i], segment.index, gradient)
        for boundary in plan.boundaries:
            if boundary.layer == layer and value in boundary.values:
                exchange, after = boundary.exchanges[boundary.values.index(value)], boundary.index + 1
                return self._transfer(comm, labels, exchange, after, self.reference.gradient(value, after))
        return None

    def _bucket(self, comm: Communicator, labels: Labels, bucket: Bucket) -> Expected | None:
        if bucket.matrix and labels.phase == "gradient sync":
            return self._factors(bucket)
        turn = self.turns[labels.phase, bucket]  # in one step, where each chunk is an update of its own
        self.turns[labels.phase, bucket] += 1
        parameters, weights = self.executor.replica.parameters, self.reference.weights
        which = 0 if labels.phase == "gradient sync" else 1
        parts = [weights[name][turn][which][parameters[name].slices].reshape(-1) for name in bucket.names]
        counts = bucket.shard_counts(comm.size) if bucket.sharded else bucket.elements
        return Expected(np.concatenate(parts), counts, 0)

    def _factors(self, bucket: Bucket) -> Expected | None:
        """x and gy of a linear layer, row by row, for all members of the group."""
        plan, reference = self.reference.plan, self.reference
        segment, layer = next((s, x) for s in plan.segments for x in s.layers if x.name == bucket.layer)
        x, gy = reference.values[layer.inputs[0]], reference.gradient(layer.name)
        if gy is None:
            return None
        inputs, outputs = self.executor.replica.parameters[bucket.names[0]].slices
        blocks = []
        for rank in plan.group(bucket.group, self.rank):
            chunks = plan.chunks_of(rank)[segment.index]
            held = np.concatenate([c.held(layer.placement, rank % plan.grid.mp) for c in chunks])
            rows = plan.samples(rank)[0] + held
            pair = [a[rows].reshape(-1, a.shape[-1])[:, part] for a, part in ((x, inputs), (gy, outputs))]
            blocks.append(np.concatenate(pair, axis=1).reshape(-1))
        return Expected(np.concatenate(blocks), bucket.factor_counts, 0)

    def _transfer(
        self, comm: Communicator, labels: Labels, exchange: Exchange, segment: int, gradient: Any
    ) -> Expected | None:
        """Of the value that the labels name, or of its gradient."""
        plan, forward = self.reference.plan, labels.phase == "forward"
        whole = self.reference.values[labels.tensor] if forward else gradient
        if whole is None:
            return None
        chunk = plan.chunks_of(self.rank)[segment][labels.chunk]
        transfer = exchange.forward(chunk) if forward else exchange.backward(chunk)
        rows = plan.samples(self.rank)[0] + chunk.rows
        return Expected(layout(whole[rows], transfer, comm.rank), transfer.counts(), transfer.root)
