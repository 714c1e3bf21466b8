"""Single messages by isend and irecv: counted and traced like any other, and mistakes refused alike everywhere."""

import inspect

import numpy as np
import pytest
from mpi import mpirun
from transport import Transport

from minidnn.comm import collectives, functions, threads, trace_files
from minidnn.comm.communicator import DeadlockError
from minidnn.report import trace
from minidnn.tensor import Tensor


def ring_shift(comm):
    """Every rank sends 5 float32 to its right, by hand; returns what came."""
    got = np.empty((1, 5), np.float32)
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    x = np.full((5, 1), comm.rank, np.float32)  # another shape of the same size
    with comm.ledger.scope(layer="halo", phase="forward"):
        comm.wait([comm.irecv(got, left, 4), comm.isend(x, right, 4)])
    return got


@pytest.mark.parametrize("rendezvous", [False, True])
def test_the_ledger_counts_single_messages_once(rendezvous):
    def main(comm):
        transport = Transport(comm)
        got = ring_shift(comm)
        traffic = {key: tuple(cell) for key, cell in comm.ledger.traffic.items()}
        collectives.all_reduce(comm, np.ones(7))
        collectives.send(comm, np.ones(2), (comm.rank + 1) % comm.size) if comm.rank == 0 else None
        collectives.recv(comm, (2,), float, 0) if comm.rank == 1 else None
        return got.tolist(), traffic, comm.ledger.totals(), transport.totals()

    for rank, (got, traffic, ledger, transport) in enumerate(threads.run(3, main, rendezvous=rendezvous)):
        assert got == [[(rank - 1) % 3] * 5]
        assert traffic == {("halo", "forward", "send"): (1, 20, 1, 20)}
        assert ledger == transport


def test_control_messages_stay_out_of_the_ledger():
    def main(comm):
        transport = Transport(comm)
        comm.debug = True
        comm.barrier()
        comm.split(comm.rank % 2)
        trace_files.measure_clock(comm, rounds=2)
        return comm.ledger.totals(), transport.totals(), transport.control > 0

    assert threads.run(3, main) == [((0, 0, 0, 0), (0, 0, 0, 0), True)] * 3


def test_single_messages_are_in_the_trace(tmp_path):
    def main(comm):
        run = trace_files.prepare(comm, tmp_path)
        comm.ledger.trace()
        comm.ledger.begin_step(1)
        ring_shift(comm)
        if comm.rank == 0:
            request = comm.isend(np.ones(3), 2)
            while not comm.test([request]):
                pass
        if comm.rank == 2:
            comm.wait([comm.irecv(np.empty(3), 0)])
        comm.ledger.end_step()
        trace_files.write(comm, tmp_path, run)

    threads.run(3, main)
    messages = trace.load(tmp_path).messages
    assert {(m.source, m.dest, m.tag, m.bytes, m.layer, m.start, m.stop) for m in messages} == {
        *((r, (r + 1) % 3, 4, 20, "halo", 0, 5) for r in range(3)),
        (0, 2, 0, 24, "", 0, 3),
    }
    assert {(m.op, m.algorithm, m.index, m.count) for m in messages} == {("send", "direct", 1, 1)}
    assert all(m.done >= m.sent and m.send_done >= m.sent for m in messages)


def test_waiting_for_a_single_message_is_waiting():
    def main(comm):
        ring_shift(comm)
        return {state for state, layer, _ in comm.ledger.times() if layer == "halo"}

    assert threads.run(2, main) == [{"comm", "wait"}] * 2


def test_a_message_that_never_comes_is_named():
    def main(comm):
        with comm.ledger.scope(layer="fc6"):
            comm.wait([comm.irecv(np.empty(2), (comm.rank + 1) % comm.size, 3)])

    with pytest.raises(DeadlockError, match=r"rank 0 waits to receive .* tag 3 \(send direct .*layer fc6\)"):
        threads.run(2, main)


