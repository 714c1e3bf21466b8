"""Random numbers that do not depend on who draws them.

Weights and data order come from `rng(seed, name...)`, dropout masks from `random_bits`, which computes the
bits of any part of a batch and of any slice of the features without drawing the rest.
"""

import hashlib
import math
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["random_bits", "rng"]

# SplitMix64 (Steele, Lea and Flood 2014): the step between states, and the two multipliers of the finaliser
GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)


def _digest(size: int, *parts: int | str) -> bytes:
    """A hash of `parts` that is the same in every process and tells 1 from "1"."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=size).digest()


def rng(seed: int, *names: int | str) -> np.random.Generator:
    """A generator of its own for each (seed, names): ``rng(0, "conv1.W")``, ``rng(0, "order", epoch)``."""
    words = np.frombuffer(_digest(16, *names), "<u4")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words.tolist()])))


def _mix(z: Any) -> Any:
    """The SplitMix64 finaliser, in place: every input bit changes every output bit with probability 1/2."""
    z ^= z >> np.uint64(30)
    z *= MIX_1
    z ^= z >> np.uint64(27)
    z *= MIX_2
    z ^= z >> np.uint64(31)
    return z


def random_bits(
    seed: int,
    layer: str,
    step: int,
    samples: Any,
    shape: tuple[int, ...],
    last: tuple[int, int] | None = None,
    xp: ModuleType = np,
) -> Any:
    """16 bits for each feature of each sample: a pure function of (seed, layer, step, sample, feature).

    Parameters
    ----------
    seed, layer, step
        The key.
    samples : int array (n,)
        Global indices of the samples in the batch, or whatever tells them apart.
    shape : tuple
        Of one WHOLE sample, even where only a part of it is asked for.
    last : (start, stop), optional
        The slice of the last axis to compute; all of it if None.
    xp : module
        NumPy or CuPy: where to compute.

    Returns
    -------
    uint16 array (n, *shape[:-1], stop - start)
    """
    if not shape:
        raise ValueError("random_bits: a sample needs at least one axis")
    width = shape[-1]
    start, stop = (0, width) if last is None else last
    if not 0 <= start <= stop <= width:
        raise ValueError(f"random_bits: last={last} is no slice of an axis of {width}")
    key = np.uint64(int.from_bytes(_digest(8, seed, layer, step), "little"))
    streams = xp.asarray(samples).astype(xp.uint64)
    streams += np.uint64(1)
    streams *= GAMMA
    streams ^= key
    streams = _mix(streams)[:, None]
    # Feature i takes bits 16 (i mod 4) ... + 15 of word i // 4 of its sample's stream.
    rows = math.prod(shape[:-1])
    if rows == 1 or width % 4 == 0:  # whole words per row: four features for each word computed
        first, after = start // 4, -(-stop // 4)
        word = xp.arange(first, after, dtype=xp.uint64)
        word = (xp.arange(rows, dtype=xp.uint64)[:, None] * np.uint64(width // 4) + word).reshape(-1)
        bits = _mix(streams + (word + np.uint64(1)) * GAMMA)
        bits = bits.view(xp.uint16).reshape(len(bits), rows, 4 * (after - first))
        bits = bits[..., start - 4 * first : stop - 4 * first]
    else:
        feature = xp.arange(rows, dtype=xp.uint64)[:, None] * np.uint64(width)
        feature = (feature + xp.arange(start, stop, dtype=xp.uint64)).reshape(-1)
        bits = _mix(streams + ((feature >> np.uint64(2)) + np.uint64(1)) * GAMMA)
        bits = (bits >> ((feature & np.uint64(3)) * np.uint64(16))).astype(xp.uint16)
    return xp.ascontiguousarray(bits.reshape(len(bits), *shape[:-1], stop - start))
