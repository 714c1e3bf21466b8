"""Small models, the one-process reference, and a runner on threads, for the tests of the strategies.

The reference is a plain loop of tape and SGD: it knows of no plan, placement, chunk or executor.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from minidnn import functional as F
from minidnn import nn
from minidnn.comm import threads
from minidnn.optim import SGD
from minidnn.parallel import Executor, Options, gather_state, make_strategy, replicas_equal
from minidnn.tensor import Tensor, no_grad

SHAPE, CLASSES, SEED, STEPS = (8, 8, 3), 5, 3, 3
SGD_OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "decay": 0.1}
LIMIT = 1e-10


def network(norm="", dropout=False, groups=1, features=10):
    """Two convolutions and three linear layers, as AlexNet has them, with what is asked for in between."""
    layers = {"conv1": nn.Conv2d(3, 8, 3, padding=1), "relu1": nn.ReLU()}
    if norm:
        layers["norm1"] = (
            nn.BatchNorm(8) if norm == "batch" else nn.LocalResponseNorm(alpha=0.1, groups=groups)
        )
    layers |= {"pool1": nn.MaxPool2d(2)}
    if dropout:
        layers["drop1"] = nn.Dropout(0.3)  # of channels too, not of features alone
    layers |= {"conv2": nn.Conv2d(8, 8, 3, padding=1, groups=groups), "relu2": nn.ReLU()}
    layers |= {"pool2": nn.MaxPool2d(2), "flatten": nn.Flatten()}
    layers |= {"fc6": nn.Linear(32, features), "relu6": nn.ReLU()}
    layers |= {"drop6": nn.Dropout(0.5)} if dropout else {}
    layers |= {"fc7": nn.Linear(features, 9), "relu7": nn.ReLU()}
    layers |= {"drop7": nn.Dropout(0.5)} if dropout else {}
    return nn.Sequential(layers | {"fc8": nn.Linear(9, CLASSES)})


def narrow():
    """Layers of two and three features: fewer than there are ranks, once there are three."""
    return nn.Sequential(
        {
            "conv1": nn.Conv2d(3, 3, 3, stride=2, padding=1),
            "norm1": nn.LocalResponseNorm(size=3, alpha=0.1),
            "conv2": nn.Conv2d(3, 2, 3, groups=1),
            "pool2": nn.AvgPool2d(2),
            "flatten": nn.Flatten(),
            "fc6": nn.Linear(2, 3),
            "relu6": nn.Sigmoid(),
            "drop6": nn.Dropout(0.4),
            "fc7": nn.Linear(3, 2),
            "relu7": nn.Tanh(),
            "fc8": nn.Linear(2, CLASSES),
        }
    )


def skips():
    """Skip connections: inside the convolutions, past the first linear layer, and from front to back."""
    return nn.Sequential(
        {
            "conv1": nn.Conv2d(3, 6, 3, stride=2, padding=1),
            "relu1": nn.ReLU(),
            "conv2": nn.Conv2d(6, 6, 3, padding=1),
            "add2": nn.Add(also=("relu1",)),
            "relu2": nn.ReLU(),
            "flatten": nn.Flatten(),
            "fc6": nn.Linear(96, 7),
            "relu6": nn.ReLU(),
            "fc7": nn.Linear(7, 7),
            "add7": nn.Add(also=("relu6",)),
            "relu7": nn.ReLU(),
            "drop7": nn.Dropout(0.3),
            "fc8": nn.Linear(7, CLASSES),
            "fc9": nn.Linear(CLASSES, CLASSES),
            "add9": nn.Add(also=("fc8",)),
        }
    )


def long_skips():
    """Values with two users beyond a border: features that fc6 and a later sum take, and the images themselves."""
    return nn.Sequential(
        {
            "conv1": nn.Conv2d(3, 3, 3, padding=1),
            "add1": nn.Add(also=("input",)),
            "relu1": nn.ReLU(),
            "pool1": nn.MaxPool2d(3, 3),
            "flatten": nn.Flatten(),
            "fc6": nn.Linear(12, 12),
            "add6": nn.Add(also=("flatten",)),
            "fc7": nn.Linear(12, 12),
            "add7": nn.Add(also=("flatten", "fc6")),
            "fc8": nn.Linear(12, CLASSES),
        }
    )


def narrow_batch():
    """Batch norms of three and two channels."""
    layers = dict(narrow())
    layers["norm1"] = nn.BatchNorm(3)
    layers["relu7"] = nn.BatchNorm(2)
    return nn.Sequential(layers)


MODELS = {
    "plain": lambda: network(),
    "dropout": lambda: network(dropout=True),
    "lrn": lambda: network(norm="lrn"),
    "batch": lambda: network(norm="batch"),
    "batch and groups": lambda: network(norm="batch", groups=2),
    "groups": lambda: network(groups=2),
    "ungrouped": lambda: network(norm="lrn", dropout=True),
    "all": lambda: network(norm="lrn", dropout=True, groups=2),
    "towers": lambda: network(norm="lrn", dropout=True, groups=4),
    "narrow": narrow,
    "narrow batch": narrow_batch,
    "skips": skips,
    "long skips": long_skips,
}


@lru_cache(maxsize=64)
def images(batch, shape=SHAPE):
    """Images and labels of `STEPS` training steps and of one evaluation, seeded."""
    rng = np.random.default_rng(batch)
    return (
        rng.standard_normal((STEPS + 1, batch, *shape)),
        rng.integers(0, CLASSES, (STEPS + 1, batch)),
    )


@dataclass(frozen=True)
class Trained:
    """What a run came to: loss and correct answers of each step, then of the evaluation; the weights."""

    losses: np.ndarray
    correct: np.ndarray
    weights: dict


@lru_cache(maxsize=64)
def reference(model, batches):
    """The same training in one process: `batches` are the sizes of the steps' batches, then the evaluation's."""
    net = MODELS[model]().init(SEED, np.float64)
    optimiser = SGD(net.parameters(), **SGD_OPTIONS)
    losses, correct = [], []
    for step, batch in enumerate(batches):
        training = step < STEPS
        x, labels = images(batch)[0][step], images(batch)[1][step]
        with nn.context(training=training, seed=SEED, step=step, samples=np.arange(batch)):
            if not training:
                with no_grad():
                    logits = net(Tensor(x))
                    loss = F.softmax_cross_entropy(logits, labels)
            else:
                net.zero_grad()
                logits = net(Tensor(x))
                loss = F.softmax_cross_entropy(logits, labels)
                loss.backward()
                optimiser.step()
        losses.append(loss.item())
        correct.append(int((logits.data.argmax(-1) == labels).sum()))
    return Trained(np.array(losses), np.array(correct), net.state_dict())


def optimiser(groups):
    return SGD([{"params": params} for params in groups.values()], **SGD_OPTIONS)


def one_process(model, x, labels, steps=3, make=optimiser):
    """Losses and state after training a model on one batch by a plain loop."""
    model.init(SEED, np.float64)
    sgd, losses = make({"all": [p for p in model.parameters() if p.requires_grad]}), []
    for step in range(steps):
        model.zero_grad()
        with nn.context(training=True, seed=SEED, step=step, samples=np.arange(len(x))):
            loss = F.softmax_cross_entropy(model(x), labels)
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    return losses, model.state_dict()


def executor(comm, model, strategy, batch, options):
    """An executor of a model of `MODELS`; `strategy` is a name or a builder such as `place` makes."""
    net, options = MODELS[model](), Options(**({"dtype": "float64"} | options))
    build = make_strategy if isinstance(strategy, str) else lambda made, *rest: made(*rest)
    made = build(strategy, net, SHAPE, comm.size, options)
    return Executor(net, SHAPE, made, comm, batch, SEED, optimiser)


def feed(running, step, batch, training=True):
    """Let an executor make step number `step` on its rows of the seeded images."""
    x, labels = images(batch)[0][step], images(batch)[1][step]
    start, stop = running.plan_for(batch, training).input_rows(running.comm.rank)
    part = x[start:stop] if start < stop else None
    return running.step(part, labels) if training else running.evaluate(part, labels)


def train(comm, model, strategy, batches, options):
    """What one rank does: train, evaluate, gather."""
    running = executor(comm, model, strategy, batches[0], options)
    results = [feed(running, step, batch, training=step < STEPS) for step, batch in enumerate(batches)]
    held = {name: (v.slices, v.data.copy()) for name, v in running.replica.variables.items()}
    return results, held, gather_state(running), replicas_equal(running)


def assert_equals_one_process(model, strategy, ranks, batch=17, last=None, options=None, **run):
    """Train on `ranks` threads and compare losses, answers and all weights with the reference's.

    `last` is the size of the last training batch, by default that of the others.
    """
    batches = (*(batch,) * (STEPS - 1), last or batch, batch + 2)
    want = reference(model, batches)
    out = threads.run(ranks, train, model, strategy, batches, options or {}, **run)
    for rank, (results, _, _, same) in enumerate(out):
        assert same, f"rank {rank} finds that replicas differ"
        np.testing.assert_allclose([r.loss for r in results], want.losses, rtol=0, atol=LIMIT, err_msg="loss")
        assert [r.correct for r in results] == want.correct.tolist()
        assert [r.samples for r in results] == list(batches)
    whole = out[0][2]
    assert all(gathered is None for _, _, gathered, _ in out[1:])
    parts = {}
    for name in whole:
        np.testing.assert_allclose(whole[name], want.weights[name], rtol=0, atol=LIMIT, err_msg=name)
    for rank, (_, held, _, _) in enumerate(out):
        for name, (slices, array) in held.items():
            np.testing.assert_allclose(
                array, want.weights[name][slices], rtol=0, atol=LIMIT, err_msg=f"{name} of rank {rank}"
            )
            first, twin = parts.setdefault((name, repr(slices)), (rank, array))
            assert array.tobytes() == twin.tobytes(), f"{name}: ranks {first} and {rank} differ in bits"
    covered = {name: np.zeros(array.shape, bool) for name, array in whole.items()}
    for _, held, _, _ in out:
        for name, (slices, _) in held.items():
            covered[name][slices] = True
    assert all(mask.all() for mask in covered.values()), "some weights are held by no rank"
