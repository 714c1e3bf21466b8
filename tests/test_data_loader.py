"""DataLoader: the same batches whoever takes which rows of them, and a thread that never outlives its use."""

import gc
import threading
import weakref

import numpy as np
import pytest

from minidnn.data import Augment, DataLoader, Split
from minidnn.errors import InputError
from minidnn.random import rng

N = 23


def make_split(n=N, image=6):
    images = rng(0, "test").integers(0, 256, size=(n, image, image, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(n)  # recognisable
    return Split(
        "train", images, np.arange(n) % 5, np.array([100.0, 120.0, 140.0]), np.array([50.0, 60.0, 70.0])
    )


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not loader_threads()


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_a_pass_is_a_permutation_with_a_smaller_last_batch(prefetch):
    split = make_split()
    batches = list(DataLoader(split, 5, seed=4, prefetch=prefetch))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert [(batch.epoch, batch.step) for batch in batches] == [(0, k) for k in range(5)]
    order = np.concatenate([batch.indices for batch in batches])
    np.testing.assert_array_equal(order, rng(4, "order", 0).permutation(N))
    for batch in batches:
        np.testing.assert_array_equal(batch.samples, np.arange(len(batch)))
        np.testing.assert_array_equal(batch.labels, split.labels[batch.indices])
        expected = (split.images[batch.indices] - split.mean) / split.std
        np.testing.assert_allclose(batch.images, expected, atol=1e-6)
        assert batch.images.dtype == np.float32 and batch.labels.dtype == np.int64


@pytest.mark.parametrize("limit", [1, 7, 10, N, 1000])
def test_a_limited_pass_has_the_same_images_whatever_the_batch(limit):
    want = rng(4, "order", 0).permutation(N)[:limit]
    for batch in (1, 5, 50):
        batches = list(DataLoader(make_split(), batch, seed=4, limit=limit))
        np.testing.assert_array_equal(np.concatenate([b.indices for b in batches]), want)
        assert [len(b) for b in batches[:-1]] == [batch] * (len(batches) - 1)


def test_a_limited_pass_can_drop_its_last_batch():
    loader = DataLoader(make_split(), 3, limit=8, drop_last=True)
    assert [len(batch) for batch in loader] == [3, 3]
    for limit in (0, 2):
        with pytest.raises(InputError, match=f"{limit} images"):
            DataLoader(make_split(), 3, limit=limit, drop_last=True)


def test_float64_is_exact_to_rounding():
    split = make_split()
    batch = next(DataLoader(split, 8, dtype=np.float64).epoch(0))
    assert batch.images.dtype == np.float64
    np.testing.assert_allclose(
        batch.images, (split.images[batch.indices] - split.mean) / split.std, atol=1e-14
    )


def by_blocks(rank, ranks):
    """Uneven consecutive rows, as a function of the batch's size."""
    return lambda size: slice(size * rank // ranks, size * (rank + 1) // ranks)


def every(rank, ranks):
    return lambda size: np.arange(size)[rank::ranks]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [by_blocks, every])
@pytest.mark.parametrize("augment", [None, Augment(flip=True, crop=2)])
def test_union_over_ranks_is_the_one_process_batch(ranks, rows, augment):
    split, options = make_split(), {"seed": 1, "steps": 7, "augment": augment}
    whole = list(DataLoader(split, 5, **options))
    parts = [list(DataLoader(split, 5, rows=rows(r, ranks), **options)) for r in range(ranks)]
    for t, batch in enumerate(whole):
        seen = np.zeros(len(batch), dtype=int)
        for part in parts:
            mine = part[t]
            np.testing.assert_array_equal(mine.labels, batch.labels)  # of the whole batch, on every rank
            np.testing.assert_array_equal(mine.indices, batch.indices)
            np.testing.assert_array_equal(mine.images, batch.images[mine.samples])  # to the bit
            seen[mine.samples] += 1
        assert (seen == 1).all()


def test_fixed_bounds_and_ranks_without_images():
    split = make_split(7)
    first, last = DataLoader(split, 5, rows=(3, 5), shuffle=False)
    assert first.samples.tolist() == [3, 4] and first.images.shape == (2, 6, 6, 3)
    assert last.samples.tolist() == [] and last.images.shape == (0, 6, 6, 3) and len(last) == 2
    for batch in DataLoader(split, 5, rows=None, shuffle=False):
        assert batch.images is None and len(batch.labels) == len(batch.samples) == len(batch)


def test_images_are_not_read_on_a_rank_that_needs_none():
    class Unreadable:
        shape = (N, 6, 6, 3)

        def __getitem__(self, index):
            raise AssertionError("read")

    split = make_split()
    blind = Split("train", Unreadable(), split.labels, split.mean, split.std)
    assert len(list(DataLoader(blind, 5, rows=None))) == 5
    with pytest.raises(AssertionError, match="read"):
        list(DataLoader(blind, 5))


def test_epochs_of_steps_run_on_through_the_passes():
    split = make_split(10)
    passes = [rng(2, "order", p).permutation(10) for p in range(3)]
    expected = [passes[p][s : s + 4] for p in range(3) for s in (0, 4, 8)]
    loader = DataLoader(split, 4, seed=2, steps=4)
    assert len(loader) == 4
    seen = [list(loader) for _ in range(2)]  # iterating again is the next epoch
    for batch, indices in zip([*seen[0], *seen[1]], expected, strict=False):
        np.testing.assert_array_equal(batch.indices, indices)
    assert [(b.epoch, b.step) for b in seen[1]] == [(1, 1), (1, 2), (2, 0), (2, 1)]
    for again, batch in zip(loader.epoch(1), seen[1], strict=True):  # and any epoch can be had again
        np.testing.assert_array_equal(again.images, batch.images)
    assert not np.array_equal(passes[0], passes[1])


def test_drop_last_and_batches_larger_than_the_split():
    split = make_split(10)
    assert [len(b) for b in DataLoader(split, 4, drop_last=True, steps=5)] == [4] * 5
    assert [len(b) for b in DataLoader(split, 64)] == [10]
    with pytest.raises(InputError, match="batch of 64: the train split has 10 images"):
        DataLoader(split, 64, drop_last=True)
    for options in ({"batch": 0}, {"batch": 4, "steps": 0}):
        with pytest.raises(InputError, match="expected 1 or more"):
            DataLoader(split, **options)


def test_without_shuffling_every_pass_is_in_order():
    split = make_split(10)
    loader = DataLoader(split, 4, shuffle=False)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([b.indices for b in loader]), np.arange(10))


def test_batches_do_not_share_memory():
    batches = list(DataLoader(make_split(), 5))
    kept = [batch.images.copy() for batch in batches]
    assert all(np.array_equal(a, b.images) for a, b in zip(kept, batches, strict=True))
    assert not np.shares_memory(batches[0].images, batches[1].images)


class Recording:
    """Images that note which thread read them, and fail at the third batch if told to."""

    def __init__(self, images, fail_at=None):
        self.images, self.shape, self.fail_at = images, images.shape, fail_at
        self.readers, self.progressed = [], threading.Semaphore(0)

    def __getitem__(self, index):
        self.readers.append(threading.current_thread().name)
        self.progressed.release()
        if len(self.readers) == self.fail_at:
            raise OSError("the disk is gone")
        return self.images[index]


def recording_split(**options):
    split = make_split()
    return Split("train", Recording(split.images, **options), split.labels, split.mean, split.std)


def test_batches_are_made_ahead_by_one_thread_up_to_the_depth():
    split = recording_split()
    batches = iter(DataLoader(split, 5, prefetch=2))
    next(batches)
    for _ in range(3):  # the one in use and two ahead
        assert split.images.progressed.acquire(timeout=30)
    assert set(split.images.readers) == {"loader"} and len(loader_threads()) == 1
    assert not split.images.progressed.acquire(timeout=0.05)  # and no more
    batches.close()
    assert len(split.images.readers) == 3 and not loader_threads()


def test_an_error_in_the_thread_is_raised_in_its_turn():
    batches = iter(DataLoader(recording_split(fail_at=3), 5, prefetch=2))
    next(batches), next(batches)
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_leaving_a_loop_early_ends_the_thread():
    for batch in DataLoader(make_split(), 5):
        assert batch.step == 0
        break
    gc.collect()
    assert not loader_threads()
    batches = iter(DataLoader(make_split(), 5))
    next(batches)
    gone = weakref.ref(batches)
    del batches
    gc.collect()
    assert gone() is None and not loader_threads()


def test_augmentation_flips_and_moves():
    images = make_split(40, 8).images
    indices = np.arange(40)
    flipped = Augment(flip=True)(images, indices, seed=0, epoch=0)
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert ((flipped == images).all((1, 2, 3)) ^ mirrored).all() and 8 < mirrored.sum() < 32
    moved = Augment(flip=False, crop=2)(images, indices, seed=0, epoch=0)
    wide = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    places = [
        [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(wide[i, y : y + 8, x : x + 8], moved[i])
        ]
        for i in range(40)
    ]
    assert all(len(place) == 1 for place in places)
    assert len({place[0] for place in places}) > 12
    np.testing.assert_array_equal(Augment(flip=False)(images, indices, 0, 0), images)
    assert not np.array_equal(Augment()(images, indices, 0, 0), Augment()(images, indices, 0, 1))
    with pytest.raises(InputError, match="crop of 8 pixels"):
        Augment(crop=8)(images, indices, 0, 0)
    with pytest.raises(InputError, match="expected 0 or more"):
        Augment(crop=-1)
