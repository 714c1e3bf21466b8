"""The communication functions: values, and backward as the adjoint of forward."""

import numpy as np
import pytest

from minidnn.comm import functions as F
from minidnn.comm import threads
from minidnn.comm.algorithms import split_counts
from minidnn.tensor import Tape, Tensor

# Uneven on purpose, with an empty block; LENGTHS[:p] are the ranks' lengths of the axis that is split.
LENGTHS = (3, 1, 0, 4, 2)


def shapes(name, p, rank):
    """(shape of x, shape of y) on this rank, None where there is nothing."""
    n, own = sum(LENGTHS[:p]), LENGTHS[rank]
    root = 1 % p
    return {
        "broadcast": ((2, 3), (2, 3)),
        "reduce": ((2, 3), (2, 3) if rank == root else None),
        "scatter": ((2, n, 3), (2, own, 3)),
        "gather": ((2, own, 3), (2, n, 3) if rank == root else None),
        "all_gather": ((2, own, 3), (2, n, 3)),
        "all_gather 0": ((own, 3), (n, 3)),
        "reduce_scatter": ((2, n), (2, own)),
        "reduce_scatter 0": ((n, 2), (own, 2)),
        "all_to_all": ((own, 2, 7), (n, 2, split_counts(7, p)[rank])),
        "all_to_all back": ((n, 2, split_counts(7, p)[rank]), (own, 2, 7)),
        "all_reduce": ((2, 3), (2, 3)),
    }[name]


def apply(name, comm, x):
    p, root = comm.size, 1 % comm.size
    counts, even = LENGTHS[:p], split_counts(7, p)
    return {
        "broadcast": lambda: F.broadcast(comm, x, root),
        "reduce": lambda: F.reduce(comm, x, root),
        "scatter": lambda: F.scatter(comm, x, root, 1, counts),
        "gather": lambda: F.gather(comm, x, root, 1, counts),
        "all_gather": lambda: F.all_gather(comm, x, 1, counts),
        "all_gather 0": lambda: F.all_gather(comm, x, 0, counts, "direct"),
        "reduce_scatter": lambda: F.reduce_scatter(comm, x, -1, counts),
        "reduce_scatter 0": lambda: F.reduce_scatter(comm, x, 0, counts, "direct"),
        "all_to_all": lambda: F.all_to_all(comm, x, -1, 0, joined=counts),
        "all_to_all back": lambda: F.all_to_all(comm, x, 0, -1, counts, even, "pairwise"),
        "all_reduce": lambda: F.all_reduce(comm, x, "halving"),
    }[name]()


NAMES = [
    *("broadcast", "reduce", "scatter", "gather", "all_gather", "all_gather 0", "reduce_scatter"),
    *("reduce_scatter 0", "all_to_all", "all_to_all back", "all_reduce"),
]


@pytest.mark.parametrize("p", range(1, 6))
@pytest.mark.parametrize("name", NAMES)
def test_backward_is_the_adjoint(name, p):
    """<F x, gy> = <x, F* gy>, summed over the ranks."""

    def main(comm):
        generator = np.random.default_rng([comm.rank, p])
        x_shape, y_shape = shapes(name, p, comm.rank)
        x = Tensor(generator.standard_normal(x_shape), requires_grad=True)
        with Tape() as tape:
            y = apply(name, comm, x)
        if y_shape is None:
            assert y.size == 0
            tape.backward(())
            left = 0.0
        else:
            assert y.shape == y_shape
            gy = generator.standard_normal(y_shape)
            tape.backward(y, gy)
            left = float((y.data * gy).sum())
        # only the root's x goes into a broadcast or a scatter, so only it has a gradient
        right = 0.0 if x.grad is None else float((x.data * x.grad).sum())
        return left, right

    left, right = np.sum(threads.run(p, main, rendezvous=True, debug=True), axis=0)
    assert left == pytest.approx(right, abs=1e-12)
    assert left != 0


