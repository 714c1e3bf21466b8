"""The plan says which messages a step sends; the ledger says which were sent. They are the same."""

import pytest
from parallel_cases import executor, feed
from test_parallel_equality import BASIC, GRIDS, VARIANTS, batch_for, model_for
from transport import Transport

from minidnn.comm import threads
from minidnn.parallel import At, Partial, Replicate, Shard, place

STEPS = 2

PLACED = {
    "rows, columns, a rank": {"conv1": Shard(0), "conv2": Shard(-1), "flatten": At(0), "fc6": Shard(0)},
    "sums": {"conv*": Replicate(), "fc6": Partial(), "relu6": Shard(0), "fc7": Partial(), "relu7": At(1)},
}


def run(comm, model, strategy, batch, options):
    """What a rank planned and what it did in each step, both as lists of comparable tuples."""
    transport, ledger = Transport(comm), comm.ledger
    running = executor(comm, model, strategy, batch, options)
    before = transport.totals()
    ledger.trace()
    for step in range(STEPS):
        ledger.begin_step(step)
        feed(running, step, batch)
        ledger.end_step()
    records = [r for r in ledger.records() if r["kind"] == "message"]
    done = [
        [(_of_record(r, comm.rank), r["tag"]) for r in records if r["step"] == step] for step in range(STEPS)
    ]
    planned = [_of_message(m) for m in running.plan.messages(comm.rank)]
    moved = tuple(a - b for a, b in zip(transport.totals(), before, strict=True))
    return planned, done, moved, ledger.traffic, running.plan.bytes_sent(comm.rank)


def _of_record(record, rank):
    peer = record["dest" if record["side"] == "send" else "source"]
    assert rank == record["source" if record["side"] == "send" else "dest"]
    return _tuple(record, record["side"], peer)


def _of_message(message):
    return _tuple(vars(message), message.kind, message.peer)


def _tuple(fields, side, peer):
    names = ("phase", "layer", "op", "algorithm", "index", "count", "bytes")
    # sums of gradients and metrics belong to no micro-batch: what either side has there means nothing
    micro_batch = fields["micro_batch"] if fields["phase"] in ("forward", "backward") else None
    return (side, peer, micro_batch, *(fields[name] for name in names))


def assert_as_planned(model, strategy, ranks, batch, options, in_order):
    """Compare plan and ledger of every rank, message by message, and the counters of ledger and transport."""
    for planned, done, moved, traffic, sent in threads.run(ranks, run, model, strategy, batch, options):
        for step in done:
            messages = [message for message, _ in step]
            if in_order:
                assert messages == planned
            assert len(messages) == len(planned)
            by_tag = [message for message, _ in sorted(step, key=lambda pair: pair[1])]
            assert _by_collective(by_tag) == _by_collective(planned)
        sends = [message[-1] for message in planned if message[0] == "send"]
        receives = [message[-1] for message in planned if message[0] == "recv"]
        assert sum(sends) == sent
        assert moved == tuple(
            STEPS * n for n in (len(sends), sum(sends), len(receives), sum(receives))
        )  # the transport
        assert moved == tuple(sum(column) for column in zip(*traffic.values(), strict=True)) or not any(moved)
        assert _cells(traffic) == _cells_of(planned)


def _by_collective(messages):
    """The messages of each (layer, phase, operation, micro-batch), each in its order.

    Collectives that are in flight together, as buckets during backward or a micro-batch's features during the
    work on another, move on as their messages arrive: which of the two posts its next round first is not
    determined, and does not matter. Within one of them the order is; and they start in the plan's order,
    so their tags rise.
    """
    found = {}
    for message in messages:
        _, _, micro_batch, phase, layer, op, *_ = message
        found.setdefault((layer, phase, op, micro_batch), []).append(message)
    return found


def _cells(traffic):
    return {key: tuple(cell) for key, cell in traffic.items() if any(cell)}


