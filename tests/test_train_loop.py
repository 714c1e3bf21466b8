"""Whole training programs, on threads: what they print, what they check, and how they end."""

import re

import numpy as np
import pytest

from minidnn.comm import threads
from minidnn.data import Shapes
from minidnn.errors import InputError
from minidnn.train import Session, Trainer, parse, parser, train
from minidnn.train.closing import Meter, traffic_table
from minidnn.train.history import History
from minidnn.train.twin import largest_difference

# An AlexNet of 5 x 5 pixels after conv1, with about 4,000 weights.
SMALL = "--width 0.03 --image 27 --images 50 --validation 20 --steps 3 --epochs 1 --quiet --dtype float64"


def run(ranks, flags, main=train, **transport):
    """Run a program on threads; returns what each rank's `main` returns."""
    args = f"{SMALL} {'' if '--batch' in flags else '--batch 16'} {flags}".split()
    return threads.run(
        ranks, lambda comm: main(comm, parse(parser("", "data"), args)), timeout=120, **transport
    )


def printed(capsys, ranks, flags, **transport):
    run(ranks, flags, **transport)
    return capsys.readouterr().out


PROGRAMS = {
    "one process": (1, "--strategy sequential --micro-batches 2"),
    "data": (2, "--strategy data"),
    "data on three": (3, "--strategy data --buckets 0 --all-reduce tree"),
    "data, batch norm, hierarchical": (3, "--strategy data --norm batch --all-reduce hierarchical"),
    "data, sharded": (2, "--strategy data --sharded-momentum --augment"),
    "layer split": (3, "--strategy layer_split --micro-batches 4 --schedule zb-h1"),
    "layer split by hand": (2, "--strategy layer_split --stages 9"),
    "layer split, measured": (2, "--strategy layer_split --balance measured"),
    "owt a": (2, "--strategy owt --conv-lr-scale 2"),
    "owt b, update each": (3, "--strategy owt --scheme b --fc-update each"),
    "owt c, update each": (2, "--strategy owt --scheme c --fc-update each --conv-lr-scale 2"),
    "owt pairs": (2, "--strategy owt --fc-pairs"),
    "hybrid, update each": (4, "--strategy hybrid --scheme b --fc-update each"),
    "tensor": (2, "--strategy tensor"),
    "two towers": (2, "--strategy alexnet2012 --variant 2012 --image 67"),
    "lenet": (2, "--strategy owt --model lenet"),
    "spatial": (2, "--strategy spatial"),
    "3d": (8, "--strategy 3d --micro-batches 2"),
    "owt in stages": (4, "--strategy owt --mesh stage=2,model=2 --schedule gpipe --micro-batches 2"),
    "owt b, the mesh the other way round": (
        4,
        "--strategy owt --mesh model=2,data=2 --scheme b --fc-update each",
    ),
    "data in stages": (4, "--mesh data=2,stage=2 --strategy data --norm batch"),
    "splits": (2, "--split conv*:h=ranks;fc*:o=ranks"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_check_passes(capsys, name):
    ranks, flags = PROGRAMS[name]
    out = printed(capsys, ranks, f"--check {flags}", debug=ranks == 2)
    assert re.fullmatch(r"check: loss \S+ weights \S+ limit 1e-10 ok", out.splitlines()[-1])
    assert "DIFFER" not in out and "replicas: equal bit for bit" in out
    assert re.search(r"epoch 1: loss \d\.\d+, accuracy .* validation loss", out)


def test_epochs_whose_last_batch_is_small(capsys):
    """50 images in batches of 16 leave 2 over, for three ranks; twice."""
    flags = "--batch 16 --check --epochs 2 --strategy data".replace("--steps 3", "")
    args = f"{SMALL.replace('--steps 3', '')} {flags}".split()
    threads.run(3, lambda comm: train(comm, parse(parser("", "data"), args)), timeout=120)
    out = capsys.readouterr().out
    assert out.splitlines()[-1].endswith("limit 1e-10 ok")
    assert "mean of 8" in out and "epoch 2: " in out and "DIFFERS" not in out


def test_in_float32(capsys):
    out = printed(capsys, 2, "--check --dtype float32")
    assert re.fullmatch(r"check: loss \S+ weights \S+ limit 1e-05 ok", out.splitlines()[-1])


# -- what a run ends with when something is wrong ------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        "--lr 0.02",
        "--steps 5",
        "--images 40",
        "--strategy owt",
        "--strategy sequential",
        "--check",
        "--image 31",
        "--trace elsewhere",
    ],
)
def test_ranks_with_different_options(flags):
    """Whatever differs, before anything is built of it."""
    option = flags.split()[0]

    def main(comm):
        own = f"{SMALL} --batch 16 {flags if comm.rank == 1 else ''}".split()
        train(comm, parse(parser("", "data"), own))

    with pytest.raises(InputError, match=f"the ranks do not run the same program: {option} is .* on rank 1;"):
        threads.run(3, main)


