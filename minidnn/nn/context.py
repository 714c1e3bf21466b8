"""What a layer must know about the running step and cannot read from its input.

Dropout needs the step and the global numbers of the samples in the batch, dropout and batch normalisation
need to know whether the model trains. ``with context(training=True, seed=0, step=7, samples=numbers):
model(x)`` tells them. The context is thread-local, so the ranks of one process (one thread each) do not
disturb each other.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Context:
    """The values of one step; ``None`` means "not said"."""

    training: bool | None = None  # in place of the layers' own
    seed: int | None = None  # of the run: dropout masks follow from it
    step: int | None = None
    samples: Any = None  # (n,): the global number of each sample of the batch


_local = threading.local()


def current_context() -> Context:
    """The innermost context of this thread (all fields ``None`` outside of any)."""
    return getattr(_local, "context", None) or Context()


@contextmanager
def context(**values) -> Iterator[Context]:
    """Set some of ``training``, ``seed``, ``step``, ``samples`` for the calls inside; others are inherited.

    TypeError for an unknown name, or samples that are not a vector of integers.
    """
    if values.get("samples") is not None:
        samples = np.asarray(values["samples"])
        if samples.ndim != 1 or samples.dtype.kind not in "iu":
            got = f"{samples.dtype} of shape {samples.shape}"
            raise TypeError(f"context: samples must be a vector of integers, got {got}")
        values["samples"] = samples
    outer = current_context()
    _local.context = replace(outer, **values)
    try:
        yield _local.context
    finally:
        _local.context = outer
