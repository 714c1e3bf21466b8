"""Other people's pictures, archives and folders: right, or one line that says what is wrong."""

import io
import os
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from minidnn.data import Dataset, cache, open_dataset
from minidnn.data.decode import decode
from minidnn.data.source import open_source
from minidnn.errors import InputError

Image = pytest.importorskip("PIL.Image", reason='Pillow is not installed: pip install "minidnn[data]"')


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stored(picture, kind="PNG", **options):
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


RED = stored(Image.new("RGB", (20, 12), (200, 0, 0)), "JPEG")


def pets(folder, count=2, **others):
    """Cats and dogs, all red; `others` takes the place of dog.0.jpg."""
    (folder / "train").mkdir(parents=True)
    for pet in ("cat", "dog"):
        for i in range(count):
            (folder / "train" / f"{pet}.{i}.jpg").write_bytes(others.get(f"{pet}{i}", RED))
    return folder


# -- pictures ------------------------------------------------------------------------------------------------


def test_sixteen_bits_of_grey_are_scaled_not_cut():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert (decode(stored(Image.fromarray(np.full((8, 8), 0x8080, np.uint16))), 8) == 128).all()
    ramp = decode(stored(Image.fromarray(levels)), 256)
    assert ramp.mean() == pytest.approx(127.5, abs=0.5)
    np.testing.assert_array_equal(ramp[..., 0], np.round(levels / 257))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_range_are_refused(tmp_path, dtype):
    data = stored(Image.fromarray(np.full((8, 8), 1, dtype)), "TIFF")
    with pytest.raises(
        InputError, match=r"dog.0.jpg: not a picture that can be read \(pixels of 32 bits .*8 or 16 bits"
    ):
        open_dataset(pets(tmp_path / "set", dog0=data), 8)


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_cameras_orientation_is_applied(turn):
    """The upper left quarter of what was seen is white, as the camera noted it for eight ways of holding it."""
    seen = np.zeros((16, 16), np.uint8)
    seen[:8, :8] = 255
    back = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.T}
    back |= {6: lambda a: np.rot90(a), 7: lambda a: a[::-1, ::-1].T, 8: lambda a: np.rot90(a, -1)}
    exif = Image.Exif()
    exif[0x0112] = turn
    lying = np.ascontiguousarray(back.get(turn, lambda a: a)(seen))
    for kind in ("PNG", "JPEG"):
        pixels = decode(stored(Image.fromarray(lying), kind, exif=exif), 16)[..., 0]
        assert np.abs(pixels.astype(int) - seen).max() < 60, (kind, turn)


@pytest.mark.parametrize(
    ("data", "words"), [(b"", "empty"), (b"text", "no format that Pillow knows"), (RED[:50], ".")]
)
def test_what_is_no_picture_is_said_without_python(tmp_path, data, words):
    with pytest.raises(InputError, match=rf"dog.0.jpg: not a picture that can be read \({words}") as caught:
        open_dataset(pets(tmp_path / "set", dog0=data), 8)
    assert "BytesIO" not in str(caught.value)


# -- archives and folders ------------------------------------------------------------------------------------


def zipped(path, names, data=RED):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, data)
    return path


PETS = [f"train/{pet}.{i}.jpg" for pet in ("cat", "dog") for i in range(3)]


