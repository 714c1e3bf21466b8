"""Dropout, with masks that do not depend on who draws them."""

import itertools

import numpy as np

from minidnn import functional as F
from minidnn.backend import array_module
from minidnn.nn.context import Context, current_context
from minidnn.nn.dimensions import Part
from minidnn.nn.module import Module
from minidnn.random import random_bits
from minidnn.tensor import Tensor

_numbers = itertools.count()  # of the dropout layers made so far: what tells those without a name apart


class Dropout(Module):
    """y = x keep / (1 - p) in training, y = x in evaluation        keep (n, ...) of zeros and ones

    The mask of a sample follows from the run's seed, the layer's name, the step and the sample's global
    number, so it does not depend on the rank that computes it. Where no context says which step it is, the layer
    counts its own calls instead.
    """

    dims = "... -> ..."

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be in [0, 1), got {p}")
        self.p = p  # the probability that a feature is dropped
        self._calls, self._number = 0, next(_numbers)
        self.part: Part | None = None  # where the input is a part of the whole: which one

    def forward(self, x: Tensor) -> Tensor:
        """Drop features of each sample; RuntimeError in a context that says only some of seed, step and samples."""
        if not self.is_training or self.p == 0:
            return x
        now, name = current_context(), self.name
        if now.seed is now.step is now.samples is None:
            now = Context(seed=0, step=self._calls, samples=np.arange(x.shape[0]))
            name = name or f"unnamed {self._number}"
            self._calls += 1
        if now.seed is None or now.step is None or now.samples is None:
            raise RuntimeError(
                f"{self.label}: dropout must know the step: call the model inside "
                "`with nn.context(training=True, seed=..., step=..., samples=...)`, with all of them or none"
            )
        samples = np.asarray(now.samples)
        if len(samples) != x.shape[0]:
            numbered = f"the context numbers {len(samples)} samples"
            raise ValueError(f"{self.label}: {numbered}, the batch has {x.shape[0]}")
        whole, box = x.shape[1:], [(0, n) for n in x.shape[1:]]
        if self.part:
            whole, box = self.part.out, self.part.box
        bits = random_bits(now.seed, name, now.step, samples, whole, box[-1], array_module(x.data))
        return F.dropout(x, self.p, bits[:, *(slice(*rows) for rows in box[:-1])])

    def localise(self, part: Part) -> None:
        """Draw the bits of the own part."""
        self.part = part
