"""The cache of decoded images: made once, by one process, never half, never waited for in vain."""

import io
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from minidnn.data import DogsVsCats, cache, decode
from minidnn.data.progress import ProgressBar
from minidnn.errors import InputError

SHAPES = {"train": (3, 4, 4, 3), "validation": (1, 4, 4, 3)}
HIDDEN = ProgressBar("", None, show=False)


def fill_with(level, calls=None):
    def fill(arrays, done):
        if calls is not None:
            calls.append(level)
        for array in arrays.values():
            array[:] = level
        done(4)

    return fill


def notes(arrays):
    return {"sum": int(arrays["train"].sum())}


def entry(folder, level, calls=None):
    return cache.load_or_fill(folder, SHAPES, fill_with(level, calls), notes, HIDDEN)


def test_made_once_then_mapped(tmp_path):
    calls = []
    first, kept = entry(tmp_path / "c" / "set", 7, calls)
    again, kept_again = entry(tmp_path / "c" / "set", 9, calls)
    assert calls == [7] and kept == kept_again == {"sum": 7 * 3 * 48}
    for name, shape in SHAPES.items():
        assert first[name].shape == shape and (first[name] == 7).all() and (again[name] == 7).all()
        assert type(again[name]) is np.ndarray and not again[name].flags.writeable


@pytest.mark.parametrize("damage", ["cut", "no notes", "bad notes", "other shape"])
def test_damaged_entry_is_made_again(tmp_path, damage):
    folder = tmp_path / "set"
    entry(folder, 7)
    if damage == "cut":
        data = (folder / "train.npy").read_bytes()
        (folder / "train.npy").write_bytes(data[:-1])
    elif damage == "no notes":
        (folder / "notes.json").unlink()
    elif damage == "bad notes":
        (folder / "notes.json").write_text('{"mean"')
    else:
        np.save(folder / "validation.npy", np.zeros((1, 2, 2, 3), np.uint8))
    arrays, kept = entry(folder, 9)
    assert (arrays["train"] == 9).all() and (arrays["validation"] == 9).all() and kept == {"sum": 9 * 3 * 48}


def test_failure_leaves_nothing_and_is_not_remembered(tmp_path):
    def fail(arrays, done):
        raise InputError("a.jpg: not a picture")

    with pytest.raises(InputError, match="a.jpg"):
        cache.load_or_fill(tmp_path / "set", SHAPES, fail, notes, HIDDEN)
    assert [path.name for path in tmp_path.iterdir()] == ["set.lock"]
    assert (entry(tmp_path / "set", 7)[0]["train"] == 7).all()  # the file has been put right


def test_lock_left_by_a_dead_process_does_not_hold(tmp_path):
    code = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "f.write('done 1'); f.flush(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "set.lock")], timeout=60)
    assert (entry(tmp_path / "set", 7)[0]["train"] == 7).all()


