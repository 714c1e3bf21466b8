"""A procedural set of coloured, textured shapes: learnable, seeded, of any size, and nothing to download.

Class ``k`` of up to 200 is a shape (``k mod 10``), a colour (one of 5) and a texture (one of 4), so numbered
that the first ten classes are ten different shapes with every colour used twice: neither the shape nor the
colour alone is worth more than it should be, and more classes fill in the other colours before any texture
comes.

Every image is a pure function of (seed, split, index): its place, size, angle, hue, background and noise come
from ``rng(seed, "shapes", split, index)``, so any rank can make the rows it needs and gets what the others
would, to the bit: on arrays only operations are used whose rounding IEEE 754 fixes (no sine, no arctangent),
because the others may round differently with an array's length.
"""

from __future__ import annotations

import math

import numpy as np

from minidnn.data.dataset import Dataset, check_image_size, statistics
from minidnn.errors import InputError
from minidnn.random import rng

SHAPES = ("disc", "square", "triangle", "cross", "ring", "bar", "frame", "star", "crescent", "bow tie")
COLOURS = ("red", "yellow", "green", "blue", "magenta")
HUES = np.array([0.0, 0.15, 0.36, 0.62, 0.86], dtype=np.float32)  # in turns
TEXTURES = ("plain", "striped", "chequered", "dotted")
MOST_CLASSES = len(SHAPES) * len(COLOURS) * len(TEXTURES)
BLOCK_PIXELS = 2**17  # made at a time: the temporary arrays then stay in the processor's cache


class Shapes(Dataset):
    """Coloured shapes on noisy backgrounds.

    Parameters
    ----------
    classes : int
        2 to 200.
    image : int
        Height and width in pixels; from about 20 on the shapes can be told apart.
    train, validation : int
        Images in each split; image i has label ``i mod classes``, so classes are equally many.
    seed : int
    """

    def __init__(
        self, classes: int = 10, image: int = 56, train: int = 2000, validation: int = 500, seed: int = 0
    ) -> None:
        if not 2 <= classes <= MOST_CLASSES:
            raise InputError(f"Shapes of {classes} classes: expected 2 to {MOST_CLASSES}")
        if min(train, validation) < 1:
            raise InputError(
                f"Shapes with {train} training and {validation} validation images: expected 1 or more"
            )
        image = check_image_size(image)
        parts = [
            ShapeImages(n, classes, image, seed, name)
            for name, n in (("train", train), ("validation", validation))
        ]
        mean, std = statistics(parts[0], sample=100)
        with_labels = ((part, np.arange(len(part), dtype=np.int64) % classes) for part in parts)
        super().__init__("Shapes", image, map(class_name, range(classes)), *with_labels, mean, std)


