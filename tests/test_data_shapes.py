"""The procedural set: the same images however they are asked for, balanced, and learnable."""

import numpy as np
import pytest

from minidnn.data import Shapes
from minidnn.data.shapes import ShapeImages
from minidnn.errors import InputError


def test_layout_and_names():
    data = Shapes(classes=10, image=24, train=43, validation=20, seed=3)
    assert data.train.images.shape == (43, 24, 24, 3) and data.train.images.dtype == np.uint8
    assert len(data.train) == 43 and data.train.labels.dtype == np.int64
    counts = np.bincount(data.train.labels, minlength=10)
    assert counts.min() >= 4 and counts.max() <= 5
    assert data.classes[0] == "red disc" and len(data.classes) == 10
    assert data.mean.shape == data.std.shape == (3,) and (data.std > 10).all()
    names = Shapes(classes=200, train=1, validation=1).classes
    assert len(set(names)) == 200 and names[50] == "red striped disc"


@pytest.mark.parametrize("image", [16, 57])
def test_an_image_does_not_depend_on_what_it_is_made_with(image):
    """Bit for bit: a rank that makes three images makes what a rank that makes all of them makes."""
    whole = ShapeImages(60, 30, image, 5, "train")[:]
    picked = np.array([7, 3, 59, 7])
    few = ShapeImages(60, 30, image, 5, "train")
    np.testing.assert_array_equal(few[picked], whole[picked])
    assert few.made.sum() == 3  # no more than were asked for
    np.testing.assert_array_equal(few[10], whole[10])
    np.testing.assert_array_equal(few[-3:], whole[-3:])
    np.testing.assert_array_equal(np.asarray(few), whole)
    for i in range(60):
        np.testing.assert_array_equal(ShapeImages(60, 30, image, 5, "train")[[i]][0], whole[i])


def test_seed_split_and_index_each_matter():
    base = Shapes(image=16, train=40, validation=40, seed=0)
    other = Shapes(image=16, train=40, validation=40, seed=1)
    assert (base.train.images[:] != other.train.images[:]).any((1, 2, 3)).all()
    assert (base.train.images[:] != base.validation.images[:]).any((1, 2, 3)).all()
    assert len({image.tobytes() for image in base.train.images[:]}) == 40
    longer = Shapes(image=16, train=80, validation=40, seed=0)  # more images: the first ones stay
    np.testing.assert_array_equal(longer.train.images[:40], base.train.images[:])


def test_a_writer_does_not_change_the_set():
    images = ShapeImages(4, 2, 16, 0, "train")
    rows = images[np.array([1, 2])]
    rows[:] = 0
    assert images[np.array([1])].any()


def nearest_mean_accuracy(features, labels, unseen, unseen_labels):
    means = np.stack([features[labels == k].mean(0) for k in np.unique(labels)])
    distance = ((unseen[:, None] - means) ** 2).sum(-1)
    return (distance.argmin(1) == unseen_labels).mean()


def colour_and_compactness(images):
    """Mean colour of the painted pixels; area^2 / (2 pi moment of inertia): 1 for a disc, of any size."""
    pixels = images[:].astype(np.float64)
    chroma = pixels - pixels.mean(-1, keepdims=True)
    painted = (np.abs(chroma).max(-1) > 60).astype(np.float64)
    area = painted.sum((1, 2))
    colour = (chroma * painted[..., None]).sum((1, 2)) / area[:, None]
    inertia = 0
    for axis in (1, 2):
        marginal = painted.sum(3 - axis)
        place = np.arange(marginal.shape[1])
        centre = marginal @ place / area
        inertia = inertia + (marginal * (place - centre[:, None]) ** 2).sum(1)
    return colour, (area**2 / (2 * np.pi * inertia))[:, None]


def test_colour_tells_pairs_of_classes_and_shape_each():
    data = Shapes(classes=10, image=40, train=600, validation=200)
    colour, compact = colour_and_compactness(data.train.images)
    unseen_colour, unseen_compact = colour_and_compactness(data.validation.images)
    y, unseen_y = data.train.labels, data.validation.labels
    assert nearest_mean_accuracy(colour, y % 5, unseen_colour, unseen_y % 5) > 0.97
    assert nearest_mean_accuracy(colour, y, unseen_colour, unseen_y) < 0.75
    both, unseen_both = np.hstack([colour, 300 * compact]), np.hstack([unseen_colour, 300 * unseen_compact])
    assert nearest_mean_accuracy(both, y, unseen_both, unseen_y) > 0.9


@pytest.mark.parametrize(
    "options", [{"classes": 1}, {"classes": 201}, {"train": 0}, {"image": 2}, {"image": 5.5}]
)
def test_bad_options(options):
    with pytest.raises(InputError, match="expected"):
        Shapes(**options)
