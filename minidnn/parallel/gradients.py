"""Bringing gradients together over ranks, bucket by bucket, while backward still runs.

The gradients of a bucket are views of one flat buffer, so its sum needs no copy (as in PyTorch's
DistributedDataParallel: Li et al. 2020, arXiv 2006.15704, sec. 3.2). It starts where the events say that nothing
more is added to them.

A sharded bucket is the published OWT code's: reduce_scatter, the owner of a shard alone keeps its
momentum and updates it, all_gather of the new weights.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from ..comm import collectives
from ..comm.algorithms import edges_of
from ..comm.communicator import Communicator
from ..functional.factors import Factors
from ..nn import Parameter
from .planned import Bucket
from .transfer import Algorithms


class BucketSum:
    """A flat buffer of gradients, and its sum over a group by all_reduce, or reduce_scatter where it is sharded: then
    the optimiser updates `pieces` in place of the parameters. `pending` is the exchange while it is under way."""

    def __init__(
        self, bucket: Bucket, parameters: list[Parameter], comm: Communicator, algorithms: Algorithms, xp: Any
    ) -> None:
        self.bucket, self.parameters, self.comm, self.algorithms = bucket, parameters, comm, algorithms
        self.dtype, self.xp = parameters[0].data.dtype, xp
        self.pending = None
        self.pieces: list[Parameter] = []
        if bucket.sharded:
            self._shard()
        self._prepare()

    def _prepare(self) -> None:
        self.gradients = self.xp.zeros(self.bucket.elements, self.dtype)
        for p, start in zip(self.parameters, edges_of(self.bucket.sizes), strict=False):
            p.grad_buffer = self.gradients[start : start + p.size].reshape(p.shape)

    def _shard(self) -> None:
        """Put the weights in one flat buffer, and make a parameter of each piece of the own shard."""
        self.weights = self.xp.empty(self.bucket.elements, self.dtype)
        self.counts = self.bucket.shard_counts(self.comm.size)
        start, stop = edges_of(self.counts)[self.comm.rank : self.comm.rank + 2]
        for p, first in zip(self.parameters, edges_of(self.bucket.sizes), strict=False):
            part = self.weights[first : first + p.size]
            part[...] = p.data.reshape(-1)
            p.data = part.reshape(p.shape)
            low, high = max(first, start), min(first + p.size, stop)
            if low < high:
                begin, end, data = self._part(p, low - first, high - first)
                self.pieces.append(piece := Parameter(data.shape, decay=p.decay))
                piece.name, piece.data = f"{p.name}[{begin}:{end}]", data

    def _part(self, p: Parameter, low: int, high: int) -> tuple[int, int, Any]:
        """Elements low to high of a parameter: start, stop, and the same memory."""
        return low, high, p.data.reshape(-1)[low:high]

    def _collective(self) -> Generator:
        """The steps of the exchange; all gradients are there."""
        for p in self.parameters:
            if p.grad is None:  # no gradient reached it on this rank
                p.grad_buffer[...] = 0
                p.grad = p.grad_buffer
        what, algorithm = (self.comm, self.gradients), self.bucket.algorithm
        if self.bucket.sharded:
            return collectives.reduce_scatter_inplace.steps(*what, self.counts, algorithm)
        return collectives.all_reduce_inplace.steps(*what, algorithm)

    def _arrived(self, own: Any) -> None:
        """Put what the exchange came to where the optimiser looks for it."""
        for piece, start in zip(self.pieces, edges_of([p.size for p in self.pieces]), strict=False):
            piece.grad = own[start : start + piece.size]

    def start(self) -> None:
        """Post the first messages of the exchange."""
        labels = {"layer": self.bucket.layer, "tensor": self.bucket.tensor, "cause": "replicated weights"}
        with self.comm.ledger.scope(phase="gradient sync", **labels):
            self.pending = self.comm.start(self._collective(), self.bucket.tag)

    def finish(self) -> None:
        """Wait until the sum is there."""
        result, self.pending = self.pending.wait(), None
        self._arrived(result)

    def share_weights(self) -> None:
        """After the update of the own shard: all_gather the weights, in place."""
        labels = {"layer": self.bucket.layer, "tensor": self.bucket.tensor, "cause": "sharded momentum"}
        with self.comm.ledger.scope(phase="update", **labels):
            what = self.weights, self.counts, self.algorithms.all_gather
            steps = collectives.all_gather_inplace.steps(self.comm, *what)
            self.comm.start(steps, self.bucket.tag + 1).wait()
        for p in self.parameters:
            p.version += 1
            p.grad = None


class FactorExchange(BucketSum):
    """One weight matrix (i, o), whose gradient is the sum over ranks of x^T gy        x (n, i)   gy (n, o)

    That sum is the product of all ranks' x, one below the other, and all their gy. So not the gradient is sent,
    i o numbers, but a row of x and one of gy for each sample, i + o: "sufficient factors" (Xie et al. 2014,
    arXiv 1409.5705), gathered as in Poseidon (Zhang et al. 2017, arXiv 1706.03292, sec. 3.2). Every rank then
    multiplies for the whole batch, or, where the bucket is sharded, for the rows of W that it updates.
    """

    def _prepare(self) -> None:
        (self.weight,) = self.parameters
        self.weight.exchange_factors = True

    def _part(self, p: Parameter, low: int, high: int) -> tuple[int, int, Any]:
        """Whole rows of the matrix."""
        self.rows = slice(low // p.shape[1], high // p.shape[1])
        return self.rows.start, self.rows.stop, p.data[self.rows]

    def _collective(self) -> Generator:
        bucket, own, inputs = self.bucket, self.weight.factors, self.bucket.matrix[0]
        self.gathered = self.xp.empty((sum(bucket.rows), sum(bucket.matrix)), self.dtype)
        block = self.gathered[slice(*edges_of(bucket.rows)[self.comm.rank : self.comm.rank + 2])]
        if own is None:  # no gradient reached it on this rank
            block[...] = 0
        else:
            block[:, :inputs], block[:, inputs:] = own.x, own.gy
        what = self.gathered.reshape(-1), bucket.factor_counts, bucket.algorithm
        return collectives.all_gather_inplace.steps(self.comm, *what)

    def _arrived(self, own: Any) -> None:
        x, gy = self.gathered[:, : self.bucket.matrix[0]], self.gathered[:, self.bucket.matrix[0] :]
        if not self.bucket.sharded:
            self.weight.factors = Factors(x, gy)
        for piece in self.pieces:
            piece.factors = Factors(x[:, self.rows], gy)
