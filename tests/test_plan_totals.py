"""The totals of a step over all ranks, against the list of every rank's messages."""

import pytest
from golden_plans import CASES, tiny
from parallel_cases import MODELS
from parallel_cases import SHAPE as LARGER

from minidnn.parallel import At, Mesh, Options, make_plan, make_strategy, place
from minidnn.parallel.totals import totals

SHAPE = (3, 3, 1)
MORE = {
    "3d": ("3d", {"micro_batches": 2, "mesh": Mesh(data=2, stage=2, model=2)}, 8),
    "tensor and data": ("tensor", {"mesh": Mesh(data=4, model=2)}, 8),
    "pipelines of three": ("layer_split", {"mesh": Mesh(stage=3, data=2), "micro_batches": 3}, 6),
    "hybrid b": ("hybrid", {"dp": 2, "scheme": "b", "fc_update": "each"}, 6),
    "hybrid c, sharded": ("hybrid", {"dp": 4, "scheme": "c", "sharded_momentum": True}, 8),
    "hierarchical": ("hybrid", {"dp": 2, "all_reduce": "hierarchical"}, 8),
    "direct": ("data", {"all_reduce": "direct"}, 5),
    "halving": ("data", {"all_reduce": "halving"}, 6),
}


def assert_totals(plan):
    sent = [m.bytes for rank in range(plan.size) for m in plan.messages(rank) if m.kind == "send"]
    assert totals(plan) == (len(sent), sum(sent))


def plan_of(strategy, ranks, options, batch, nodes=1):
    model = tiny()
    made = make_strategy(strategy, model, SHAPE, ranks, Options(**options))
    return make_plan(model, SHAPE, made, batch, nodes=tuple(r * nodes // ranks for r in range(ranks)))


@pytest.mark.parametrize("batch", [48, 53])
@pytest.mark.parametrize("ranks", [2, 3, 4, 6])
@pytest.mark.parametrize("name", CASES)
def test_totals_are_the_sum_of_all_messages(name, ranks, batch):
    strategy, options = CASES[name]
    if "dp" in options and ranks % options["dp"] or strategy == "alexnet2012" and ranks == 3:
        options = options | {"dp": 1}
    assert_totals(plan_of(strategy, ranks, options, batch))


@pytest.mark.parametrize("batch", [96, 101])
@pytest.mark.parametrize("name", MORE)
def test_totals_over_meshes(name, batch):
    strategy, options, ranks = MORE[name]
    assert_totals(plan_of(strategy, ranks, options, batch, nodes=2))
    assert_totals(plan_of(strategy, ranks, options, batch))


@pytest.mark.parametrize(("model", "strategy"), [("all", "spatial"), ("batch", "data"), ("batch", "spatial")])
def test_totals_with_halos_and_statistics(model, strategy):
    net = MODELS[model]()
    for batch in (12, 13):
        assert_totals(make_plan(net, LARGER, make_strategy(strategy, net, LARGER, 3, Options()), batch))


def test_totals_of_layers_on_one_rank_each():
    net = MODELS["plain"]()
    rules = {"conv1": At(0), "conv2": At(2), "fc6": At(1), "fc7": At(3)}
    assert_totals(make_plan(net, LARGER, place(rules)(net, LARGER, 4, Options()), 8))


def test_a_thousand_ranks():
    """Counted as sums over rings: 2 (p - 1) messages for each of p blocks, and three numbers by doubling."""
    plan = plan_of("data", 1024, {"bucket_mib": 25.0}, 2048)
    messages, sent = totals(plan)
    ring = 2 * 1023 * 130 * 4  # 130 parameters
    assert sent == ring + 1024 * 10 * 3 * 8 and messages == 2 * 1023 * 130 + 1024 * 10
