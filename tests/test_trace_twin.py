"""Every message of a traced run against the same slice in one process."""

import json
import sys

import numpy as np
import pytest
from parallel_cases import MODELS, SEED, STEPS, executor, feed, images, optimiser

from minidnn.comm import threads, trace_files
from minidnn.parallel import Mesh
from minidnn.parallel.nonfinite import NonFiniteError
from minidnn.report.tables import report
from minidnn.report.trace import load
from minidnn.train import Twin, parse, parser
from minidnn.train.comparison import Comparison
from minidnn.train.reference import Reference
from minidnn.train.trainer import train
from minidnn.train.twin import micro_batch_rows

LIMIT = 1e-12
TINY = 1e-4  # MiB: several buckets


def twin_arguments(model, running, options):
    """What `Twin` is made of, for an executor."""
    fc_start = rows = None
    if running.strategy.update_groups == ("conv", "fc"):
        fc_start, mesh = running.strategy.starts[0], running.strategy.mesh
        if options.get("fc_update") == "each":
            rows = micro_batch_rows(
                options.get("scheme", "a"), dict(zip(mesh.names, mesh.sizes, strict=True))
            )
    return MODELS[model](), optimiser, SEED, "float64", fc_start, rows


def traced(comm, model, strategy, batches, options, spoil=None):
    """Train with a comparison; this rank's messages."""
    running = executor(comm, model, strategy, batches[0], options)
    comparison = Comparison(running, Reference(running, *twin_arguments(model, running, options)))
    if spoil is not None:
        spoil(comm.rank, running.replica.variables)
    comm.ledger.trace()
    for step, batch in enumerate(batches):
        x, labels = images(batch)
        loss = comparison.step(x[step], labels[step])
        comm.ledger.begin_step(step)
        result = feed(running, step, batch)
        comm.ledger.end_step(result.loss, batch)
        assert spoil is not None or abs(result.loss - loss) < LIMIT
    return [record for record in comm.ledger.records() if record["kind"] == "message"]


def has_counterpart(record):
    """Whether one process forms what is sent, worked out by hand for algorithms that first sum, then spread."""
    if record["phase"] == "metrics" or not record["tensor"]:
        return False
    if record["op"] == "all_reduce" and record["algorithm"] != "doubling":
        return record["index"] > record["count"] / 2
    if record["op"] == "halo" and record["phase"] == "backward":  # the borders are added on arrival
        return False
    return record["op"] not in ("all_reduce", "reduce_scatter", "reduce")


