"""One Weird Trick whose fully connected layers step after every chunk, against an emulation in one process.

That is no plain SGD any more: the convolutions see gradients of several versions of the weights behind
them.  The emulation below makes the same sub-steps with a tape and a momentum update of its own.
"""

import numpy as np
import pytest
from parallel_cases import LIMIT, MODELS, SEED, SHAPE, STEPS, feed, images, replicas_equal

from minidnn import functional as F
from minidnn import nn
from minidnn.comm import threads
from minidnn.optim import SGD
from minidnn.parallel import Executor, Options, gather_state, make_strategy
from minidnn.tensor import Tensor
from minidnn.train.twin import Twin, micro_batch_rows

LR = {"conv": 0.05, "fc": 0.1}
MOMENTUM, DECAY = 0.9, 1e-3


def optimiser(groups):
    options = {"momentum": MOMENTUM, "weight_decay": DECAY}
    return SGD([{"params": p, "lr": LR.get(name, LR["fc"])} for name, p in groups.items()], **options)


def blocks(rows, parts):
    """Nearly equal consecutive blocks, the first ones longer."""
    return np.array_split(np.asarray(rows), parts)


def chunks(scheme, batch, workers, grid_rows=1):
    """Which samples make up each sub-step's batch: Krizhevsky 2014, sec. 4.1."""
    groups = [blocks(rows, workers) for rows in blocks(np.arange(batch), grid_rows)]  # [grid row][worker]
    if scheme == "b":  # one worker's samples after the other's
        parts = [[group[j] for group in groups] for j in range(workers)]
    else:  # a part of every worker's samples
        parts = [[blocks(rows, workers)[j] for group in groups for rows in group] for j in range(workers)]
    return [np.concatenate(part) for part in parts]


class Momentum:
    """w <- w - lr v with v <- m v + g + d w, of one group of parameters; biases without the d w."""

    def __init__(self, parameters, lr):
        self.parameters, self.lr = parameters, lr
        self.velocity = [np.zeros(p.shape) for p in parameters]

    def step(self):
        for p, v in zip(self.parameters, self.velocity, strict=True):
            v *= MOMENTUM
            v += p.grad + (DECAY * p.data if p.ndim > 1 else 0)
            p.data = p.data - self.lr * v
            p.grad = None


def emulate(model, batches, cut):
    """Train in one process with an update of the fully connected part after every chunk of `cut(batch)`."""
    net = MODELS[model]().init(SEED, np.float64)
    conv, fc = net.between(net.names[0], "flatten"), net.between("fc6", net.names[-1])
    update_conv, update_fc = Momentum(conv.parameters(), LR["conv"]), Momentum(fc.parameters(), LR["fc"])
    losses = []
    for step, batch in enumerate(batches):
        x, labels = images(batch)[0][step], images(batch)[1][step]
        training = {"training": True, "seed": SEED, "step": step}
        with nn.context(samples=np.arange(batch), **training):
            features = conv(Tensor(x))
        gradient, total = np.zeros(features.shape), 0.0
        for rows in cut(batch):
            if not len(rows):
                continue
            part = Tensor(features.data[rows], requires_grad=True)
            with nn.context(samples=rows, **training):
                loss = F.softmax_cross_entropy(fc(part), labels[rows])  # the mean over the chunk
            loss.backward()
            update_fc.step()
            gradient[rows] = part.grad * len(rows) / batch  # for the convolutions, the mean over the batch
            total += loss.item() * len(rows) / batch
        features.backward(gradient)
        update_conv.step()
        losses.append(total)
    return losses, net.state_dict()


def train(comm, model, strategy, batches, options):
    net, options = MODELS[model](), Options(dtype="float64", fc_update="each", **options)
    made = make_strategy(strategy, net, SHAPE, comm.size, options)
    running = Executor(net, SHAPE, made, comm, batches[0], SEED, optimiser)
    results = [feed(running, step, batch) for step, batch in enumerate(batches)]
    return [r.loss for r in results], gather_state(running), replicas_equal(running)


