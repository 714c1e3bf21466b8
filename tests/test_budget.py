"""A guard against growing slow: what a step allocates, computes and sends, which does not jitter as time does.

A change that exceeds a budget has made steps more expensive; one that stays well below may lower the number.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.processes import environment
from minidnn import nn
from minidnn.comm import threads
from minidnn.parallel import Executor, Options, make_strategy

MB = 1_000_000
ROOT = Path(__file__).resolve().parents[1]
BATCH, IMAGE = 16, 56


# AlexNet (thesis), 56 px, batch 16, float32: 56 million weights, so a gradient that is not accumulated in place, or
# a copy of a weight, costs up to 67 MB; the largest activation is 0.9 MB and the columns of conv2 are 5.5 MB.
@pytest.mark.parametrize(
    ("level", "large", "large_megabytes", "megabytes"),
    [("0", 27, 175, 220), ("1", 10, 24, 108)],
)
def test_allocations_of_a_step(level, large, large_megabytes, megabytes):
    """NumPy arrays above 1 MiB, their bytes, and the bytes of all arrays, in a step after two to warm up."""
    program = [sys.executable, str(ROOT / "tests" / "budget_program.py"), str(BATCH), str(IMAGE), "1.0"]
    variables = environment(1, MINIDNN_FAST=level)
    done = subprocess.run(program, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert first == second  # nothing piles up
    assert 0 < first["large"] <= large
    assert first["large_bytes"] <= large_megabytes * MB
    assert first["bytes"] <= megabytes * MB


def executed(name, ranks, steps=2, **options):
    """For each rank: (messages, bytes) sent in one step by the ledger, its plan's bytes, and its operations."""
    planned = Options(**options)

    def main(comm):
        model = nn.alexnet(image=IMAGE, classes=10, width=0.25)
        shape = (IMAGE, IMAGE, 3)
        training = Executor(model, shape, make_strategy(name, model, shape, ranks, planned), comm, BATCH)
        start, stop = training.plan.input_rows(comm.rank)
        images, labels = np.zeros((stop - start, *shape), np.float32), np.arange(BATCH) % 10
        for _ in range(steps):
            before = comm.ledger.totals()
            training.step(images, labels)
            after = comm.ledger.totals()
        replica = training.replica
        flops = {
            layer: sum(replica.flops(layer, 1, phase) for phase in ("forward", "both"))
            for layer in replica.layers
        }
        return after[0] - before[0], after[1] - before[1], training.plan.bytes_sent(comm.rank), flops

    return threads.run(ranks, main, timeout=60)


# What a rank sends at a quarter of the width: the gradients of 1.6 million weights; or, by OWT, those of the
# convolutions' 0.2 million and activations. Exact numbers: more is a regression.
@pytest.mark.parametrize(
    ("name", "options", "messages", "megabytes"),
    [
        ("data", {}, 3, 6.26),
        ("data", {"bucket_mib": 0}, 33, 6.26),
        ("owt", {}, 10, 1.12),
        ("owt", {"scheme": "b"}, 15, 1.12),
    ],
)
def test_messages_and_bytes_of_a_step(name, options, messages, megabytes):
    for sent, nbytes, planned, _ in executed(name, 2, **options):
        assert nbytes == planned
        assert 0 < sent <= messages
        assert 0 < nbytes <= megabytes * MB


# multiplications of one sample's forward pass at a quarter of the width: output pixels x kernel x in x out
MACS = {
    "conv1": 12 * 12 * 11 * 11 * 3 * 24,
    "conv2": 6 * 6 * 5 * 5 * 24 * 64,
    "conv3": 3 * 3 * 3 * 3 * 64 * 96,
    "conv4": 3 * 3 * 3 * 3 * 96 * 96,
    "conv5": 3 * 3 * 3 * 3 * 96 * 64,
    "fc6": 2 * 2 * 64 * 1024,
    "fc7": 1024 * 1024,
    "fc8": 1024 * 10,
}


@pytest.mark.parametrize(("name", "ranks"), [("sequential", 1), ("data", 2), ("owt", 2)])
def test_operations_of_a_step(name, ranks):
    """Two for a multiplication and its addition; backward is two products, for conv1 only that of the weights."""
    for *_, flops in executed(name, ranks, steps=1):
        for layer, count in flops.items():
            share = 2 if name == "owt" and layer.startswith("fc") else 1  # of the features
            products = 2 if layer == "conv1" else 3
            assert count == 2 * products * MACS.get(layer, 0) // share, layer
