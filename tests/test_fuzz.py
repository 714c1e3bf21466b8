"""The short form of `fuzz.py`: every option of every command, and some files of each kind."""

import random
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")  # of zipfile, where the inputs are made
pytest.importorskip("PIL")
pytest.importorskip("matplotlib")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIDNN_CACHE", "")
    fuzz.prepare(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "command", ["plan", "summary", "gradcheck", "collective", "data", "trace", "compare", "graph"]
)
def test_every_option_of_every_command_takes_or_refuses_absurd_values(folder, command):
    """Some of them here: `fuzz.py` tries them all."""
    lines = [argv for argv in fuzz.options(folder) if argv[0] == command]
    assert lines
    before = fuzz.outside(folder)
    for argv in random.Random(command).sample(lines, 25):
        fuzz.ends_well(fuzz.cli.main, argv)
    assert fuzz.outside(folder) == before


def test_the_parsers_list_all_commands(folder):
    """A command that is new must be tried, too."""
    known = {command.split()[0] for command in fuzz.commands(folder)} | {"train"}
    assert known == set(fuzz.cli._parser()._subparsers._group_actions[0].choices)


def test_options_of_the_training_programs(folder):
    for flags in random.Random("train").sample(fuzz.training_options(), 150):
        fuzz.ends_well(fuzz.train_program, flags)


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_files_of_any_bytes(folder, kind):
    """A failure names its seed: `fuzz.one(kind, seed, folder)` repeats it."""
    codes = [fuzz.one(kind, seed, folder) for seed in range(40)]
    assert set(codes) <= {0, 2} and 2 in codes


@pytest.mark.parametrize(
    "name", ["MINIDNN_CACHE=~nouser/x", "MINIDNN_CACHE=/proc/x", "XDG_CACHE_HOME=~nouser"]
)
def test_absurd_variables(folder, name):
    variable, value = name.split("=")
    (folder / "in" / "train").mkdir(parents=True)
    for pet in ("cat", "dog"):
        for i in range(2):
            (folder / "in" / "train" / f"{pet}.{i}.jpg").write_bytes(fuzz.pictures_once()[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MINIDNN_CACHE")
        patch.setenv(variable, value)
        assert fuzz.ends_well(fuzz.opened, folder / "in") == 2


def test_what_is_printed_can_be_printed(folder):
    """Names in no encoding, a terminal without the letters, a reader that goes away."""
    root = Path(fuzz.__file__).parents[1]

    def run(*argv, **options):
        environment = {**fuzz.os.environ, "PYTHONPATH": str(root), "PYTHONIOENCODING": "ascii"}
        command = [sys.executable, "-m", "minidnn", *argv]
        return subprocess.run(command, capture_output=True, env=environment, timeout=60, **options)

    assert b"\\xb7" in run("collective", "ring").stdout
    odd = folder / "tr\udce9ce\n$\\frac{"
    (folder / "trace").rename(odd)
    done = run("trace", odd)
    assert done.returncode == 0 and not done.stderr and (odd / "report.html").exists()
    (odd / "rank1.jsonl").write_text("")
    done = run("compare", odd, odd)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"rank1.jsonl is empty" in done.stderr


def test_a_reader_that_goes_away_is_no_error(folder):
    root = Path(fuzz.__file__).parents[1]
    for program in (["-m", "minidnn", "plan"], [root / "examples" / "03_mlp_backprop.py"]):
        running = subprocess.Popen(
            [sys.executable, *program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**fuzz.os.environ, "PYTHONPATH": str(root)},
        )
        running.stdout.close()
        assert (running.stderr.read(), running.wait(60)) == (b"", 0)
        running.stderr.close()
