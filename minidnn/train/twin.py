"""The one-process twin: the same training without any parallelism, to compare with.

It knows nothing of plans or executors: a plain forward, backward and update on the whole batch, or, for
OWT with an update of the fully connected layers after every micro-batch, the same sub-steps in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .. import functional as F
from .. import nn
from ..optim import SGD
from ..tensor import Tensor

LIMITS = {"float32": 1e-5, "float64": 1e-10}


class Twin:
    """One-process training.

    Parameters
    ----------
    model : Sequential
        A whole model of its own.
    make_optimiser : callable
        {group: parameters} -> SGD.
    fc_start : str, optional
        The first fully connected layer, where `fc_rows` says how its sub-steps cut the batch.
    fc_rows : callable, optional
        Size of the batch -> row numbers of each micro-batch.
    """

    def __init__(
        self,
        model: nn.Sequential,
        make_optimiser: Callable[[dict], SGD],
        seed: int,
        dtype: str,
        fc_start: str | None = None,
        fc_rows: Callable[[int], Sequence[np.ndarray]] | None = None,
    ) -> None:
        self.model, self.seed, self.fc_rows = model.init(seed, np.dtype(dtype)), seed, fc_rows
        self.dtype = np.dtype(dtype)
        names = model.names
        if fc_start is None:
            self.whole, groups = model, {"all": model.parameters()}
        else:
            before = names[names.index(fc_start) - 1]
            self.conv, self.fc = model.between(names[0], before), model.between(fc_start, names[-1])
            groups = {"conv": self.conv.parameters(), "fc": self.fc.parameters()}
        self.split = fc_start is not None and fc_rows is not None
        self.optimiser = make_optimiser(groups)

    def step(self, images: np.ndarray, labels: np.ndarray) -> float:
        """One training step on the whole batch; returns the mean loss."""
        self.model.zero_grad()
        common = {"training": True, "seed": self.seed, "step": self.optimiser.iteration}
        if self.split:
            return self._sub_steps(images, labels, common)
        with nn.context(samples=np.arange(len(labels)), **common):
            loss = F.softmax_cross_entropy(self.model(Tensor(images)), labels)
        loss.backward()
        self.optimiser.step()
        return loss.item()

    def _sub_steps(self, images: np.ndarray, labels: np.ndarray, common: dict) -> float:
        n, total = len(labels), 0.0
        with nn.context(samples=np.arange(n), **common):
            features = self.conv(Tensor(images))
        gradient = np.zeros(features.shape, self.dtype)
        for rows in self.fc_rows(n):
            if not len(rows):
                continue
            x = Tensor(features.data[rows], requires_grad=True)
            self.fc.zero_grad()
            with nn.context(samples=rows, **common):
                loss = F.softmax_cross_entropy(self.fc(x), labels[rows])
            loss.backward()
            self.optimiser.update_group(1)
            gradient[rows] = x.grad * self.dtype.type(len(rows) / n)
            total += loss.item() * len(rows) / n
        features.backward(gradient)
        self.optimiser.update_group(0)
        self.optimiser.advance()
        return total


def micro_batch_rows(scheme: str, mesh: Mapping[str, int]) -> Callable[[int], list[np.ndarray]]:
    """Which rows of the batch OWT's scheme puts into each micro-batch (Krizhevsky 2014, sec. 4.1).

    (a): all of them. (b): micro-batch j is worker j's rows. (c): it is the j-th part of every worker's. The batch is
    cut over the axes of the mesh in turn. The workers are those along "model"; what one has along others goes together.
    """

    def rows(n: int) -> list[np.ndarray]:
        if scheme == "a":
            return [np.arange(n)]
        blocks = [(0, np.arange(n))]
        for axis, size in mesh.items():
            blocks = [
                (j if axis == "model" else worker, part)
                for worker, block in blocks
                for j, part in enumerate(np.array_split(block, size))
            ]
        workers = mesh["model"]
        if scheme == "b":
            return [np.concatenate([x for worker, x in blocks if worker == j]) for j in range(workers)]
        return [np.concatenate([np.array_split(x, workers)[j] for _, x in blocks]) for j in range(workers)]

    return rows


def largest_difference(weights: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> float:
    """The largest absolute difference over all parameters; NaN where one of them is."""
    return float(np.max([np.abs(weights[name] - reference[name]).max() for name in weights]))
