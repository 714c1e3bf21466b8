"""Batches for one rank, prepared in the background."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from minidnn.data.augment import Augment
from minidnn.data.dataset import Split
from minidnn.errors import InputError
from minidnn.random import rng

# Which of a batch's positions 0..size-1 a rank works on: a slice, or their array in increasing order.
Rows = Callable[[int], slice | np.ndarray]


def all_rows(size: int) -> slice:
    """The rows of a rank that works on the whole batch."""
    return slice(0, size)


@dataclass(frozen=True, eq=False)
class Batch:
    """One step's input, as one rank sees it. B is the size of the whole batch, n the rows of this rank.

    Attributes
    ----------
    images : float (n, h, w, c) or None
        Normalised images of this rank's rows; None on a rank that needs none.
    labels : int64 (B,)
        Labels of the whole batch.
    samples : int64 (n,)
        Positions of this rank's rows in the whole batch (all of them on a rank that needs no images).
    indices : int64 (B,)
        Which images of the split make up the batch.
    epoch, step : int
        The pass over the data that the batch comes from, and its number in that pass, from 0.
    """

    images: np.ndarray | None
    labels: np.ndarray
    samples: np.ndarray
    indices: np.ndarray
    epoch: int
    step: int

    def __len__(self) -> int:
        return len(self.labels)


class DataLoader:
    """Cut a split into batches, the same ones on every rank, and prepare this rank's rows of them.

    The batches form one endless sequence: pass 0 over the data, in the order ``rng(seed, "order", 0)`` gives,
    then pass 1 in another order, and so on. Batch number t is a function of the arguments and t alone. An
    epoch is `steps` of them: epoch e holds the numbers e·steps to (e+1)·steps - 1, wherever the passes begin
    and end. By default an epoch is one pass.

    Iterating over the loader goes through the next epoch each time; `epoch(e)` goes through a given one.

    Parameters
    ----------
    split : Split
    batch : int
        Size of the whole batch, over all ranks. The last one of a pass holds what is left.
    rows : callable, (start, stop) or None
        Which rows of a batch this rank works on: a function of the batch's size that returns a slice or an
        array of positions, or two fixed bounds, which a smaller last batch cuts short. None: this rank needs
        no images.
    seed : int
    shuffle : bool
        False gives every pass in the split's own order, for validation.
    drop_last : bool
        Leave out a last batch that is smaller than `batch`.
    steps : int, optional
        Batches in an epoch.
    limit : int, optional
        Images in a pass; by default all. The first ones of the pass's order, so with the same seed the same ones.
    dtype : float32 or float64
    augment : Augment, optional
    prefetch : int
        Batches made ahead by a background thread; 0 makes each when it is asked for, without a thread.
    """

    def __init__(
        self,
        split: Split,
        batch: int,
        *,
        rows: Rows | tuple[int, int] | None = all_rows,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        steps: int | None = None,
        limit: int | None = None,
        dtype=np.float32,
        augment: Augment | None = None,
        prefetch: int = 2,
    ) -> None:
        if batch < 1:
            raise InputError(f"batch of {batch}: expected 1 or more")
        if steps is not None and steps < 1:
            raise InputError(f"{steps} steps in an epoch: expected 1 or more")
        if limit is not None and limit < 1:
            raise InputError(f"a limit of {limit} images: expected 1 or more")
        self.images_per_pass = len(split) if limit is None else min(limit, len(split))
        if drop_last and batch > self.images_per_pass:
            raise InputError(
                f"batch of {batch}: the {split.name} split has {self.images_per_pass} images, not one whole batch"
            )
        self.split, self.batch, self.rows = split, batch, rows
        self.seed, self.shuffle, self.augment, self.prefetch = seed, shuffle, augment, prefetch
        self.dtype = np.dtype(dtype)
        self.batches_per_pass = (self.images_per_pass + (0 if drop_last else batch - 1)) // batch
        self.steps = steps if steps is not None else self.batches_per_pass
        self.next_epoch = 0  # the one that iterating goes through
        self._order: tuple[int, np.ndarray] | None = None  # of the pass used last
        # (image - mean) / std as one multiplication and one addition, in the type asked for.
        self.scale = (1 / split.std).astype(self.dtype)
        self.shift = (-split.mean / split.std).astype(self.dtype)

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        epoch, self.next_epoch = self.next_epoch, self.next_epoch + 1
        return self.epoch(epoch)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Go through the batches of one epoch. Closing the iterator, or dropping it, ends its thread."""
        first = number * self.steps
        numbers = range(first, first + self.steps)
        if self.prefetch:
            return _ahead(self.batch_at, numbers, self.prefetch)
        return map(self.batch_at, numbers)

    def order(self, epoch: int) -> np.ndarray:
        """The images' numbers in the order of pass `epoch`: int64 (images of a pass,)."""
        kept = self._order  # read once: the background thread may put another in its place
        if kept is None or kept[0] != epoch:
            n = len(self.split)
            order = rng(self.seed, "order", epoch).permutation(n) if self.shuffle else np.arange(n)
            kept = epoch, order[: self.images_per_pass]
            self._order = kept
        return kept[1]

    def batch_at(self, number: int) -> Batch:
        """Batch `number` of the endless sequence."""
        epoch, step = divmod(number, self.batches_per_pass)
        indices = self.order(epoch)[step * self.batch : (step + 1) * self.batch]
        positions = np.arange(len(indices))
        images = None
        if self.rows is not None:
            rows = self.rows(len(indices)) if callable(self.rows) else slice(*self.rows)
            positions = positions[rows]
            images = self._images(indices[positions], epoch)
        return Batch(images, self.split.labels[indices], positions, indices, epoch, step)

    def _images(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        pixels = self.split.images[indices]
        if self.augment:
            pixels = self.augment(pixels, indices, self.seed, epoch)
        # A new array for each batch: a network keeps its input until backward, and a caller may keep more.
        images = pixels.astype(self.dtype)
        images *= self.scale
        images += self.shift
        return images


def _ahead(make: Callable[[int], Batch], numbers: range, depth: int) -> Iterator[Batch]:
    """Yield ``make(number)`` for each number, up to `depth` of them made ahead by a thread.

    What `make` raises is raised here, in its turn. The thread ends with this generator.
    """
    room = threading.Semaphore(depth)
    made: queue.SimpleQueue = queue.SimpleQueue()
    closed = threading.Event()

    def work() -> None:
        for number in numbers:
            room.acquire()
            if closed.is_set():
                return
            try:
                made.put((make(number), None))
            except BaseException as error:  # the consumer waits: whatever happens, it must be told
                made.put((None, error))
                return

    thread = threading.Thread(target=work, name="loader", daemon=True)
    thread.start()
    try:
        for _ in numbers:
            batch, error = made.get()
            if error is not None:
                raise error
            room.release()
            yield batch
    finally:
        closed.set()
        room.release()
        if thread is not threading.current_thread():  # where the garbage collector may have come to run
            thread.join()