def assert_equals_emulation(model, strategy, ranks, grid_rows, batches, scheme, **options):
    want_losses, want = emulate(
        model, batches, lambda batch: chunks(scheme, batch, ranks // grid_rows, grid_rows)
    )
    out = threads.run(ranks, train, model, strategy, batches, {"scheme": scheme, **options})
    for losses, _, same in out:
        np.testing.assert_allclose(losses, want_losses, rtol=0, atol=LIMIT)
        assert same
    for name, array in out[0][1].items():
        np.testing.assert_allclose(array, want[name], rtol=0, atol=LIMIT, err_msg=name)


@pytest.mark.parametrize(
    "options", [{}, {"fc_pairs": True}, {"bucket_mib": 0}, {"sharded_momentum": True}], ids=str
)
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("scheme", ["b", "c"])
def test_update_after_every_chunk(scheme, ranks, options):
    assert_equals_emulation("all", "owt", ranks, 1, (19,) * STEPS, scheme, **options)


@pytest.mark.parametrize("options", [{}, {"sharded_momentum": True}], ids=str)
@pytest.mark.parametrize("scheme", ["b", "c"])
def test_update_after_every_chunk_on_a_grid(scheme, options):
    """The chunks of both rows of the grid make one sub-step together."""
    assert_equals_emulation("all", "hybrid", 4, 2, (19,) * STEPS, scheme, dp=2, **options)


@pytest.mark.parametrize("last", [5, 2, 1])
@pytest.mark.parametrize("scheme", ["b", "c"])
def test_last_batch_leaves_chunks_empty(scheme, last):
    """A chunk without samples is a step without a gradient on which momentum alone must not move."""
    assert_equals_emulation("all", "owt", 3, 1, (19, 19, last), scheme)
    assert_equals_emulation("all", "hybrid", 4, 2, (19, 19, last), scheme, dp=2)


def test_one_chunk_is_plain_sgd():
    """Scheme (a) has one chunk, so an update after each is one update."""
    cut = lambda batch: [np.arange(batch)]  # noqa: E731
    want_losses, want = emulate("all", (19,) * STEPS, cut)
    out = threads.run(3, train, "all", "owt", (19,) * STEPS, {"scheme": "a"})
    np.testing.assert_allclose(out[0][0], want_losses, rtol=0, atol=LIMIT)
    for name, array in out[0][1].items():
        np.testing.assert_allclose(array, want[name], rtol=0, atol=LIMIT)


def test_each_and_once_differ():
    """The reference of the one is not that of the other: a check that the tests above can fail."""
    once, _ = emulate("all", (19,) * STEPS, lambda batch: [np.arange(batch)])
    each, _ = emulate("all", (19,) * STEPS, lambda batch: chunks("b", batch, 2))
    assert abs(each[-1] - once[-1]) > 1e-3


@pytest.mark.parametrize(("workers", "grid_rows"), [(1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("scheme", ["b", "c"])
def test_the_twin_makes_the_same_steps(scheme, workers, grid_rows):
    """The twin of `--check` is a third writing of the same; all three must agree."""
    cut, batches = micro_batch_rows(scheme, {"data": grid_rows, "model": workers}), (19, 19, 1)
    for batch in batches:
        mine = chunks(scheme, batch, workers, grid_rows)
        assert [rows.tolist() for rows in mine] == [rows.tolist() for rows in cut(batch)]
        assert sorted(np.concatenate(mine)) == list(range(batch))
    want_losses, want = emulate("all", batches, cut)
    twin = Twin(MODELS["all"](), optimiser, SEED, "float64", "fc6", cut)
    losses = [twin.step(images(n)[0][step], images(n)[1][step]) for step, n in enumerate(batches)]
    np.testing.assert_allclose(losses, want_losses, rtol=0, atol=LIMIT)
    for name, array in twin.model.state_dict().items():
        np.testing.assert_allclose(array, want[name], rtol=0, atol=LIMIT, err_msg=name)
