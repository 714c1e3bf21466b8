"""Schedules: what the checker catches, how many activations are alive, how long the ranks stand idle."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from parallel_cases import CLASSES, MODELS, SHAPE, executor, feed
from test_parallel_equality import BASIC, GRIDS, VARIANTS, batch_for, model_for

from minidnn import nn
from minidnn.comm import threads
from minidnn.errors import InputError
from minidnn.parallel import Options, ScheduleError, check_plan, make_plan, make_strategy, run_events
from minidnn.parallel.balance import balanced_starts
from minidnn.parallel.events import Compute, Metrics, Post, PostSum, Wait
from minidnn.parallel.run import Run
from minidnn.parallel.schedule import (
    PIPELINES,
    Backward,
    Forward,
    Prefetch,
    Update,
    one_weird_trick,
    peak_activations,
    pipeline,
)

SIZES = [(2, 2), (2, 5), (3, 3), (4, 4), (4, 9), (5, 16), (8, 8)]  # stages p, micro-batches m >= p


def chain(stages, chunks, schedule):
    """The plan of equal linear layers, one to each stage."""
    model = nn.Sequential({f"fc{i}": nn.Linear(3, 3) for i in range(stages)})
    options = Options(micro_batches=chunks, schedule=schedule)
    strategy = make_strategy("layer_split", model, (3,), stages, options)
    return make_plan(model, (3,), strategy, 2 * chunks)


def data_parallel():
    """Two ranks, one bucket a parameter."""
    model, options = nn.Sequential({"fc1": nn.Linear(3, 3), "fc2": nn.Linear(3, 2)}), Options(bucket_mib=0)
    return make_plan(model, (3,), make_strategy("data", model, (3,), 2, options), 4)


def change(plan, rank, edit):
    """Let `edit` change the list of a rank's actions."""
    actions = list(plan.schedules[rank])
    edit(actions)
    plan.schedules.made[rank] = tuple(actions)
    return plan


def change_events(plan, rank, edit):
    """Let `edit` change the list of what happens on a rank."""
    events = list(plan.events[rank])
    edit(events)
    plan.events.made[rank] = tuple(events)
    return plan


def move(plan, rank, direction, micro_batch):
    """The events that begin and await a move on a rank; of one that is only sent, no wait."""
    return [
        e
        for e in plan.events[rank]
        for post in [e.post if isinstance(e, Wait) else e]
        if isinstance(post, Post) and (post.direction, post.micro_batch) == (direction, micro_batch)
    ]


# -- the checker -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BASIC, *VARIANTS, *GRIDS])
def test_accepts_every_strategy(name):
    sizes = {**dict.fromkeys(BASIC, (2, 3, 5, 8)), **dict.fromkeys(VARIANTS, (2, 3, 5))}.get(name)
    strategy, options = (BASIC | VARIANTS).get(name) or GRIDS[name][1:]
    for ranks in sizes or [GRIDS[name][0]]:
        model, chosen = MODELS[model_for(name, "all")](), Options(**options)
        made = make_strategy(strategy, model, SHAPE, ranks, chosen)
        check_plan(make_plan(model, SHAPE, made, max(19, batch_for(name, ranks))))


def test_missing_send():
    plan = chain(3, 2, "1f1b")
    (send,) = (e for e in move(plan, 1, "forward", 1) if isinstance(e, Post) and e.exchange.layer == "fc2")
    with pytest.raises(
        ScheduleError, match=r"send of fc2 \(forward, micro-batch 1.*from rank 1 to rank 2 are never sent"
    ):
        check_plan(change_events(plan, 1, lambda events: events.remove(send)))


def test_missing_receive():
    plan = chain(2, 2, "gpipe")
    gone = move(plan, 0, "backward", 0)
    with pytest.raises(
        ScheduleError, match=r"\(backward, micro-batch 0.*from rank 1 to rank 0 are never received"
    ):
        check_plan(change_events(plan, 0, lambda events: [events.remove(e) for e in gone]))


