"""The collectives executed on threads: NumPy's answer, the same bits everywhere, messages as predicted."""

import numpy as np
import pytest
from closed_forms import closed_form, messages
from transport import Transport

from minidnn.comm import collectives, threads
from minidnn.comm.algorithms import ALGORITHMS, split_counts
from minidnn.errors import InputError

SIZES = (0, 1, 2, 5, 8, 23)


def inputs(p, n, dtype=np.float64, seed=0):
    generator = np.random.default_rng([p, n, seed])
    return [(generator.standard_normal(n) * 8).astype(dtype) for _ in range(p)]


def run_checked(p, op, algorithm, counts, main, root=0, **options):
    """Run on threads and compare what was sent with the closed form, the ledger and the transport."""

    def body(comm):
        transport = Transport(comm)
        with comm.ledger.scope(layer="fc6", phase="backward"):
            result = main(comm)
        cost = closed_form(op, algorithm, p, comm.rank, counts, root, nodes=comm.nodes)
        sent_messages, sent_bytes, received_messages, received_bytes = transport.totals()
        assert (sent_messages, sent_bytes) == (cost.messages, cost.elements * 8)
        assert comm.ledger.totals() == transport.totals()
        assert set(comm.ledger.traffic) <= {("fc6", "backward", op)}
        own = messages(op, algorithm, p, comm.rank, counts, root, nodes=comm.nodes)
        received = [elements for *_, elements, kind in own if kind == "recv"]
        assert (received_messages, received_bytes) == (len(received), 8 * sum(received))
        return result

    return threads.run(p, body, **options)