@pytest.mark.parametrize(
    "more",
    [
        ["train//cat.9.jpg"],
        ["//x"],
        ["a/" * 1200 + "b"],
        ["train/dog." + "7" * 5000 + ".jpg.txt"],
        ["../../cat.1.jpg", "/etc/cat.1.jpg"],
    ],
)
def test_names_in_zips_are_only_names(tmp_path, more):
    data = open_dataset(zipped(tmp_path / "a.zip", PETS + more), 8)
    assert len(data.train) + len(data.validation) == 6 + (more == ["train//cat.9.jpg"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "cache"]


def test_a_number_of_five_thousand_digits_is_no_number_of_a_pet(tmp_path):
    with pytest.raises(InputError, match="unknown class: expected cat.N.jpg"):
        open_dataset(zipped(tmp_path / "a.zip", [*PETS, "train/cat." + "7" * 5000 + ".jpg"]), 8)


def test_a_damaged_name_inside_a_zip(tmp_path):
    path = zipped(tmp_path / "a.zip", [*PETS, "train/cat.5.jpg"])
    with zipfile.ZipFile(path) as file:
        at = file.getinfo("train/cat.5.jpg").header_offset
    data = bytearray(path.read_bytes())
    data[at + 7] |= 8  # the name is UTF-8, says its local header,
    data[at + 30 : at + 34] = b"\xff\xfe\xff\xfe"  # which it is not
    path.write_bytes(data)
    with pytest.raises(InputError, match="cat.5.jpg: damaged in the zip"):
        open_dataset(path, 8)


def test_an_entry_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.zip"
    zipped(path, PETS)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        with file.open("train/dog.9.jpg", "w") as member:
            for _ in range(17):
                member.write(bytes(2**24))
    with pytest.raises(InputError, match="dog.9.jpg: 285,212,672 bytes: expected a picture"):
        open_dataset(path, 8)


def test_a_pipe_among_the_pictures_is_not_waited_for(tmp_path):
    folder = pets(tmp_path / "set")
    os.mkfifo(folder / "train" / "dog.7.jpg")
    with pytest.raises(InputError, match="dog.7.jpg: not a file"):
        open_dataset(folder, 8)


def test_kaggles_archive_says_what_to_unpack(tmp_path):
    path = zipped(tmp_path / "dogs-vs-cats.zip", ["train.zip", "test1.zip", "sampleSubmission.csv"])
    with pytest.raises(
        InputError, match="Kaggle's archive holds train.zip: unpack that one, and give its path"
    ):
        open_dataset(path)


def test_lists_with_a_byte_order_mark(tmp_path):
    for wnid in ("n01", "n02"):
        images = tmp_path / "set" / "train" / wnid / "images"
        images.mkdir(parents=True)
        (images / f"{wnid}_0.JPEG").write_bytes(RED)
    (tmp_path / "set" / "val" / "images").mkdir(parents=True)
    (tmp_path / "set" / "val" / "images" / "v.JPEG").write_bytes(RED)
    for name, text in (
        ("wnids.txt", "n01\nn02\n"),
        ("words.txt", "n01\tgoldfish, Carassius\nn02\tcrane\n"),
        ("val/val_annotations.txt", "v.JPEG\tn02\t0\t0\t9\t9\n"),
    ):
        (tmp_path / "set" / name).write_text(text, encoding="utf-8-sig")
    data = open_dataset(tmp_path / "set", 8)
    assert data.classes == ("goldfish", "crane") and data.validation.labels.tolist() == [1]


def test_folders_whose_names_are_in_no_encoding(tmp_path):
    odd = tmp_path / "se\udce9t\nline"
    data = open_dataset(pets(odd, 3), 8)
    assert len(data.train) == 4
    with pytest.raises(InputError) as caught:
        (odd / "train" / "dog.1.jpg").write_bytes(b"")
        open_dataset(odd, 8)
    assert str(caught.value).isprintable() and "se\\udce9t\\nline" in str(caught.value)


@pytest.mark.parametrize("path", ["~nouser/x", "x" * 5000, "/dev/full", "/proc/self/mem"])
def test_paths_that_are_no_data(path):
    with pytest.raises(InputError, match="no such file or folder|neither a folder nor a zip"):
        open_source(path)


# -- the cache -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["{}", "[]", "0", '{"mean": [1, 2], "std": [1, 2]}', '{"mean": [NaN, 1, 1], "std": [1, 1, 1]}']
)
def test_notes_that_are_not_those_of_a_set_are_made_again(tmp_path, kept, text):
    folder = pets(tmp_path / "set")
    mean = open_dataset(folder, 8).mean
    (notes,) = kept.glob("*/notes.json")
    notes.write_text(text)
    np.testing.assert_array_equal(open_dataset(folder, 8).mean, mean)


def test_entries_are_for_everybody(tmp_path, kept):
    mask = os.umask(0o022)
    try:
        open_dataset(pets(tmp_path / "set"), 8)
    finally:
        os.umask(mask)
    (entry,) = (path for path in kept.iterdir() if path.is_dir())
    assert entry.stat().st_mode & 0o777 == 0o755
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in entry.iterdir())


