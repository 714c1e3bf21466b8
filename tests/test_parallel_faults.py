"""What was wrong once: schedules, tags, tied and frozen parameters, modules with children, statistics, threads."""

from dataclasses import replace

import numpy as np
import pytest
from mpi import mpirun
from parallel_cases import (
    CLASSES,
    LIMIT,
    MODELS,
    SEED,
    SHAPE,
    assert_equals_one_process,
    executor,
    feed,
    images,
    one_process,
    optimiser,
)

from minidnn import functional as F
from minidnn import nn
from minidnn.comm import threads
from minidnn.errors import InputError
from minidnn.optim import SGD
from minidnn.parallel import (
    At,
    Executor,
    Mesh,
    Options,
    PlacementError,
    Replicate,
    Shard,
    Split,
    check_plan,
    gather_state,
    make_plan,
    make_strategy,
    place,
    replicas_equal,
    unequal_replicas,
)
from minidnn.parallel.schedule import Backward, Forward
from minidnn.random import rng


def plain_sgd(groups):
    return SGD([{"params": params} for params in groups.values()], lr=0.1)


def train(comm, model, strategy, x, labels, steps=3, make=plain_sgd, shape=None):
    """Losses, the gathered state, and what differs between replicas."""
    running = Executor(model, shape or x.shape[1:], strategy, comm, len(x), SEED, make)
    start, stop = running.plan.input_rows(comm.rank)
    mine = x[start:stop] if start < stop else None
    losses = [running.step(mine, labels).loss for _ in range(steps)]
    return losses, gather_state(running), unequal_replicas(running)


def alone(model, x, labels, steps=3):
    """The same by a plain loop."""
    return one_process(model, x, labels, steps, plain_sgd)


def assert_trains_like_one(build, strategy_of, ranks, x, labels):
    losses, state = alone(build(), x, labels)
    for found, whole, unequal in threads.run(
        ranks, lambda comm: train(comm, (m := build()), strategy_of(m), x, labels)
    ):
        np.testing.assert_allclose(found, losses, rtol=0, atol=LIMIT)
        assert not unequal
        for name in whole or ():
            np.testing.assert_allclose(whole[name], state[name], rtol=0, atol=LIMIT, err_msg=name)
    return losses


@pytest.mark.parametrize("bucket_mib", [0, 1e-4, 25])
def test_sums_start_after_the_last_backward_whichever_it_is(bucket_mib):
    """All forwards, then backwards in the order of the GPipe paper: the last one is of micro-batch 0."""

    def backwards_first_to_last(model, shape, ranks, options):
        order = [Forward(0, 0), Forward(0, 1), Backward(0, 1), Backward(0, 0)]
        made = make_strategy("data", model, shape, ranks, options)
        return replace(made, schedule=lambda at: order, alive=(2,))

    options = {"micro_batches": 2, "bucket_mib": bucket_mib}
    assert_equals_one_process("plain", backwards_first_to_last, 2, options=options)


def test_buckets_are_not_paired_with_sums_of_statistics():
    """Rows, one place, and a batch norm between them, one bucket a parameter: sums start in another order on each
    rank."""
    rules = {"conv1": Shard(0), "norm1": At(0), "conv2": Shard(0)}
    by_model = {name: {"model": p, "data": Shard(0)} for name, p in rules.items()}
    options = {"mesh": Mesh(data=2, model=2), "bucket_mib": 0}
    assert_equals_one_process("batch", place(by_model), 4, 16, options=options)


def test_rows_of_micro_batches_by_member():
    """Two micro-batches, each the samples of one member: a rank loads its own."""
    model = MODELS["plain"]()
    made = make_strategy("data", model, SHAPE, 2, Options())
    made = replace(
        made,
        micro_batches=(2,),
        by_member="data",
        schedule=lambda at: [Forward(0, 0), Backward(0, 0), Forward(0, 1), Backward(0, 1)],
    )
    plan = make_plan(model, SHAPE, made, 8)
    check_plan(plan)
    assert [plan.input_rows(rank) for rank in (0, 1)] == [(0, 4), (4, 8)]