def test_receive_too_many():
    plan = chain(2, 2, "1f1b")
    post = move(plan, 1, "forward", 1)[0]
    with pytest.raises(
        ScheduleError, match=r"fc1 \(forward, micro-batch 1.*from rank 0 to rank 1 are never sent"
    ):
        check_plan(change_events(plan, 1, lambda events: events.insert(0, post)))


def test_both_ends_of_a_message_have_one_tag():
    plan = chain(2, 2, "1f1b")
    post, wait = move(plan, 1, "forward", 1)
    other = replace(post, exchange=replace(post.exchange, tag=post.exchange.tag + 100))

    def retag(events):
        events[events.index(post)], events[events.index(wait)] = other, Wait(other)

    with pytest.raises(ScheduleError, match=r"fc1 \(forward, micro-batch 1.*are never"):
        check_plan(change_events(plan, 1, retag))


def test_cyclic_wait():
    """Rank 0 wants the gradient of micro-batch 1 before it sends the features: all messages have both ends."""
    plan = chain(2, 2, "1f1b")
    early, features = move(plan, 0, "backward", 1), move(plan, 0, "forward", 1)[0]

    def wait_too_early(events):
        for event in early:
            events.remove(event)
        at = events.index(features)
        events[at:at] = early

    with pytest.raises(ScheduleError) as raised:
        check_plan(change_events(plan, 0, wait_too_early))
    text = str(raised.value)
    assert "no rank can go on" in text
    assert "rank 0 at backward move of fc0 for fc1, micro-batch 1 waits for rank 1" in text
    assert "rank 1 at forward move of fc0 for fc1, micro-batch 1 waits for rank 0" in text


def test_sums_in_different_order():
    """Every rank sums every bucket, but not in one order: each waits in another sum."""

    def swap(events):
        at = [events.index(e) for e in events if isinstance(e, PostSum)]
        first, second = events[at[0] : at[0] + 2], events[at[1] : at[1] + 2]
        events[at[0] : at[0] + 2], events[at[1] : at[1] + 2] = second, first

    with pytest.raises(
        ScheduleError,
        match="sum of the gradients.* waits for rank 1.*sum of the gradients.* waits for rank 0",
    ):
        check_plan(change_events(data_parallel(), 1, swap))


def test_metrics_of_one_rank_only():
    def forget(events):
        events[:] = [e for e in events if not isinstance(e, Metrics)]

    with pytest.raises(ScheduleError, match=r"all_reduce of loss \(metrics"):
        check_plan(change_events(data_parallel(), 1, forget))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda actions: actions.remove(Backward(1, 1)),
            "micro-batch 1 of stage 1 as forward: expected forward, then",
        ),
        (lambda actions: actions.append(Backward(1, 1)), "as forward, both, both: expected"),
        (lambda actions: actions.insert(0, actions.pop()), "as both, forward: expected"),
        (
            lambda actions: actions.append(Forward(0, 0)),
            "micro-batch 0 of stage 0 as forward: expected nothing",
        ),
        (lambda actions: actions.append(Backward(1, 0, "weight")), "as forward, both, weight: expected"),
    ],
)
def test_work_left_out_or_done_twice(edit, words):
    with pytest.raises(ScheduleError, match=words):
        check_plan(change(chain(2, 2, "gpipe"), 1, edit))


def test_a_wait_without_a_message_hangs_no_one():
    """A rank that takes no part in a transfer does not wait for it: only its two ends do."""
    check_plan(chain(4, 3, "zb-h1"))


def test_more_activations_than_declared():
    plan = chain(3, 5, "1f1b")
    assert [stage.alive for stage in plan.stages] == [3, 2, 1]
    assert [stage.alive for stage in chain(3, 5, "gpipe").stages] == [5, 5, 5]

    def run_ahead(actions):
        """The last forward before the backward that makes room for it."""
        actions.remove(Forward(1, 2))
        actions.insert(actions.index(Backward(1, 0)), Forward(1, 2))

    with pytest.raises(
        ScheduleError, match="rank 1 holds the activations of 3 micro-batches of stage 1, declared 2"
    ):
        check_plan(change(plan, 1, run_ahead))