def test_ranks_with_different_images(monkeypatch):
    """The folder or zip may lie elsewhere on each host, but must hold the same."""
    fingerprint = Shapes.fingerprint
    names = iter("abc")
    monkeypatch.setattr(Shapes, "fingerprint", lambda data: fingerprint(data) + next(names))
    with pytest.raises(
        InputError, match="the ranks do not run the same program: the data set is .* on rank 0"
    ):
        run(3, "")


@pytest.mark.parametrize("flags", ["--local-batch-norm", "--micro-batches 2"])
def test_batch_norm_of_other_samples_cannot_be_checked(flags):
    """Statistics of a part of the batch are another network than the one process has."""
    with pytest.raises(InputError, match="--check with batch norm: .*use --micro-batches 1, or --norm lrn"):
        run(2, f"--check --norm batch {flags}")


def spoilt(spoil):
    """The training program with something done to it before its last step."""

    def main(comm, args):
        session = Session(comm, args)
        trainer = Trainer(session)
        for epoch in range(args.epochs):
            for number, batch in enumerate(trainer.batches(epoch)):
                if number == args.steps - 1:
                    spoil(comm, session)
                trainer.record(batch, session.executor.step(batch.images, batch.labels))
            trainer.validate(epoch)
        trainer.close()

    return main


def test_a_message_that_is_not_in_the_plan(capsys):
    def spoil(comm, session):
        with comm.ledger.scope(layer="conv1", phase="gossip"):
            if comm.rank == 0:
                comm.wait([comm.isend(np.zeros(3), 1)])
            elif comm.rank == 1:
                comm.wait([comm.irecv(np.zeros(3), 0)])

    with pytest.raises(SystemExit) as ended:
        run(3, "", spoilt(spoil))
    assert ended.value.code == 1
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "gossip" in line)
    assert row.split() == ["conv1", "gossip", "send", "0.333333", "8", "B", "0", "B", "DIFFERS"]
    assert out.count("DIFFERS") == 2, "this row and the sum"


def test_a_check_that_fails(capsys):
    def spoil(comm, session):
        session.executor.replica.variables["conv3.b"].data[0] += 1e-4

    for flags, limit in (("", "1e-10"), ("--dtype float32", "1e-05")):
        with pytest.raises(SystemExit) as ended:
            run(2, f"--check {flags}", spoilt(spoil))
        assert ended.value.code == 1
        *_, advice, verdict = capsys.readouterr().out.splitlines()
        assert re.fullmatch(rf"check: .* limit {limit} FAILED", verdict)
        assert ("--dtype float64" in advice) is (limit == "1e-05")


def test_replicas_that_differ(capsys):
    def spoil(comm, session):
        if comm.rank == 1:
            session.executor.replica.variables["conv3.b"].data[0] += 1e-9

    with pytest.raises(SystemExit) as ended:
        run(3, "", spoilt(spoil))
    assert ended.value.code == 1
    assert "replicas: DIFFER" in capsys.readouterr().out


