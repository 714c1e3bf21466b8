"""Lesson 5: the ring all-reduce, step by step, and what it costs.

    python examples/05_ring_all_reduce.py

Data parallelism adds up the gradients of p ranks, and every rank needs the sum. By way of rank 0 that is
simple, but rank 0 receives and sends (p - 1) n elements: the more ranks, the slower. In a ring every rank
talks to its two neighbours only, and cuts its n elements into p chunks:

    reduce-scatter, p - 1 steps: send a chunk to the right, add what comes from the left to the same chunk of
        your own. Partial sums grow as they travel; at the end rank r has the whole sum of chunk r + 1.
    all-gather, p - 1 steps: the finished chunks travel round once more and replace what they meet.

A step sends n / p elements, so each rank sends 2 (p - 1) messages and in them 2 (p - 1) / p n elements, less
than 2 n for any p. No all-reduce sends fewer (Patarasuk and Yuan 2009, theorem 1), though some send fewer
messages, which is what counts when n is small.

Part 1 runs it on 4 ranks, which are threads of this process. Rank r starts with (c + 1) * 10^r in chunk c, so
a sum shows who is in it: 4044 is chunk 3 of ranks 0, 1 and 3. All end with 1111, 2222, 3333, 4444, after 6
messages and 2 * 3 / 4 * 64 = 96 bytes each. Part 2 counts for other p. Runs in a second.
"""

from collections.abc import Callable

import numpy as np

from minidnn.comm import Communicator, collectives, threads
from minidnn.console import run_program


def ring_all_reduce(comm: Communicator, x: np.ndarray, watch: Callable = lambda buffer: None) -> np.ndarray:
    """The sum of all ranks' x; calls ``watch`` with a copy of the buffer at the start and after each step."""
    p, rank = comm.size, comm.rank
    left, right = (rank - 1) % p, (rank + 1) % p
    buffer = x.copy()
    chunks = np.array_split(buffer, p)  # views of the buffer; some are longer where p does not divide n
    watch(buffer.copy())
    for step in range(p - 1):  # reduce-scatter
        out, into = (rank - step) % p, (rank - step - 1) % p
        arrived = np.empty_like(chunks[into])
        # both at once: if every rank first waited for its own send, all could wait for ever
        comm.wait([comm.irecv(arrived, left), comm.isend(chunks[out], right)])
        chunks[into] += arrived
        watch(buffer.copy())
    for step in range(p - 1):  # all-gather
        out, into = (rank + 1 - step) % p, (rank - step) % p
        comm.wait([comm.irecv(chunks[into], left), comm.isend(chunks[out], right)])
        watch(buffer.copy())
    return buffer


def through_rank_0(comm: Communicator, x: np.ndarray) -> np.ndarray:
    """The simple way: rank 0 receives everything, adds, and sends the sum to everybody."""
    total = x.copy()
    if comm.rank:
        comm.wait([comm.irecv(total, 0), comm.isend(x, 0)])
        return total
    for source in range(1, comm.size):
        arrived = np.empty_like(x)
        comm.wait([comm.irecv(arrived, source)])
        total += arrived
    comm.wait([comm.isend(total, dest) for dest in range(1, comm.size)])
    return total


def measured(method: Callable, p: int, n: int) -> tuple[tuple[np.ndarray], tuple[int], tuple[int]]:
    """An all-reduce of n random float64 on p ranks: results, messages and bytes sent, of each rank."""

    def main(comm: Communicator):
        y = method(comm, np.random.default_rng(comm.rank).random(n))
        return y, *comm.ledger.totals()[:2]

    return tuple(zip(*threads.run(p, main, rendezvous=True), strict=True))


def steps(p: int) -> None:
    def main(comm: Communicator) -> list[np.ndarray]:
        history = []
        ring_all_reduce(comm, np.repeat(np.arange(1.0, p + 1) * 10**comm.rank, 2), history.append)
        return history

    for step, buffers in enumerate(zip(*threads.run(p, main), strict=True)):
        title = "at the start" if step == 0 else "reduce-scatter" if step < p else "all-gather"
        print(f"step {step}: {title}")
        for rank, buffer in enumerate(buffers):
            cells = []
            for values in np.array_split(buffer, p):
                inside = "".join(str(r) for r in range(p) if int(values[0]) // 10**r % 10)
                cells.append("".join(f"{v:5.0f}" for v in values) + f" {{{inside}}}".ljust(p + 3))
            print(f"  rank {rank}:" + " |".join(cells).rstrip())


def main() -> None:
    print("Part 1. The buffers of 4 ranks: chunk 0 | 1 | 2 | 3, and in braces whose sum a chunk is")
    steps(4)
    n = 840
    print(f"\nPart 2. Messages and bytes sent by each rank for n = {n} float64 ({8 * n} bytes)")
    print(f"{'p':>3}{'messages':>10}{'2 (p-1)':>9}{'bytes':>8}{'2 (p-1)/p n':>13}{'rank 0, simple way':>20}")
    for p in (2, 3, 4, 5, 8):
        results, messages, sent = measured(ring_all_reduce, p, n)
        _, _, simple = measured(through_rank_0, p, n)
        library, _, library_sent = measured(collectives.all_reduce, p, n)
        print(f"{p:3}{messages[0]:10}{2 * (p - 1):9}{sent[0]:8}{2 * (p - 1) * 8 * n // p:13}{simple[0]:20}")
        assert all(np.array_equal(y, results[0]) for y in results + library) and sent == library_sent
    _, _, sent = measured(ring_all_reduce, 4, 10)
    print("All ranks have the same bits: a chunk is added up in one place, then copied. So in the library.")
    print(f"n = 10 on 4 ranks, chunks of 3, 3, 2, 2: bytes {sent}, mean {np.mean(sent):.0f} = 2 * 3/4 * 80")


if __name__ == "__main__":
    run_program(main)
