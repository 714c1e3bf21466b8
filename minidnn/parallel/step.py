"""What is alive in one running step of one rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..comm.communicator import Pending
from ..tensor import Tape, Tensor
from .plan import Chunk, Plan


@dataclass
class Step:
    """The values alive in the running step of one rank."""

    plan: Plan
    chunks: tuple[tuple[Chunk, ...], ...]
    images: Any
    labels: np.ndarray
    training: bool
    sub_steps: bool  # the last segment's parameters are updated after every chunk
    tapes: dict[tuple[int, int], Tape] = field(default_factory=dict)
    inputs: dict[tuple[int, int], dict[str, Tensor]] = field(default_factory=dict)
    outputs: dict[tuple[int, int], dict[str, Tensor]] = field(default_factory=dict)
    gradients: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    flying: dict[tuple[int, int, str], list[Pending]] = field(default_factory=dict)
    loss: float = 0.0
    correct: int = 0
    samples: int = 0

    def averaged_over(self, number: int) -> int:
        """Over how many samples the loss of a chunk is averaged: the whole batch, or the chunk if it is a step."""
        if not self.sub_steps:
            return len(self.labels)
        return sum(row[-1][number].size for row in self.plan.chunks)
