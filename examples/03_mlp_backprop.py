"""Lesson 3: backpropagation through a multilayer perceptron, by hand and by the tape.

    python examples/03_mlp_backprop.py

Four layers of 2, 3, 2 and 1 units, a sigmoid g after each matrix, two samples, one a row. Forward computes
z(l+1) = a(l) W(l) + b(l) and a(l) = g(z(l)); W is the transpose of the thesis's Theta, with the bias apart.
By hand: sample 1 is (1, 0), so its z(2) is the first row of W(1), 1 -1 0, and its a(2) is 0.7311 0.2689 0.5.
Backward computes the error terms delta, one per unit and sample, from the last layer to the first:

    delta(4) = a(4) - y                                       (eq. 2.9)
    delta(l) = delta(l+1) W(l)^T * g'(z(l))                   (2.10), with g'(z) = a (1 - a) for the sigmoid
    Delta(l) = sum over samples of a(l)^T delta(l+1)          (2.11, 2.12)
    D(l)     = Delta(l) / m + lambda W(l), biases without lambda                     (2.13)

delta(l) is the slope of a sample's cost with respect to z(l). So (2.9) is for the output layer alone, and
only if the cost fits its units: cross-entropy after sigmoid or softmax. (The squared error brings another
factor, g'(z).) There is no delta(1), and two of the four layers are hidden, not three as the thesis has it.

The tape knows nothing of layers: it walks the operations backwards. To see its delta, part 2 adds a tensor of
zeros, a probe, to every z: the gradient of the probe is that of z. The cost is averaged over the m samples,
so the tape has delta / m and Delta / m. All differences should be about 1e-16 or less. Runs in a second.
"""

import numpy as np

from minidnn import functional as F
from minidnn import optim
from minidnn.console import run_program
from minidnn.tensor import Tensor

X, Y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0], [0.0]])
W = [
    np.array([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]),
    np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]),
    np.array([[1.0], [-1.0]]),
]
B = [np.zeros(3), np.zeros(2), np.zeros(1)]
m = len(X)


def forward() -> list[np.ndarray]:
    """The activations a(1) ... a(4)."""
    a = [X]
    for w, b in zip(W, B, strict=True):
        a.append(1 / (1 + np.exp(-(a[-1] @ w + b))))
    return a


def cost() -> float:
    h = forward()[-1]
    return -(Y * np.log(h) + (1 - Y) * np.log(1 - h)).sum() / m


def deltas_by_hand(a: list[np.ndarray]) -> list[np.ndarray]:
    """[delta(2), delta(3), delta(4)]"""
    delta = [a[3] - Y]  # (2.9)
    for w, h in ((W[2], a[2]), (W[1], a[1])):
        delta.insert(0, delta[0] @ w.T * (h * (1 - h)))  # (2.10)
    return delta


def nudge(array: np.ndarray, index: tuple[int, ...], eps: float = 1e-6) -> float:
    """The slope of the cost along one weight without any calculus: nudge the weight and look."""
    value = array[index]
    array[index] = value + eps
    above = cost()
    array[index] = value - eps
    below = cost()
    array[index] = value
    return (above - below) / (2 * eps)


def main() -> None:
    delta = deltas_by_hand(a := forward())
    print(f"Part 1. By hand\n{'layer':>5}{'sample':>8}  {'a':32}delta")
    for layer, sample in np.ndindex(3, m):
        values = [" ".join(f"{v:9.6f}" for v in row[layer][sample]) for row in (a[1:], delta)]
        print(f"{layer + 2:5}{sample + 1:8}  {values[0]:32}{values[1]}")
    print("mean |delta(l)| for l = 2, 3, 4:", *(f"{abs(d).mean():.4f}" for d in delta))
    print("On its way back it shrinks by g' <= 1/4 in each layer: the vanishing gradient of sigmoids.")

    weights = [Tensor(w.copy(), requires_grad=True, name=f"W({i})") for i, w in enumerate(W, 1)]
    biases = [Tensor(b.copy(), requires_grad=True, name=f"b({i})") for i, b in enumerate(B, 1)]
    probes = [Tensor(np.zeros_like(d), requires_grad=True) for d in delta]
    h = Tensor(X)
    for w, b, probe in zip(weights, biases, probes, strict=True):
        h = F.sigmoid(F.linear(h, w, b) + probe)
    loss = F.binary_cross_entropy(h, Y)
    loss.backward()
    print(f"\nPart 2. By the tape: cost {loss.item():.6f} (by hand {cost():.6f})")
    for layer, d, probe in zip((2, 3, 4), delta, probes, strict=True):
        print(f"delta({layer}): by hand - by tape at most {abs(d - m * probe.grad).max():.1e}")

    print(f"\nPart 3. Gradients\n{'':10}{'by hand':>12}{'by tape':>12}{'difference':>12}{'by nudging':>12}")
    by_hand = [a[i].T @ delta[i] / m for i in range(3)] + [d.sum(axis=0) / m for d in delta]  # (2.12)
    for tensor, array, gradient in zip(weights + biases, W + B, by_hand, strict=True):
        for index in np.ndindex(array.shape):
            name, slope = f"{tensor.name}[{','.join(map(str, index))}]", nudge(array, index)
            hand, tape = gradient[index], tensor.grad[index]
            print(f"{name:10}{hand:12.6f}{tape:12.6f}{hand - tape:12.1e}{slope:12.6f}")

    decay = 0.1  # the lambda of (2.13) is the optimiser's weight decay
    optim.SGD([{"params": weights, "weight_decay": decay}, {"params": biases}], lr=1.0).step()
    print("\nPart 4. W(1) - D(1), lambda 0.1:", *(f"{w:.6f}" for w in weights[0].numpy().ravel()))
    error = abs(W[0] - (by_hand[0] + decay * W[0]) - weights[0].numpy()).max()
    print(f"by hand - by the optimiser at most {error:.1e}")


if __name__ == "__main__":
    run_program(main)