CASES = {
    "data": (3, "all", "data", {}),
    "data on two ranks, direct": (2, "batch", "data", {"all_reduce": "direct"}),
    "data, halving, small buckets": (4, "plain", "data", {"all_reduce": "halving", "bucket_mib": TINY}),
    "data, tree, naive sums": (3, "skips", "data", {"all_reduce": "tree", "bucket_mib": 0}),
    "data, doubling": (2, "plain", "data", {"all_reduce": "doubling"}),
    "data, sharded momentum": (3, "all", "data", {"sharded_momentum": True, "bucket_mib": TINY}),
    "data, factors, micro-batches": (3, "all", "data", {"fc_gradients": "factors", "micro_batches": 2}),
    "data, factors, sharded momentum": (
        *(2, "skips", "data"),
        {"fc_gradients": "factors", "sharded_momentum": True},
    ),
    "hybrid, factors": (4, "all", "hybrid", {"fc_gradients": "factors", "fc_pairs": True}),
    "layer split": (2, "all", "layer_split", {"micro_batches": 3}),
    "layer split, zb-h1": (3, "dropout", "layer_split", {"micro_batches": 4, "schedule": "zb-h1"}),
    "layer split, skips": (3, "long skips", "layer_split", {"micro_batches": 2}),
    "owt a": (2, "all", "owt", {}),
    "owt b": (3, "all", "owt", {"scheme": "b"}),
    "owt c": (3, "all", "owt", {"scheme": "c"}),
    "owt, skips over the border": (3, "long skips", "owt", {"scheme": "c"}),
    "owt a, pairs": (3, "all", "owt", {"fc_pairs": True}),
    "owt b, an update for each micro-batch": (2, "all", "owt", {"scheme": "b", "fc_update": "each"}),
    "owt c, pairs, an update for each micro-batch": (
        *(2, "all", "owt"),
        {"scheme": "c", "fc_pairs": True, "fc_update": "each"},
    ),
    "hybrid c, an update for each micro-batch": (
        *(4, "dropout", "hybrid"),
        {"scheme": "c", "fc_update": "each", "sharded_momentum": True, "bucket_mib": TINY},
    ),
    "tensor": (3, "all", "tensor", {}),
    "tensor, batch norm, micro-batches": (2, "batch", "tensor", {}),
    "alexnet2012": (2, "all", "alexnet2012", {}),
    "spatial": (2, "all", "spatial", {}),
    "3d": (4, "plain", "3d", {"micro_batches": 2}),
    "owt in stages": (4, "all", "owt", {"mesh": Mesh(stage=2, model=2), "micro_batches": 2}),
    "hybrid b, the mesh the other way round": (
        *(4, "all", "owt"),
        {"mesh": Mesh(model=2, data=2), "scheme": "b", "fc_update": "each"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_message_that_one_process_knows_is_the_same_there(name):
    ranks, model, strategy, options = CASES[name]
    sent = []
    for rank, records in enumerate(threads.run(ranks, traced, model, strategy, (17, 17, 13), options)):
        assert all(r["difference"] is None for r in records if r["side"] == "recv")
        sent += [(rank, r) for r in records if r["side"] == "send"]
    wrong = [(rank, r) for rank, r in sent if (r["difference"] is not None) != has_counterpart(r)]
    assert not wrong, f"{len(wrong)} of {len(sent)}, first {wrong[0]}"
    compared = [r["difference"] for _, r in sent if r["difference"] is not None]
    assert max(compared, default=0) <= LIMIT
    assert compared or name == "data, doubling"


def test_how_many_messages_of_a_ring_are_compared():
    """Of 2 (p - 1) rounds the last p - 1 pass on what is summed; the metrics' all_reduce is never compared."""
    for records in threads.run(3, traced, "plain", "data", (17,) * STEPS, {}):
        gradients = [r for r in records if (r["side"], r["phase"]) == ("send", "gradient sync")]
        assert {r["tensor"] for r in gradients} == {"fc8.b..conv1.W"}
        assert [r["difference"] is None for r in gradients] == STEPS * [True, True, False, False]
        assert {r["difference"] for r in records if r["phase"] == "metrics"} == {None}


def spoil(name, by, on):
    """Add to one weight of one rank."""

    def change(rank, parameters):
        if rank == on:
            parameters[name].data.reshape(-1)[0] += by

    return change


def forward(records):
    """What a rank sends in the first step forward: (layer that asks, value, whether it is as in one process)."""
    chosen = [r for r in records if (r["side"], r["phase"], r["step"]) == ("send", "forward", 0)]
    return [
        (r["layer"], r["tensor"], r["difference"] <= LIMIT) for r in chosen if r["difference"] is not None
    ]


def test_a_wrong_weight_shows_first_in_what_its_layer_computes():
    change = spoil("conv2.W", 1e-3, on=1)
    out = threads.run(2, traced, "plain", "tensor", (17,), {}, change)
    assert forward(out[1])[:2] == [("conv2", "pool1", True), ("flatten", "pool2", False)]
    assert ("flatten", "pool2", True) in forward(out[0])  # this rank's channels are right
    out = threads.run(3, traced, "plain", "layer_split", (17,), {}, spoil("fc6.W", 1e-3, on=2))
    assert [fine for rank in range(3) for _, _, fine in forward(out[rank])] == [True, True]
    back = [r for r in out[2] if (r["side"], r["phase"]) == ("send", "backward")]
    assert [r["difference"] > LIMIT for r in back] == [True]
    out = threads.run(2, traced, "plain", "owt", (17,), {}, spoil("fc7.b", 1e-3, on=0))
    asked = [(layer, fine) for layer, _, fine in forward(out[0])]
    assert asked == [("fc6", True), ("fc7", True), ("fc8", False), ("loss", False)]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_difference_without_bound_is_still_json():
    def main(comm):
        try:
            return traced(comm, "plain", "layer_split", (17,), {}, spoil("conv1.W", np.inf, on=0))
        except NonFiniteError:
            return [record for record in comm.ledger.records() if record["kind"] == "message"]

    out = threads.run(2, main)
    assert [r["difference"] for r in out[0] if r["phase"] == "forward"] == [sys.float_info.max]
    json.dumps(out, allow_nan=False)


@pytest.mark.parametrize(
    ("model", "strategy", "options"),
    [
        ("all", "owt", {}),
        ("batch", "owt", {}),
        ("skips", "data", {}),
        ("long skips", "data", {}),
        ("all", "owt", {"scheme": "b", "fc_update": "each"}),
        ("skips", "owt", {"scheme": "c", "fc_update": "each"}),
    ],
)
def test_layer_by_layer_is_the_same_training_to_the_bit(model, strategy, options):
    def main(comm):
        running = executor(comm, model, strategy, 17, options)
        twins = [Twin(*twin_arguments(model, running, options))]
        twins.append(Reference(running, *twin_arguments(model, running, options)))
        for step, batch in enumerate((17, 17, 5)):
            x, labels = images(batch)
            first, second = (twin.step(x[step], labels[step]) for twin in twins)
            assert first == second
        return [twin.model.state_dict() for twin in twins]

    first, second = threads.run(3, main)[0]
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name


def test_nothing_is_compared_unless_traced_and_asked():
    def never(*details):
        raise AssertionError("compared")

    def main(comm):
        running = executor(comm, "plain", "owt", 17, {})
        assert comm.ledger.reference is None
        comm.ledger.reference = never
        feed(running, 0, 17)
        comm.ledger.reference = None
        comm.ledger.trace()
        feed(running, 1, 17)
        return {r["difference"] for r in comm.ledger.records() if r["kind"] == "message"}

    assert threads.run(2, main) == [{None}, {None}]


def test_the_table_of_a_trace_counts_what_is_compared(tmp_path):
    def main(comm):
        run = trace_files.prepare(comm, tmp_path / "t")
        traced(comm, "batch", "data", (17, 17), {})
        trace_files.write(comm, tmp_path / "t", run)

    threads.run(2, main)
    text = report(load(tmp_path / "t"))
    rows = [line.split() for line in text[text.index("The largest difference") :].splitlines()[1:]]
    assert rows[0][-5:] == ["collective", "messages", "compared", "largest", "difference"]
    row = next(row for row in rows if row[:2] == ["gradient", "sync"])
    assert row[3:6] == ["all_reduce", "8", "4"] and float(row[6]) <= LIMIT
    assert ["metrics", "loss", "all_reduce", "4", "0"] in rows and [
        "forward",
        "norm1",
        "all_reduce",
        "8",
        "0",
    ] in rows
    assert text.rstrip().endswith("partial sums, batch-norm statistics, metrics.")


def test_a_training_program_compares_while_it_traces(tmp_path, capsys):
    words = "--model lenet --image 28 --classes 3 --images 16 --batch 8 --validation 0 --steps 2 --epochs 1"
    words += f" --strategy owt --dtype float64 --check --quiet --trace {tmp_path / 't'}"

    def main(comm):
        train(comm, parse(parser("a test", None), words.split()))

    threads.run(2, main)
    out = capsys.readouterr().out
    assert "The largest difference from the one-process run" in out and "ok" in out.splitlines()[-1]
    compared = [m.difference for m in load(tmp_path / "t").messages if m.difference is not None]
    assert len(compared) == 2 * 2 * 5 and max(compared) <= LIMIT