@pytest.mark.parametrize("p", range(1, 6))
def test_values(p):
    counts, root = LENGTHS[:p], 1 % p
    wholes = [np.random.default_rng(r).standard_normal((2, sum(counts), 3)) for r in range(p)]
    blocks = np.split(wholes[0], np.cumsum(counts)[:-1], axis=1)
    total = sum(wholes)

    def main(comm):
        own, block = Tensor(wholes[comm.rank]), Tensor(blocks[comm.rank])
        r, start = comm.rank, sum(counts[: comm.rank])
        part = np.s_[:, start : start + counts[r]]
        np.testing.assert_array_equal(F.broadcast(comm, own, root).data, wholes[root])
        np.testing.assert_array_equal(F.scatter(comm, own, root, 1, counts).data, wholes[root][part])
        np.testing.assert_array_equal(F.all_gather(comm, block, 1, counts).data, wholes[0])
        np.testing.assert_allclose(F.all_reduce(comm, own).data, total, rtol=0, atol=1e-14)
        np.testing.assert_allclose(F.reduce_scatter(comm, own, 1, counts).data, total[part], atol=1e-14)
        gathered, reduced = F.gather(comm, block, root, 1, counts), F.reduce(comm, own, root)
        if r == root:
            np.testing.assert_array_equal(gathered.data, wholes[0])
            np.testing.assert_allclose(reduced.data, total, atol=1e-14)
        columns = np.array_split(wholes[0], p, axis=2)[r]
        np.testing.assert_array_equal(F.all_to_all(comm, block, 2, 1, joined=counts).data, columns)

    threads.run(p, main, debug=True)


def test_send_and_recv_are_adjoint():
    def main(comm):
        x = Tensor(np.arange(3.0) + 1, requires_grad=True)
        with Tape() as tape:
            if comm.rank == 0:
                y = F.send(comm, x, 1)
                z = F.recv(comm, (3,), np.float64, 1)
                tape.backward((z * z).sum())
                return x.grad
            w = F.recv(comm, (3,), np.float64, 0)
            y = F.send(comm, w * x, 0)
            tape.backward(())
            assert y.shape == (0,)
            return x.grad

    grads = threads.run(2, main, debug=True)
    x = np.arange(3.0) + 1  # the loss is sum((x0 x1)^2): gradient 2 x0 x1^2 and 2 x0^2 x1
    np.testing.assert_allclose(grads[0], 2 * x**3)
    np.testing.assert_allclose(grads[1], 2 * x**3)


def test_a_communication_without_gradient_still_takes_part():
    """Rank 0 does not use the result: its peers must get its zeros, not wait for ever."""

    def main(comm):
        x = Tensor(np.ones(4), requires_grad=True)
        with Tape() as tape:
            y = F.all_gather(comm, x)
            loss = (x * 2).sum() if comm.rank == 0 else (y * 3).sum()
        tape.backward(loss)
        return x.grad

    grads = threads.run(3, main, debug=True)
    np.testing.assert_array_equal(grads[0], np.full(4, 2 + 6.0))
    np.testing.assert_array_equal(grads[1], np.full(4, 6.0))


@pytest.mark.parametrize("p", range(1, 6))
def test_two_readings_of_the_gradient_of_all_reduce(p):
    """A column/row pair of matrices split over the ranks: f and g give the one-process gradients."""
    generator = np.random.default_rng(0)
    x, A, B = (generator.standard_normal(s) for s in ((5, 4), (4, 7), (7, 3)))
    gx = 2 * (x @ A @ B) @ B.T @ A.T  # of sum((x A B)^2)

    def main(comm):
        start = sum(split_counts(7, p)[: comm.rank])
        columns = np.s_[start : start + split_counts(7, p)[comm.rank]]
        own_A, own_B = Tensor(A[:, columns].copy(), True), Tensor(B[columns].copy(), True)
        one = Tensor(x.copy(), True)
        y = F.reduce_from(comm, (F.copy_to(comm, one) @ own_A) @ own_B)
        (y * y).sum().backward()
        np.testing.assert_allclose(one.grad, gx)
        # the other reading: p losses, one for each rank's copy of the sum, are p times the objective
        other = Tensor(x.copy(), True)
        y = F.all_reduce(comm, (F.copy_to(comm, other) @ own_A) @ own_B)
        (y * y).sum().backward()
        np.testing.assert_allclose(other.grad, p * gx)

    threads.run(p, main, debug=True)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"counts \(2, 2\) do not add up to 5, axis 1"):
        threads.run(2, lambda comm: F.reduce_scatter(comm, Tensor(np.ones((2, 5))), 1, (2, 2)))
