"""Images a second: decoding and scaling, batches of normalised images, and what a training step needs.

    python -m benchmarks.input_pipeline [--data PATH] [--quick]

Decoding is done once; afterwards the pixels come from a memory-mapped cache, and the loader's part of a step is to
gather, normalise and, if asked to, augment. Without --data (a folder or zip of Tiny ImageNet or Dogs vs. Cats),
JPEG files of 500 x 375 pixels are drawn into a temporary folder.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.common import alternate, header, spread
from benchmarks.processes import Worker, steps_of
from minidnn.data import Augment, DataLoader, Split
from minidnn.data.archives import inspect
from minidnn.data.decode import decode_all, usable_cpus
from minidnn.data.source import FolderSource, Source, open_source
from minidnn.text import table

CASES = ((56, 200, "thesis"), (128, 200, "thesis"), (227, 1000, "2012"))
BATCH = 16
STEPS = 16  # batches that the loader makes at a time


def draw(folder: str, count: int) -> None:
    """Smooth colours with some noise, about as large in bytes as photographs are: 500 x 375, quality 90."""
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(pixels + random.integers(-8, 9, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(Path(folder, f"{number}.jpg"), quality=90)


def rate(work: Callable[[], object]) -> Callable[[], float]:
    """A program for `alternate`: the seconds of `work`."""

    def timed() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return timed


def measure(
    source: Source, files: list[str], image: int, rounds: int, need: Callable[[], float]
) -> list[str]:
    """Images a second: decoded by one thread, by all, loaded, loaded with augmentation, needed; share of a step."""
    pixels, shape = np.empty((len(files), image, image, 3), np.uint8), (3,)
    labels = np.zeros(len(files), np.int64)
    split = Split("train", pixels, labels, np.full(shape, 120.0), np.full(shape, 60.0))
    plain = DataLoader(split, BATCH, steps=STEPS, prefetch=0)
    augmented = DataLoader(split, BATCH, steps=STEPS, prefetch=0, augment=Augment())
    programs = {
        "one": rate(lambda: decode_all(source, files, pixels, lambda n: None, 1)),
        "all": rate(lambda: decode_all(source, files, pixels, lambda n: None)),
        "load": rate(lambda: [None for _ in plain]),
        "augment": rate(lambda: [None for _ in augmented]),
        "step": need,
    }
    times = alternate(programs, rounds)
    images = {
        "one": len(files),
        "all": len(files),
        "load": STEPS * BATCH,
        "augment": STEPS * BATCH,
        "step": BATCH,
    }
    rates = [spread([images[name] / seconds for seconds in times[name]], 0) for name in programs]
    load = [100 * a / STEPS / b for a, b in zip(times["load"], times["step"], strict=True)]
    return [*rates, f"{spread(load, 1)} %"]


def run(quick: bool = False, data: str | None = None) -> str:
    """The table."""
    rows, count, rounds = [], 32 if quick else 512, 2 if quick else 9
    with tempfile.TemporaryDirectory() as folder:
        if data:
            source, files = open_source(data), inspect(data).train[0][:count]
        else:
            draw(folder, count)
            source = FolderSource(Path(folder))
            files = source.names()
        for image, classes, variant in CASES[:1] if quick else CASES:
            options = {
                "image": image,
                "classes": classes,
                "variant": variant,
                "width": 0.125 if quick else 1.0,
            }
            with Worker(
                "training", {"model": "alexnet", "options": options, "batch": BATCH}, usable_cpus()
            ) as worker:
                rows.append([f"{image} px", *measure(source, files, image, rounds, steps_of(worker, 3))])
    columns = ["AlexNet", "decode, 1 thread", f"decode, {usable_cpus()} threads", "load", "load, augmented"]
    columns += ["a step needs", "loading / step"]
    title = f"Images a second, batch {BATCH}; {len(files)} files of {data or '500 x 375 JPEG'}: medians (quartiles)"
    return table(rows, columns, title)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", metavar="PATH", help="folder or zip of Tiny ImageNet or Dogs vs. Cats")
    parser.add_argument("--quick", action="store_true", help="little work, to see that it runs")
    arguments = parser.parse_args()
    print(header() + "\n\n" + run(arguments.quick, arguments.data))