# -- what a pipeline does --------------------------------------------------------------------------------


@pytest.mark.parametrize(("stages", "chunks"), [*SIZES, (1, 3), (3, 1), (5, 2)])
@pytest.mark.parametrize("name", PIPELINES)
def test_every_chunk_once_and_in_order(name, stages, chunks):
    for stage in range(stages):
        actions = pipeline(name, stages, stage, chunks)
        whole, inputs, weights = (
            [a.micro_batch for a in actions if isinstance(a, Backward) and a.part == part]
            for part in ("both", "input", "weight")
        )
        assert [a.micro_batch for a in actions if isinstance(a, Forward)] == list(range(chunks))
        assert whole or (inputs == weights)
        assert (whole or inputs) == list(range(chunks))
        for chunk in range(chunks):
            order = [Forward(stage, chunk), Backward(stage, chunk, "input" if inputs else "both")]
            order += [Backward(stage, chunk, "weight")] if inputs else []
            places = [actions.index(action) for action in order]
            assert places == sorted(places)


@pytest.mark.parametrize(("stages", "chunks"), [*SIZES, (4, 2)])
def test_live_activations(stages, chunks):
    """All m micro-batches for GPipe, p - s for stage s of 1F1B, no stage above p for ZB-H1, one naively."""

    def peaks(name):
        return [peak_activations(pipeline(name, stages, s, chunks), s) for s in range(stages)]

    assert peaks("gpipe") == [chunks] * stages
    assert peaks("1f1b") == [min(stages - s, chunks) for s in range(stages)]
    assert max(peaks("zb-h1")) <= stages
    assert peaks("naive") == [1] * stages


@pytest.mark.parametrize(("name", "peak"), [("naive", [1, 1, 1]), ("gpipe", [5, 5, 5]), ("1f1b", [3, 2, 1])])
def test_live_activations_of_a_run(name, peak, monkeypatch):
    """Counted while it runs, not read off the schedule: the micro-batches of whose layers a rank holds tapes."""
    alive = {}

    class Counting(Run):
        def do(self, event):
            super().do(event)
            held = len({micro_batch for _, micro_batch in self.tapes})
            alive[self.rank] = max(alive.get(self.rank, 0), held)

    monkeypatch.setattr("minidnn.parallel.executor.Run", Counting)
    options = {"micro_batches": 5, "schedule": name}
    threads.run(3, lambda comm: feed(executor(comm, "plain", "layer_split", 17, options), 0, 17))
    assert [alive[rank] for rank in range(3)] == peak


def unit_times(forward, backward, weight):
    """Durations of the actions; a whole backward is both of its halves."""
    times = {"forward": forward, "input": backward, "weight": weight, "both": backward + weight}

    def duration(rank, event):
        computes = isinstance(event, Compute) and event.layer.layer is not None  # the loss takes no time
        return times[event.phase] if computes else 0

    return duration


