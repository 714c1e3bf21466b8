"""Files are whole or absent, and what was there before stays until then: full disks, races, targets that cannot be."""

import ast
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from report_traces import write_trace

import minidnn
from minidnn import cli, files
from minidnn.comm import threads, trace_files, tuning
from minidnn.data import cache
from minidnn.data.progress import ProgressBar
from minidnn.errors import InputError
from minidnn.report.trace import load
from minidnn.train import parse, parser, train

ROOT = Path(minidnn.__file__).parent
SMALL = "--width 0.03 --image 27 --images 16 --validation 8 --batch 8 --steps 2 --epochs 1 --quiet"


def everything(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    with files.writing(path) as file:
        file.write("old \udce9")
        assert not path.exists()
    assert path.read_text() == "old \\udce9"
    with pytest.raises(KeyError), files.writing(path) as file:
        file.write("new")
        raise KeyError
    with pytest.raises(InputError, match="cannot write .*a.txt: No space left on device"):
        with files.writing(path) as file:
            raise OSError(28, os.strerror(28))
    assert everything(tmp_path) == {Path("a.txt"): b"old \\udce9"}
    (tmp_path / "link").symlink_to(path)
    with files.writing(tmp_path / "link", "wb") as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and (tmp_path / "link").is_symlink()
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("name", ["", "no/a.png", "x" * 300 + ".png", "file/a.png"])
def test_targets_that_cannot_be_are_refused_beforehand(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        files.check_target(tmp_path / name)
    with pytest.raises(InputError):
        files.check_target("/dev/full")
    files.check_target(tmp_path / "good.png")
    files.check_target(tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# Where files are opened for writing: `files` itself, and what grows piece by piece under a temporary name.
WRITERS = {"files.py": 1, "data/download.py": 1, "data/cache.py": 2}


def test_nothing_else_in_the_package_opens_a_file_for_writing():
    found = {}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _writes(node):
                name = str(path.relative_to(ROOT))
                found[name] = found.get(name, 0) + 1
    assert found == WRITERS


def _writes(call):
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("write_text", "write_bytes", "mkdtemp", "mkstemp", "save_npz", "savez", "tofile"):
        return True
    of_os = isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "os"
    if name != "open" or of_os or isinstance(getattr(call.func, "value", None), ast.Name):
        return False
    modes = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
    return any(not (isinstance(m, ast.Constant) and set(m.value) <= set("rbt")) for m in modes)


# -- a full disk, at each file in turn -----------------------------------------------------------------------


class Full:
    """The n-th file that is written does not fit on the disk."""

    def __init__(self, number):
        self.left = number

    def __call__(self, file):
        self.left -= 1
        if self.left == -1:
            raise OSError(28, os.strerror(28))
        file.close()


def program(name, folder):
    """A program that writes; the files that it is asked for."""
    trace, other = folder / "a", folder / "b"
    if not trace.exists():
        write_trace(trace, 2)
        write_trace(other, 2, strategy="data")
    out = folder / "out"
    out.mkdir(exist_ok=True)

    def command(*argv):
        try:
            cli.main([str(x) for x in argv])
        except SystemExit as end:
            if end.code:
                raise InputError("exit code 2") from None

    def training():
        flags = f"{SMALL} --trace {out / 't'} --overwrite --plot {out / 'p.png'}".split()
        threads.run(2, lambda comm: train(comm, parse(parser("", "data"), flags)), timeout=120)

    def decoded():
        def fill(arrays, done):
            done(4)

        shapes = {"train": (3, 4, 4, 3), "validation": (1, 4, 4, 3)}
        bar = ProgressBar("", None, show=False)
        cache.load_or_fill(out / "set", shapes, fill, lambda arrays: {"a": 1}, bar)

    return {
        "trace": lambda: command("trace", trace, "-o", out),
        "compare": lambda: command("compare", trace, other, "-o", out / "c.svg"),
        "graph": lambda: command("graph", "--width", "0.1", "-o", out / "g.pdf"),
        "collective": lambda: command("collective", "ring", "--plot", out / "r.png"),
        "train": training,
        "cache": decoded,
    }[name]


@pytest.mark.parametrize("name", ["trace", "compare", "graph", "collective", "train", "cache"])
def test_a_full_disk_leaves_the_old_whole_and_the_new_whole_or_absent(tmp_path, monkeypatch, name):
    if name != "cache":
        pytest.importorskip("matplotlib")
    run, out = program(name, tmp_path), tmp_path / "out"
    run()
    whole = everything(out)
    for number in range(20):
        if name == "cache":  # is made once
            for path in out.glob("set/*"):
                path.unlink()
        before = everything(out)
        full = Full(number)
        monkeypatch.setattr(files, "to_disk", full)
        monkeypatch.setattr(trace_files, "to_disk", full)
        if full_after(run, full):
            break
        after = everything(out)
        lock = {Path("set.lock")}  # says why the last one failed
        assert set(after) - lock <= set(whole)  # and nothing that is left over
        for path in set(before) & set(after) - lock:
            changed = after[path] != before[path]
            assert not changed or abs(len(after[path]) - len(whole[path])) < 0.5 * len(whole[path])
        assert set(before) - lock <= set(after) or name == "cache"
        if name == "train":
            trace = load(out / "t")
            assert trace.size == 2 and trace.complete_steps() == [0, 1]
    assert full.left >= 0 and number > 0, "every file of the program has failed once"


def full_after(run, full):
    """Run; whether no file failed any more. Where one did, the program must say so."""
    try:
        run()
    except InputError:
        assert full.left < 0
        return False
    assert full.left >= 0, "a file could not be written, and nobody was told"
    return True


def test_a_cache_of_links_on_a_full_disk_costs_only_the_measurement(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuning._store("a", tuning.DEFAULT)
    before = everything(tmp_path)
    monkeypatch.setattr(files, "to_disk", Full(0))
    tuning._store("b", tuning.DEFAULT)
    assert everything(tmp_path) == before and "a" in tuning._load()


def test_the_systems_own_limit_on_files(tmp_path):
    """The same without help from inside: an old trace outlives a new one that does not fit."""
    old = write_trace(tmp_path / "t", 2)
    (old / "report.html").write_text("of the old run")
    before = everything(old)
    line = f"minidnn train --strategy sequential {SMALL} --trace {old} --overwrite"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *line.split()],
        env=environment,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "cannot write" in error and "File too large" in error and "Traceback" not in done.stderr
    assert everything(old) == before
    load(old)


# -- races and folders of others -----------------------------------------------------------------------------


def test_one_folder_is_one_runs(tmp_path):
    folder = tmp_path / "t"
    first = threads.run(2, trace_files.prepare, folder)
    with pytest.raises(InputError, match="another run is writing its trace to .*: choose another folder"):
        threads.run(2, trace_files.prepare, folder, True)

    def write(comm):
        trace_files.write(comm, folder, first[comm.rank])

    threads.run(2, write)
    assert load(folder).run["run"] == first[0]
    assert threads.run(2, trace_files.prepare, folder, True)[0] != first[0]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["report.html", "timeline.png", "rank3.jsonl", "run.json"])
def test_files_of_others_are_not_overwritten(tmp_path, name, overwrite):
    (tmp_path / name).write_text("{}")

    def main(comm):
        trace_files.prepare(comm, tmp_path, overwrite, ("report.html", "timeline.png"))

    with pytest.raises(InputError, match=f"{name} is no part of a trace: choose another folder"):
        threads.run(2, main)
    assert everything(tmp_path) == {Path(name): b"{}"}


def test_a_picture_that_cannot_be_is_found_before_training(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for target in (tmp_path, tmp_path / "no" / "p.png", tmp_path / "p.txt", "/proc/p.png"):
        with pytest.raises(InputError):
            flags = f"{SMALL} --plot {target}".split()
            threads.run(1, lambda comm, flags=flags: train(comm, parse(parser("", "data"), flags)))
    assert "epoch" not in capsys.readouterr().out


# -- what a run leaves that ends by numbers that are not finite ------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words", "steps"),
    [
        ("--lr 1e30", "step 1: the loss is not finite", [0, 1]),
        ("--lr 1e30 --steps 1", "step 0: after the update the validation loss is not finite", [0]),
        ("--lr 1e39 --steps 1 --validation 0", "step 0: after the update the weights of layer 'conv", [0]),
    ],
)
def test_trace_and_picture_of_a_run_that_diverges(tmp_path, recwarn, flags, words, steps):
    pytest.importorskip("matplotlib")
    line = f"{SMALL} --norm none {flags} --trace {tmp_path / 't'} --plot {tmp_path / 'p.png'}".split()
    with pytest.raises(InputError, match=words):
        threads.run(2, lambda comm: train(comm, parse(parser("", "data"), line)), timeout=120)
    assert load(tmp_path / "t").complete_steps() == steps
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG") and (
        tmp_path / "t" / "report.html"
    ).exists()
    assert not [str(w.message) for w in recwarn if issubclass(w.category, RuntimeWarning)]
    assert np.isfinite(load(tmp_path / "t").run["losses"]).all()