def tied():
    fc = nn.Linear(6, 6, W_init=lambda generator, shape: nn.init.he_normal(rng(0, "fc2.W"), shape))
    return nn.Sequential({"fc1": fc, "relu1": nn.ReLU(), "fc2": fc, "out": nn.Linear(6, 3, W_init=out_init)})


def out_init(generator, shape):
    return nn.init.he_normal(rng(0, "out.W"), shape)


X, LABELS = np.arange(24.0).reshape(4, 6) / 24, np.array([0, 1, 2, 0])


def test_one_layer_under_two_names():
    """One gradient, one update, counted once."""
    assert sum(p.size for p in tied().parameters()) == 6 * 6 + 6 + 6 * 3 + 3
    losses, state = alone(tied(), X, LABELS)
    assert list(state) == ["fc1.W", "fc1.b", "out.W", "out.b"]
    np.testing.assert_allclose(losses, [1.38990, 1.01734, 1.01186], atol=5e-6)
    options = Options(dtype="float64")
    for ranks in (1, 2, 4):
        assert_trains_like_one(
            tied, lambda m, n=ranks: make_strategy("data", m, (6,), n, options), ranks, X, LABELS
        )
    staged = replace(options, stages=("out",))
    assert_trains_like_one(tied, lambda m: make_strategy("layer_split", m, (6,), 2, staged), 2, X, LABELS)
    columns = place({"fc1": Shard(-1), "fc2": Shard(-1)})
    assert_trains_like_one(tied, lambda m: columns(m, (6,), 3, options), 3, X, LABELS)


def test_tied_parameters_are_kept_together():
    model = tied()
    apart = place({"fc1": Shard(0), "fc2": Shard(-1)})(model, (6,), 2, Options())
    with pytest.raises(PlacementError, match="fc2 and fc1 share fc1.W.*split them alike"):
        make_plan(model, (6,), apart, 4)
    staged = make_strategy("layer_split", model, (6,), 2, Options(stages=("fc2",)))
    with pytest.raises(PlacementError, match="in one stage"):
        make_plan(model, (6,), staged, 4)


def test_one_parameter_in_two_layers():
    def shared():
        model = nn.Sequential(
            {"fc1": nn.Linear(6, 6), "relu1": nn.ReLU(), "fc2": nn.Linear(6, 6), "fc3": nn.Linear(6, 3)}
        )
        model["fc2"].W = model["fc1"].W
        return model

    options = Options(dtype="float64", bucket_mib=0)
    assert_trains_like_one(shared, lambda m: make_strategy("data", m, (6,), 3, options), 3, X, LABELS)


@pytest.mark.parametrize("strategy", ["data", "layer_split", "owt", "hybrid", "tensor", "spatial", "3d"])
def test_frozen_parameters_stay(strategy):
    def frozen():
        model = MODELS["plain"]()
        model["conv1"].W.requires_grad = model["fc7"].W.requires_grad = model["fc7"].b.requires_grad = False
        return model

    x, labels = images(16)[0][0], images(16)[1][0]
    before = frozen().init(SEED, np.float64).state_dict()
    losses, state = alone(frozen(), x, labels)
    np.testing.assert_array_equal(state["conv1.W"], before["conv1.W"])
    options = Options(dtype="float64")
    assert_trains_like_one(frozen, lambda m: make_strategy(strategy, m, SHAPE, 4, options), 4, x, labels)


class Residual(nn.Module):
    """x + activation(norm(conv(x))), samples split"""

    dims = "n h w c -> n h w c"
    whole = "h w c"

    def __init__(self, channels):
        self.inner = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm(channels), nn.Tanh()
        )

    def forward(self, x):
        return x + self.inner(x)


def with_children():
    return nn.Sequential(
        {
            "conv1": nn.Conv2d(3, 4, 3),
            "block": Residual(4),
            "flatten": nn.Flatten(),
            "fc": nn.Linear(144, CLASSES),
        }
    )


def test_a_module_with_children_is_the_rank_s_own():
    """Its variables are not the caller's, its batch norm sees the whole batch, a Sequential inside is no obstacle."""
    x, labels = images(16)[0][0], images(16)[1][0]
    options = Options(dtype="float64")
    for strategy in ("data", "owt", "3d"):
        made = []

        def strategy_of(model, name=strategy, made=made):
            made.append(model)
            return make_strategy(name, model, SHAPE, 4, options)

        assert_trains_like_one(with_children, strategy_of, 4, x, labels)
        assert all(p.data is None for model in made for p in model.parameters())


