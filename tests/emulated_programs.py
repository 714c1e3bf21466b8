"""What test_cupy_emulated.py runs in a process of its own: one computation on NumPy and on the emulated CuPy.

    python emulated_programs.py NAME

prints what came out, as JSON.
"""

import json
import sys
import threading
import warnings

import fakecuda

fakecuda.install()

import cupy  # noqa: E402
import cupyx  # noqa: E402
import numpy as np  # noqa: E402
from cupy.cuda import compiler  # noqa: E402

from minidnn import functional as F  # noqa: E402
from minidnn import nn  # noqa: E402
from minidnn.comm import threads  # noqa: E402
from minidnn.gradcases import CASES  # noqa: E402
from minidnn.nn import models  # noqa: E402
from minidnn.optim import SGD  # noqa: E402
from minidnn.parallel import Executor, Options, gather_weights, make_strategy  # noqa: E402
from minidnn.tensor import Tensor  # noqa: E402

warnings.filterwarnings("ignore", message="cupyx.allow_synchronize")  # "cannot find every synchronisation"
BATCH = 6


def compile_one_at_a_time():
    """The emulation's compiler names its temporary files by process, so two threads must not be in it at once."""
    lock, compile_module = threading.Lock(), compiler._compile_module_with_cache

    def locked(*args, **options):
        with lock:
            return compile_module(*args, **options)

    compiler._compile_module_with_cache = locked


def batches(steps, image):
    """Host arrays: images and labels of each step."""
    random = np.random.default_rng(0)
    for _ in range(steps):
        images = random.standard_normal((BATCH, image, image, 3)).astype(np.float32)
        yield images, random.integers(0, 5, BATCH)


def largest_difference(ours, theirs):
    """Over two lists of arrays, the second on the device, relative to values over 1; types must be the same."""
    for a, b in zip(ours, theirs, strict=True):
        assert isinstance(b, cupy.ndarray), f"{type(b)} in place of a device array"
        assert (a.dtype, a.shape) == (b.dtype, b.shape), (a.dtype, a.shape, b.dtype, b.shape)
    pairs = [(a, b.get()) for a, b in zip(ours, theirs, strict=True) if a.size]
    return max(float(np.abs(a - b).max() / max(1, np.abs(a).max())) for a, b in pairs)


def lenet():
    """Three steps of training. On the device no step may wait for it: that would be a hidden copy."""

    def train(xp):
        model = models.lenet(image=20, channels=3, classes=5).init(0, np.float32, xp)
        optimiser = SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
        losses = []
        for images, labels in batches(3, 20):
            images, labels = xp.asarray(images), xp.asarray(labels)
            with cupyx.allow_synchronize(False):
                model.zero_grad()
                loss = F.softmax_cross_entropy(model(Tensor(images)), labels)
                loss.backward()
                optimiser.step()
            losses.append(loss.item())
        return losses, [p.data for p in model.parameters()]

    (ours, weights), (theirs, device_weights) = train(np), train(cupy)
    return {"losses": [ours, theirs], "weights": largest_difference(weights, device_weights)}


def operations():
    """Every operation, forward and backward, at every geometry of the gradient checker."""

    def run(case, xp):
        inputs = [Tensor(xp.asarray(x), requires_grad=True) for x in case.inputs(0, np.float32)]
        y = case.function(*inputs)
        gradient = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
        y.backward(xp.asarray(gradient))
        return [y.data, *(x.grad for x in inputs)]

    return {f"{c.operation} {c.label}": largest_difference(run(c, np), run(c, cupy)) for c in CASES}


def parallel():
    """Two steps of training by each strategy, over two ranks, and an evaluation.

    The model has no kinks, as ReLU has, at which a difference in the last bit could turn a gradient on or off.
    """
    shape = (12, 12, 3)

    def model():
        return nn.Sequential(
            {
                "conv1": nn.Conv2d(3, 8, 5, padding="same"),
                "norm1": nn.LocalResponseNorm(),
                "tanh1": nn.Tanh(),
                "pool1": nn.AvgPool2d(3, 2, padding="same"),
                "conv2": nn.Conv2d(8, 6, 3),
                "norm2": nn.BatchNorm(6),
                "tanh2": nn.Tanh(),
                "flatten": nn.Flatten(),
                "fc3": nn.Linear(96, 10),
                "tanh3": nn.Tanh(),
                "drop3": nn.Dropout(0.5),
                "fc4": nn.Linear(10, 5),
            }
        )

    def train(comm, name, options, xp):
        strategy = make_strategy(name, model(), shape, comm.size, options)
        executor = Executor(model(), shape, strategy, comm, BATCH, xp=xp)
        first, last = executor.plan.input_rows(comm.rank)
        losses = []
        for images, labels in batches(2, shape[0]):
            own = xp.asarray(images[first:last])
            losses.append(executor.step(own, labels).loss)
        losses.append(executor.evaluate(own, labels).loss)
        for p in executor.replica.variables.values():
            assert isinstance(p.data, xp.ndarray)
        return losses, gather_weights(executor)

    found = {}
    for name, options in (
        ("data", Options(sharded_momentum=True)),
        ("data", Options(fc_gradients="factors", sharded_momentum=True)),
        ("data", Options(bucket_mib=0, micro_batches=2)),
        ("owt", Options()),
        ("owt", Options(scheme="b", fc_update="each")),
        ("layer_split", Options(micro_batches=2, schedule="zb-h1")),
        ("tensor", Options()),
        ("spatial", Options()),
    ):
        (ours, weights), (theirs, device_weights) = (
            threads.run(2, train, name, options, xp)[0] for xp in (np, cupy)
        )
        difference = max(float(np.abs(weights[n] - device_weights[n]).max()) for n in weights)
        found[f"{name} {options}"] = {"losses": [ours, theirs], "weights": difference}
    return found


if __name__ == "__main__":
    compile_one_at_a_time()
    print(json.dumps({"lenet": lenet, "operations": operations, "parallel": parallel}[sys.argv[1]]()))
