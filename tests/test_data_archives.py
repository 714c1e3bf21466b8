"""Tiny ImageNet and Dogs vs. Cats from folders and zips, and what is said of bad ones."""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from minidnn.data import DogsVsCats, TinyImageNet, open_dataset
from minidnn.data.archives import inspect
from minidnn.data.command import describe
from minidnn.data.decode import decode
from minidnn.errors import InputError

Image = pytest.importorskip("PIL.Image", reason='Pillow is not installed: pip install "minidnn[data]"')

WNIDS = ("n02", "n01", "n03")
REAL = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(colour, mode="RGB", size=(64, 64), kind="JPEG"):
    data = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(data, kind)
    return data.getvalue()


def tiny_files():
    """Tiny ImageNet's layout: 3 classes of 11 training and 2 validation images, class n0k of colour 60 k."""
    words = "n01\tcrane\nn02\tgoldfish, Carassius\nn03\tcrane, lift\n"
    files = {"wnids.txt": "\n".join(WNIDS), "words.txt": words}
    for wnid in WNIDS:
        level = 60 * int(wnid[1:])
        for i in range(11):
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = picture((level, i, 0))
        files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t0\t9\t9\n"
    order = ["n03", "n01", "n02", "n01", "n02", "n03"]
    lines = [f"val_{i}.JPEG\t{wnid}\t0\t0\t9\t9" for i, wnid in enumerate(order)]
    files["val/val_annotations.txt"] = "\n".join(lines) + "\n"
    for i, line in enumerate(lines):
        files[f"val/images/val_{i}.JPEG"] = picture((60 * int(line.split("\t")[1][1:]), 0, 0))
    return files


def pet_files(folders=("train", "validation"), n=10):
    files = {}
    for folder in folders:
        for i in range(n):
            files[f"{folder}/cat.{i}.jpg"] = picture((200, 20 * i, 0), size=(90, 40))
            files[f"{folder}/dog.{i}.jpg"] = picture((0, 20 * i, 200), size=(40, 90))
    return files