def test_a_layer_without_dimensions_is_replicated_and_said():
    class Halve(nn.Module):
        def forward(self, x):
            return x * 0.5

    def build():
        return nn.Sequential(
            {
                "conv1": nn.Conv2d(3, 4, 3),
                "half": Halve(),
                "flatten": nn.Flatten(),
                "fc": nn.Linear(144, CLASSES),
            }
        )

    x, labels = images(16)[0][0], images(16)[1][0]
    options = Options(dtype="float64")
    assert_trains_like_one(build, lambda m: make_strategy("data", m, SHAPE, 2, options), 2, x, labels)
    plan = make_plan((m := build()), SHAPE, make_strategy("data", m, SHAPE, 2, options), 16)
    assert "half" in str(plan).splitlines()[1] and "replicated" in str(plan).splitlines()[1]


def test_running_statistics_are_state():
    """Synchronised, they are equal and gathered; of each rank's own it is said that they differ."""

    def main(comm, **options):
        running = executor(comm, "batch", "data", 16, options)
        feed(running, 0, 16)
        return gather_state(running), unequal_replicas(running), replicas_equal(running)

    for state, unequal, same in threads.run(2, main):
        assert same and not unequal
        assert state is None or {"norm1.running_mean", "norm1.running_var"} <= set(state)
    for _, unequal, same in threads.run(2, lambda comm: main(comm, sync_batch_norm=False)):
        assert not same and unequal == ["norm1.running_mean", "norm1.running_var"]


def test_ranks_with_other_schedules_or_groups_are_found_out():
    def main(comm, change):
        model = MODELS["plain"]()
        made = make_strategy("data", model, SHAPE, 2, Options(micro_batches=2))
        Executor(model, SHAPE, change(made) if comm.rank else made, comm, 16, SEED, optimiser)

    order = [Forward(0, 0), Forward(0, 1), Backward(0, 0), Backward(0, 1)]
    for change, words in {
        lambda s: replace(s, schedule=lambda at: order): "the schedule is",
        lambda s: replace(s, updates={"conv1": "other"}): "the parameter groups is",
        lambda s: replace(s, by_member="data"): "the axis of micro-batches is",
    }.items():
        with pytest.raises(InputError, match=words):
            threads.run(2, main, change)


@pytest.mark.parametrize("counts", [(2, 4), (4, 2), (2, 1)])
def test_stages_with_micro_batches_that_do_not_fit(counts):
    """One for many, or as many: anything else would be found out by a layer that gets another's rows."""
    model = MODELS["plain"]()
    made = make_strategy("data", model, SHAPE, 2, Options())
    made = replace(made, starts=("flatten",), micro_batches=counts, alive=counts)
    words = f"stage 1 takes pool2 in {counts[1]} micro-batches, but stage 0 has {counts[0]}: expected as many"
    with pytest.raises(InputError, match=words):
        make_plan(model, SHAPE, made, 16)


def test_more_messages_than_tags():
    model = nn.Sequential({"fc1": nn.Linear(3, 3), "fc2": nn.Linear(3, 3)})
    count = 200_000
    made = make_strategy("layer_split", model, (3,), 2, Options(micro_batches=count))
    with pytest.raises(InputError, match="200000 micro-batches send more messages than there are tags"):
        make_plan(model, (3,), made, count)


