"""Bad input to the parallel part: one error that says what is wrong, the same on every rank."""

import numpy as np
import pytest
from parallel_cases import CLASSES, MODELS, SEED, SHAPE, executor, feed, images, network, optimiser

from minidnn import nn
from minidnn.comm import threads
from minidnn.errors import InputError
from minidnn.parallel import At, Executor, NonFiniteError, Options, Shard, make_plan, make_strategy, place
from minidnn.parallel.fingerprint import check_same

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of numbers that overflow

# -- ranks that do not run the same program ----------------------------------------------------------------

ALIKE = {"model": "plain", "shape": SHAPE, "batch": 17, "seed": 3, "strategy": "data", "options": {}}

# What rank 1 of 3 has otherwise, and the words that the error must have.
DIFFERENT = {
    "the model": ({"model": "lrn"}, ["the model is pool1: MaxPool2d", "norm1: LocalResponseNorm", "on rank 1"]),
    "a late layer": ({"model": "wider"}, ["fc7: Linear(in_features=10, out_features=9", "out_features=11"]),
    "the image": ({"shape": (8, 8, 1), "model": "grey"}, ["in_channels=3", "in_channels=1"]),
    "the batch": ({"batch": 18}, ["the batch is 17 on ranks 0, 2 but 18 on rank 1"]),
    "the seed": ({"seed": 4}, ["the seed is 3 on ranks 0, 2 but 4 on rank 1"]),
    "the strategy": ({"strategy": "owt"}, ["the strategy is data on ranks 0, 2 but owt on rank 1"]),
    "the scheme": ({"options": {"scheme": "b"}}, ["scheme is a on ranks 0, 2 but b on rank 1"]),
    "the buckets": ({"options": {"bucket_mib": 1.0}}, ["bucket_mib is 25.0", "1.0 on rank 1"]),
    "the micro-batches": ({"options": {"micro_batches": 2}}, ["micro-batches is (1,)", "(2,) on rank 1"]),
    "the dtype": ({"options": {"dtype": "float64"}}, ["dtype is float32", "float64 on rank 1"]),
}  # fmt: skip


def build(comm, model, shape, batch, seed, strategy, options):
    models = MODELS | {"wider": lambda: widened(), "grey": lambda: grey()}
    net, options = models[model](), Options(**options)
    made = make_strategy(strategy, net, shape, comm.size, options)
    return Executor(net, shape, made, comm, batch, seed, optimiser)


def widened():
    return nn.Sequential({**network().layers, "fc7": nn.Linear(10, 11), "fc8": nn.Linear(11, CLASSES)})


def grey():
    return nn.Sequential({**network().layers, "conv1": nn.Conv2d(1, 8, 3, padding=1)})


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_programs(name):
    change, words = DIFFERENT[name]

    def main(comm):
        with pytest.raises(InputError) as raised:
            build(comm, **(ALIKE | (change if comm.rank == 1 else {})))
        return str(raised.value)

    texts = threads.run(3, main)
    assert len(set(texts)) == 1, "every rank says the same"
    assert "the ranks do not run the same program" in texts[0]
    for word in words:
        assert word in texts[0]


def test_different_placements():
    def main(comm):
        net = MODELS["plain"]()
        made = place({"fc*": Shard(-1 if comm.rank else 0)})(net, SHAPE, 2, Options())
        Executor(net, SHAPE, made, comm, 17, SEED, optimiser)

    with pytest.raises(InputError, match=r"the splits is fc6: n=ranks on rank 0 but fc6: o=ranks on rank 1"):
        threads.run(2, main)


def test_different_stages():
    options = {0: {"stages": (3,)}, 1: {"stages": (7,)}}

    def main(comm):
        build(comm, **(ALIKE | {"strategy": "layer_split", "options": options[comm.rank]}))

    with pytest.raises(
        InputError, match=r"the first layers of the stages is \('conv2',\) on rank 0 but \('fc6',\) on rank 1"
    ):
        threads.run(2, main)


def test_every_value_has_its_ranks():
    def main(comm):
        check_same(comm, {"the seed": 5, "the batch": {0: 8, 1: 4, 2: 8, 3: 2}[comm.rank]})

    with pytest.raises(InputError, match="the batch is 8 on ranks 0, 2 but 4 on rank 1 but 2 on rank 3"):
        threads.run(4, main)


def test_a_long_value_is_shown_where_it_differs():
    def main(comm):
        check_same(comm, {"the table": "x" * 500 + str(comm.rank) + "y" * 500})

    with pytest.raises(InputError) as raised:
        threads.run(2, main)
    assert "xxx0yyy" in str(raised.value) and "xxx1yyy" in str(raised.value)
    assert len(str(raised.value)) < 400


