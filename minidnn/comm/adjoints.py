"""Communication as nodes of the graph: each class runs one collective forward and its adjoint backward.

:mod:`.functions` explains the pairs and has the functions that use these classes.
"""

from __future__ import annotations

from minidnn.backend import array_module
from minidnn.tensor import Function

from . import collectives
from .axes import cut, join, row_sizes, with_axis
from .communicator import Communicator


class Communication(Function):
    """A function that communicates; remembers what a missing gradient must look like."""

    collective = True
    saves_inputs = False

    def __init__(self, comm: Communicator):
        self.comm = comm

    def forward(self, x):
        self.shape, self.empty = x.shape, array_module(x).empty(0, x.dtype)
        y = self.move(x)
        self.y_shape = y.shape
        return y

    def backward(self, gy):
        if gy is None:
            gy = array_module(self.empty).zeros(self.y_shape, self.empty.dtype)
        gx = self.move_back(gy)
        return gx if self.needs[0] else None

    def nothing(self, shape=(0,)):
        """Stands for a value that is on another rank."""
        return array_module(self.empty).empty(shape, self.empty.dtype)


class Send(Communication):
    """y = nothing here, x on rank dest        gx = recv from dest"""

    def __init__(self, comm, dest, tag):
        super().__init__(comm)
        self.dest, self.tag = dest, tag

    def move(self, x):
        collectives.send(self.comm, x, self.dest, self.tag)
        return self.nothing()

    def move_back(self, gy):
        xp = array_module(self.empty)
        return collectives.recv(self.comm, self.shape, self.empty.dtype, self.dest, self.tag, xp)


class Recv(Function):
    """y = x of rank source        send gy to source"""

    collective = True

    def __init__(self, comm, shape, dtype, source, tag, xp):
        self.comm, self.options = comm, (shape, dtype, source, tag, xp)

    def forward(self):
        return collectives.recv(self.comm, *self.options)

    def backward(self, gy):
        shape, dtype, source, tag, xp = self.options
        collectives.send(self.comm, xp.zeros(shape, dtype) if gy is None else gy, source, tag)
        return ()


class Broadcast(Communication):
    """y = x of the root, on every rank        gx = sum of the gy, on the root"""

    def __init__(self, comm, root, algorithm):
        super().__init__(comm)
        self.root, self.algorithm = root, algorithm

    def move(self, x):
        return collectives.broadcast(self.comm, x, self.root, self.algorithm)

    def move_back(self, gy):
        return collectives.reduce(self.comm, gy, self.root)


class Reduce(Communication):
    """y = sum of the x, on the root        gx = gy of the root, on every rank"""

    def __init__(self, comm, root):
        super().__init__(comm)
        self.root = root

    def move(self, x):
        y = collectives.reduce(self.comm, x, self.root)
        return self.nothing() if y is None else y

    def move_back(self, gy):
        gy = gy if self.comm.rank == self.root else self.nothing(self.shape)
        return collectives.broadcast(self.comm, gy, self.root)


class Scatter(Communication):
    """y = the rank's block of the root's x along an axis        gx = the gy joined, on the root"""

    def __init__(self, comm, root, axis, counts):
        super().__init__(comm)
        self.root, self.axis, self.counts = root, axis, counts

    def move(self, x):
        sizes = row_sizes(self.shape, self.axis, self.counts)
        flat = cut(x, self.axis, self.counts) if self.comm.rank == self.root else self.empty
        y = collectives.scatter(self.comm, flat, self.root, sizes)
        return y.reshape(with_axis(self.shape, self.axis, self.counts[self.comm.rank]))

    def move_back(self, gy):
        sizes = row_sizes(self.shape, self.axis, self.counts)
        flat = collectives.gather(self.comm, gy, self.root, sizes)
        return None if flat is None else join(flat, self.shape, self.axis, self.counts)


