"""Programs that break the protocol, with the header check on: each is caught and explained, none hangs."""

import numpy as np
import pytest
from transport import Transport

from minidnn.comm import collectives as c
from minidnn.comm import threads
from minidnn.comm.communicator import DeadlockError, ProtocolError

X = np.ones(6, np.float32)
ODD = 2  # the rank that does something else


def only(rank, call, otherwise=None):
    """A program in which one rank does something else."""

    def program(comm):
        action = call if comm.rank == rank else otherwise
        if action is not None:
            action(comm)

    return program


def both(*programs):
    return lambda comm: [program(comm) for program in programs]


def layer(name, call):
    def program(comm):
        with comm.ledger.scope(layer=name, phase="backward"):
            call(comm)

    return program


def ring(comm):
    c.all_reduce(comm, X)


FAULTS = {
    "wrong size": (only(ODD, lambda m: c.all_reduce(m, X[:5]), ring), "differ in elements"),
    "wrong dtype": (only(ODD, lambda m: c.all_reduce(m, X.astype(float)), ring), "differ in dtype"),
    "other algorithm": (only(ODD, lambda m: c.all_reduce(m, X, "tree"), ring), "differ in algorithm"),
    "other collective": (only(ODD, lambda m: c.all_gather(m, X), ring), "differ in operation"),
    "broadcast from two roots": (
        only(ODD, lambda m: c.broadcast(m, X, 1), lambda m: c.broadcast(m, X, 0)),
        "differ in root",
    ),
    "reduce to two roots": (
        only(ODD, lambda m: c.reduce(m, X, 1), lambda m: c.reduce(m, X, 0)),
        "differ in root",
    ),
    "scatter from two roots": (
        only(ODD, lambda m: c.scatter(m, X, 1, (2, 2, 1, 1)), lambda m: c.scatter(m, X, 0, (2, 2, 1, 1))),
        "differ in root",
    ),
    "other blocks": (
        only(
            ODD,
            lambda m: c.reduce_scatter(m, X, (3, 1, 1, 1)),
            lambda m: c.reduce_scatter(m, X, (0, 2, 2, 2)),
        ),
        "in blocks (3, 1, 1, 1)",
    ),
    "gather of other blocks": (
        only(ODD, lambda m: c.gather(m, X, 0, (6, 6, 6, 7)), lambda m: c.gather(m, X)),
        "differ in elements",
    ),
    "other matrix": (
        only(
            ODD,
            lambda m: c.all_to_all(m, X[:4]),
            lambda m: c.all_to_all(m, X[:4], [[1] * 4] * 3 + [[2, 1, 1, 0]]),
        ),
        "in blocks ((1, 1, 1, 1), (1, 1",
    ),
    "order of two layers": (
        only(
            ODD,
            both(layer("fc6", ring), layer("fc7", ring)),
            both(layer("fc7", ring), layer("fc6", ring)),
        ),
        "differ in layer",
    ),
    "order of two collectives": (
        only(ODD, both(ring, lambda m: c.broadcast(m, X)), both(lambda m: c.broadcast(m, X), ring)),
        "differ in operation",
    ),
    "a call left out": (
        only(ODD, layer("fc7", ring), both(layer("fc6", ring), layer("fc7", ring))),
        "differ in layer",
    ),
    "the last call left out": (only(ODD, ring, both(ring, layer("fc8", ring))), "layer fc8"),
    "one call too many": (only(ODD, both(ring, layer("fc8", ring)), ring), "layer fc8"),
    "an early exit": (only(ODD, None, layer("fc6", ring)), "rank 2 has finished"),
    "a message nobody receives": (only(ODD, lambda m: c.send(m, X, 0)), "not received"),
    "a message nobody sends": (
        only(ODD, layer("fc6", lambda m: c.recv(m, (6,), np.float32, 0))),
        "layer fc6",
    ),
    "a message of another size": (
        both(only(ODD, lambda m: c.send(m, X, 0)), only(0, lambda m: c.recv(m, (5,), np.float32, ODD))),
        "differ in elements",
    ),
    "a message of another dtype": (
        both(only(ODD, lambda m: c.send(m, X, 0)), only(0, lambda m: c.recv(m, (6,), np.int32, ODD))),
        "differ in dtype",
    ),
    "another tag": (
        both(only(ODD, lambda m: c.send(m, X, 0, 1)), only(0, lambda m: c.recv(m, (6,), np.float32, ODD, 2))),
        "rank 0 waits to receive from rank 2",
    ),
    "the wrong source": (
        both(only(ODD, lambda m: c.send(m, X, 0)), only(0, lambda m: c.recv(m, (6,), np.float32, 1))),
        "rank 0 waits to receive from rank 1",
    ),
    "a receive in place of a collective": (
        only(ODD, lambda m: c.recv(m, (6,), np.float32, 0), ring),
        "all_reduce",
    ),
    "a group without one of its members": (
        only(ODD, lambda m: m.split(1), lambda m: ring(m.split(0)) if m.rank else m.split(0)),
        "rank 0 has finished",
    ),
    "another layer": (only(ODD, layer("conv1", ring), layer("conv2", ring)), "layer conv1"),
}


@pytest.mark.parametrize("rendezvous", [False, True], ids=["buffered", "rendezvous"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_protocol_is_caught(fault, rendezvous):
    program, text = FAULTS[fault]
    with pytest.raises((ProtocolError, DeadlockError, ValueError)) as caught:
        threads.run(4, program, debug=True, rendezvous=rendezvous, timeout=20)
    if not (rendezvous and text == "not received"):
        assert text in str(caught.value)


def test_the_complaint_names_operation_layer_ranks_and_difference():
    program = only(ODD, layer("fc7", lambda m: c.all_reduce(m, X[:4])), layer("fc6", ring))
    with pytest.raises(ProtocolError) as caught:
        threads.run(4, program, debug=True)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the ranks differ in elements, counts, layer"
    assert "ranks 0, 1, 3: all_reduce ring of 6 float32, root 0, layer fc6, phase backward" in lines[1]
    assert "rank 2: all_reduce ring of 4 float32, root 0, layer fc7, phase backward" in lines[2]


def test_twenty_faults_and_more():
    assert len(FAULTS) >= 20


def test_headers_are_in_no_ledger():
    def main(comm):
        transport = Transport(comm)
        ring(comm)
        return comm.ledger.totals(), transport.totals(), transport.control

    plain, checked = threads.run(4, main), threads.run(4, main, debug=True)
    assert [a[:2] for a in plain] == [b[:2] for b in checked]
    assert plain[0][2] == 0 and checked[0][2] == 3
