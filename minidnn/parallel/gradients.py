"""Summing gradients over ranks, bucket by bucket, while backward still runs.

The gradients of a bucket are views of one flat buffer, so its sum needs no copy; a bucket starts when
its last gradient is ready, always in the order of the buckets, on every rank alike (as PyTorch's
DistributedDataParallel does: Li et al. 2020, arXiv 2006.15704, sec. 3.2).

A sharded bucket is the published OWT code's: reduce_scatter, the owner of a shard alone keeps its
momentum and updates it, all_gather of the new weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..comm import collectives
from ..comm.algorithms import edges_of, split_counts
from ..comm.communicator import Communicator
from ..comm.ledger import Scope
from ..nn import Parameter
from ..tensor import Tensor
from .plan import Bucket
from .transfer import Algorithms


class BucketSum:
    """The flat buffer of one bucket, and its sum over a group."""

    def __init__(
        self, bucket: Bucket, parameters: list[Parameter], comm: Communicator, algorithms: Algorithms, xp: Any
    ) -> None:
        self.bucket, self.parameters, self.comm, self.algorithms = bucket, parameters, comm, algorithms
        dtype = parameters[0].data.dtype
        self.gradients = xp.zeros(bucket.elements, dtype)
        edges = edges_of([p.size for p in parameters])
        for p, start in zip(parameters, edges, strict=False):
            p.grad_buffer = self.gradients[start : start + p.size].reshape(p.shape)
        self.missing = {id(p) for p in parameters}
        self.pending = None
        if bucket.sharded:
            self._shard(edges, xp)

    def _shard(self, edges: list[int], xp: Any) -> None:
        """Put the weights in one flat buffer, too, and make a tensor of each piece of the own shard."""
        dtype = self.gradients.dtype
        self.weights = xp.empty(self.bucket.elements, dtype)
        self.counts = split_counts(self.bucket.elements, self.comm.size)
        start = sum(self.counts[: self.comm.rank])
        stop = start + self.counts[self.comm.rank]
        self.pieces: list[Tensor] = []
        for p, first in zip(self.parameters, edges, strict=False):
            part = self.weights[first : first + p.size]
            part[...] = p.data.reshape(-1)
            p.data = part.reshape(p.shape)
            low, high = max(first, start), min(first + p.size, stop)
            if low < high:
                piece = Parameter((high - low,), decay=p.decay)
                piece.name = f"{p.name}[{low - first}:{high - first}]"
                piece.data = self.weights[low:high]
                self.pieces.append(piece)

    def ready(self, leaf: Tensor) -> bool:
        """Note that a gradient is final; True when it was the last one missing."""
        self.missing.discard(id(leaf))
        return not self.missing

    def _scope(self, phase: str, cause: str) -> Scope:
        bucket = self.bucket
        return self.comm.ledger.scope(phase=phase, layer=bucket.layer, tensor=bucket.tensor, cause=cause)

    def start_sum(self) -> None:
        """Post the first messages of the sum."""
        for p in self.parameters:
            if p.grad is None:  # no gradient reached it on this rank
                p.grad_buffer[...] = 0
                p.grad = p.grad_buffer
        with self._scope("gradient sync", "replicated weights"):
            if self.bucket.sharded:
                steps = collectives.reduce_scatter_inplace.steps(
                    self.comm, self.gradients, self.counts, self.algorithms.reduce_scatter
                )
            else:
                steps = collectives.all_reduce_inplace.steps(self.comm, self.gradients, self.bucket.algorithm)
            self.pending = self.comm.start(steps)

    def finish_sum(self) -> None:
        """Wait until the sum is there."""
        if self.pending is None:
            self.start_sum()
        own = self.pending.wait()
        self.pending = None
        self.missing = {id(p) for p in self.parameters}
        if self.bucket.sharded:
            at = 0
            for piece in self.pieces:
                piece.grad = own[at : at + piece.size]
                at += piece.size

    def share_weights(self) -> None:
        """After the update of the own shard: all_gather the weights, in place."""
        with self._scope("update", "sharded momentum"):
            collectives.all_gather_inplace(self.comm, self.weights, self.counts, self.algorithms.all_gather)
        for p in self.parameters:
            p.version += 1
            p.grad = None


class GradientSync:
    """All buckets of a rank.

    Buckets start in their order, which is that of the plan and the same on every rank of a group: one that is
    ready waits until those before it are.

    Parameters
    ----------
    overlap : bool
        Start a bucket as soon as it is ready; else only when it is waited for.
    """

    def __init__(self, sums: Iterable[BucketSum], overlap: bool) -> None:
        self.sums = {s.bucket.index: s for s in sums}
        self.owner = {id(p): s for s in self.sums.values() for p in s.parameters}
        self.overlap = overlap

    def ready(self, leaf: Tensor) -> None:
        """A gradient is final; if it was the last one missing, start its bucket and those that waited for it."""
        owner = self.owner.get(id(leaf))
        if owner is None or not owner.ready(leaf) or not self.overlap:
            return
        for s in self.sums.values():
            if s.bucket.update == owner.bucket.update:
                if s.missing:
                    break
                if s.pending is None:
                    s.start_sum()

    def reduce(self, index: int) -> None:
        """Wait for the sum of one bucket."""
        self.sums[index].finish_sum()

    def settle(self) -> None:
        """See the sums that are under way to their end; the step is given up."""
        for s in self.sums.values():
            if s.pending is not None:
                s.finish_sum()
            s.missing = {id(p) for p in s.parameters}

    def share_weights(self, update: str) -> None:
        """all_gather the weights of the sharded buckets of an update group."""
        for s in self.sums.values():
            if s.bucket.sharded and s.bucket.update == update:
                s.share_weights()
