"""What a training program sets up from its options, and how it ends."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from minidnn import cli
from minidnn.comm import threads
from minidnn.errors import InputError
from minidnn.report.trace import load
from minidnn.train import Session, closing, parse, parser, train

pytest.importorskip("PIL")
from PIL import Image


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """Cats, which are black, and dogs, which are white, one class after the other."""
    monkeypatch.setenv("MINIDNN_CACHE", str(tmp_path / "cache"))
    for folder, count in (("train", 8), ("validation", 40)):
        (tmp_path / "pets" / folder).mkdir(parents=True)
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                path = tmp_path / "pets" / folder / f"{name}.{i}.jpg"
                Image.new("RGB", (32, 32), (255 * label,) * 3).save(path)
    return tmp_path / "pets"


def test_a_part_of_the_validation_images_has_every_class_and_stays_the_same(pets):
    options = ["--data", str(pets), "--image", "32", "--model", "lenet", "--batch", "4", "--validation", "41"]

    def main(comm):
        session = Session(comm, parse(parser("", strategy="data"), options))
        return [[batch.labels for batch in session.validation.epoch(0)] for _ in range(2)]

    for first, second in threads.run(2, main):
        first, second = np.concatenate(first), np.concatenate(second)
        np.testing.assert_array_equal(first, second)
        assert len(first) == 41 and 10 <= first.sum() <= 31


# -- how programs end ----------------------------------------------------------------------------------------

SMALL = "--width 0.03 --image 27 --images 16 --validation 8 --batch 8 --steps 2 --epochs 1 --quiet".split()


def test_a_mistake_of_the_program_is_not_taken_for_bad_input(monkeypatch):
    def wrong(*args, **options):
        raise ValueError("a mistake")

    monkeypatch.setattr("minidnn.train.session.make_strategy", wrong)
    with pytest.raises(ValueError, match="a mistake") as caught:
        threads.run(1, lambda comm: Session(comm, parse(parser("", "data"), SMALL)))
    assert not isinstance(caught.value, InputError)
    monkeypatch.setattr("minidnn.train.planning.make_strategy", wrong)
    with pytest.raises(ValueError, match="a mistake"):
        cli.main(["plan"])


def test_what_rank_0_cannot_do_alone_is_known_to_all():
    def main(comm):
        done = []

        def work():
            done.append("work")

        def failing():
            raise InputError("no room")

        return (closing.alone(comm, work), closing.alone(comm, failing, work)), done

    first, *others = threads.run(3, main)
    assert first == (("", "no room"), ["work", "work"])
    assert others == [(("", "no room"), [])] * 2


def test_training_goes_on_when_nobody_reads(tmp_path):
    """As with `| head`: the run ends in order, with its files; on a full disk it says so in the end."""
    for target, code, words in (
        (None, 0, ""),
        ("/dev/full", 2, "error: cannot print: No space left on device\n"),
    ):
        folder = tmp_path / str(code)
        command = [
            sys.executable,
            "-m",
            "minidnn",
            "train",
            "--strategy",
            "sequential",
            *SMALL,
            "--trace",
            folder,
        ]
        environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
        with open(target, "w") if target else nullcontext(subprocess.PIPE) as stdout:
            running = subprocess.Popen(
                command, stdout=stdout, stderr=subprocess.PIPE, env=environment, text=True
            )
            if running.stdout:
                running.stdout.close()
            assert (running.stderr.read(), running.wait(120)) == (words, code)
            running.stderr.close()
        assert load(folder).complete_steps() == [0, 1]


def test_a_run_by_hand_written_splits_has_a_name(tmp_path):
    flags = [*SMALL, "--split", "conv*: n=ranks; fc*: o=ranks", "--trace", str(tmp_path / "t")]
    threads.run(2, lambda comm: train(comm, parse(parser("", None), flags)), timeout=120)
    assert load(tmp_path / "t").run["strategy"] == "placed"
