"""Optimisers, learning-rate schedules, and clipping of gradients."""

from minidnn.optim import schedules
from minidnn.optim.adaptive import Adam, AdamW, RMSprop
from minidnn.optim.clip import clip_grad_norm, scale_gradients, sum_of_squares
from minidnn.optim.optimiser import Optimiser
from minidnn.optim.schedules import Plateau, constant, cosine, one_cycle, step, warmup
from minidnn.optim.sgd import SGD

__all__ = [
    "Adam", "AdamW", "Optimiser", "Plateau", "RMSprop", "SGD", "clip_grad_norm", "constant", "cosine",
    "one_cycle", "scale_gradients", "schedules", "step", "sum_of_squares", "warmup",
]  # fmt: skip
