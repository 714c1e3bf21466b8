"""Ranks as threads: messages, groups, and every way for a run to go wrong, none of which hangs."""

import numpy as np
import pytest

from minidnn.comm import collectives, threads
from minidnn.comm.communicator import CommunicationError, DeadlockError, ProtocolError


def test_messages_between_two_ranks_keep_their_order():
    def main(comm):
        if comm.rank == 0:
            for k in range(5):
                collectives.send(comm, np.array([k]), 1)
            collectives.send(comm, np.array([99]), 1, tag=3)
        else:
            last = collectives.recv(comm, (1,), int, 0, tag=3) if not comm.hub.rendezvous else None
            got = [int(collectives.recv(comm, (1,), int, 0)[0]) for _ in range(5)]
            last = collectives.recv(comm, (1,), int, 0, tag=3) if last is None else last
            return got, int(last[0])

    for rendezvous in (False, True):
        assert threads.run(2, main, rendezvous=rendezvous)[1] == ([0, 1, 2, 3, 4], 99)


def test_a_buffered_send_may_be_overwritten():
    def main(comm):
        if comm.rank == 0:
            x = np.ones(1000)
            comm.wait([comm.isend(x, 1, 0)])
            x[:] = 7
            collectives.send(comm, x, 1, 1)
        else:
            collectives_first = collectives.recv(comm, (1000,), float, 0, 1)
            y = np.empty(1000)
            comm.wait([comm.irecv(y, 0, 0)])
            return collectives_first[0], y.max()

    assert threads.run(2, main)[1] == (7.0, 1.0)


def test_rendezvous_finds_the_program_that_relies_on_buffers():
    def main(comm):
        collectives.send(comm, np.ones(2), 1 - comm.rank)
        return collectives.recv(comm, (2,), float, 1 - comm.rank)[0]

    assert threads.run(2, main) == [1.0, 1.0]
    with pytest.raises(DeadlockError, match=r"rank 0 waits to send to rank 1: 16 bytes"):
        threads.run(2, main, rendezvous=True)


def test_split_makes_groups_that_do_not_mix():
    def main(comm):
        row = comm.split(comm.rank // 3, comm.rank)
        column = comm.split(comm.rank % 3, -comm.rank)  # in reverse order
        nobody = comm.split(None if comm.rank else 0)
        assert (nobody is None) == bool(comm.rank)
        a = collectives.all_reduce.start(row, np.array([1.0 + comm.rank]))
        b = collectives.all_reduce.start(column, np.array([1.0 + comm.rank]), "doubling")
        return row.ranks, column.ranks, float(b.wait()[0]), float(a.wait()[0])

    results = threads.run(6, main)
    assert results[1] == ((0, 1, 2), (4, 1), 7.0, 6.0)
    assert results[5] == ((3, 4, 5), (5, 2), 9.0, 15.0)


def test_groups_of_a_group():
    def main(comm):
        half = comm.split(comm.rank // 4)
        pair = half.split(half.rank // 2)
        assert pair.ledger is comm.ledger
        return pair.ranks, float(collectives.all_reduce(pair, np.array([comm.rank * 1.0]))[0])

    assert threads.run(8, main)[6] == ((6, 7), 13.0)


def test_deadlock_is_reported_with_who_waits_for_what():
    def main(comm):
        with comm.ledger.scope(layer="fc7", phase="forward"):
            if comm.rank == 2:
                return
            collectives.all_gather(comm, np.ones(4, np.float32))

    with pytest.raises(DeadlockError) as caught:
        threads.run(3, main)
    text = str(caught.value)
    assert "rank 0 waits to receive from rank 2: 16 bytes" in text
    assert "all_gather ring round 1/2, phase forward, layer fc7" in text
    assert "rank 2 has finished" in text


def test_a_cycle_of_receives():
    def main(comm):
        collectives.recv(comm, (1,), float, (comm.rank + 1) % comm.size)

    with pytest.raises(DeadlockError) as caught:
        threads.run(4, main)
    assert all(f"rank {r} waits to receive from rank {(r + 1) % 4}" in str(caught.value) for r in range(4))


def test_a_failing_rank_ends_all_with_its_error():
    def main(comm):
        if comm.rank == 1:
            raise KeyError("lost")
        collectives.all_reduce(comm, np.ones(3))

    with pytest.raises(KeyError, match="lost") as caught:
        threads.run(4, main)
    assert caught.value.__notes__ == ["(raised on rank 1 of 4)"]


def test_a_rank_that_computes_is_stopped_at_its_next_message():
    def main(comm):
        if comm.rank == 1:
            raise ZeroDivisionError
        try:
            while True:
                collectives.all_reduce.start(comm, np.ones(1)).test()
        finally:
            ended.append(comm.rank)

    ended = []
    with pytest.raises(ZeroDivisionError):
        threads.run(2, main)
    assert ended == [0]


def test_abort():
    with pytest.raises(CommunicationError, match="rank 1 ended the run with code 5"):
        threads.run(3, lambda comm: comm.abort(5) if comm.rank == 1 else comm.barrier())


def test_sizes_and_dtypes_that_do_not_match_are_named():
    def main(comm, sent, shape, dtype):
        with comm.ledger.scope(layer=f"layer{comm.rank}"):
            if comm.rank == 0:
                collectives.send(comm, sent, 1)
            else:
                collectives.recv(comm, shape, dtype, 0)

    text = r"rank 1 receives 5 float64 from rank 0 \(.*layer1\), which sent 4 float64 \(.*layer0\)"
    with pytest.raises(ProtocolError, match=text):
        threads.run(2, main, np.ones(4), (5,), np.float64)
    with pytest.raises(ProtocolError, match="receives 4 float32 .* sent 4 int32"):
        threads.run(2, main, np.ones(4, np.int32), (4,), np.float32)


def test_a_message_that_nobody_received_is_an_error():
    def main(comm):
        if comm.rank == 0:
            collectives.send(comm, np.ones(4), 1)

    with pytest.raises(ProtocolError, match="never received from rank 0: to send to rank 1: 32 bytes"):
        threads.run(2, main)


def test_a_rank_that_never_ends_is_given_up_with_its_place():
    import threading

    gate = threading.Event()

    def main(comm):
        if comm.rank == 1:
            gate.wait()
        comm.barrier()

    with pytest.raises(TimeoutError, match="rank 1:(.|\n)*gate.wait"):
        threads.run(2, main, timeout=0.2)
    gate.set()


def test_results_do_not_depend_on_the_schedule():
    def main(comm):
        x = np.random.default_rng(comm.rank).standard_normal(100).astype(np.float32)
        pending = [collectives.all_reduce.start(comm, x, name) for name in ("ring", "halving", "direct")]
        return b"".join(p.wait().tobytes() for p in pending)

    first = threads.run(7, main)
    assert set(first) == {first[0]}
    assert all(threads.run(7, main, rendezvous=k % 2) == first for k in range(6))


def test_one_rank_alone():
    def main(comm):
        assert comm.split(0).size == 1
        comm.barrier()
        return collectives.all_reduce(comm, np.ones(2)), collectives.all_to_all(comm, np.arange(3.0))

    ((total, same),) = threads.run(1, main)
    assert total.tolist() == [1, 1] and same.tolist() == [0, 1, 2]