@pytest.mark.parametrize("times", [(1, 1, 1), (1, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize(("stages", "chunks"), [*SIZES, (4, 2), (3, 1), (1, 4)])
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_bubble(name, stages, chunks, times):
    """The idle share is (p - 1)/(m + p - 1), and no better for 1F1B: it saves memory, not time."""
    timing = run_events(chain(stages, chunks, name), unit_times(*times))
    assert timing.bubble == pytest.approx((stages - 1) / (chunks + stages - 1))


@pytest.mark.parametrize(("stages", "chunks"), SIZES)
def test_bubble_without_pipelining(stages, chunks):
    """Naively one rank works at a time."""
    timing = run_events(chain(stages, chunks, "naive"), unit_times(1, 1, 1))
    assert timing.bubble == pytest.approx((stages - 1) / stages)


@pytest.mark.parametrize("times", [(1, 1, 1), (2, 2, 1), (2, 3, 2)])
@pytest.mark.parametrize(("stages", "chunks"), SIZES)
def test_bubble_of_zero_bubble_h1(stages, chunks, times):
    """(p - 1)(TF + TB - TW) in place of (p - 1)(TF + TB + TW): Qi et al. 2024, table 2, for m >= p."""
    forward, backward, weight = times
    timing = run_events(chain(stages, chunks, "zb-h1"), unit_times(*times))
    idle = (stages - 1) * (forward + backward - weight)
    assert timing.makespan == pytest.approx(chunks * sum(times) + idle)


@pytest.mark.parametrize("name", PIPELINES)
def test_no_rank_computes_two_things_at_once(name):
    timing = run_events(chain(4, 6, name), unit_times(1, 1, 1))
    for rank, spans in timing.spans.items():
        for (_, _, end), (_, begin, _) in zip(spans, spans[1:], strict=False):
            assert begin >= end
        assert timing.busy[rank] == sum(end - begin for _, begin, end in spans) == 6 * 3


# -- One Weird Trick -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_the_next_chunk_travels_during_the_work_on_this_one(chunks):
    actions = one_weird_trick("c", chunks, update_each=True)
    for c in range(chunks - 1):
        assert actions.index(Prefetch(1, c + 1)) < actions.index(Forward(1, c))
    updates = [a for a in actions if isinstance(a, Update)]
    assert updates == [Update("fc", c) for c in range(chunks)]
    assert actions[-1] == Backward(0, 0)


def test_scheme_a_is_one_chunk():
    with pytest.raises(ValueError, match="1 micro-batch, got 2"):
        one_weird_trick("a", 2, update_each=False)


# -- where to cut ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_balance_is_the_best_there_is(seed):
    """Against all ways to cut."""
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 20, rng.integers(1, 9)).tolist()
    for stages in range(1, len(costs) + 1):

        def slowest(starts, stages=stages):
            edges = [0, *starts, len(costs)]
            return max(sum(costs[a:b]) for a, b in zip(edges, edges[1:], strict=False))

        found = balanced_starts(costs, stages)
        assert len(found) == stages - 1
        assert found == sorted(set(found)) and all(0 < i < len(costs) for i in found)
        assert slowest(found) == min(map(slowest, combinations(range(1, len(costs)), stages - 1)))


@pytest.mark.parametrize("stages", [0, 4])
def test_balance_refuses(stages):
    with pytest.raises(ValueError, match=f"cannot cut 3 layers into {stages} stages"):
        balanced_starts([1, 2, 3], stages)


def stage_starts(ranks, model="plain", **options):
    net = MODELS[model]()
    return make_strategy("layer_split", net, SHAPE, ranks, Options(**options)).starts


def test_stages_follow_the_costs():
    """All the cost in the last layers: the first stage takes everything before them."""
    costs = [0.0] * 12
    costs[9], costs[11] = 3.0, 3.0  # fc7, fc8
    assert list(MODELS["plain"]().names)[9:] == ["fc7", "relu7", "fc8"]
    assert stage_starts(2, costs=tuple(costs)) == ("fc8",)


def test_stages_begin_before_weights():
    """A pooling stays with the convolution that it makes small, so that the smaller array is sent."""
    for ranks in (2, 3, 4, 5):
        assert all(name.startswith(("conv", "fc")) for name in stage_starts(ranks))
    assert len(stage_starts(8)) == 7  # more stages than layers with weights: anywhere


def test_stages_by_name_or_number():
    names = MODELS["plain"]().names
    assert stage_starts(3, stages=(3, "fc6")) == (names[3], "fc6")


NO_STAGES = [(5,), (5, 3), (3, 3), (0, 4), (3, 12), (-1, 3), (3, 4, 5), (3, "fc9"), ("fc7", "fc6"), (3, "")]


@pytest.mark.parametrize("stages", NO_STAGES, ids=str)
def test_stages_that_are_none(stages):
    with pytest.raises(InputError, match=r"stages=.*expected 2 layers in rising order"):
        stage_starts(3, stages=stages)


def test_more_stages_than_layers():
    model = nn.Sequential({"flatten": nn.Flatten(), "fc": nn.Linear(192, CLASSES)})
    with pytest.raises(InputError, match="over 3 stages needs as many layers; the model has 2"):
        make_strategy("layer_split", model, SHAPE, 3, Options())
