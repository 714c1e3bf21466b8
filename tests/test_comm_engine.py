"""Messages and collectives in flight: waiting for one moves all on, none is taken for another, none fails silently."""

import inspect

import numpy as np
import pytest
from mpi import mpirun
from transport import Transport

from minidnn.comm import collectives, functions, threads
from minidnn.comm.algorithms import OPERATIONS
from minidnn.comm.communicator import HEADERS, LAST_TAG, NAMED, SPACE, STATE, ProtocolError
from minidnn.comm.operation import Operation, steps
from minidnn.tensor import Tape, Tensor


@pytest.mark.parametrize("rendezvous", [False, True])
def test_waiting_for_a_message_moves_collectives_on(rendezvous):
    """The message comes after a collective that needs this rank to go on."""

    def main(comm):
        pending, got = collectives.all_reduce.start(comm, np.full(6, 1.0)), np.empty(1)
        if comm.rank == 0:
            comm.wait([comm.irecv(got, 1)])
        total = pending.wait()
        if comm.rank == 1:
            comm.wait([comm.isend(np.ones(1), 0)])
        return total.tolist()

    assert threads.run(3, main, rendezvous=rendezvous) == [[3.0] * 6] * 3


def test_a_failed_collective_fails_again_when_it_is_waited_for_again():
    def failing():
        yield []
        raise ValueError("a broken collective")

    def main(comm):
        pending, other = comm.start(failing()), collectives.all_reduce.start(comm, np.ones(3))
        for wait in (pending.wait, pending.wait, pending.wait):
            with pytest.raises(ValueError, match="a broken collective"):
                wait()
        assert pending.done and pending.test()
        return other.wait().tolist()

    assert threads.run(2, main) == [[2.0] * 3] * 2


def test_a_wait_that_failed_is_over():
    """A message of another size is refused where it is waited for, not again in all that comes after."""

    def main(comm):
        if comm.rank == 0:
            comm.wait([comm.isend(np.ones(3), 1)])
        else:
            with pytest.raises(ProtocolError, match="receives 2 float64 from rank 0"):
                comm.wait([comm.irecv(np.empty(2), 0)])
        assert not comm.engine.pending
        return collectives.all_reduce(comm, np.ones(2)).tolist()

    assert threads.run(2, main) == [[2.0] * 2] * 2


@pytest.mark.parametrize("tag", [0, 5, SPACE - 1])
def test_no_tag_of_a_header_is_one_of_the_machinery(tag):
    """A header goes ahead of a message; whatever control message comes next is not taken for it."""

    def main(comm):
        state = np.full(7, 1.0)
        if comm.rank == 0:
            pending = collectives.send.start(comm, np.ones(3), 1, tag)
            requests = [comm.isend(state, 1, control) for control in (STATE, STATE - 1, STATE - 2)]
            comm.wait(requests)
            return pending.wait()
        got = [np.empty(7) for _ in range(3)]
        for control, one in zip((STATE, STATE - 1, STATE - 2), got, strict=True):
            comm.wait([comm.irecv(one, 0, control)])
        assert all((one == state).all() for one in got)
        return collectives.recv(comm, (3,), float, 0, tag).tolist()

    assert threads.run(2, main, debug=True) == [None, [1.0] * 3]


def test_every_kind_of_traffic_has_tags_of_its_own():
    messages, named, sequence = (range(k * SPACE, (k + 1) * SPACE) for k in range(3))
    assert SPACE >= 1 << 14 and NAMED == named.start
    control = range(sequence.stop, STATE + 1)
    assert max(control) < HEADERS + messages.start and HEADERS + sequence.stop - 1 == LAST_TAG


@pytest.mark.parametrize("debug", [False, True])
def test_named_collectives_need_not_start_in_the_same_order(debug):
    def main(comm):
        order = (1, 0) if comm.rank else (0, 1)
        blocks = [np.full(4, 10.0**k) for k in range(2)]
        flying = {k: comm.start(collectives.all_reduce.steps(comm, blocks[k]), tag=k + 7) for k in order}
        plain = collectives.all_reduce(comm, np.full(4, 5.0))
        return [flying[k].wait()[0] for k in range(2)], plain[0]

    assert threads.run(3, main, debug=debug) == [([3.0, 30.0], 15.0)] * 3
    with pytest.raises(ProtocolError, match=r"differ in elements[\s\S]*call named 7\)"):
        threads.run(
            2,
            lambda comm: comm.start(collectives.all_reduce.steps(comm, np.ones(2 + comm.rank)), 7).wait(),
            debug=True,
        )
    with pytest.raises(ValueError, match=r"tag 65536, expected one of 0 \.\.\. 65535"):
        threads.run(1, lambda comm: comm.start(collectives.all_reduce.steps(comm, np.ones(2)), SPACE))


def largest_tags(comm):
    """Messages and collectives with the last tag of their kinds, the headers' included."""
    comm.debug, last = True, (1 << 16) - 1
    pending = comm.start(collectives.all_reduce.steps(comm, np.ones(5)), last)
    got = comm.start(
        collectives.sendrecv.steps(comm, {1 - comm.rank: np.ones(3) * comm.rank}, {1 - comm.rank: (3,)}), last
    ).wait()
    assert got[1 - comm.rank].tolist() == [1.0 - comm.rank] * 3 and pending.wait().tolist() == [2.0] * 5


