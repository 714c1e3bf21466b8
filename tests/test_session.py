"""What a training program sets up from its options."""

import numpy as np
import pytest

from minidnn.comm import threads
from minidnn.train import Session, parse, parser

pytest.importorskip("PIL")
from PIL import Image


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """Cats, which are black, and dogs, which are white, one class after the other."""
    monkeypatch.setenv("MINIDNN_CACHE", str(tmp_path / "cache"))
    for folder, count in (("train", 8), ("validation", 40)):
        (tmp_path / "pets" / folder).mkdir(parents=True)
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                path = tmp_path / "pets" / folder / f"{name}.{i}.jpg"
                Image.new("RGB", (32, 32), (255 * label,) * 3).save(path)
    return tmp_path / "pets"


def test_a_part_of_the_validation_images_has_every_class_and_stays_the_same(pets):
    options = ["--data", str(pets), "--image", "32", "--model", "lenet", "--batch", "4", "--validation", "41"]

    def main(comm):
        session = Session(comm, parse(parser("", strategy="data"), options))
        return [[batch.labels for batch in session.validation.epoch(0)] for _ in range(2)]

    for first, second in threads.run(2, main):
        first, second = np.concatenate(first), np.concatenate(second)
        np.testing.assert_array_equal(first, second)
        assert len(first) == 41 and 10 <= first.sum() <= 31