def test_holder_without_progress_is_not_waited_for(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(cache, "STALL_SECONDS", 0.1)
    with open(tmp_path / "set.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert (entry(tmp_path / "set", 7)[0]["train"] == 7).all()


@pytest.mark.parametrize("fails", [False, True])
def test_of_several_one_works_and_the_others_wait(tmp_path, monkeypatch, fails):
    """Four ranks as threads: the work is done once, and a failure is raised by all without working again."""
    calls, waiting, results = [], threading.Barrier(4), [None] * 4
    all_in = threading.Event()

    def fill(arrays, done):
        calls.append(1)
        all_in.wait(30)  # until the others have met the lock
        if fails:
            raise InputError("a.jpg: not a picture")
        fill_with(5)(arrays, done)

    def rank(r):
        waiting.wait(30)
        try:
            results[r] = cache.load_or_fill(tmp_path / "set", SHAPES, fill, notes, HIDDEN)[0]["train"].max()
        except InputError as error:
            results[r] = str(error)

    met = []
    read = cache._read

    def watched(lock):  # called by those who wait
        met.append(threading.get_ident())
        if len(set(met)) == 3:
            all_in.set()
        return read(lock)

    monkeypatch.setattr(cache, "_read", watched)
    threads = [threading.Thread(target=rank, args=(r,)) for r in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert calls == [1]
    assert results == (["a.jpg: not a picture"] * 4 if fails else [5] * 4)


def pets(path, n=12):
    Image = pytest.importorskip("PIL.Image", reason='Pillow is not installed: pip install "minidnn[data]"')
    with zipfile.ZipFile(path, "w") as file:
        for split in ("train", "validation"):
            for i in range(n):
                for pet, colour in (("cat", (250, 0, 0)), ("dog", (0, 0, 250))):
                    data = io.BytesIO()
                    Image.new("RGB", (60, 50), colour).save(data, "JPEG")
                    file.writestr(f"{split}/{pet}.{i}.jpg", data.getvalue())
    return path


def test_processes_that_start_together_agree(tmp_path):
    path = pets(tmp_path / "pets.zip")
    code = (
        "import sys; from minidnn.data import open_dataset;"
        "data = open_dataset(sys.argv[1], 24); print(data.train.images.sum(), data.mean)"
    )
    environment = {
        **os.environ,
        "MINIDNN_CACHE": str(tmp_path / "c"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)], env=environment, stdout=-1, stderr=-1, text=True
        )
        for _ in range(3)
    ]
    results = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0] * 3, results
    assert len({out for out, _ in results}) == 1 and not any(err for _, err in results)
    made = [p for p in (tmp_path / "c").iterdir() if p.is_dir()]
    assert len(made) == 1 and made[0].name.startswith("dogs-vs-cats-24-")


def test_key_changes_with_what_the_images_depend_on(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDNN_CACHE", str(tmp_path / "c"))
    path = pets(tmp_path / "pets.zip")
    decoded = []
    real = decode.decode
    monkeypatch.setattr(decode, "decode", lambda data, image: decoded.append(image) or real(data, image))
    for _ in range(2):
        DogsVsCats(path, 16)
    assert len(decoded) == 48
    DogsVsCats(path, 20)
    assert len(decoded) == 96
    os.utime(path, ns=(1, 1))  # another time of change: another file, for all we know
    DogsVsCats(path, 16)
    assert len(decoded) == 144
    with zipfile.ZipFile(path) as file:
        file.extractall(tmp_path / "pets")
    DogsVsCats(tmp_path / "pets", 16)
    (tmp_path / "pets/train/cat.3.jpg").write_bytes((tmp_path / "pets/train/dog.3.jpg").read_bytes())
    changed = DogsVsCats(tmp_path / "pets", 16)
    assert len(decoded) == 240 and changed.train.images[3, 8, 8, 2] > 200


def test_where_the_cache_lies(monkeypatch):
    monkeypatch.setenv("MINIDNN_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache.cache_folder() == Path("/a")
    monkeypatch.delenv("MINIDNN_CACHE")
    assert cache.cache_folder() == Path("/b/minidnn")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "minidnn"


def test_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot keep the decoded images here.*MINIDNN_CACHE"):
        entry(tmp_path / "file" / "set", 7)


def test_full_disk_is_found_before_writing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match="No space left on device.*set MINIDNN_CACHE"):
        entry(tmp_path / "set", 7)
    assert [path.name for path in tmp_path.iterdir()] == ["set.lock"]


def test_progress_bar_draws_only_where_it_should(capsys):
    bar = ProgressBar("decoding", 4, show=True)
    bar.update(0)
    bar.update(4)
    bar.close()
    lines = capsys.readouterr().err
    assert lines.startswith("\rdecoding [....") and lines.endswith("####] 4/4\n")
    bar = ProgressBar("decoding", 4)  # stderr is no terminal here
    bar.update(4)
    bar.close()
    assert capsys.readouterr().err == ""