def test_the_largest_tags_can_be_sent():
    threads.run(2, largest_tags)
    pytest.importorskip("mpi4py")
    program = "import numpy as np\nfrom minidnn.comm import collectives\nfrom minidnn.launch import launch\n"
    program += inspect.getsource(largest_tags) + "launch(largest_tags)\n"
    run = mpirun(2, program)
    assert run.returncode == 0, run.stderr


def test_a_library_with_too_few_tags_is_refused_before_anything_is_sent():
    pytest.importorskip("mpi4py")
    program = """
from mpi4py import MPI
from minidnn.comm.mpi import MPICommunicator
from minidnn.errors import InputError

class World:
    def Get_attr(self, key):
        return 32767 if key == MPI.TAG_UB else None

try:
    MPICommunicator.world(World())
except InputError as error:
    print(error)
"""
    run = mpirun(1, program)
    assert "32767" in run.stdout and str(LAST_TAG) in run.stdout, run.stderr


@pytest.mark.parametrize("rendezvous", [False, True])
def test_a_send_and_a_receive_on_both_of_two_ranks_inside_forward(rendezvous):
    """The loss sum((x0 x1)^2) on rank 0: gradients 2 x0 x1^2 and 2 x0^2 x1, through messages that cross."""

    def main(comm):
        x, other = Tensor(np.arange(3.0) + 1 + comm.rank, requires_grad=True), 1 - comm.rank
        with Tape() as tape:
            y = functions.sendrecv(comm, {other: x}, {other: (3,)})[other] * x
            tape.backward((y * y).sum() if comm.rank == 0 else ())
        return x.grad

    x0, x1 = np.arange(3.0) + 1, np.arange(3.0) + 2
    grads = threads.run(2, main, rendezvous=rendezvous, debug=True)
    np.testing.assert_allclose(grads[0], 2 * x0 * x1**2)
    np.testing.assert_allclose(grads[1], 2 * x0**2 * x1)


@pytest.mark.parametrize("p", range(1, 6))
def test_a_halo_exchange_is_a_sum_over_neighbours_and_its_adjoint_adds_the_borders_back(p):
    """y[i] = x[i-1] + 2 x[i] + 4 x[i+1] along axis 1, in strips of uneven width, against one process."""
    widths, generator = (3, 1, 2, 4, 1)[:p], np.random.default_rng(p)
    whole, gy = generator.standard_normal((2, 2, sum(widths)))
    padded = np.pad(whole, ((0, 0), (1, 1)))
    expected = padded[:, :-2] + 2 * padded[:, 1:-1] + 4 * padded[:, 2:]
    padded = np.pad(gy, ((0, 0), (1, 1)))
    gradient = padded[:, 2:] + 2 * padded[:, 1:-1] + 4 * padded[:, :-2]

    def main(comm):
        r, start = comm.rank, sum(widths[: comm.rank])
        part = np.s_[:, start : start + widths[r]]
        x = Tensor(whole[part].copy(), requires_grad=True)
        left, right = [r - 1] * (r > 0), [r + 1] * (r < p - 1)
        with Tape() as tape:
            blocks = dict.fromkeys(left, x[:, :1]) | dict.fromkeys(right, x[:, -1:])
            got = functions.sendrecv(comm, blocks, dict.fromkeys(left + right, (2, 1)))
            edge = Tensor(np.zeros((2, 1)))
            low, high = (got[left[0]] if left else edge), (got[right[0]] if right else edge)
            wide = [low, *(x[:, i : i + 1] for i in range(widths[r])), high]
            columns = [wide[i] + wide[i + 1] * 2 + wide[i + 2] * 4 for i in range(widths[r])]
            gradients = np.split(gy[part], widths[r], axis=1)
            loss = sum((c * Tensor(g)).sum() for c, g in zip(columns, gradients, strict=True))
            y = np.concatenate([c.data for c in columns], axis=1)
            tape.backward(loss)
        return y, x.grad

    for rendezvous in (False, True):
        results = threads.run(p, main, rendezvous=rendezvous, debug=True)
        np.testing.assert_allclose(np.concatenate([y for y, _ in results], axis=1), expected)
        np.testing.assert_allclose(np.concatenate([g for _, g in results], axis=1), gradient)


@pytest.mark.parametrize("op", OPERATIONS)
def test_an_operation_sends_what_it_says_and_its_adjoint_is_an_inverse_table(op):
    """Shapes, messages and the way back of every operation, as data, against its execution on four ranks."""
    p, counts = 4, (2, 0, 3, 1)
    options = {"axis": 1, "counts": counts} if "block" in OPERATIONS[op] else {}
    if op == "all_to_all":
        options |= {"join_axis": -1, "joined": (1, 2, 0, 2)}
    operation = Operation(op, (2, 6, 5), root=1, **options)
    assert operation.adjoint.adjoint == operation
    for member in range(p):
        assert operation.adjoint.before(member) == operation.after(member)
        assert operation.adjoint.after(member) == operation.before(member)

    def main(comm):
        transport = Transport(comm)
        before, after = operation.before(comm.rank), operation.after(comm.rank)
        y = comm.start(steps(comm, operation, np.ones(before or 0))).wait()
        assert (None if y is None else y.shape) == after
        own = [move for moves in operation.rounds(p, comm.rank) for move in moves]
        sent = [8 * move.elements for move in own if move.kind == "send"]
        assert transport.totals()[:2] == (len(sent), sum(sent))
        if before is not None:
            with pytest.raises(ValueError, match=rf"rank {comm.rank} brings shape \(9,\), expected"):
                comm.start(steps(comm, operation, np.ones(9))).wait()

    threads.run(p, main, debug=True)
