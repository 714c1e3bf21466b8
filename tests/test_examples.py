"""The AlexNet programs as a user starts them: real MPI ranks, or plain Python, with a time limit."""

import os
import re
import subprocess
import sys

import pytest
from mpi import ROOT, mpirun, needs_mpi

SMALL = "--width 0.1 --batch 16 --images 64 --steps 3 --epochs 1 --validation 16 --quiet".split()
EXACT = "--check --dtype float64".split()


def python(*args):
    """A program in one process, without mpirun."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, args)], capture_output=True, text=True, timeout=120, cwd=ROOT, env=env
    )


def assert_checked(done, limit="1e-10"):
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(rf"check: loss \S+ weights \S+ limit {limit} ok", last), done.stdout
    assert "DIFFER" not in done.stdout
    assert "error" not in done.stderr and "Traceback" not in done.stderr


def assert_one_error(done, code, *words):
    """One line from one rank, whatever the number of ranks, and the exit code."""
    assert done.returncode == code, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0]


@needs_mpi
@pytest.mark.parametrize(
    ("example", "flags"),
    [
        ("alexnet_data.py", ""),
        ("alexnet_layer_split.py", "--micro-batches 4"),
        ("alexnet_owt.py", ""),
        ("alexnet_owt.py", "--scheme b --fc-update each"),
    ],
)
def test_two_ranks_equal_one_process(example, flags):
    assert_checked(mpirun(2, ROOT / "examples" / example, *SMALL, *EXACT, *flags.split()))


@needs_mpi
def test_train_command_with_a_file_and_the_all_reduce_of_the_library(tmp_path):
    """On three ranks, one strategy more, and sums that MPI makes itself: they are counted, too."""
    path = tmp_path / "run.toml"
    path.write_text('strategy = "data"\nall-reduce = "mpi"\nbatch = 20\ndebug-comm = true\n')
    done = mpirun(3, "minidnn", "train", "--config", path, *SMALL, "--check")
    assert_checked(done, limit="1e-05")
    assert "3 ranks on 1 host" in done.stdout


@pytest.mark.parametrize("example", ["alexnet_owt.py", "alexnet_baseline.py"])
def test_plain_python_is_one_rank(example):
    done = python(ROOT / "examples" / example, *SMALL, *EXACT)
    assert_checked(done)
    assert "1 rank on 1 host" in done.stdout
    assert "check: loss 0.0e+00 weights 0.0e+00" in done.stdout


@needs_mpi
def test_ranks_with_different_seeds():
    program = f"""
        import sys
        from minidnn.launch import launch
        from minidnn.train import parse, parser, train

        def main(comm):
            train(comm, parse(parser("", "owt"), {SMALL!r} + ["--seed", str(comm.rank // 2)]))

        launch(main)
        """
    done = mpirun(3, program)
    assert_one_error(done, 2, "--seed is 0 on ranks 0, 1 but 1 on rank 2")
    assert done.stdout == ""


@needs_mpi
def test_bad_input_is_told_once():
    done = mpirun(3, ROOT / "examples" / "alexnet_data.py", *SMALL, "--batch", "2")
    assert_one_error(done, 2, "a batch of 2 cannot be split over 3 ranks")


@needs_mpi
def test_a_loss_that_is_not_finite():
    done = mpirun(2, ROOT / "examples" / "alexnet_owt.py", *SMALL, "--lr", "1e30", "--norm", "none")
    assert_one_error(done, 2, "step 1: the loss is not finite", "layer 'conv", "lower the learning rate")


# The training loop of the examples, but for a weight that is changed on the way.
SPOILT = """
from minidnn.launch import launch
from minidnn.train import Session, Trainer, parse, parser

def main(comm):
    session = Session(comm, parse(parser("", "data")))
    trainer = Trainer(session)
    for batch in trainer.batches(0):
        session.executor.replica.variables["fc8.W"].data[0, 0] += 1e-3
        trainer.record(batch, session.executor.step(batch.images, batch.labels))
    trainer.validate(0)
    trainer.close()

launch(main)
"""


@needs_mpi
def test_a_check_that_fails_is_an_exit_code():
    done = mpirun(2, SPOILT, *SMALL, *EXACT)
    assert done.returncode == 1, done.stderr
    assert re.fullmatch(r"check: loss \S+ weights \S+ limit 1e-10 FAILED", done.stdout.splitlines()[-1])
    assert "Traceback" not in done.stderr