def mistakes(comm):
    """What each mistake with a single message raises."""
    x, request = np.arange(6.0).reshape(2, 3), comm.isend(np.ones(1), comm.rank)
    comm.wait([request, comm.irecv(np.empty(1), comm.rank)])
    messages = []
    for mistake in (
        lambda: comm.isend([1.0], 0),
        lambda: comm.isend(2.5, 0),
        lambda: comm.isend(np.float64(2.5), 0),
        lambda: comm.isend(np.array([None]), 0),
        lambda: comm.isend(x.T, 0),
        lambda: comm.isend(x[:, 1], 0),
        lambda: comm.irecv(x[:, ::2], 0),
        lambda: comm.irecv(np.asfortranarray(x), 0),
        lambda: comm.isend(x, comm.size),
        lambda: comm.irecv(x, -1),
        lambda: comm.isend(x, None),
        lambda: comm.isend(x, 0, 1 << 16),
        lambda: comm.irecv(x, 0, -1),
        lambda: comm.wait(request),
        lambda: comm.test(request),
    ):
        try:
            mistake()
        except (TypeError, ValueError) as error:
            messages.append(f"{type(error).__name__}: {error}")
        else:
            messages.append("accepted")
    return messages


EXPECTED = [
    "TypeError: isend: expected an array, got [1.0] (list); use np.asarray([1.0])",
    "TypeError: isend: expected an array, got 2.5 (float); use np.asarray(2.5)",
    "TypeError: isend: expected an array, got a number of type float64; use np.asarray",
    "TypeError: isend: expected an array of numbers, got dtype object",
    "ValueError: isend: the array of shape (3, 2) and strides (8, 24) is not contiguous",
    "ValueError: isend: the array of shape (2,) and strides (24,) is not contiguous",
    "ValueError: irecv: the array of shape (2, 2) and strides (24, 16) is not contiguous",
    "ValueError: irecv: the array of shape (2, 3) and strides (8, 16) is not contiguous",
    "ValueError: isend: rank 2, expected one of 0 ... 1",
    "ValueError: irecv: rank -1, expected one of 0 ... 1",
    "ValueError: isend: rank None, expected one of 0 ... 1",
    "ValueError: isend: tag 65536, expected one of 0 ... 65535",
    "ValueError: irecv: tag -1, expected one of 0 ... 65535",
    "TypeError: wait: expected a list of requests, got",
    "TypeError: test: expected a list of requests, got",
]


def check(messages):
    for message, expected in zip(messages, EXPECTED, strict=True):
        assert message.startswith(expected)
    assert messages[-2].endswith("write comm.wait([request])")


def test_mistakes_are_refused_on_threads():
    for messages in threads.run(2, mistakes):
        check(messages)


def test_mistakes_and_counts_are_the_same_under_mpi():
    pytest.importorskip("mpi4py")
    program = "import numpy as np\nfrom minidnn.comm.communicator import CONTROL\nfrom minidnn.launch import launch\n"
    program += "".join(inspect.getsource(part) for part in (ring_shift, mistakes, Transport))
    program += (
        "def main(comm):\n"
        "    transport = Transport(comm)\n"
        "    messages = mistakes(comm)\n"
        "    assert ring_shift(comm).tolist() == [[1 - comm.rank] * 5]\n"
        "    assert comm.ledger.totals() == transport.totals() == (2, 28, 2, 28)\n"
        "    if comm.rank == 0:\n"
        "        print(*messages, sep='\\n')\n"
        "launch(main)\n"
    )
    run = mpirun(2, program)
    assert run.returncode == 0, run.stderr
    check(run.stdout.splitlines())


def test_collectives_take_arrays():
    def main(comm, call, x):
        call(comm, x)

    for call in (
        *(collectives.all_reduce, collectives.reduce_scatter, collectives.all_gather, collectives.broadcast),
        *(collectives.reduce, collectives.scatter, collectives.gather, collectives.all_to_all),
    ):
        with pytest.raises(
            TypeError, match=rf"{call.__name__}: expected an array, got 1\.0 \(float\); use np"
        ):
            threads.run(2, main, call, 1.0)
        with pytest.raises(TypeError, match=r"\(Tensor\); use tensor.data, or minidnn.comm.functions"):
            threads.run(2, main, call, Tensor(np.ones(2)))
    number = threads.run(2, lambda comm: collectives.all_reduce(comm, np.ones(3).sum()))
    assert number == [6, 6]


def test_a_tensor_without_the_axis_is_refused():
    for call, x in (
        (functions.all_gather, Tensor(1.0)),
        (functions.reduce_scatter, Tensor(1.0)),
        (lambda comm, x: functions.gather(comm, x, axis=1), Tensor([1.0])),
    ):
        with pytest.raises(ValueError, match=r"a tensor of shape \(1?,?\) has no axis [01] to split or join"):
            threads.run(2, lambda comm, call=call, x=x: call(comm, x))
    joined = threads.run(2, lambda comm: functions.all_gather(comm, [float(comm.rank)]))
    assert [y.data.tolist() for y in joined] == [[0, 1]] * 2
