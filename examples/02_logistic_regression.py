"""Lesson 2: logistic regression, the cost of a probability, and its gradient.

    python examples/02_logistic_regression.py
    python examples/02_logistic_regression.py --plot logistic.png      (needs matplotlib)

Six students studied for 1 ... 6 hours; the third, the fifth and the sixth passed. The model says that the
logit of the probability h to pass is linear in the hours x (thesis, eq. 2.2), which gives h itself (2.3):

    ln(h / (1 - h)) = alpha + beta x        h = e^(alpha + beta x) / (1 + e^(alpha + beta x))

Its cost (2.4) is -ln h for who passed and -ln(1 - h) for who failed; (2.5) writes both in one formula:

    cost = -y ln h - (1 - y) ln(1 - h)        J = mean of the costs

Two slips of the thesis, put right: its text says that (2.5) becomes -y ln h for y = 0, which is what is left
for y = 1; and (2.6) has a minus between its terms, -(y ln h - (1 - y) ln(1 - h)): part 1 shows its effect.
Part 2: the gradient of J is (mean of h - y, mean of (h - y) x), the residuals of linear regression with h
for the line; the tape finds the same. Part 3 descends. Pass and fail mirror each other around 3.5 hours, so h
must be 1/2 there: -alpha / beta = 3.5. Runs in a second.
"""

import argparse

import numpy as np

from minidnn import functional as F
from minidnn import nn, optim
from minidnn.console import run_program
from minidnn.pictures import save, styled

HOURS = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
PASSED = np.array([[0.0], [0.0], [1.0], [0.0], [1.0], [1.0]])


def costs() -> None:
    print(f"{'h':>6}{'logit':>9}{'cost y=1':>10}{'cost y=0':>10}{'(2.6) as printed, y=0':>23}")
    for h in (0.01, 0.1, 0.5, 0.9, 0.99):
        row = np.log(h / (1 - h)), -np.log(h), -np.log(1 - h), np.log(1 - h)
        print(f"{h:6}{row[0]:9.3f}{row[1]:10.3f}{row[2]:10.3f}{row[3]:23.3f}")
    print("In the last column the cost falls as a student who failed is given a higher probability to pass.")


def gradient(model: nn.Sequential) -> None:
    h, fc = model(HOURS), model["fc"]
    loss = F.binary_cross_entropy(h, PASSED)
    loss.backward()
    residual = h.numpy() - PASSED
    print(f"alpha = beta = 0: every h = 0.5, J = ln 2 = {loss.item():.6f}")
    print(f"{'':8}{'by formula':>12}{'by the tape':>13}")
    print(f"dJ/dalpha{residual.mean():11.6f}{fc.b.grad.item():13.6f}")
    print(f"dJ/dbeta {(residual * HOURS).mean():11.6f}{fc.W.grad.item():13.6f}")


def descend(model: nn.Sequential) -> None:
    optimiser = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    fc = model["fc"]
    print(f"{'step':>5}{'alpha':>10}{'beta':>9}{'J':>9}{'-alpha / beta':>15}")
    for step in range(1001):
        loss = F.binary_cross_entropy(model(HOURS), PASSED)
        if step in (10, 50, 100, 200, 1000):
            alpha, beta = fc.b.item(), fc.W.item()
            print(f"{step:5}{alpha:10.4f}{beta:9.4f}{loss.item():9.4f}{-alpha / beta:15.4f}")
        model.zero_grad()
        loss.backward()
        optimiser.step()
    h = model(HOURS).numpy()
    print("\nhours " + "".join(f"{x:8.0f}" for x in HOURS[:, 0]))
    print("passed" + "".join(f"{y:8.0f}" for y in PASSED[:, 0]))
    print("h     " + "".join(f"{p:8.4f}" for p in h[:, 0]))
    print(f"accuracy {((h > 0.5) == PASSED).mean():.4f} (4 of 6: hours 3 and 4 are on the wrong side)")
    print(f"gradient {abs((h - PASSED).mean()):.4f}, {abs(((h - PASSED) * HOURS).mean()):.4f}: the minimum")


def draw(model: nn.Sequential, path: str) -> None:
    with styled() as Figure:
        figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    h = np.linspace(0.005, 0.995, 200)
    left.plot(h, -np.log(h), label="y = 1: −ln h")
    left.plot(h, -np.log(1 - h), label="y = 0: −ln(1 − h)")
    left.set(xlabel="predicted probability h", ylabel="cost (eq. 2.4)")
    hours = np.linspace(0, 7, 200)[:, None]
    right.plot(hours, model(hours).numpy(), color="tab:green", label="h after training")
    right.plot(HOURS, PASSED, "ko", label="students")
    right.axvline(3.5, color="0.7", linestyle="--", label="h = 1/2")
    right.set(xlabel="hours", ylabel="passed")
    left.legend()
    right.legend(loc="center right")
    save(figure, path, dpi=120)
    print(f"\nwrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", metavar="FILE", help="draw cost and fit into FILE (.png, .svg, .pdf)")
    options = parser.parse_args()
    model = nn.logistic_regression(features=1).init(dtype=np.float64)  # alpha and beta start at zero
    print("Part 1. What a probability h costs")
    costs()
    print("\nPart 2. The first gradient")
    gradient(model)
    print("\nPart 3. Gradient descent with momentum 0.9, learning rate 0.1")
    descend(model)
    if options.plot:
        draw(model, options.plot)


if __name__ == "__main__":
    run_program(main)
