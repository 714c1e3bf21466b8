"""AlexNet in one process: the baseline that every parallel strategy must equal.

    python examples/alexnet_baseline.py

The same options, the same data in the same order, the same weights and dropout masks as the parallel
examples, and no message at all.  With --micro-batches M the gradients of M parts of the batch accumulate.
"""

from minidnn.train import run

if __name__ == "__main__":
    run(__doc__, strategy="sequential")
