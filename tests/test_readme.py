"""What README.md shows is what happens: its example's output, and its `minidnn` commands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.partition("#")[0].strip()
    for kind, block in BLOCKS
    if kind == "sh"
    for line in block.splitlines()
    if line.startswith("minidnn ") and "minidnn data" not in line  # that one downloads
]


def run(*command, folder):
    environment = {
        "PYTHONPATH": str(ROOT),
        "PATH": "/usr/bin:/bin",
        "OPENBLAS_NUM_THREADS": "1",
        "HOME": str(folder),
    }
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, env=environment)


def test_the_example_prints_what_the_page_says(tmp_path):
    example = next(block for kind, block in BLOCKS if kind == "python")
    shown = next(block for kind, block in BLOCKS if kind == "")
    done = run(sys.executable, "-c", example, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run_as_written(command, tmp_path):
    done = run(sys.executable, "-m", *shlex.split(command), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_pictures_and_pages_exist():
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / link).exists(), link
