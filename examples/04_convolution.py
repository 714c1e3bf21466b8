"""Lesson 4: a convolution, window by window, and the size of what comes out.

    python examples/04_convolution.py

Fig. 2.11 of the thesis moves a 2x2 kernel over a 5x5 image: at each place multiply what lies under the kernel
element by element, add up, and divide by the kernel's size, 4. With the numbers below (not the figure's), the
sum of the first window is 1*1 + 2*2 + 0*3 + 1*4 = 9, and 9 / 4 = 2.25.

What to know beyond the figure:
- The division is no part of a convolution: it is a kernel of a quarter of the values. A network learns its
  kernels and leaves it out. A kernel of ones, divided, is an average: average pooling with stride 1.
- What networks call convolution is cross-correlation; mathematics first turns the kernel by 180 degrees.
- The kernel's 4 weights are used at all 16 places; a fully connected layer would have 25 * 16 = 400. (And the
  thesis's 3,072 weights for an image of 32x32x3 are those of one neuron, not of a network.)
- Padding is a border of zeros around the image, so that the output need not shrink. It leaves no pixel out.

The size of the output is (W - F + 2P) / S + 1 (eq. 2.14), rounded down: where the division leaves a rest, the
last pixels meet no window. Runs in a second.
"""

import numpy as np

from minidnn import functional as F
from minidnn.console import run_program
from minidnn.tensor import Tensor

IMAGE = np.array(
    [
        [1.0, 2.0, 0.0, 1.0, 3.0],
        [0.0, 1.0, 2.0, 2.0, 1.0],
        [3.0, 1.0, 0.0, 1.0, 2.0],
        [2.0, 0.0, 1.0, 3.0, 0.0],
        [1.0, 2.0, 2.0, 0.0, 1.0],
    ]
)
KERNEL = np.array([[1.0, 2.0], [3.0, 4.0]])

SIZES = [  # image W, kernel F, padding P, stride S
    (5, 2, 0, 1, "Fig. 2.11"),
    (7, 3, 0, 1, "the thesis's example"),
    (7, 3, 1, 1, "a border of zeros keeps the size"),
    (7, 3, 0, 2, ""),
    (7, 3, 0, 3, "the last pixel meets no window"),
    (56, 11, 0, 4, "conv1 of the thesis's AlexNet, Tiny ImageNet"),
    (128, 11, 0, 4, "the same, Dogs vs. Cats"),
    (227, 11, 0, 4, "conv1 of AlexNet"),
    (224, 11, 0, 4, "the size in AlexNet's paper, which does not fit"),
    (55, 3, 0, 2, "pool1 of AlexNet: poolings follow the same rule"),
]


def by_loops(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Fig. 2.11 as it stands, division included; shows the windows of the first row."""
    size = len(image) - len(kernel) + 1
    out = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            window = image[row : row + len(kernel), column : column + len(kernel)]
            total = (window * kernel).sum()
            out[row, column] = total / kernel.size
            if row == 0:
                terms = zip(window.ravel(), kernel.ravel(), strict=True)
                text = " + ".join(f"{x:.0f}*{k:.0f}" for x, k in terms)
                print(f"  window (0, {column}): {text} = {total:.0f}, / 4 = {out[row, column]:.2f}")
    return out


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The library's: images are (samples, height, width, channels), weights (height, width, in, out)."""
    return F.conv2d(image[None, :, :, None], kernel[:, :, None, None]).numpy()[0, :, :, 0]


def show(title: str, array: np.ndarray, digits: int = 2) -> None:
    print(f"{title}:")
    for row in array:
        print("  " + "".join(f"{value:7.{digits}f}" for value in row))


def main() -> None:
    show("Part 1. The image", IMAGE, 0)
    show("The kernel", KERNEL, 0)
    out = by_loops(IMAGE, KERNEL)
    show("The output of Fig. 2.11", out)
    print(f"difference from conv2d with kernel / 4: {abs(out - convolve(IMAGE, KERNEL / 4)).max():.1e}")
    show("conv2d as networks use it, not divided", convolve(IMAGE, KERNEL), 0)
    show("the convolution of mathematics, kernel turned", convolve(IMAGE, KERNEL[::-1, ::-1]), 0)
    average = F.avg_pool2d(IMAGE[None, :, :, None], 2, stride=1).numpy()[0, :, :, 0]
    show("a kernel of ones, divided by 4", convolve(IMAGE, np.ones((2, 2)) / 4))
    print(f"difference from avg_pool2d: {abs(average - convolve(IMAGE, np.ones((2, 2)) / 4)).max():.1e}")

    W = Tensor(KERNEL[:, :, None, None], requires_grad=True)
    F.conv2d(IMAGE[None, :, :, None], W).sum().backward()
    show("\nPart 2. The gradient of the output's sum by the kernel", W.grad[:, :, 0, 0], 0)
    print("Each weight is used at 16 places: its gradient is the sum of the 16 pixels that it met there,")
    print(f"for the first weight those of the upper left 4x4 corner: {IMAGE[:4, :4].sum():.0f}")

    print(f"\nPart 3. Eq. 2.14\n{'W':>5}{'F':>4}{'P':>3}{'S':>3}{'formula':>9}{'conv2d':>8}")
    for image, kernel, padding, stride, note in SIZES:
        x, w = np.zeros((1, image, image, 1)), np.zeros((kernel, kernel, 1, 1))
        side = F.conv2d(x, w, stride=stride, padding=padding).shape[1]
        exact = (image - kernel + 2 * padding) / stride + 1
        print(f"{image:5}{kernel:4}{padding:3}{stride:3}{exact:9.2f}{side:8}   {note}".rstrip())


if __name__ == "__main__":
    run_program(main)