class ShapeImages:
    """The images of one split, made when they are first asked for and kept: uint8 (n, image, image, 3).

    Indexed by an integer, a slice or an integer array. Threads may share it: two that make the same image
    write the same bytes.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, n: int, classes: int, image: int, seed: int, split: str) -> None:
        self.shape = (n, image, image, 3)
        self.classes, self.seed, self.split = classes, seed, split
        try:
            self.kept = np.empty(self.shape, dtype=np.uint8)  # takes no memory before it is written
        except MemoryError as error:
            raise InputError(f"Shapes with {n} images of {image}x{image}: {error}: ask for fewer") from None
        self.made = np.zeros(n, dtype=bool)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        rows = np.atleast_1d(np.arange(len(self))[index])
        missing = np.unique(rows[~self.made[rows]])
        block = max(1, BLOCK_PIXELS // self.shape[1] ** 2)
        for start in range(0, len(missing), block):
            part = missing[start : start + block]
            self.kept[part] = draw(part, part % self.classes, self.shape[1], self.seed, self.split)
            self.made[part] = True
        return self.kept[index]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


def class_name(label: int) -> str:
    """``"red disc"``, ``"blue striped star"``."""
    shape, colour, texture = _attributes(np.int64(label))
    return " ".join([COLOURS[colour], *[TEXTURES[texture]] * bool(texture), SHAPES[shape]])


def _attributes(label):
    """Shape, colour and texture numbers of a class (integer or integer array)."""
    shape, rest = label % len(SHAPES), label // len(SHAPES)
    return shape, (shape + rest) % len(COLOURS), rest // len(COLOURS)


def draw(indices: np.ndarray, labels: np.ndarray, image: int, seed: int, split: str) -> np.ndarray:
    """Images number `indices` of classes `labels`: uint8 (n, image, image, 3)."""
    n = len(indices)
    chance = np.empty((n, 12), dtype=np.float32)
    turn = np.empty((2, n, 1, 1), dtype=np.float32)  # sine and cosine of the angle
    noise = np.empty((n, image, image, 3), dtype=np.uint8)
    for i, index in enumerate(indices):
        generator = rng(seed, "shapes", split, int(index))
        chance[i] = generator.random(12, dtype=np.float32)
        angle = 0.7 * (float(chance[i, 3]) - 0.5)  # up to 20 degrees either way
        turn[:, i, 0, 0] = math.sin(angle), math.cos(angle)
        noise[i] = np.frombuffer(generator.bytes(noise[i].size), dtype=np.uint8).reshape(noise[i].shape)
    column = chance.T[:, :, None, None]  # each (n, 1, 1)
    size = 0.34 + 0.11 * column[0]  # half the shape's width, in image widths
    centre_x, centre_y = (size + (1 - 2 * size) * column[k] for k in (1, 2))
    sine, cosine = turn

    # Pixel centres in the shape's own frame, where it spans about -1..1.
    grid = (np.arange(image, dtype=np.float32) + 0.5) / image
    x, y = (grid[None, None, :] - centre_x) / size, (grid[None, :, None] - centre_y) / size
    x, y = cosine * x + sine * y, cosine * y - sine * x  # (n, image, image)

    shape, colour, texture = _attributes(labels)
    inside = np.empty_like(x)
    for kind in np.unique(shape):
        rows = shape == kind
        distance = _DISTANCES[kind](x[rows], y[rows])
        inside[rows] = np.clip(0.5 - distance * (size[rows] * image), 0, 1)  # one pixel of soft edge
    shade = 1 - 0.65 * _pattern(texture, x, y)

    hue = HUES[colour] + 0.04 * (chance[:, 4] - 0.5)
    paint = _rgb(hue, 0.75 + 0.25 * chance[:, 5], 0.75 + 0.25 * chance[:, 6])
    ground = _rgb(chance[:, 7], 0.25 * chance[:, 8], 0.15 + 0.5 * chance[:, 9])
    # The background brightens towards one side; the shape covers it.
    slope = 1 + 0.4 * (column[10] - 0.5) * (2 * grid[:, None] - 1) + 0.4 * (column[11] - 0.5) * (2 * grid - 1)
    pixels = ((1 - inside) * slope)[..., None] * ground[:, None, None, :]
    pixels += (inside * shade)[..., None] * paint[:, None, None, :]
    pixels *= 255
    pixels += noise * np.float32(40 / 255)
    pixels -= 20
    return np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)


def _pattern(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where the texture darkens the shape: 0 or 1, float32 like `x`."""
    dark = np.zeros_like(x)
    for kind in np.unique(texture[texture > 0]):
        rows = texture == kind
        u, v = (np.floor(3 * axis[rows]).astype(np.int8) for axis in (x, y))
        dark[rows] = {1: u & 1, 2: (u ^ v) & 1, 3: u & v & 1}[int(kind)]
    return dark


def _rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Colours (n, 3) in 0..1 from hue (in turns), saturation and value, each (n,)."""
    phase = (np.array([5, 3, 1], dtype=np.float32) + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(phase, 4 - phase), 0, 1))


# Signed distances to the outlines, about exact near them: negative inside. One for each name in SHAPES.


COS36, SIN36 = math.cos(math.pi / 5), math.sin(math.pi / 5)


def _box(x, y, width, height):
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


def _disc(x, y, radius):
    return np.sqrt(x * x + y * y) - radius


def _crescent(x, y):
    return np.maximum(_disc(x, y, 0.85), -_disc(x - 0.45, y, 0.65))


def _star(x, y):
    """Five points: the plane is folded onto half of one of them, whose side is then a straight line."""
    x = np.abs(x)
    for fold_x, fold_y in ((COS36, -SIN36), (-COS36, -SIN36)):
        beyond = 2 * np.maximum(fold_x * x + fold_y * y, 0)
        x, y = x - beyond * fold_x, y - beyond * fold_y
    side_x, side_y = 0.42 * SIN36, 0.42 * COS36 - 1  # from the tip (0, 1) to the notch, at radius 0.42
    return (np.abs(x) * -side_y + (y - 1) * side_x) / math.hypot(side_x, side_y)


_DISTANCES = (
    lambda x, y: _disc(x, y, 0.8),
    lambda x, y: _box(x, y, 0.7, 0.7),
    lambda x, y: np.maximum(0.866 * np.abs(x) + 0.5 * y, -y) - 0.5,
    lambda x, y: np.minimum(_box(x, y, 0.9, 0.27), _box(x, y, 0.27, 0.9)),
    lambda x, y: np.abs(_disc(x, y, 0.65)) - 0.2,
    lambda x, y: _box(x, y, 0.95, 0.27),
    lambda x, y: np.abs(_box(x, y, 0.6, 0.6)) - 0.17,
    _star,
    _crescent,
    lambda x, y: np.maximum(np.abs(x) - 0.9, np.abs(y) - np.abs(x)),
)