def test_the_same_programs_pass():
    threads.run(3, lambda comm: build(comm, **ALIKE))


def test_a_strategy_for_another_number_of_ranks():
    def main(comm):
        net = MODELS["plain"]()
        made = make_strategy("data", net, SHAPE, 3, Options())
        Executor(net, SHAPE, made, comm, 17, SEED, optimiser)

    with pytest.raises(ValueError, match="strategy 'data' is made for 3 ranks, not 2"):
        threads.run(2, main)


# -- numbers that are not finite ---------------------------------------------------------------------------


def nonfinite(ranks, strategy, spoil, model="all", at=1, **options):
    """The error of every rank, after `spoil(running)` before step number `at`."""

    def main(comm):
        running = executor(comm, model, strategy, 17, options)
        with pytest.raises(NonFiniteError) as raised:
            for step in range(3):
                if step == at:
                    spoil(running)
                feed(running, step, 17)
        return str(raised.value)

    texts = threads.run(ranks, main)
    assert len(set(texts)) == 1, "every rank says the same"
    return texts[0]


def poison(name, value=np.nan, on=None):
    """Put a value into a parameter, wherever it is held (or on one rank only)."""

    def spoil(running):
        parameter = running.replica.variables.get(name)
        if parameter is not None and parameter.size and on in (None, running.comm.rank):
            parameter.data[(-1,) * parameter.ndim] = value

    return spoil


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("data", {}),
        ("data", {"bucket_mib": 0, "micro_batches": 2}),
        ("layer_split", {"micro_batches": 3}),
        ("layer_split", {"micro_batches": 3, "schedule": "zb-h1"}),
        ("owt", {}),
        ("owt", {"scheme": "b"}),
        ("owt", {"scheme": "c", "fc_update": "each"}),
        ("hybrid", {"sharded_momentum": True}),
        ("tensor", {}),
        ("alexnet2012", {}),
    ],
    ids=str,
)
def test_weights_that_are_not_numbers(strategy, options):
    text = nonfinite(4, strategy, poison("conv2.W"), **options)
    assert "step 1:" in text and "weights of layer 'conv2'" in text


@pytest.mark.parametrize("strategy", ["data", "owt", "layer_split"])
def test_found_on_one_rank_only(strategy):
    """The weights of one rank are spoilt; the others hear of it."""
    held_by = 2 if strategy == "layer_split" else 1
    text = nonfinite(3, strategy, poison("fc8.b", np.inf, on=held_by), bucket_mib=0)
    assert "step 1:" in text and "weights of layer 'fc8'" in text


@pytest.mark.parametrize("strategy", ["data", "owt", "layer_split", "tensor"])
def test_overflow(strategy):
    """Finite weights whose product is not: the output is named, not the weights."""

    def spoil(running):
        for name in ("conv1.W", "conv2.W"):
            parameter = running.replica.variables.get(name)
            if parameter is not None:
                parameter.data *= 1e200

    text = nonfinite(3, strategy, spoil, model="plain", at=2)
    assert "step 2:" in text and "output of layer 'conv2'" in text


@pytest.mark.parametrize("strategy", ["data", "owt", "layer_split"])
def test_a_learning_rate_that_is_too_high(strategy):
    def spoil(running):
        for group in running.optimiser.groups:
            group["lr"] = 1e300

    text = nonfinite(2, strategy, spoil, at=0)
    assert "step 1:" in text and "lower the learning rate" in text


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("data", {}),
        ("layer_split", {"micro_batches": 3}),
        ("tensor", {}),
        (
            "owt",
            {"scheme": "c", "fc_update": "each"},
        ),  # its linear layers are spoilt by the time it is noticed
    ],
    ids=str,
)
def test_images_that_are_not_numbers(strategy, options):
    def main(comm):
        running = executor(comm, "plain", strategy, 17, options)
        x, labels = images(17)[0][0].copy(), images(17)[1][0]
        x[0] = np.nan  # rank 0 has this one
        start, stop = running.plan.input_rows(comm.rank)
        running.step(x[start:stop] if start < stop else None, labels)

    with pytest.raises(NonFiniteError, match="step 0: .*output of layer 'conv1'.*check the input"):
        threads.run(3, main)


def test_the_weights_stay_as_they_were():
    """The error comes before the update: what was learnt up to then can still be saved."""

    def main(comm):
        running = executor(comm, "plain", "data", 17, {})
        feed(running, 0, 17)
        before = running.weights()
        x, labels = images(17)[0][1] * np.inf, images(17)[1][1]
        start, stop = running.plan.input_rows(comm.rank)
        with pytest.raises(NonFiniteError), np.errstate(invalid="ignore"):
            running.step(x[start:stop], labels)
        same = all(np.array_equal(array, before[name]) for name, array in running.weights().items())
        return same and np.isfinite(feed(running, 1, 17).loss)  # and one can go on

    assert threads.run(2, main) == [True, True]


