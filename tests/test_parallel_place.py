"""Placements written by hand, and drawn at random: all of them train to the weights of one process."""

import random

import pytest
from parallel_cases import MODELS, SHAPE, assert_equals_one_process

from minidnn import nn
from minidnn.comm.algorithms import OPERATIONS
from minidnn.errors import InputError
from minidnn.parallel import (
    At,
    Options,
    Partial,
    PlacementError,
    Replicate,
    Shard,
    check_plan,
    make_plan,
    place,
)

ROWS, COLUMNS, WHOLE, SUM = Shard(0), Shard(-1), Replicate(), Partial()

# One line a case. What a pattern does not name follows the layer before it.
BY_HAND = {
    "one weird trick": {"conv*": ROWS, "fc*": COLUMNS},
    "everything everywhere": {"*": WHOLE},
    "everything on the last rank": {"*": At(2)},
    "a tour of the ranks": {"conv1": At(0), "conv2": At(1), "fc6": At(2), "fc7": At(0)},
    "a pipeline that ends on rank 2": {"conv1": At(0), "conv2": At(1), "fc6": At(2)},
    "from one rank to all, by rows": {"conv1": At(1), "conv2": ROWS, "fc6": At(2), "fc7": ROWS},
    "from one rank to all, by columns": {"conv1": At(1), "pool1": COLUMNS, "fc6": At(0), "fc7": COLUMNS},
    "from one rank to all, whole": {"conv1": At(2), "conv2": WHOLE, "fc6": At(0), "fc7": SUM},
    "columns, rows, columns": {"conv1": COLUMNS, "conv2": ROWS, "fc6": COLUMNS, "fc7": ROWS, "fc8": COLUMNS},
    "sums to rows and to columns": {"conv2": SUM, "relu2": ROWS, "fc6": SUM, "relu6": COLUMNS},
    "sums to one rank": {"conv2": SUM, "relu2": At(1), "fc7": SUM, "relu7": At(2)},
    "the first layer by input channels": {"conv1": SUM, "relu1": COLUMNS, "conv2": WHOLE},
    "the first layer by output channels": {"conv1": COLUMNS, "conv2": SUM, "relu2": COLUMNS},
    "logits by columns, loss on a rank": {"fc*": COLUMNS, "loss": At(1)},
    "logits as sums, loss by rows": {"fc7": COLUMNS, "fc8": SUM, "loss": ROWS},
    "logits by rows, loss everywhere": {"fc8": ROWS, "loss": WHOLE},
    "logits on a rank, loss on another": {"fc8": At(2), "loss": At(0)},
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_equals_one_process(name):
    assert_equals_one_process("ungrouped", place(BY_HAND[name]), 3, 11, last=2, options={"micro_batches": 2})
    _assert_checked("ungrouped", BY_HAND[name], 3)


def _assert_checked(model, placements, ranks, options=None):
    """The static checker, too, finds that such a plan can run."""
    net, options = MODELS[model](), Options(dtype="float64", **(options or {}))
    check_plan(make_plan(net, SHAPE, place(placements)(net, SHAPE, ranks, options), 11))


@pytest.mark.parametrize("norm", [ROWS, COLUMNS, WHOLE, At(1)], ids=str)
def test_batch_norm_placed_anywhere(norm):
    assert_equals_one_process("batch", place({"conv1": ROWS, "norm1": norm, "conv2": COLUMNS}), 3, 11)


@pytest.mark.parametrize("seed", range(24))
def test_random_placements(seed):
    """Any layer anywhere it can be; what fails here is best cut down to a case above."""
    rng = random.Random(seed)
    model = rng.choice(["all", "skips", "long skips", "batch", "narrow", "towers"])
    ranks, net = rng.choice([2, 3, 4]), MODELS[model]()
    placements = {}
    for name in net.names:
        choice = rng.choice([ROWS, COLUMNS, WHOLE, SUM, At(rng.randrange(ranks))])
        try:
            place({name: choice})(net, SHAPE, ranks, Options())
        except PlacementError:
            continue  # it follows the layer before
        placements[name] = choice
    placements["loss"] = rng.choice([ROWS, WHOLE, At(rng.randrange(ranks))])
    options = {"bucket_mib": rng.choice([0, 1e-4, 25])}
    if model != "batch":
        options["micro_batches"] = rng.choice([1, 2])
    last = rng.choice([None, 1, 3])
    run = {"rendezvous": rng.random() < 0.3, "debug": rng.random() < 0.3}
    assert_equals_one_process(model, place(placements), ranks, 11, last=last, options=options, **run)
    _assert_checked(model, placements, ranks, options)


def build(placements, model="all", ranks=3):
    return place(placements)(MODELS[model](), SHAPE, ranks, Options())


def layout_of(strategy, name, model="all"):
    """Where the output of a layer lies along the only axis of the mesh."""
    return make_plan(MODELS[model](), SHAPE, strategy, 17).by_name[name].layout[0]


def test_the_first_pattern_counts():
    strategy = build({"fc7": At(1), "fc*": COLUMNS, "*": ROWS})
    placements = {name: layout_of(strategy, name) for name in ("conv1", "fc6", "fc7", "fc8", "loss")}
    assert placements == {"conv1": ROWS, "fc6": COLUMNS, "fc7": At(1), "fc8": COLUMNS, "loss": ROWS}


def test_what_is_not_named_follows_the_layer_before():
    strategy = build({"fc6": COLUMNS, "fc8": SUM})
    assert layout_of(strategy, "conv1") == layout_of(strategy, "pool2") == ROWS
    assert layout_of(strategy, "drop7") == COLUMNS
    assert layout_of(strategy, "loss") == WHOLE  # a sum is made before the loss


@pytest.mark.parametrize(
    ("placements", "error", "words"),
    [
        ({"conv9": ROWS}, InputError, ["'conv9'", "conv1", "fc8", "loss"]),
        ({"fc*": COLUMNS, "pool[34]": ROWS}, InputError, ["'pool[34]'"]),
        ({"conv*": ROWS, "conv1": COLUMNS}, InputError, ["'conv1' never applies", "put it first"]),
        ({"fc6": At(3)}, InputError, ["'fc6'", "rank 3", "3 ranks"]),
        ({"fc6": At(-1)}, InputError, ["'fc6'", "rank -1"]),
        ({"relu6": SUM}, PlacementError, ["relu6", "ReLU", "Partial"]),
        ({"conv2": SUM}, PlacementError, ["conv2", "Conv2d", "ungrouped"]),
        ({"flatten": Shard(2)}, PlacementError, ["flatten", "Shard(2)", "Shard(0) or Replicate()"]),
        ({"loss": SUM}, PlacementError, ["loss", "Partial"]),
        ({"loss": COLUMNS}, PlacementError, ["loss", "Shard(-1)"]),
        ({"fc6": "Shard(0)"}, InputError, ["'fc6'", "'Shard(0)'", "Replicate"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)  # fmt: skip
def test_what_cannot_be_placed(placements, error, words):
    with pytest.raises(error) as raised:
        build(placements, "all")
    for word in words:
        assert word in str(raised.value)


def test_an_axis_that_a_layer_does_not_have():
    with pytest.raises(PlacementError, match=r"fc6: Linear cannot be Shard\(3\)"):
        build({"fc6": Shard(3)})


@pytest.mark.parametrize(
    ("source", "target"), [(ROWS, WHOLE), (COLUMNS, WHOLE), (At(1), WHOLE), (ROWS, At(0)), (At(0), COLUMNS)]
)
def test_gradients_go_back_by_the_adjoint_of_the_way_there(source, target):
    """The plan's transfers and the differentiable functions of `minidnn.comm` have one table of adjoints."""
    net = nn.Sequential({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
    consumer = {WHOLE: COLUMNS, At(0): At(0), COLUMNS: SUM}[target]
    strategy = place({"a": source, "b": consumer, "loss": WHOLE})(net, (6,), 3, Options())
    plan = make_plan(net, (6,), strategy, 6)
    exchange = plan.by_name["b"].exchanges[0]
    there, back = ([t.op for t in plan.transfers(exchange, way, 0, 1)] for way in ("forward", "backward"))
    assert back == [OPERATIONS[op].adjoint for op in there]
