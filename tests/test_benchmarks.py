"""The benchmarks run, in little, and their shared parts do what they say. Nothing here depends on time."""

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from mpi import MPIRUN

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import common, processes  # noqa: E402
from benchmarks.__main__ import NAMES  # noqa: E402

needs_mpi = pytest.mark.skipif(not (MPIRUN and find_spec("mpi4py")), reason="needs mpi4py and mpich")


def run(*arguments, timeout=240):
    command = [sys.executable, "-m", *arguments]
    environment = processes.environment(1)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("step_time", "ours / PyTorch"),
        ("pipeline", "zb-h1"),
        pytest.param("collectives", "library, one call", marks=needs_mpi),
        pytest.param("parallel_step", "OWT (a) / data parallel", marks=needs_mpi),
        pytest.param("oversubscribed", "data parallel, batch 16", marks=needs_mpi),
        pytest.param("schemes", "hidden, ms", marks=needs_mpi),
    ],
)
def test_quick_run(name, shown):
    code, out, err = run(f"benchmarks.{name}", "--quick")
    assert code == 0, err
    assert shown in out
    assert "cores" in out.splitlines()[0] and f"numpy {__import__('numpy').__version__}" in out
    assert (common.NO_TORCH in out) == (find_spec("torch") is None)


def test_report(tmp_path):
    """A report of one measurement: its command, the machine, the table."""
    code, out, err = run("benchmarks", "memory", "--quick", "--out", str(tmp_path / "report.md"))
    assert code == 0, err
    text = (tmp_path / "report.md").read_text()
    assert "these numbers mean nothing" in text and "`python -m benchmarks.memory --quick`" in text
    assert "## Memory" in text and "step, MiB" in text
    assert set(NAMES) == {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {
        *("__init__", "__main__", "common", "processes", "workers", "torch_workers", "silent", "against")
    }


def test_alternate_takes_turns_and_ratios_pair_rounds():
    calls = []

    def of(name, seconds):
        return lambda: calls.append(name) or seconds.pop(0)

    times = common.alternate({"a": of("a", [1.0, 4.0, 9.0]), "b": of("b", [2.0, 2.0, 3.0])}, 3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert common.ratios(times, "a", "b") == [0.5, 2.0, 3.0]
    assert common.ratios(times, "a", "torch") == []
    assert common.spread([0.5, 2.0, 3.0], 2) == "2.00 (1.25-2.50)"
    assert common.spread([]) == "" and common.judged([], 1.0) == ""
    assert common.judged([0.5, 2.0, 3.0], 2.0) == "yes" and common.judged([0.5, 2.1, 3.0], 2.0) == "no"


def test_worker_that_fails_says_why():
    with pytest.raises(RuntimeError, match="unknown model 'nonsense'"):
        processes.Worker("training", {"model": "nonsense", "options": {"image": 8}}, timeout=60)


def test_worker_that_dies_is_noticed():
    job = {"model": "mlp", "options": {"features": 4, "hidden": [4], "classes": 2}, "batch": 2}
    with processes.Worker("training", job, timeout=60) as worker:
        assert len(worker.ask(steps=3)["seconds"]) == 3
        with pytest.raises(RuntimeError, match="KeyError: 'steps'"):
            worker.ask()


@pytest.mark.parametrize(
    "options",
    [
        {"image": 56, "classes": 10, "width": 0.125},
        {"image": 61, "classes": 10, "width": 0.125},
        {"image": 227, "classes": 10, "variant": "2012", "width": 0.125},
        {"image": 224, "classes": 10, "variant": "owt", "width": 0.125},
    ],
)
def test_torch_counterpart_has_our_shapes(options):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    from benchmarks.torch_workers import counterpart
    from minidnn import nn

    ours, (theirs, shape) = (
        nn.build("alexnet", **options),
        counterpart({"model": "alexnet", "options": options}),
    )
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.size for p in ours.parameters())
    x, sample = torch.zeros(1, *shape), (options["image"], options["image"], 3)
    for (name, layer), peer in zip(ours, theirs, strict=True):
        x, sample = peer(x), layer.output_shape(sample)
        got = tuple(x.shape[1:])
        assert (got if len(got) == 1 else (*got[1:], got[0])) == sample, name
