"""Lesson 6: what is the gradient of an all-reduce? Both answers, worked on two ranks.

    python examples/06_adjoints.py

Rank r has x_r, and after an all-reduce both have y = x_0 + x_1. What backward must do depends on what y is.

Reading 1: each rank's copy is a variable of its own. The copies feed two losses, and the objective is their
sum. x_r reaches both, so its gradient is the sum of the ranks' gradients: backward is an all-reduce, too.
    In numbers: x = (1, 2), y = 3, L_0 = y^2 = 9, L_1 = 5 y = 15; dL/dx_r = 2 y + 5 = 11.
    Where: synchronised batch normalisation; its sums over all samples feed every rank's own loss.

Reading 2: there is one y, of which the ranks hold replicas. Both compute the same loss, and it counts once.
The gradient of y is then known on all ranks, and is that of each x_r: backward does nothing (`reduce_from`).
    In numbers: x = (1, 2), y = 3, L = y^2 = 9; dL/dx_r = 2 y = 6. An all-reduce makes it 12, p times that.
    Where: tensor parallelism, after a layer that is split by its inputs.

Its mirror is `copy_to`, where a replicated x enters split work: forward does nothing, and backward is an
all-reduce, as each rank knows only what its own part adds to the gradient of x. (Megatron-LM calls the two
g and f: arXiv 1909.08053, section 3.)
    In numbers: x = 2 on both, weights w = (3, 4), y = w_0 x + w_1 x = 14, L = y^2 = 196;
    dL/dx = 2 y (w_0 + w_1) = 84 + 112 = 196, dL/dw_r = 2 y x = 56.

Backward is the transpose of forward both times, but of two matrices: (x_0, x_1) -> (y_0, y_1) is
[[1, 1], [1, 1]], its own transpose; (x_0, x_1) -> y is [1, 1], and its transpose copies. Which of them a
program means, it says by its objective: nudge an input, see how the objective moves. Runs in a second.
"""

from collections.abc import Callable, Sequence

import numpy as np

from minidnn.comm import Communicator, threads
from minidnn.comm import functions as C
from minidnn.console import run_program
from minidnn.tensor import Tensor


def two_losses(comm: Communicator, x: Tensor, total: Callable) -> Tensor:
    y = total(comm, x)
    return y * y if comm.rank == 0 else 5.0 * y


def one_loss(comm: Communicator, x: Tensor, total: Callable) -> Tensor:
    return total(comm, x) ** 2


def split_layer(comm: Communicator, x: Tensor, w: Tensor, total: Callable, enter: Callable) -> Tensor:
    return total(comm, w * enter(comm, x)) ** 2


def first(losses: Sequence[float]) -> float:
    """The objective of reading 2: the loss, once."""
    return losses[0]


def nothing(comm: Communicator, x: Tensor) -> Tensor:
    return x


def run(program: Callable, inputs: Sequence, *functions: Callable) -> tuple[list[float], np.ndarray]:
    """Forward and backward on two ranks: the loss of each, and gradients[rank, input]."""

    def main(comm: Communicator) -> tuple[float, list[float]]:
        leaves = [Tensor(np.array([value]), requires_grad=True) for value in inputs[comm.rank]]
        loss = program(comm, *leaves, *functions)
        loss.backward()
        return loss.item(), [leaf.grad.item() for leaf in leaves]

    losses, gradients = zip(*threads.run(2, main), strict=True)
    return losses, np.array(gradients)


def nudge(objective: Callable, program: Callable, inputs: Sequence, change: Sequence, *functions) -> float:
    """How the objective moves when inputs move along `change`, by a central difference: no backward in it."""
    inputs, step = np.array(inputs), 1e-6 * np.array(change)
    up, down = (objective(run(program, inputs + s, *functions)[0]) for s in (step, -step))
    return (up - down) / 2e-6


def report(title: str, gradients: np.ndarray, slopes: Sequence[float]) -> None:
    right = np.allclose(gradients, slopes, rtol=1e-6)
    tape, truth = (" ".join(f"{g:7.2f}" for g in values) for values in (gradients, slopes))
    print(f"  {title:30}{tape:15}   {truth:15}   {'right' if right else 'WRONG'}")


def main() -> None:
    print(f"{'':34}by the tape        by nudging\n{'':34}rank 0  rank 1    rank 0  rank 1")
    x = [[1.0], [2.0]]
    readings = ("1: L_0 + L_1", two_losses, sum), ("2: one L", one_loss, first)
    for name, program, objective in readings:
        print(f"reading {name}, gradient of x_r")
        slopes = [nudge(objective, program, x, change, C.all_reduce) for change in ([[1], [0]], [[0], [1]])]
        for function in (C.all_reduce, C.reduce_from):
            report(function.__name__, run(program, x, function)[1][:, 0], slopes)

    xw = [[2.0, 3.0], [2.0, 4.0]]  # the same x, each rank's own w
    slope = [
        nudge(first, split_layer, xw, change, C.reduce_from, nothing)
        for change in ([[1, 0], [1, 0]], [[0, 1], [0, 0]], [[0, 0], [0, 1]])  # x on both ranks, w_0, w_1
    ]
    for index, name, slopes in ((0, "x", [slope[0], slope[0]]), (1, "w_r", slope[1:])):
        print(f"reading 2, L = (w_0 x + w_1 x)^2, gradient of {name}")
        for total, enter in ((C.reduce_from, C.copy_to), (C.reduce_from, nothing), (C.all_reduce, C.copy_to)):
            title = f"{enter.__name__}, {total.__name__}"
            report(title, run(split_layer, xw, total, enter)[1][:, index], slopes)
    print("Without copy_to each rank has its own part, 84 and 112: the replicas of x would drift apart.")


if __name__ == "__main__":
    run_program(main)
