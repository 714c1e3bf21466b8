"""Every strategy, on every number of ranks, trains to the losses and weights of one process."""

import numpy as np
import pytest
from parallel_cases import assert_equals_one_process, executor, feed

from minidnn.comm import threads
from minidnn.comm.algorithms import ALGORITHMS

TINY = 1e-4  # MiB: a bucket of 13 float64 numbers
FACTORS = {"fc_gradients": "factors"}

# One line a case: a name, the strategy, its options.
BASIC = {
    "data": ("data", {}),
    "layer split": ("layer_split", {"micro_batches": 3}),
    "owt a": ("owt", {}),
    "owt b": ("owt", {"scheme": "b"}),
    "owt c": ("owt", {"scheme": "c"}),
    "hybrid": ("hybrid", {}),
    "tensor": ("tensor", {}),
    "alexnet2012": ("alexnet2012", {}),
}
VARIANTS = {
    "data, a sum for each parameter": ("data", {"bucket_mib": 0}),
    "data, tiny buckets": ("data", {"bucket_mib": TINY}),
    "data, sharded momentum": ("data", {"sharded_momentum": True}),
    "data, sharded momentum in tiny buckets": ("data", {"sharded_momentum": True, "bucket_mib": TINY}),
    "data, micro-batches": ("data", {"micro_batches": 2}),
    "data, micro-batches, naive sums": ("data", {"micro_batches": 2, "bucket_mib": 0}),
    "data, factors": ("data", FACTORS),
    "data, factors, tiny buckets": ("data", FACTORS | {"bucket_mib": TINY}),
    "data, factors, naive": ("data", FACTORS | {"bucket_mib": 0, "micro_batches": 2}),
    "data, factors, sharded momentum": ("data", FACTORS | {"sharded_momentum": True}),
    "data, factors, sharded momentum, micro-batches": (
        *("data",),
        FACTORS | {"sharded_momentum": True, "micro_batches": 3, "all_reduce": "direct"},
    ),
    "layer split, whole batch": ("layer_split", {}),
    "layer split, naive": ("layer_split", {"micro_batches": 4, "schedule": "naive"}),
    "layer split, gpipe": ("layer_split", {"micro_batches": 4, "schedule": "gpipe"}),
    "layer split, zb-h1": ("layer_split", {"micro_batches": 4, "schedule": "zb-h1"}),
    "layer split, zb-h1, more chunks": ("layer_split", {"micro_batches": 11, "schedule": "zb-h1"}),
    "owt a, pairs": ("owt", {"fc_pairs": True}),
    "owt b, pairs": ("owt", {"fc_pairs": True, "scheme": "b"}),
    "owt c, pairs": ("owt", {"fc_pairs": True, "scheme": "c"}),
    "owt a, sharded momentum": ("owt", {"sharded_momentum": True}),
    "owt c, pairs, factors": ("owt", FACTORS | {"fc_pairs": True, "scheme": "c"}),
    "owt c, naive sums": ("owt", {"scheme": "c", "bucket_mib": 0}),
    "tensor, micro-batches": ("tensor", {"micro_batches": 2}),
    "alexnet2012, micro-batches": ("alexnet2012", {"micro_batches": 2}),
}
GRIDS = {
    "hybrid 2 x 2 b": (4, "hybrid", {"scheme": "b"}),
    "hybrid 2 x 2 c": (4, "hybrid", {"scheme": "c"}),
    "hybrid 2 x 2, pairs": (4, "hybrid", {"fc_pairs": True}),
    "hybrid 2 x 2, pairs b": (4, "hybrid", {"fc_pairs": True, "scheme": "b"}),
    "hybrid 2 x 2, sharded momentum": (4, "hybrid", {"sharded_momentum": True, "bucket_mib": TINY}),
    "hybrid 2 x 2, naive sums": (4, "hybrid", {"scheme": "c", "bucket_mib": 0}),
    "hybrid 2 x 2, factors": (4, "hybrid", FACTORS),
    "hybrid 2 x 2 b, factors, sharded momentum": (
        *(4, "hybrid"),
        FACTORS | {"scheme": "b", "sharded_momentum": True},
    ),
    "alexnet2012 2 x 2, factors, sharded momentum": (
        *(4, "alexnet2012"),
        FACTORS | {"sharded_momentum": True},
    ),
    "alexnet2012 1 x 4": (4, "alexnet2012", {"dp": 1}),
    "hybrid 2 x 2, pairs c, factors": (4, "hybrid", FACTORS | {"fc_pairs": True, "scheme": "c"}),
    "hybrid 3 x 2": (6, "hybrid", {"dp": 3}),
    "hybrid 2 x 3 c": (6, "hybrid", {"dp": 2, "scheme": "c"}),
    "hybrid 4 x 1: data parallel": (4, "hybrid", {"dp": 4}),
    "hybrid 1 x 4: owt": (4, "hybrid", {"dp": 1}),
}


def batch_for(name, ranks):
    """Not divisible by anything in sight; scheme (c) needs a sample for each rank in each of its chunks."""
    return {5: 27, 8: 67}.get(ranks, 17) if " c" in name else 17


