"""Generators by name, and random bits that do not depend on who computes them."""

import subprocess
import sys

import numpy as np
import pytest

from minidnn.random import random_bits, rng


def test_generators_differ_by_seed_and_by_name_and_repeat():
    draws = {
        key: rng(*key).integers(0, 2**62)
        for key in [
            (0, "a"),
            (1, "a"),
            (0, "b"),
            (0, "a", "b"),
            (0, "ab"),
            (0, "order", 1),
            (0, "order", "1"),
            (0,),
        ]
    }
    assert len(set(draws.values())) == len(draws)
    for key, value in draws.items():
        assert rng(*key).integers(0, 2**62) == value


def test_generators_are_the_same_in_every_process():
    code = "from minidnn.random import rng; print(rng(3, 'conv1.W', 2).integers(0, 2**62))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{rng(3, 'conv1.W', 2).integers(0, 2**62)}\n"}


def splitmix(state):
    """One output of SplitMix64's finaliser, in Python integers."""
    mask = 2**64 - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@pytest.mark.parametrize("shape", [(8,), (6,), (5,), (2, 3, 8), (2, 2, 5)])
def test_every_slice_of_features_and_samples_is_part_of_the_whole(shape):
    samples = np.arange(10)
    whole = random_bits(7, "drop6", 3, samples, shape)
    assert whole.shape == (10, *shape) and whole.dtype == np.uint16
    for start in range(shape[-1] + 1):
        for stop in range(start, shape[-1] + 1):
            part = random_bits(7, "drop6", 3, samples[4:7], shape, (start, stop))
            np.testing.assert_array_equal(part, whole[4:7, ..., start:stop])
    np.testing.assert_array_equal(random_bits(7, "drop6", 3, [9, 2], shape), whole[[9, 2]])
    assert random_bits(7, "drop6", 3, [], shape).shape == (0, *shape)


def test_bits_are_splitmix_words():
    """Against the definition in Python integers: the words of one sample's stream, 16 bits at a time."""
    gamma = 0x9E3779B97F4A7C15
    bits = random_bits(0, "d", 0, [5], (3, 8)).reshape(-1)
    other = random_bits(0, "d", 0, [5], (24,)).reshape(-1)
    np.testing.assert_array_equal(bits, other)  # the flat index counts
    import hashlib

    key = int.from_bytes(hashlib.blake2b(repr((0, "d", 0)).encode(), digest_size=8).digest(), "little")
    stream = splitmix(((5 + 1) * gamma % 2**64) ^ key)
    for i, value in enumerate(bits):
        word = splitmix(stream + (i // 4 + 1) * gamma)
        assert value == (word >> (16 * (i % 4))) & 0xFFFF


def test_bits_differ_by_seed_layer_step_and_sample():
    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    drawn = [random_bits(*key, np.arange(20), (50,)) for key in keys]
    rows = np.concatenate(drawn)
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_bits_are_uniform_and_unrelated():
    bits = random_bits(0, "drop", 1, np.arange(64), (1000,)).astype(float) / 65535
    assert abs(bits.mean() - 0.5) < 0.005 and abs(bits.var() - 1 / 12) < 0.002
    ones = np.unpackbits(
        random_bits(0, "drop", 1, np.arange(64), (1000,)).view(np.uint8).reshape(-1, 2), axis=1
    )
    assert abs(ones.mean(axis=0) - 0.5).max() < 0.01  # each of the 16 bits
    next_step = random_bits(0, "drop", 2, np.arange(64), (1000,)).astype(float)
    for a, b in (
        (bits[:, :-1], bits[:, 1:]),
        (bits[:, :-4], bits[:, 4:]),
        (bits[:-1], bits[1:]),
        (bits, next_step),
    ):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02


def test_bad_slices():
    with pytest.raises(ValueError, match=r"last=\(2, 9\) is no slice of an axis of 8"):
        random_bits(0, "d", 0, [0], (8,), (2, 9))
    with pytest.raises(ValueError, match="at least one axis"):
        random_bits(0, "d", 0, [0], ())