class Gather(Communication):
    """y = the x joined along an axis, on the root        gx = the rank's block of the root's gy"""

    def __init__(self, comm, root, axis, counts):
        super().__init__(comm)
        self.root, self.axis, self.counts = root, axis, counts

    def move(self, x):
        sizes = row_sizes(x.shape, self.axis, self.counts)
        flat = collectives.gather(self.comm, x, self.root, sizes)
        if flat is None:
            return self.nothing()
        return join(flat, with_axis(x.shape, self.axis, sum(self.counts)), self.axis, self.counts)

    def move_back(self, gy):
        sizes = row_sizes(self.shape, self.axis, self.counts)
        flat = cut(gy, self.axis, self.counts) if self.comm.rank == self.root else self.empty
        return collectives.scatter(self.comm, flat, self.root, sizes).reshape(self.shape)


class AllGather(Communication):
    """y = the x joined along an axis, on every rank        gx = the rank's block of the sum of the gy"""

    def __init__(self, comm, axis, counts, algorithm):
        super().__init__(comm)
        self.axis, self.counts, self.algorithm = axis, counts, algorithm

    def move(self, x):
        sizes = row_sizes(x.shape, self.axis, self.counts)
        flat = collectives.all_gather(self.comm, x, sizes, self.algorithm)
        return join(flat, with_axis(x.shape, self.axis, sum(self.counts)), self.axis, self.counts)

    def move_back(self, gy):
        sizes = row_sizes(self.shape, self.axis, self.counts)
        flat = cut(gy, self.axis, self.counts)
        return collectives.reduce_scatter(self.comm, flat, sizes, self.algorithm).reshape(self.shape)


class ReduceScatter(Communication):
    """y = the rank's block, along an axis, of the sum of the x        gx = the gy joined, on every rank"""

    def __init__(self, comm, axis, counts, algorithm):
        super().__init__(comm)
        self.axis, self.counts, self.algorithm = axis, counts, algorithm

    def move(self, x):
        sizes = row_sizes(x.shape, self.axis, self.counts)
        flat = cut(x, self.axis, self.counts)
        y = collectives.reduce_scatter(self.comm, flat, sizes, self.algorithm)
        return y.reshape(with_axis(x.shape, self.axis, self.counts[self.comm.rank]))

    def move_back(self, gy):
        sizes = row_sizes(self.shape, self.axis, self.counts)
        flat = collectives.all_gather(self.comm, gy, sizes, self.algorithm)
        return join(flat, self.shape, self.axis, self.counts)


class AllToAll(Communication):
    """x is split along axis a and y is joined along axis b: block j of rank i's x is block i of rank j's y"""

    def __init__(self, comm, split_axis, join_axis, split_sizes, join_sizes, algorithm):
        super().__init__(comm)
        self.axes, self.sizes, self.algorithm = (split_axis, join_axis), (split_sizes, join_sizes), algorithm

    def move(self, x):
        return self._exchange(x, *self.axes, *self.sizes)

    def move_back(self, gy):
        return self._exchange(gy, *self.axes[::-1], *self.sizes[::-1])

    def _exchange(self, x, split_axis, join_axis, split_sizes, join_sizes):
        me = self.comm.rank
        inner = with_axis(with_axis(x.shape, split_axis, 1), join_axis, 1)
        matrix = [row_sizes((*inner, 1), -1, [j * s for s in split_sizes]) for j in join_sizes]
        flat = collectives.all_to_all(self.comm, cut(x, split_axis, split_sizes), matrix, self.algorithm)
        shape = with_axis(with_axis(x.shape, split_axis, split_sizes[me]), join_axis, sum(join_sizes))
        return join(flat, shape, join_axis, join_sizes)


class AllReduce(Communication):
    """y = sum of the x, on every rank        gx = sum of the gy"""

    def __init__(self, comm, algorithm):
        super().__init__(comm)
        self.algorithm = algorithm

    def move(self, x):
        return collectives.all_reduce(self.comm, x, self.algorithm)

    move_back = move


class CopyTo(AllReduce):
    """y = x, one replicated value        gx = sum of the gy"""

    def move(self, x):
        return x


class ReduceFrom(AllReduce):
    """y = sum of the x, one replicated value        gx = gy"""

    def move_back(self, gy):
        return gy
