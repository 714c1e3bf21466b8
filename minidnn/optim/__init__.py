"""Optimisers and learning-rate schedules."""

from minidnn.optim import schedules
from minidnn.optim.schedules import constant, cosine, step, warmup
from minidnn.optim.sgd import SGD

__all__ = ["SGD", "constant", "cosine", "schedules", "step", "warmup"]