@pytest.mark.parametrize("algorithm", ALGORITHMS["all_reduce"])
@pytest.mark.parametrize("p", range(1, 10))
def test_all_reduce(p, algorithm):
    for n in SIZES:
        xs = inputs(p, n)
        keep = [x.copy() for x in xs]
        for rendezvous in (False, True):
            results = run_checked(
                p,
                *("all_reduce", algorithm, n),
                lambda comm: collectives.all_reduce(comm, xs[comm.rank], algorithm),  # noqa: B023
                rendezvous=rendezvous,
                nodes=[rank // 2 for rank in range(p)],
            )
            for x, kept, result in zip(xs, keep, results, strict=True):
                np.testing.assert_allclose(result, sum(keep), rtol=0, atol=1e-12)
                assert result.tobytes() == results[0].tobytes()  # replicas are equal bit for bit
                assert x.tobytes() == kept.tobytes() and result is not x


@pytest.mark.parametrize("p", range(1, 10))
def test_the_other_collectives(p):
    for n in SIZES:
        for counts in (split_counts(n, p), tuple(np.roll(split_counts(n * p, p + 1)[:-1], 1).tolist())):
            total, root = sum(counts), p - 1
            xs, starts = inputs(p, total), np.cumsum((0, *counts))
            parts = [np.s_[a:b] for a, b in zip(starts, starts[1:], strict=False)]

            for algorithm in ALGORITHMS["reduce_scatter"]:
                results = run_checked(
                    p,
                    *("reduce_scatter", algorithm, counts),
                    lambda comm: collectives.reduce_scatter(comm, xs[comm.rank], counts, algorithm),  # noqa: B023
                )
                for result, part in zip(results, parts, strict=True):
                    np.testing.assert_allclose(result, sum(xs)[part], rtol=0, atol=1e-12)
                results = run_checked(
                    p,
                    *("all_gather", algorithm, counts),
                    lambda comm: collectives.all_gather(comm, xs[0][parts[comm.rank]], counts, algorithm),  # noqa: B023
                )
                assert all(result.tobytes() == xs[0].tobytes() for result in results)
            for algorithm in ALGORITHMS["broadcast"]:
                results = run_checked(
                    p,
                    *("broadcast", algorithm, total),
                    lambda comm: collectives.broadcast(comm, xs[comm.rank], root, algorithm),  # noqa: B023
                    root,
                )
                assert all(result.tobytes() == xs[root].tobytes() for result in results)
            results = run_checked(
                p,
                *("reduce", "binomial", total),
                lambda comm: collectives.reduce(comm, xs[comm.rank], root),  # noqa: B023
                root,
            )
            np.testing.assert_allclose(results[root], sum(xs), rtol=0, atol=1e-12)
            assert all(result is None for result in results[:root])
            results = run_checked(
                p,
                *("scatter", "direct", counts),
                lambda comm: collectives.scatter(comm, xs[comm.rank], root, counts),  # noqa: B023
                root,
            )
            assert all(
                r.tobytes() == xs[root][part].tobytes() for r, part in zip(results, parts, strict=True)
            )
            results = run_checked(
                p,
                *("gather", "direct", counts),
                lambda comm: collectives.gather(comm, xs[0][parts[comm.rank]], root, counts),  # noqa: B023
                root,
            )
            assert results[root].tobytes() == xs[0].tobytes()


@pytest.mark.parametrize("algorithm", ALGORITHMS["all_to_all"])
@pytest.mark.parametrize("p", range(1, 10))
def test_all_to_all(p, algorithm):
    matrix = np.random.default_rng(p).integers(0, 4, (p, p))
    blocks = [[np.full(matrix[i, j], 10.0 * i + j) for j in range(p)] for i in range(p)]

    def main(comm):
        return collectives.all_to_all(comm, np.concatenate(blocks[comm.rank]), matrix, algorithm)

    results = run_checked(p, "all_to_all", algorithm, matrix, main)
    for j, result in enumerate(results):
        np.testing.assert_array_equal(result, np.concatenate([blocks[i][j] for i in range(p)]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.uint8, bool, np.complex128])
def test_any_dtype_is_kept(dtype):
    xs = [np.arange(7).astype(dtype), np.ones(7, dtype), np.arange(7, 0, -1).astype(dtype)]
    for algorithm in ALGORITHMS["all_reduce"]:
        for result in threads.run(3, lambda comm: collectives.all_reduce(comm, xs[comm.rank], algorithm)):  # noqa: B023
            assert result.dtype == dtype
            np.testing.assert_array_equal(result, xs[0] + xs[1] + xs[2])


def test_layouts_and_shapes():
    def main(comm):
        x = np.arange(24.0).reshape(4, 6) * (comm.rank + 1)
        strided, turned = x[::2, ::-3], x.T
        assert not strided.flags.c_contiguous
        np.testing.assert_array_equal(collectives.all_reduce(comm, strided), 6 * strided / (comm.rank + 1))
        np.testing.assert_array_equal(collectives.all_reduce(comm, turned), 6 * turned / (comm.rank + 1))
        np.testing.assert_array_equal(
            collectives.broadcast(comm, turned, 2), np.arange(24.0).reshape(4, 6).T * 3
        )
        assert collectives.all_reduce(comm, np.array(2.0)).shape == ()
        flat = x.reshape(-1).copy()
        assert collectives.all_reduce_inplace(comm, flat) is flat
        np.testing.assert_array_equal(flat, 6 * np.arange(24.0))
        with pytest.raises(ValueError, match="flat contiguous"):
            collectives.all_reduce_inplace(comm, turned)
        return True

    assert threads.run(3, main) == [True] * 3


def test_many_in_flight_finish_in_any_order():
    def main(comm):
        xs = [np.full(k + 1, float(comm.rank + k)) for k in range(12)]
        names = ALGORITHMS["all_reduce"]
        pending = [collectives.all_reduce.start(comm, x, names[k % 6]) for k, x in enumerate(xs)]
        other = comm.start(collectives.all_gather.steps(comm, xs[0]))
        comm.progress()
        order = np.random.default_rng(comm.rank).permutation(12)  # each rank waits in an order of its own
        results = {k: pending[k].wait() for k in order}
        assert all(pending[k].test() and pending[k].wait() is results[k] for k in range(12))
        for k in range(12):
            np.testing.assert_array_equal(results[k], np.full(k + 1, 10.0 + 5 * k))
        return other.wait()

    for rendezvous in (False, True):
        for result in threads.run(5, main, rendezvous=rendezvous):
            np.testing.assert_array_equal(result, np.arange(5.0))


def test_progress_alone_brings_them_to_their_end():
    def main(comm):
        pending = [collectives.all_reduce.start(comm, np.ones(9), name) for name in ALGORITHMS["all_reduce"]]
        while not all(p.done for p in pending):
            comm.progress()
        assert not comm.engine.pending
        return [p.wait()[0] for p in pending]

    assert threads.run(4, main, timeout=20) == [[4.0] * 6] * 4


def test_labels_are_those_of_the_start():
    """A collective that goes on inside another layer's scope is still counted where it was started."""

    def main(comm):
        with comm.ledger.scope(layer="conv1", phase="gradient sync"):
            pending = collectives.all_reduce.start(comm, np.ones(8))
        with comm.ledger.scope(layer="fc8", phase="forward"):
            collectives.all_gather(comm, np.ones(2))
            pending.wait()
        return comm.ledger.traffic

    for traffic in threads.run(2, main):
        assert traffic == {
            ("conv1", "gradient sync", "all_reduce"): [2, 64, 2, 64],
            ("fc8", "forward", "all_gather"): [1, 16, 1, 16],
        }


def test_the_summation_order_is_that_of_the_ring():
    """Chunk c is summed in the order c, c + 1, ...: a serial sum in that order has the same bits."""
    p, n = 5, 20
    xs = inputs(p, n, np.float32)
    result = threads.run(p, lambda comm: collectives.all_reduce(comm, xs[comm.rank], "ring"))[0]
    for c in range(p):
        part = np.s_[4 * c : 4 * c + 4]
        expected = xs[c][part].copy()
        for k in range(1, p):
            expected = xs[(c + k) % p][part] + expected
        assert result[part].tobytes() == expected.tobytes()


def test_wrong_calls_are_refused():
    cases = [
        (lambda comm: collectives.all_reduce(comm, np.ones(3), "rings"), ValueError, "no algorithm 'rings'"),
        (
            lambda comm: collectives.all_reduce(comm, np.ones(3), "mpi"),
            InputError,
            "start the program with mpirun",
        ),
        (lambda comm: collectives.reduce_scatter(comm, np.ones(3), (1, 1)), ValueError, "add up to 2"),
        (lambda comm: collectives.all_gather(comm, np.ones(3), (1, 1)), ValueError, "brings 3 elements"),
        (lambda comm: collectives.gather(comm, np.ones(3), 0, (1, 1)), ValueError, "brings 3 elements"),
        (
            lambda comm: collectives.all_to_all(comm, np.ones(3), ((1, 1), (1, 1))),
            ValueError,
            "brings 3 elements",
        ),
        (lambda comm: collectives.send(comm, np.ones(3), 2), ValueError, "with rank 2"),
        (lambda comm: collectives.send(comm, np.ones(3), 1, 10**6), ValueError, "tag 1000000"),
        (lambda comm: collectives.scatter(comm, np.ones(2), 1 - comm.rank), ValueError, "need counts"),
    ]
    for main, error, text in cases:
        with pytest.raises(error, match=text):
            threads.run(2, main)