def test_running_statistics_of_each_rank_are_no_replicas(capsys):
    """What --local-batch-norm leaves to each rank differs, and is said to; the weights are equal all the same."""
    out = printed(capsys, 2, "--norm batch --local-batch-norm")
    assert "replicas: equal bit for bit, but for 4 running statistics, which --local-batch-norm leaves" in out
    assert "replicas: equal bit for bit\n" in printed(capsys, 2, "--norm batch")
    assert "replicas: equal bit for bit\n" in printed(capsys, 1, "--norm batch --local-batch-norm")


@pytest.mark.parametrize("who", ["the twin", "a rank"])
def test_numbers_that_are_not_finite_pass_no_check(capsys, who):
    """After the last loss has been looked at, only the comparison of the weights is left to find them."""

    def spoil(comm, session):
        executor = session.executor
        step = executor.step

        def last(*batch):
            result = step(*batch)
            executor.replica.variables["fc8.b"].data[:] = np.nan
            return result

        if who == "a rank":
            executor.step = last

    def spoil_twin(session):
        twin = session.twin()
        if twin is not None and who == "the twin":
            twin.model["fc8"].b.data[:] = np.nan
        return twin

    def main(comm, args):
        session = Session(comm, args)
        session.twin = lambda original=session: spoil_twin(_plain(original))
        trainer = Trainer(session)
        for batch in trainer.batches(0):
            spoil(comm, session)
            trainer.record(batch, session.executor.step(batch.images, batch.labels))
        trainer.history.add(trainer.epoch.losses, 0.5, None, 1.0, 16)
        trainer.close()

    with pytest.raises(SystemExit) as ended:
        run(2, "--check --steps 1 --validation 0", main)
    assert ended.value.code == 1
    assert "weights nan limit 1e-10 FAILED" in capsys.readouterr().out


def _plain(session):
    """The session with its own `twin` again."""
    del session.twin
    return session


def test_the_largest_difference():
    weights = {"a": np.zeros(2), "b": np.array([[1.0, 2.0]])}
    assert largest_difference(weights, {"a": np.array([0.0, -3.0]), "b": np.array([[1.5, 2.0]])}) == 3.0
    for name in weights:
        spoilt = {key: value * (np.nan if key == name else 1) for key, value in weights.items()}
        assert np.isnan(largest_difference(weights, spoilt)) and np.isnan(largest_difference(spoilt, weights))


# -- what is printed -----------------------------------------------------------------------------------------


def numbers(line):
    return [float(x) for x in re.findall(r"(?<![\w.])\d+\.\d+", line)]


def test_the_closing_table(capsys):
    out = printed(capsys, 3, "--strategy owt --scheme c")
    lines = out.splitlines()
    times = {
        line.split("  ")[0]: numbers(line)
        for line in lines
        if re.match(r"(input|comp|comm|idle|other|step) ?", line)
    }
    states = ["input", "compute", "communication", "idle (waiting)", "other"]
    assert set(times) >= {*states, "step"} and all(len(row) == 3 for row in times.values())
    for rank in range(3):  # a rank is in one state at every moment: they add up, but for the rounding
        assert sum(times[s][rank] for s in states) == pytest.approx(times["step"][rank], abs=0.03)
    hidden = next(numbers(line) for line in lines if line.startswith("messages hidden by computing"))
    assert len(hidden) == 3 and all(0 <= x <= times["step"][rank] for rank, x in enumerate(hidden))
    rows = [re.split(r"\s{2,}", line) for line in lines if line.endswith(" equal")]
    assert {"fc6", "fc7", "fc8", "loss", "all"} <= {row[0] for row in rows}
    messages = [float(row[-4]) for row in rows]
    assert sum(messages[:-1]) == messages[-1]