def test_a_split_into_places_that_are_not_there():
    model = MODELS["plain"]()
    options = Options(mesh=Mesh(data=2, model=2))
    for rules, words in {
        "conv1: n=space": "names the axis 'space'",
        "conv1: model@2": "on rank 2, but there are 2 ranks",
        "conv1 n=data": "expected a layer, or a pattern",
        "conv1: n": "expected a letter and axes",
        "conv1: model@" + "9" * 5000: "expected a letter and axes",
        "conv1: z=data": "cannot be split along 'z'",
        "conv1: n=data o=data": "the axis 'data' is given twice in 'n=data o=data'",
        "conv1: n=data data@1": "the axis 'data' is given twice",
        "fc6: o=data,data": "the axis 'data' is given twice",
        "pool1: i=data; pool2: k=data": "cannot be split along 'k'",
    }.items():
        with pytest.raises((InputError, PlacementError), match=words):
            make_strategy("data", model, SHAPE, 4, replace(options, split=rules))
    with pytest.raises(InputError, match=r"mesh data=2,model=2 has 4 ranks, but there are 3"):
        make_strategy("data", model, SHAPE, 3, options)
    with pytest.raises(InputError, match=r"mesh data=2 has 2 ranks, but there are 1"):
        make_strategy("sequential", model, SHAPE, 1, Options(mesh=Mesh(data=2)))
    with pytest.raises(InputError, match="lacks 'model'"):
        make_strategy("tensor", model, SHAPE, 4, Options(mesh=Mesh(data=4)))
    with pytest.raises(InputError, match="has 'space', which it does not use"):
        make_strategy("data", model, SHAPE, 4, Options(mesh=Mesh(space=4)))
    assert (
        Split({"n": ("data",)}, {"model": 1})
        and str(Split({"n": ("data",)}, {"model": 1})) == "n=data model@1"
    )


@pytest.mark.parametrize(
    "text",
    ["", "data", "data=0", "data=2,data=2", "2=data", "data=2;model=2", "data=-1", "data=" + "9" * 5000],
)
def test_meshes_that_are_none(text):
    with pytest.raises(InputError, match="mesh=.*expected axes and their sizes"):
        Mesh.parse(text)


MESHES = {
    "data x stage": ("layer_split", Mesh(data=2, stage=2), {"micro_batches": 3}),
    "stage x data": ("layer_split", Mesh(stage=2, data=2), {"micro_batches": 3, "schedule": "zb-h1"}),
    "stage x model": ("tensor", Mesh(stage=2, model=2), {"micro_batches": 2}),
    "owt in stages": ("owt", Mesh(stage=2, model=2), {"micro_batches": 2, "schedule": "gpipe"}),
    "owt in stages, pairs": ("owt", Mesh(data=2, stage=2, model=2), {"fc_pairs": True}),
    "3d": ("3d", Mesh(data=2, stage=2, model=2), {"micro_batches": 2}),
    "3d, sharded": ("3d", Mesh(data=2, stage=2, model=2), {"sharded_momentum": True, "bucket_mib": 1e-4}),
    "hybrid": ("hybrid", Mesh(data=2, model=2), {"scheme": "c"}),
    "towers": ("alexnet2012", Mesh(data=2, stage=2, model=2), {}),
    "spatial": ("spatial", Mesh(space=4), {}),
    "spatial over data": ("spatial", Mesh(data=2, space=2), {"micro_batches": 2}),
    "spatial in stages": ("spatial", Mesh(space=2, stage=2), {"micro_batches": 2}),
    "data, factors, stages": ("data", Mesh(data=3, stage=2), {"fc_gradients": "factors", "micro_batches": 2}),
}


@pytest.mark.parametrize("name", MESHES)
def test_strategies_on_meshes(name):
    strategy, mesh, options = MESHES[name]
    model = "all" if name != "towers" else "groups"
    assert_equals_one_process(model, strategy, mesh.size, 19, last=5, options=options | {"mesh": mesh})


def test_replicated_everywhere():
    assert_equals_one_process(
        "ungrouped",
        place({"*": {"data": Replicate(), "model": Replicate()}}),
        4,
        options={"mesh": Mesh(data=2, model=2)},
    )


def two_inputs():
    """Images, and tokens that are embedded, joined before the last layer."""
    return nn.Sequential(
        {
            "conv1": nn.Conv2d(3, 4, 3),
            "flatten": nn.Flatten(),
            "words": (nn.Embedding(11, 6), "tokens"),
            "both": (nn.Flatten(), "words"),
            "join": (nn.Concatenate(("flatten",)), "both"),
            "fc": nn.Linear(6 * 4 + 144, CLASSES),
        },
        external=("tokens",),
    )