def test_content_of_the_same_size_and_time_is_noticed(tmp_path):
    folder = pets(tmp_path / "set")
    path = folder / "train" / "cat.0.jpg"
    open_dataset(folder, 8)
    before, blue = path.stat(), stored(Image.new("RGB", (20, 12), (0, 0, 200)), "JPEG")
    assert len(blue) == before.st_size
    path.write_bytes(blue)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert open_dataset(folder, 8).train.images[0, 4, 4, 2] > 150


INTERRUPTED = """
import os, sys, time
from pathlib import Path
from minidnn.data import cache, decode, open_dataset

cache.KEPT_SECONDS = 0.0
real, count = decode.decode, 0

def slowly(data, image):
    global count
    count += 1
    if count == 100:
        while not any(int(path.read_text()) >= 64 for path in cache.cache_folder().glob("*.part/done")):
            time.sleep(0.01)
        os.kill(os.getpid(), 9)
    return real(data, image)

decode.decode = slowly
open_dataset(sys.argv[1], 8, threads=1)
"""


def test_what_was_decoded_before_a_kill_is_kept(tmp_path, kept, monkeypatch):
    from minidnn.data import decode as module

    folder = pets(tmp_path / "set", 100)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(folder)], env=environment, timeout=60)
    assert done.returncode == -signal.SIGKILL
    decoded, alive = [], []
    monkeypatch.setattr(module, "decode", lambda data, image: decoded.append(1) or decode(data, image))
    monkeypatch.setattr("minidnn.launch.life.heard", lambda: alive.append(1))
    data = open_dataset(folder, 8)
    assert 100 <= len(decoded) <= 200 - 64
    assert data.train.images.min(axis=(1, 2, 3)).max() < 60 and data.train.images[..., 0].min() > 150
    assert len(alive) > len(decoded) / 16, "progress is a sign of life"
    assert [path.suffix for path in sorted(kept.iterdir())] == ["", ".lock"]


TRUNCATED = """
import sys
from minidnn.comm import threads
from minidnn.data.cache import cache_folder
from minidnn.train import Session, parse, parser

def main(comm):
    flags = ["--data", sys.argv[1], "--image", "16", "--model", "lenet", "--batch", "4"]
    session = Session(comm, parse(parser("", "data"), flags))
    for path in cache_folder().glob("*/train.npy"):
        with open(path, "r+b") as file:
            file.truncate(128)
    session.train.batch_at(0)

threads.run(1, main)
"""


def test_a_cache_that_is_cut_in_mid_run_is_not_silent(tmp_path):
    folder = pets(tmp_path / "set", 20)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", TRUNCATED, str(folder)]
    done = subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True)
    assert done.returncode == -signal.SIGBUS
    assert "Bus error" in done.stderr and "loader.py" in done.stderr


def test_what_was_left_behind_is_swept_up_in_the_end(tmp_path, kept):
    old, young = kept / "other-8-0.part", kept / "other-8-1.part"
    for path in (old, young):
        path.mkdir(parents=True)
    ago = time.time() - 2 * cache.ABANDONED_SECONDS
    os.utime(old, (ago, ago))
    open_dataset(pets(tmp_path / "set"), 8)
    assert young.exists() and not old.exists()


# -- sets made by hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [(4, 3, "4 images and 3 labels"), (0, 0, "0 images and 0 labels"), (3, 4, "3 images and 4 labels")],
)
def test_sets_without_a_label_for_each_image_are_refused(images, labels, words):
    good = np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1])
    bad = np.zeros((images, 8, 8, 3), np.uint8), np.zeros(labels, np.int64)
    for train, validation in ((bad, good), (good, bad)):
        with pytest.raises(InputError, match=words):
            Dataset("mine", 8, ("a", "b"), train, validation, np.zeros(3), np.ones(3))


def test_labels_that_are_no_classes_are_refused():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    for labels in ([0, 2], [-1, 0]):
        with pytest.raises(InputError, match="expected 0 to 1, the positions in classes"):
            Dataset(
                "mine", 8, ("a", "b"), (images, np.array(labels)), (images, [0, 1]), np.zeros(3), np.ones(3)
            )