def model_for(name, model):
    """The towers of 2012 are defined for grouped convolutions only."""
    if not name.startswith("alexnet2012"):
        return model
    return {"plain": "groups", "dropout": "all", "lrn": "all", "batch": "batch and groups"}.get(model, model)


FEATURES = ("plain", "dropout", "lrn", "batch", "groups", "all")  # "all" is dropout, LRN and groups together
GRID = [(ranks, feature) for ranks in (1, 2, 3, 4, 5, 8) for feature in FEATURES]


@pytest.mark.parametrize(("ranks", "feature"), GRID)
@pytest.mark.parametrize("name", BASIC)
def test_equals_one_process(name, ranks, feature):
    strategy, options = BASIC[name]
    if feature == "batch":  # the statistics are those of the whole batch only where it is in one piece
        options = {key: value for key, value in options.items() if key != "micro_batches"}
    batch = batch_for(name, ranks)
    assert_equals_one_process(model_for(name, feature), strategy, ranks, batch, options=options)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_options_do_not_change_the_result(name, ranks):
    strategy, options = VARIANTS[name]
    assert_equals_one_process("all", strategy, ranks, batch_for(name, ranks), options=options)


@pytest.mark.parametrize("name", GRIDS)
def test_process_grids(name):
    ranks, strategy, options = GRIDS[name]
    assert_equals_one_process("all", strategy, ranks, 19, options=options)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS["all_reduce"], "auto"])
@pytest.mark.parametrize("strategy", ["data", "owt"])
def test_all_reduce_algorithms(strategy, algorithm):
    assert_equals_one_process("all", strategy, 3, options={"all_reduce": algorithm, "bucket_mib": 0.005})


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_stages_by_hand(ranks):
    """Stages of one layer, stages that begin at any layer, and one that holds no weights."""
    stages = {1: (), 2: (1,), 3: (2, 12), 5: (3, 4, 7, 14)}[ranks]
    assert_equals_one_process("all", "layer_split", ranks, options={"stages": stages, "micro_batches": 5})


@pytest.mark.parametrize("ranks", [3, 5])
@pytest.mark.parametrize("name", [name for name in BASIC if name != "alexnet2012"])
def test_fewer_features_than_ranks(name, ranks):
    strategy, options = BASIC[name]
    assert_equals_one_process("narrow", strategy, ranks, batch_for(name, ranks), options=options)


@pytest.mark.parametrize("ranks", [3, 4])
def test_towers_that_the_groups_do_and_do_not_fill(ranks):
    assert_equals_one_process("towers", "alexnet2012", ranks)
    assert_equals_one_process("towers", "tensor", ranks)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", [name for name in BASIC if name != "alexnet2012"])
def test_skip_connections(name, ranks):
    """Within a segment, across the border between two, and past stages that only pass the value on."""
    strategy, options = BASIC[name]
    assert_equals_one_process("skips", strategy, ranks, batch_for(name, ranks), options=options)
    assert_equals_one_process("long skips", strategy, ranks, batch_for(name, ranks), options=options)


@pytest.mark.parametrize("last", [7, 1])
@pytest.mark.parametrize("name", BASIC)
def test_last_batch_is_smaller(name, last):
    """Down to fewer samples than there are ranks or chunks."""
    strategy, options = BASIC[name]
    assert_equals_one_process("all", strategy, 4, batch_for(name, 4), last=last, options=options)


@pytest.mark.parametrize("last", [3, 1])
@pytest.mark.parametrize(
    "options",
    [{"sharded_momentum": True}, {"bucket_mib": 0}, {"micro_batches": 4}, FACTORS],
    ids=str,
)
def test_last_batch_is_smaller_with_options(options, last):
    assert_equals_one_process("all", "data", 4, last=last, options=options)
    if "micro_batches" not in options:
        assert_equals_one_process("all", "hybrid", 4, last=last, options=options)


@pytest.mark.parametrize("options", [{"sync_batch_norm": False}, {"micro_batches": 4}], ids=str)
@pytest.mark.parametrize("strategy", ["data", "layer_split", "tensor"])
def test_batch_norm_without_a_sample(strategy, options):
    """A rank, or a chunk on all ranks, of which a small last batch leaves nothing: it changes no statistics."""

    def main(comm):
        running = executor(comm, "batch", strategy, 17, options)
        for step, batch in enumerate((17, 2, 1)):
            feed(running, step, batch)
        norm = running.replica.layers.get("norm1")
        return feed(running, 0, 17, training=False).loss, norm and float(norm.running_var.data.sum())

    for loss, variance in threads.run(3, main):
        assert np.isfinite(loss) and (variance is None or np.isfinite(variance))


@pytest.mark.parametrize("ranks", [3, 5])
def test_batch_norm_of_fewer_channels_than_ranks(ranks):
    assert_equals_one_process("narrow batch", "tensor", ranks)


@pytest.mark.parametrize("run", [{"rendezvous": True}, {"debug": True}], ids=str)
@pytest.mark.parametrize("name", BASIC)
def test_whatever_the_transport_does(name, run):
    """Sends that wait for their receivers do not deadlock; headers find nothing to complain about."""
    strategy, options = BASIC[name]
    model = "towers" if name == "alexnet2012" else "skips"
    assert_equals_one_process(model, strategy, 3, options=options, **run)