@pytest.mark.parametrize("strategy", ["data", "layer_split", "tensor", "owt", "3d"])
def test_several_inputs_and_tokens(strategy):
    x, labels = images(16)[0][0], images(16)[1][0]
    tokens = np.random.default_rng(1).integers(0, 11, (16, 4))
    model = two_inputs().init(SEED, np.float64)
    sgd, losses = plain_sgd({"all": model.parameters()}), []
    for _ in range(2):
        model.zero_grad()
        loss = F.softmax_cross_entropy(model(x, tokens), labels)
        loss.backward()
        sgd.step()
        losses.append(loss.item())

    def main(comm):
        shapes = {"input": SHAPE, "tokens": (4,)}
        made = make_strategy(strategy, (net := two_inputs()), shapes, 4, Options(dtype="float64"))
        running = Executor(net, shapes, made, comm, 16, SEED, plain_sgd)
        start, stop = running.plan.input_rows(comm.rank)
        given = {"input": x[start:stop], "tokens": tokens[start:stop]}
        given = {
            n: a if running.plan.region(running.plan.inputs[n].layout, (), comm.rank) else None
            for n, a in given.items()
        }
        return (
            [running.step(given, labels).loss for _ in range(2)],
            gather_state(running),
            replicas_equal(running),
        )

    for found, whole, same in threads.run(4, main):
        np.testing.assert_allclose(found, losses, rtol=0, atol=LIMIT)
        assert same
        for name in whole or ():
            np.testing.assert_allclose(whole[name], model.state_dict()[name], rtol=0, atol=LIMIT)


@pytest.mark.parametrize("strategy", ["data", "tensor", "layer_split"])
def test_labels_of_sequences(strategy):
    """Tokens (n, t) in, a label for each, (n, t), out."""

    def build():
        return nn.Sequential(
            {"words": nn.Embedding(11, 8), "fc1": nn.Linear(8, 8), "tanh": nn.Tanh(), "fc2": nn.Linear(8, 5)}
        )

    rng = np.random.default_rng(2)
    tokens, labels = rng.integers(0, 11, (12, 7)), rng.integers(0, 5, (12, 7))
    losses, state = alone(build(), tokens, labels, steps=2)

    def main(comm):
        made = make_strategy(strategy, (net := build()), (7,), 3, Options(dtype="float64"))
        running = Executor(net, (7,), made, comm, 12, SEED, plain_sgd)
        start, stop = running.plan.input_rows(comm.rank)
        mine = tokens[start:stop] if start < stop else None
        results = [running.step(mine, labels) for _ in range(2)]
        return [r.loss for r in results], results[0].samples, gather_state(running)

    for found, samples, whole in threads.run(3, main):
        np.testing.assert_allclose(found, losses, rtol=0, atol=LIMIT)
        assert samples == 12 * 7
        for name in whole or ():
            np.testing.assert_allclose(whole[name], state[name], rtol=0, atol=LIMIT)


@pytest.mark.parametrize(
    ("strategy", "refused"), [("place({'*': Replicate()})", True), ("place({'*': Shard(0)})", False)]
)
def test_ranks_that_round_otherwise_are_found_out(strategy, refused):
    """Other numbers of BLAS threads give other bits: refused where ranks compute the same, each by itself."""
    pytest.importorskip("mpi4py")
    program = f"""
    import os
    rank = os.environ.get("PMI_RANK") or os.environ["OMPI_COMM_WORLD_RANK"]
    os.environ["OPENBLAS_NUM_THREADS"] = str(1 + int(rank))
    from minidnn import nn
    from minidnn.launch import launch
    from minidnn.parallel import Executor, Options, Replicate, Shard, place

    def main(comm):
        model = nn.mlp(4, hidden=(8, 8), classes=3)
        Executor(model, (4,), {strategy}(model, (4,), 2, Options()), comm, 8)

    launch(main)
    """
    run = mpirun(2, program, timeout=60, env={"OPENBLAS_NUM_THREADS": ""})
    assert (run.returncode != 0) == refused, run.stderr
    assert (
        not refused
        or "the number of BLAS threads (replicas round by it) is 1 on rank 0 but 2 on rank 1" in run.stderr
    )


def test_two_names_for_the_features_are_one_letter():
    options = {"mesh": Mesh(data=2, model=2), "split": "conv*: c=data o=model; fc6: o=model c=data"}
    assert_equals_one_process("ungrouped", "data", 4, options=options)