# -- images that are not the rank's -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda x, start, stop: x,
            r"images float64 \(17, 8, 8, 3\), expected float64 \([89], 8, 8, 3\): rows ",
        ),
        (lambda x, start, stop: None, "got images none, expected float64"),
        (lambda x, start, stop: x[start:stop, 1:], r"got images float64 \([89], 7, 8, 3\)"),
        (lambda x, start, stop: x[start:stop].astype(np.float32), "got images float32"),
    ],
)
def test_other_images_than_the_rows_of_the_rank(spoil, words):
    def main(comm):
        running = executor(comm, "plain", "data", 17, {})
        x, labels = images(17)[0][0], images(17)[1][0]
        running.step(spoil(x, *running.plan.input_rows(comm.rank)), labels)

    with pytest.raises(InputError, match=words):
        threads.run(2, main)


# -- what cannot be planned --------------------------------------------------------------------------------


def plan(strategy, ranks, batch, model="groups", **options):
    net, options = MODELS[model](), Options(**options)
    return make_plan(net, SHAPE, make_strategy(strategy, net, SHAPE, ranks, options), batch)


@pytest.mark.parametrize(
    ("strategy", "ranks", "batch", "least", "options"),
    [
        ("data", 4, 3, 4, {}),
        ("data", 4, 7, 8, {"micro_batches": 2}),
        ("layer_split", 4, 2, 3, {"micro_batches": 3}),
        ("owt", 5, 4, 5, {}),
        ("owt", 3, 2, 3, {"scheme": "b"}),
        ("owt", 4, 15, 16, {"scheme": "c"}),
        ("hybrid", 8, 7, 8, {"dp": 2}),
        ("hybrid", 4, 7, 8, {"dp": 2, "scheme": "c"}),
        ("tensor", 4, 1, 2, {"micro_batches": 2}),
    ],
    ids=str,
)
def test_a_batch_that_is_too_small(strategy, ranks, batch, least, options):
    with pytest.raises(InputError) as raised:
        plan(strategy, ranks, batch, **options)
    text = str(raised.value)
    assert f"a batch of {batch} cannot be split over {ranks} ranks" in text
    assert f"batch={least} or more" in text and repr(strategy) in text
    plan(strategy, ranks, least, **options)


@pytest.mark.parametrize("strategy", ["layer_split", "tensor", "alexnet2012"])
def test_strategies_that_do_not_split_the_batch_take_one_sample(strategy):
    assert plan(strategy, 4, 1, dp=1).batch == 1


def test_names_that_are_unknown():
    net = MODELS["plain"]()
    with pytest.raises(InputError, match="unknown strategy 'pipeline'.*data, layer_split, owt"):
        make_strategy("pipeline", net, SHAPE, 2, Options())
    for name, value in {
        "all_reduce": "rings",
        "schedule": "2f2b",
        "scheme": "d",
        "fc_update": "never",
    }.items():
        with pytest.raises(InputError, match=f"{name}={value}: expected one of "):
            Options(**{name: value})
    with pytest.raises(InputError, match="dtype=float16: expected one of float32, float64"):
        Options(dtype="float16")
    with pytest.raises(InputError, match="micro_batches=0: expected 1 or more"):
        Options(micro_batches=0)
    with pytest.raises(InputError, match="bucket_mib=-1"):
        Options(bucket_mib=-1)


@pytest.mark.parametrize("dp", [3, 5, 0, -2])
def test_grids_that_the_ranks_do_not_fill(dp):
    with pytest.raises(InputError, match=f"dp={dp}: .*4 ranks"):
        plan("hybrid", 4, 16, dp=dp)


def test_strategies_that_do_not_fit_the_model():
    with pytest.raises(InputError, match="'sequential' runs on 1 rank, got 2"):
        plan("sequential", 2, 16)
    with pytest.raises(
        InputError, match="'alexnet2012' splits a network with grouped convolutions.*variant 2012"
    ):
        plan("alexnet2012", 2, 16, model="plain")
    for strategy in ("owt", "hybrid"):
        flat = nn.Sequential({"fc1": nn.Linear(4, 4), "fc2": nn.Linear(4, 2)})
        with pytest.raises(
            InputError, match=f"{strategy!r} needs layers before the first fully connected one"
        ):
            make_strategy(strategy, flat, (4,), 2, Options())


def test_a_rank_beyond_the_ranks():
    with pytest.raises(InputError, match="'fc8' on rank 4, but there are 4 ranks"):
        place({"fc8": At(4)})(MODELS["plain"](), SHAPE, 4, Options())
