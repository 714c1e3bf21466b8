"""Lesson 1: linear regression, and gradient descent drawn on the loss curve.

    python examples/01_linear_regression.py
    python examples/01_linear_regression.py --plot descent.png      (needs matplotlib)

The mean squared error of a line (thesis, eq. 2.1) is a parabola in its weight. Gradient descent stands at
one place of it, asks for the slope there, and moves the other way (Fig. 2.3): right where the slope is
negative, left where it is positive, by learning rate times slope.

Part 1 has one weight, so that every number can be checked by hand. For the four points below,

    J(w) = (1/4) sum (y - w x)^2 = 1.5 (w - 2)^2 + 0.25      with the slope      J'(w) = 3 (w - 2),

so a step w <- w - lr J'(w) multiplies the distance to the minimum, w - 2, by 1 - 3 lr: by 0.7 for lr = 0.1
(it walks down), by -0.8 for 0.6 (it jumps across, and still arrives), by -1.1 for 0.7 (every jump is wider
than the last). Part 2 adds the bias and ends at the least-squares line y = 1.9 x + 0.3. Runs in a second.
"""

import argparse

import numpy as np

from minidnn import functional as F
from minidnn import nn, optim
from minidnn.console import run_program
from minidnn.pictures import save, styled
from minidnn.tensor import Tensor

X = np.array([[-1.0], [0.0], [1.0], [2.0]])
Y = np.array([[-2.0], [1.0], [2.0], [4.0]])
RATES = (0.1, 0.6, 0.7)


def descend(rate: float, steps: int) -> list[tuple[float, float, float]]:
    """Gradient descent from w = 0; returns (w, J(w), slope by backward) before each step, and at the end."""
    w = Tensor(np.zeros((1, 1)), requires_grad=True)
    path = []
    for _ in range(steps + 1):
        loss = F.mean_squared_error(X @ w, Y)
        w.zero_grad()  # gradients add up: forget the last one
        loss.backward()
        path.append((w.item(), loss.item(), w.grad.item()))
        w.assign(w.data - rate * w.grad)
    return path


def one_weight() -> None:
    for rate in RATES:
        print(f"\nlearning rate {rate}: each step multiplies w - 2 by 1 - 3 * {rate} = {1 - 3 * rate:.1f}")
        print(f"{'step':>5}{'w':>10}{'J(w)':>10}{'slope':>10}{'3 (w - 2)':>11}")
        for step, (w, loss, slope) in enumerate(descend(rate, 6)):
            print(f"{step:5}{w:10.4f}{loss:10.4f}{slope:10.4f}{3 * (w - 2):11.4f}")


def weight_and_bias() -> None:
    model = nn.linear_regression().init(dtype=np.float64)  # weight and bias start at zero
    optimiser = optim.SGD(model.parameters(), lr=0.3)
    print(f"\n{'step':>5}{'weight':>10}{'bias':>10}{'MSE':>10}")
    for step in range(51):
        loss = F.mean_squared_error(model(X), Y)
        if step in (0, 1, 2, 5, 10, 20, 50):
            print(f"{step:5}{model['fc'].W.item():10.4f}{model['fc'].b.item():10.4f}{loss.item():10.4f}")
        model.zero_grad()
        loss.backward()
        optimiser.step()
    x, y = X[:, 0], Y[:, 0]
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    print(f"least squares: weight {slope:.4f}, bias {y.mean() - slope * x.mean():.4f}")


def draw(path: str) -> None:
    with styled() as Figure:
        figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots(1, len(RATES))
    for axis, rate in zip(axes, RATES, strict=True):
        ws, losses, slopes = np.array(descend(rate, 6)).T
        reach, height = abs(ws - 2).max() + 0.5, losses.max() * 1.15
        curve = np.linspace(2 - reach, 2 + reach, 200)
        axis.plot(curve, 1.5 * (curve - 2) ** 2 + 0.25, color="0.7", label="J(w)")
        axis.plot(ws, losses, "o-", color="tab:blue", markersize=4, linewidth=0.8, label="steps")
        for step in range(3):
            w, loss, slope = ws[step], losses[step], slopes[step]
            half = 0.2 / np.hypot(1 / reach, slope / height)  # tangents of about the same length on paper
            ends = np.array([w - half, w + half])
            axis.plot(ends, loss + slope * (ends - w), "tab:red", label="" if step else "tangents")
            axis.annotate(str(step), (w, loss), (-12 if w < 2 else 6, -9), textcoords="offset points")
        title = f"learning rate {rate}: w - 2 times {1 - 3 * rate:.1f}".replace("-", "−")
        axis.set(title=title, xlabel="w", ylim=(0, height))
    axes[0].set_ylabel("mean squared error J(w)")
    axes[0].legend()
    save(figure, path, dpi=120)
    print(f"\nwrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw part 1 into FILE (.png, .svg, .pdf)")
    options = parser.parse_args()
    print("Part 1. One weight: J(w) = 1.5 (w - 2)^2 + 0.25")
    one_weight()
    print("\nPart 2. Weight and bias, learning rate 0.3")
    weight_and_bias()
    if options.plot:
        draw(options.plot)


if __name__ == "__main__":
    run_program(main)