def _cells_of(planned):
    cells = {}
    for side, _, _, phase, layer, op, *_, n_bytes in planned:
        cell = cells.setdefault((layer, phase, op), [0, 0, 0, 0])
        first = 0 if side == "send" else 2
        cell[first] += STEPS
        cell[first + 1] += STEPS * n_bytes
    return {key: tuple(cell) for key, cell in cells.items()}


def overlaps(strategy, options):
    """Whether several collectives can be in flight at once."""
    summed = ("data", "owt", "hybrid", "alexnet2012")  # the last where there are more ranks than towers
    buckets = strategy in summed and options.get("bucket_mib", 25) > 0
    return buckets or options.get("scheme", "a") != "a"


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("name", BASIC)
def test_every_strategy(name, ranks):
    strategy, options = BASIC[name]
    model, in_order = model_for(name, "all"), not overlaps(strategy, options)
    assert_as_planned(model, strategy, ranks, batch_for(name, ranks), options, in_order)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_option(name):
    strategy, options = VARIANTS[name]
    assert_as_planned("all", strategy, 3, batch_for(name, 3), options, not overlaps(strategy, options))


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid(name):
    ranks, strategy, options = GRIDS[name]
    assert_as_planned("all", strategy, ranks, 19, options, not overlaps(strategy, options))


@pytest.mark.parametrize("algorithm", ["doubling", "halving", "tree", "direct", "hierarchical", "auto"])
def test_every_algorithm(algorithm):
    options = {"all_reduce": algorithm, "bucket_mib": 0}
    assert_as_planned("all", "data", 3, 17, options, in_order=True)
    assert_as_planned("all", "tensor", 3, 17, options, in_order=True)


def test_hierarchical_over_nodes():
    """The plan knows the host of each rank, and of the members of a column."""

    def main(comm, strategy, options):
        return run(comm, "all", strategy, 17, options | {"all_reduce": "hierarchical"})

    for strategy, options in (("data", {"bucket_mib": 0}), ("hybrid", {"dp": 2, "bucket_mib": 0})):
        for planned, done, *_ in threads.run(4, main, strategy, options, nodes=(0, 0, 0, 1)):
            assert [[message for message, _ in step] for step in done] == [planned] * STEPS


@pytest.mark.parametrize("scheme", ["b", "c"])
def test_update_after_every_micro_batch(scheme):
    options = {"scheme": scheme, "fc_update": "each"}
    assert_as_planned("all", "owt", 3, 17, options, in_order=False)
    assert_as_planned("all", "hybrid", 4, 17, options, in_order=False)


@pytest.mark.parametrize("strategy", ["data", "owt", "hybrid", "tensor", "layer_split"])
def test_statistics_of_batch_norm(strategy):
    assert_as_planned("batch", strategy, 4, 17, {"bucket_mib": 0}, in_order=True)


@pytest.mark.parametrize("strategy", ["data", "owt", "tensor", "layer_split"])
def test_skip_connections(strategy):
    for model in ("skips", "long skips"):
        assert_as_planned(model, strategy, 3, 17, {"bucket_mib": 0}, in_order=True)


@pytest.mark.parametrize("name", PLACED)
def test_placements_by_hand(name):
    assert_as_planned("ungrouped", place(PLACED[name]), 3, 17, {"bucket_mib": 0}, in_order=True)


def test_fewer_samples_than_ranks():
    """The plan of a small last batch has smaller messages, and leaves out those without content."""

    def main(comm):
        transport = Transport(comm)
        running = executor(comm, "all", "owt", 17, {"bucket_mib": 0})
        plan = running.plan_for(2, True)
        before = transport.totals()
        feed(running, 0, 2)
        after = transport.totals()
        return plan.messages(comm.rank), [a - b for a, b in zip(after, before, strict=True)]

    for planned, moved in threads.run(3, main):
        assert all(message.bytes > 0 for message in planned)
        for side, (count, total) in {"send": moved[:2], "recv": moved[2:]}.items():
            sizes = [message.bytes for message in planned if message.kind == side]
            assert (len(sizes), sum(sizes)) == (count, total)