def test_long_names_keep_their_counts():
    """A layer's name may be of any length: its row has what was sent, not nothing."""
    key = ("a" * 80 + "..." + "b" * 80, "gradient sync", "all_reduce")

    def main(comm):
        meter = Meter(comm.ledger)
        meter.traffic[key] = np.array([2, 64, 2, 64])
        return traffic_table(comm, meter, {})

    for text, ok in threads.run(2, main):
        row = next(line for line in text.splitlines() if line.startswith(key[0]))
        assert row.split()[-6:] == ["4", "128", "B", "0", "B", "DIFFERS"] and not ok


def test_the_plan_is_printed_unless_one_is_quiet(capsys):
    assert "rank 1: samples" not in printed(capsys, 2, "--steps 1")
    loud = f"{SMALL} --steps 1".replace("--quiet", "").split()
    threads.run(2, lambda comm: train(comm, parse(parser("", "data"), loud)))
    out = capsys.readouterr().out
    assert "Plan: alexnet, 27x27x3 -> 10" in out and "rank 1: samples" in out
    assert "2 ranks on 1 host" in out


def test_without_validation(capsys):
    out = printed(capsys, 2, "--validation 0")
    assert "(no validation)" in out and "validation loss" not in out


def test_a_picture(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.png"
    out = printed(capsys, 2, f"--plot {path}")
    assert f"wrote {path}" in out and path.read_bytes().startswith(b"\x89PNG")


# -- the numbers do not depend on the ranks --------------------------------------------------------------------


def history(comm, args):
    session = Session(comm, args)
    trainer = Trainer(session)
    for epoch in range(args.epochs):
        for batch in trainer.batches(epoch):
            trainer.record(batch, session.executor.step(batch.images, batch.labels))
        trainer.validate(epoch)
    return trainer.history


@pytest.mark.parametrize(("ranks", "strategy"), [(3, "data"), (2, "owt"), (3, "layer_split"), (2, "tensor")])
def test_losses_and_accuracies_are_those_of_one_process(ranks, strategy):
    flags = "--epochs 2 --validation 40 --batch 10"
    (alone,) = run(1, f"{flags} --strategy sequential", history)
    for found in run(ranks, f"{flags} --strategy {strategy}", history):
        np.testing.assert_allclose(found.losses, alone.losses, rtol=0, atol=1e-10)
        assert len(found.epochs) == 2
        for mine, theirs in zip(found.epochs, alone.epochs, strict=True):
            for key in ("step", "accuracy", "validation_accuracy"):
                assert mine[key] == theirs[key], key
            for key in ("loss", "validation_loss"):
                assert mine[key] == pytest.approx(theirs[key], abs=1e-10)


def test_batch_per_rank():
    (alone,) = run(1, "--strategy sequential --batch 15", history)
    for found in run(3, "--batch-per-rank 5", history):
        np.testing.assert_allclose(found.losses, alone.losses, rtol=0, atol=1e-10)


def test_it_learns():
    """A check of the whole by its purpose: from chance to most of the training images in 40 steps."""
    flags = "--classes 2 --images 40 --epochs 1 --steps 40 --lr 0.02 --width 0.1 --dropout 0"
    (found, _) = run(2, f"{flags} --strategy owt", history)
    assert np.mean(found.losses[-5:]) < 0.5 * np.mean(found.losses[:3])


def test_history_lines():
    history = History()
    history.add([2.0, 1.0], 0.25, (1.5, 0.5), 2.0, 32)
    history.add([1.0, 0.5], 0.75, None, 4.0, 32)
    assert history.line(0).startswith(
        "epoch 1: loss 1.5000, accuracy 25.0 %; validation loss 1.5000, accuracy 50.0 %"
    )
    assert history.line(1) == "epoch 2: loss 0.7500, accuracy 75.0 %; 4.0 s, 8 images/s"
    assert history.closing() == "training accuracy 75.0 % (no validation)"
    assert [e["step"] for e in history.epochs] == [2, 4]
