"""Recognise the layouts in which the two sets of the thesis are published, and list their images.

Tiny ImageNet (http://cs231n.stanford.edu/tiny-imagenet-200.zip)::

    wnids.txt  words.txt  train/<wnid>/images/*.JPEG  val/images/*.JPEG  val/val_annotations.txt

Dogs vs. Cats, as the thesis arranges it, and as Kaggle publishes it (``train/`` only)::

    train/{cat,dog}.N.jpg  validation/{cat,dog}.N.jpg

Either may lie one folder down, as it does in the published zips.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from minidnn.data.source import Source
from minidnn.errors import InputError

PET = re.compile(r"(cat|dog)\.(\d{1,18})\.(jpe?g|png)", re.IGNORECASE | re.ASCII)
PICTURE = (".jpeg", ".jpg", ".png")
VALIDATION_SHARE = 0.2  # of each class, where Dogs vs. Cats comes without validation/


@dataclass(frozen=True)
class Listing:
    """What a source holds, before any image is decoded.

    Attributes
    ----------
    name, layout : str
        The set, and in words how it is arranged.
    image : int
        Height and width the thesis scales this set to (section 4.2).
    classes : tuple of str
    train, validation : tuple of (list of str, int64 array (n,))
        Paths inside the source, and labels.
    """

    name: str
    layout: str
    image: int
    classes: tuple[str, ...]
    train: tuple[list[str], np.ndarray]
    validation: tuple[list[str], np.ndarray]


def list_tiny_imagenet(source: Source, top: str = "") -> Listing:
    """List Tiny ImageNet. Labels are the positions in the **sorted** wnids, as Keras numbers folders.

    A class is called by the first of its names in ``words.txt`` and by its wnid where it has none.
    """
    wnids = sorted(_text(source, top + "wnids.txt").split())
    if len(wnids) < 2 or len(set(wnids)) != len(wnids):
        raise InputError(
            f"{source.where(top + 'wnids.txt')}: expected two or more different class ids, one a line"
        )
    number = {wnid: label for label, wnid in enumerate(wnids)}
    folder = top + "train/"
    for name in source.names(folder):
        if name.endswith("/") and name[:-1] not in number:
            raise InputError(f"{source.where(folder + name)}: unknown class: {name[:-1]} is not in wnids.txt")
    files: list[str] = []
    labels: list[int] = []
    for wnid in wnids:
        images = f"{folder}{wnid}/images/"
        found = [images + name for name in _pictures(source, images)]
        if not found:
            raise InputError(
                f"{source.where(images)}: empty or missing: expected the JPEG files of class {wnid}"
            )
        files += found
        labels += [number[wnid]] * len(found)
    train = files, np.array(labels, dtype=np.int64)
    validation = _validation_of_tiny_imagenet(source, top + "val/", number)
    classes = _class_names(source, top, wnids)
    return Listing("Tiny ImageNet", "train/<wnid>/images, val/images", 56, classes, train, validation)


def _validation_of_tiny_imagenet(source: Source, folder: str, number: dict[str, int]):
    annotations = folder + "val_annotations.txt"
    present = set(source.names(folder + "images/"))
    files, labels = [], []
    for line, text in enumerate(_text(source, annotations).splitlines(), 1):
        if not text.strip():
            continue
        name, *rest = text.split()  # name, wnid and four numbers: the box, which is not used
        place = f"{source.where(annotations)}, line {line}"
        if not rest:
            raise InputError(f"{place}: expected a file name and a class id, got {text.strip()!r}")
        if rest[0] not in number:
            raise InputError(f"{place}: unknown class: {rest[0]} is not in wnids.txt")
        if name not in present:
            missing = source.where(f"{folder}images/{name}")
            raise InputError(f"{missing}: no such file, but line {line} of {annotations} lists it")
        files.append(f"{folder}images/{name}")
        labels.append(number[rest[0]])
    if not files:
        raise InputError(f"{source.where(annotations)}: empty: expected one line for each validation image")
    return files, np.array(labels, dtype=np.int64)


def _class_names(source: Source, top: str, wnids: list[str]) -> tuple[str, ...]:
    if "words.txt" not in source.names(top):
        return tuple(wnids)
    lines = (line.partition("\t") for line in _text(source, top + "words.txt").splitlines())
    words = {wnid: names.partition(",")[0].strip() for wnid, _, names in lines}
    names = [words.get(wnid) or wnid for wnid in wnids]
    # Two classes may share a first name ("crane", the bird and the machine): tell them apart by the wnid.
    return tuple(n if names.count(n) == 1 else f"{n} ({w})" for n, w in zip(names, wnids, strict=True))


def list_dogs_vs_cats(source: Source, top: str = "") -> Listing:
    """List Dogs vs. Cats; cat is label 0 and dog is 1.

    Where there is no ``validation/`` (Kaggle's own archive), the last fifth of each class by number is it.
    The pictures may also lie in `top` itself (the inside of Kaggle's ``train.zip``).
    """
    has_train, has_validation = (name in source.names(top) for name in ("train/", "validation/"))
    layout = "train/ and validation/"
    train = _pets(source, top + "train/" if has_train or has_validation else top)
    if has_validation:
        validation = _pets(source, top + "validation/")
    else:
        layout = "train/ alone, its last fifth taken for validation"
        train, validation = zip(*(_cut(files) for files in train), strict=True)
    return Listing("Dogs vs. Cats", layout, 128, ("cat", "dog"), _label(train), _label(validation))


def _pets(source: Source, folder: str) -> tuple[list[str], list[str]]:
    """Files of the cats and of the dogs, each by number."""
    found: dict[str, list[tuple[int, str]]] = {"cat": [], "dog": []}
    for name in source.names(folder):
        match = PET.fullmatch(name)
        if match:
            found[match[1].lower()].append((int(match[2]), folder + name))
        elif name.lower().endswith(PICTURE):
            raise InputError(f"{source.where(folder + name)}: unknown class: expected cat.N.jpg or dog.N.jpg")
    for pet, files in found.items():
        if not files:
            raise InputError(f"{source.where(folder)}: empty or missing: expected {pet}.N.jpg files in it")
    cats, dogs = ([name for _, name in sorted(files)] for files in found.values())
    return cats, dogs


def _cut(files: list[str]) -> tuple[list[str], list[str]]:
    kept = len(files) - max(1, round(len(files) * VALIDATION_SHARE))
    if kept == 0:
        raise InputError(f"{files[0]}: the only image of its class: expected two or more, one for validation")
    return files[:kept], files[kept:]


def _label(groups: tuple[list[str], ...]) -> tuple[list[str], np.ndarray]:
    labels = np.repeat(np.arange(len(groups)), [len(files) for files in groups])
    return [name for files in groups for name in files], labels.astype(np.int64)


LISTERS = {"Tiny ImageNet": list_tiny_imagenet, "Dogs vs. Cats": list_dogs_vs_cats}


def recognise(source: Source, expected: str | None = None) -> Listing:
    """List `source`, whichever set it holds; InputError where it is none or not the one `expected`."""
    tops = ["", *(name for name in source.names() if name.endswith("/") and name not in ("train/", "val/"))]
    for top in tops:
        name = _layout_at(source, top)
        if name is None:
            if "train/" in source.names(top) and not source.names(top + "train/"):
                raise InputError(f"{source.where(top + 'train/')}: empty: expected the training images in it")
            continue
        if expected not in (None, name):
            raise InputError(f"{source.path}: laid out as {name}, expected {expected}")
        return LISTERS[name](source, top)
    if "train.zip" in source.names():
        raise InputError(
            f"{source.path}: Kaggle's archive holds train.zip: unpack that one, and give its path"
        )
    raise InputError(
        f"{source.path}: not a known layout: expected wnids.txt, train/ and val/ (Tiny ImageNet), or "
        f"train/ with cat.N.jpg and dog.N.jpg (Dogs vs. Cats); found {_some(source.names())}"
    )


def _layout_at(source: Source, top: str) -> str | None:
    names = source.names(top)
    if "wnids.txt" in names or "val_annotations.txt" in source.names(top + "val/"):
        return "Tiny ImageNet"
    folders = [top + name for name in ("train/", "validation/") if name in names] or [top]
    if any(PET.fullmatch(name) for folder in folders for name in source.names(folder)):
        return "Dogs vs. Cats"
    return None


def _pictures(source: Source, folder: str) -> list[str]:
    names = [name for name in source.names(folder) if name.lower().endswith(PICTURE)]
    return sorted(names, key=_numbers_by_size)


def _numbers_by_size(name: str) -> list:
    """Texts and, of the numbers between them, which may be of any length, count and text of the digits."""
    parts = re.split(r"0*([0-9]+)", name)
    return [(len(part), part) if i % 2 else part for i, part in enumerate(parts)]


def _text(source: Source, name: str) -> str:
    return source.read(name).decode("utf-8-sig", errors="replace")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