def write(path, files, top=""):
    """Write `files` into a folder, or into a zip where `path` ends so."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, data in files.items():
                file.writestr(top + name, data)
    else:
        for name, data in files.items():
            (path / top / name).parent.mkdir(parents=True, exist_ok=True)
            (path / top / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


FORMS = [("set", ""), ("set", "tiny/"), ("set.zip", ""), ("set.zip", "tiny/")]


@pytest.mark.parametrize("name,top", FORMS)
def test_tiny_imagenet(tmp_path, name, top):
    data = TinyImageNet(write(tmp_path / name, tiny_files(), top), image=24)
    assert data.classes == ("crane (n01)", "goldfish", "crane (n03)") and data.image == 24
    assert data.train.images.shape == (33, 24, 24, 3) and data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == np.int64 and len(data.train) == 33
    np.testing.assert_array_equal(data.train.labels, np.repeat([0, 1, 2], 11))
    np.testing.assert_array_equal(data.validation.labels, [2, 0, 1, 0, 1, 2])
    # Pixels agree with the labels, and files are taken by number: image 10 after image 9.
    for split in (data.train, data.validation):
        red = split.images[:, 12, 12, 0].astype(int)
        assert abs(red - 60 * (split.labels + 1)).max() <= 4
    green = data.train.images[:11, 12, 12, 1].astype(int)
    assert abs(green - np.arange(11)).max() <= 4 and green[10] > green[1]


@pytest.mark.parametrize("name,top", FORMS)
def test_dogs_vs_cats(tmp_path, name, top):
    data = DogsVsCats(write(tmp_path / name, pet_files(), top), image=32)
    assert data.classes == ("cat", "dog")
    np.testing.assert_array_equal(data.train.labels, [0] * 10 + [1] * 10)
    assert data.train.images.shape == (20, 32, 32, 3)
    assert (data.train.images[:10, 16, 16, 0] > 150).all() and (data.train.images[10:, 16, 16, 2] > 150).all()
    np.testing.assert_allclose(data.mean, data.train.images.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, data.train.images.std((0, 1, 2)), rtol=1e-9)
    assert data.validation.mean is data.train.mean


@pytest.mark.parametrize("form", ["set.zip", "set", "set/train"])
def test_kaggle_layout_is_split_by_number(tmp_path, form):
    write(tmp_path / Path(form).parts[0], pet_files(["train"], n=12))
    listing = inspect(tmp_path / form)
    assert [len(listing.train[0]), len(listing.validation[0])] == [20, 4]
    names = [Path(name).name for name in listing.validation[0]]
    assert names == ["cat.10.jpg", "cat.11.jpg", "dog.10.jpg", "dog.11.jpg"]
    np.testing.assert_array_equal(listing.validation[1], [0, 0, 1, 1])
    assert not set(listing.train[0]) & set(listing.validation[0])


def test_open_dataset_recognises_both(tmp_path):
    tiny = open_dataset(write(tmp_path / "a.zip", tiny_files()))
    pets = open_dataset(write(tmp_path / "b", pet_files(n=1)))
    assert (tiny.name, tiny.image, pets.name, pets.image) == ("Tiny ImageNet", 56, "Dogs vs. Cats", 128)
    with pytest.raises(InputError, match="laid out as Tiny ImageNet, expected Dogs"):
        DogsVsCats(tmp_path / "a.zip")


MODES = [("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG")]


@pytest.mark.parametrize("mode,kind", MODES)
def test_every_colour_mode_becomes_rgb(mode, kind):
    pixels = decode(picture((255, 255, 255), mode, (50, 70), kind), 20)
    assert pixels.shape == (20, 20, 3) and pixels.dtype == np.uint8 and (pixels > 240).all()


def test_decoding_keeps_orientation_and_averages():
    # Left half red, right half a fine black-and-white chequerboard, which has to come out grey.
    large = np.zeros((400, 400, 3), dtype=np.uint8)
    large[:, :200, 0] = 255
    large[:, 200:] = 255 * (np.indices((400, 200)).sum(0) % 2)[..., None]
    for kind in ("PNG", "JPEG"):
        data = io.BytesIO()
        Image.fromarray(large).save(data, kind, quality=95)
        small = decode(data.getvalue(), 40).astype(int)
        assert abs(small[:, 2:16] - [255, 0, 0]).max() < 12 and abs(small[:, 24:38] - 127).max() < 12


def spoil(tmp_path, change, files=None, name="set.zip"):
    files = files or tiny_files()
    change(files)
    return write(tmp_path / name, files)


IMAGE = "train/n02/images/n02_3.JPEG"
NOTES = "val/val_annotations.txt"
BAD_TINY = {
    "broken image": (lambda f: f.update({IMAGE: b"no picture"}), "n02_3.JPEG: not a picture"),
    "cut image": (lambda f: f.update({IMAGE: f[IMAGE][:-60]}), "n02_3.JPEG: not a picture"),
    "missing file": (lambda f: f.pop("val/images/val_4.JPEG"), "val_4.JPEG: no such file, but line 5 of"),
    "unknown class": (lambda f: f.update({NOTES: "val_0.JPEG\tn09\t0\n"}), "line 1: unknown class: n09"),
    "unknown folder": (
        lambda f: f.update({"train/n07/images/a.JPEG": b""}),
        "train/n07/: unknown class: n07",
    ),
    "no images": (lambda f: f.update({"wnids.txt": "n01 n02 n03 n04"}), "train/n04/images/: empty"),
    "no wnids": (lambda f: f.pop("wnids.txt"), "wnids.txt: no such file"),
    "no annotations": (lambda f: f.pop(NOTES), "val_annotations.txt: no such file"),
    "empty annotations": (lambda f: f.update({NOTES: "\n"}), "val_annotations.txt: empty"),
    "half a line": (lambda f: f.update({NOTES: "val_0.JPEG"}), "line 1: expected a file name"),
    "one class": (lambda f: f.update({"wnids.txt": "n01"}), "wnids.txt: expected two or more"),
}


@pytest.mark.parametrize("name", ["set", "set.zip"])
@pytest.mark.parametrize("case", BAD_TINY)
def test_bad_tiny_imagenet_is_one_line_that_names_the_file(tmp_path, case, name, cache):
    change, message = BAD_TINY[case]
    path = spoil(tmp_path, change, name=name)
    with pytest.raises(InputError) as caught:
        open_dataset(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not [entry for entry in cache.glob("*") if entry.is_dir()]  # nothing half-made is left


def drop(files, part):
    for name in [name for name in files if part in name]:
        del files[name]


BAD_PETS = {
    "unknown class": (lambda f: f.update({"train/cow.0.jpg": b""}), "train/cow.0.jpg: unknown class"),
    "no dogs": (lambda f: drop(f, "train/dog"), "train/: empty or missing: expected dog"),
    "no train": (lambda f: drop(f, "train/"), "train/: empty or missing"),
    "broken": (lambda f: f.update({"validation/dog.3.jpg": b""}), "validation/dog.3.jpg: not a picture"),
}


@pytest.mark.parametrize("case", BAD_PETS)
def test_bad_dogs_vs_cats(tmp_path, case):
    change, message = BAD_PETS[case]
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        open_dataset(spoil(tmp_path, change, pet_files(), "set"))


def test_missing_empty_and_foreign_paths(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare" / "train").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("no data")
    write(tmp_path / "other", {"a/b.txt": "x", "c.txt": "y"})
    for name, message in [
        ("nothing", "no such file or folder"),
        ("empty", "empty: expected"),
        ("bare", "train/?: empty"),
        ("notes.txt", "neither a folder nor a zip"),
        ("other", r"not a known layout.*found a/, c\.txt"),
    ]:
        with pytest.raises(InputError, match=f"{name}.*{message}"):
            open_dataset(tmp_path / name)
    with pytest.raises(InputError, match="image size 0: expected"):
        open_dataset(tmp_path, image=0)
    with pytest.raises(InputError, match="only image of its class"):
        open_dataset(write(tmp_path / "one", pet_files(["train"], n=1)))


def test_truncated_and_damaged_zips(tmp_path):
    path = write(tmp_path / "set.zip", tiny_files())
    whole = path.read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut.zip: truncated or damaged zip"):
        open_dataset(tmp_path / "cut.zip")
    with zipfile.ZipFile(path) as file:
        member = file.getinfo("train/n02/images/n02_3.JPEG")
    at = member.header_offset + 30 + len(member.filename) + 50
    path.write_bytes(whole[:at] + b"XXXX" + whole[at + 4 :])
    with pytest.raises(InputError, match="n02_3.JPEG: damaged in the zip"):
        open_dataset(path)


def test_describe_counts_without_decoding(tmp_path, cache):
    files = tiny_files()
    files.pop("train/n02/images/n02_3.JPEG")
    text = describe(write(tmp_path / "set", files))
    assert "Tiny ImageNet" in text and "32 images, 10 to 11 a class" in text and "6 images, 2 a class" in text
    assert "3: crane (n01), goldfish, crane (n03)" in text and not cache.exists()


@pytest.mark.parametrize("name,classes", [("tiny-imagenet-200.zip", 200), ("dogs-vs-cats.zip", 2)])
def test_real_archive(tmp_path, name, classes):
    """A cut-down copy of the real thing: real bytes in the real layout, a few images of each class."""
    if not (REAL / name).exists():
        pytest.skip(f"{name} is not beside the repository, in ../shared/data")
    listing = inspect(REAL / name)
    assert len(listing.classes) == classes
    top = listing.train[0][0].partition("train/")[0]
    keep = {n for files, labels in (listing.train, listing.validation) for n in _first(files, labels)}
    with zipfile.ZipFile(REAL / name) as real, zipfile.ZipFile(tmp_path / name, "w") as small:
        for n in real.namelist():
            if n in keep or n.endswith(("wnids.txt", "words.txt")):
                small.writestr(n, real.read(n))
            elif n.endswith("val_annotations.txt"):
                lines = real.read(n).decode().splitlines()
                lines = [line for line in lines if f"{top}val/images/{line.split()[0]}" in keep]
                small.writestr(n, "\n".join(lines))
    data = open_dataset(tmp_path / name)
    assert len(data.classes) == classes and len(data.train) == len(data.validation) == 2 * classes
    assert data.train.images.std() > 40 and (30 < data.mean).all() and (data.mean < 220).all()


def _first(files, labels, n=2):
    starts = np.unique(np.sort(labels), return_index=True)[1]
    order = np.argsort(labels, kind="stable")
    return [files[order[start + k]] for start in starts for k in range(n)]


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "set", pet_files(n=1))
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(InputError, match=r'pip install "minidnn\[data\]"'):
        open_dataset(path)


def test_moving_the_folder_away_shows_nothing_stale(tmp_path):
    path = write(tmp_path / "set", pet_files(n=2))
    first = open_dataset(path, image=16)
    shutil.rmtree(path)
    with pytest.raises(InputError, match="no such file or folder"):
        open_dataset(path, image=16)
    assert first.train.images.shape == (4, 16, 16, 3)
