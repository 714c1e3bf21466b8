"""Cases that nobody chose: models, meshes, splits of every layer, stages, micro-batches, schedules and options at
random.

Each trains to the losses and weights of one process, with replicas equal to the bit and every byte as planned. A
case that fails names its seed: `pytest tests/test_parallel_generated.py -k "[17]"`.
"""

import random
from dataclasses import replace

import numpy as np
import pytest
from parallel_cases import CLASSES, LIMIT, SEED, SHAPE, optimiser
from transport import Transport

from minidnn import functional as F
from minidnn import nn
from minidnn.comm import threads
from minidnn.parallel import (
    Executor,
    Mesh,
    Options,
    PlacementError,
    Split,
    gather_state,
    make_plan,
    place,
    replicas_equal,
)
from minidnn.parallel.rule import dimensions, splittable
from minidnn.parallel.schedule import Backward, Forward
from minidnn.tensor import Tensor

STEPS = 2
CASES = 320


class Scale(nn.Module):
    """Somebody's own layer, with a child: states that it works on samples and channels alike."""

    dims = "n ... c, c -> n ... c"

    def __init__(self, features):
        self.scale = nn.Parameter((features,), nn.init.ones)

    def forward(self, x):
        return F.tanh(x * self.scale)


class Block(nn.Module):
    """A residual block as one layer: children, and samples as all that can be split."""

    dims = "n h w c -> n h w c"
    whole = "h w c"

    def __init__(self, channels, norm):
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm(channels) if norm else nn.ReLU()
        self.own = Scale(channels)

    def forward(self, x):
        return x + self.own(self.norm(self.conv(x)))


class Silent(nn.Module):
    """States no dimensions: it is replicated."""

    def forward(self, x):
        return x * 0.5


def draw_model(rng):
    """A chain, a residual net, one with branches, or one with tied layers; and whether a batch norm is in it."""
    norm = rng.choice(["", "", "lrn", "groups lrn", "batch"])
    groups = rng.choice([1, 1, 2, 4])
    channels = 8
    normal = {
        "": lambda: nn.ReLU(),
        "lrn": lambda: nn.LocalResponseNorm(alpha=0.1, size=rng.choice([3, 5])),
        "groups lrn": lambda: nn.LocalResponseNorm(alpha=0.1, groups=groups),
        "batch": lambda: nn.BatchNorm(channels),
    }[norm]
    own = rng.random() < 0.3
    layers = {
        "conv1": nn.Conv2d(
            3, channels, rng.choice([3, 5]), stride=rng.choice([1, 2]), padding=rng.choice([1, 2, "same"])
        )
    }
    layers["norm1"] = normal()
    if rng.random() < 0.5:
        layers["drop1"] = nn.Dropout(0.3)
    layers["relu1"] = Scale(channels) if own else nn.ReLU()
    if rng.random() < 0.6:
        layers["pool1"] = rng.choice([nn.MaxPool2d, nn.AvgPool2d])(*rng.choice([(2, 2), (3, 1), (3, 2, 1)]))
    base = list(layers)[-1]
    shape = rng.choice(["chain", "residual", "branches", "tied", "block"])
    if shape in ("chain", "residual", "tied"):
        layers["conv2"] = conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)
        layers["tanh2"] = nn.Tanh()
    if shape == "residual":
        layers["add2"] = nn.Add(base)
    if shape == "tied":
        layers["conv3"], layers["relu3"] = conv2, nn.ReLU()
    if shape == "branches":
        layers["left"] = (nn.Conv2d(channels, channels, 1), base)
        layers["right"] = (nn.Conv2d(channels, channels, 3, padding=1), base)
        layers["join"] = nn.Add("left")
        layers["both"] = (nn.Add(base), "join")
    if shape == "block":
        layers["block"] = Block(channels, norm == "batch")
        if rng.random() < 0.5:
            layers["silent"] = Silent()
    layers["flatten"] = nn.Flatten()
    before = nn.Sequential(dict(layers)).output_shape(SHAPE)[0]
    layers |= {
        "fc6": nn.Linear(before, 9, bias=rng.random() < 0.8),
        "relu6": nn.Sigmoid(),
        "fc7": nn.Linear(9, 9),
    }
    if rng.random() < 0.5:
        layers["fc7b"] = layers["fc7"] if rng.random() < 0.5 else nn.Linear(9, 9)
        layers["add7"] = nn.Add("relu6")
    if rng.random() < 0.5:
        layers["drop7"] = nn.Dropout(0.4)
    layers["fc8"] = nn.Linear(9, CLASSES)
    model = nn.Sequential(layers)
    if rng.random() < 0.2:
        for p in model["conv1"].parameters():
            p.requires_grad = False
    return model, norm == "batch"


def draw_mesh(rng):
    """One to three axes, at most eight ranks."""
    names = rng.sample(["data", "model", "space"], rng.choice([1, 1, 2]))
    if rng.random() < 0.5:
        names.insert(rng.randrange(len(names) + 1), "stage")
    sizes = {name: 1 for name in names}
    for name in names:
        left = 8 // int(np.prod(list(sizes.values())))
        sizes[name] = rng.choice([n for n in (2, 2, 3, 4) if n <= left] or [1])
    return Mesh(**sizes)


def draw_splits(rng, model, mesh):
    """For every layer a letter, or none, or one place, for every axis that is not the stages'."""
    axes = [axis for axis in mesh.names if axis != "stage"]
    rules, tied = {}, {}
    rows = [(n, layer, ins, out) for n, layer, ins, out in model.shapes(SHAPE)]
    for name, layer, ins, out in [*rows, ("loss", None, (rows[-1][-1],), ())]:
        letters, at = {}, {}
        dims = dimensions(layer, ins)
        for axis in axes:
            choice = rng.random()
            if choice < 0.06:
                at[axis] = rng.randrange(mesh.axis_size(axis))
            elif choice < 0.85:
                favourite = "n" if axis == "data" else rng.choice("nhwoi")
                parts = {
                    x: int(np.prod([mesh.axis_size(a) for a in (*letters.get(x, ()), axis)]))
                    for x in "nhwcokgi"
                }
                can = [x for x in parts if dims and x in splittable(layer, ins, out, parts[x])]
                letter = dims.letter(favourite) if dims else ""
                letter = letter if letter in can else rng.choice(can or [""])
                if letter:
                    letters[letter] = (*letters.get(letter, ()), axis)
        key = id(layer.parameters()[0]) if layer is not None and layer.parameters() else None
        rules[name] = tied.setdefault(key, Split(letters, at)) if key else Split(letters, at)
    return rules


def draw_schedule(rng, stages, count):
    """For each stage an order that is part of one order of everything, so that no stage can wait for ever."""
    todo = [("F", s, i) for s in range(stages) for i in range(count)]
    whole = rng.random() < 0.5
    todo += [(kind, s, i) for kind in ("B" if whole else "IW") for s in range(stages) for i in range(count)]
    done, orders = set(), [[] for _ in range(stages)]
    while todo:
        ready = [x for x in todo if _needs(x, stages) <= done]
        kind, s, i = picked = rng.choice(ready)
        todo.remove(picked)
        done |= {picked, ("B", s, i)} if kind == "I" else {picked}
        part = {"B": "both", "I": "input", "W": "weight"}
        orders[s].append(Forward(s, i) if kind == "F" else Backward(s, i, part[kind]))
    return orders


def _needs(task, stages):
    kind, s, i = task
    if kind == "F":
        return {("F", s - 1, i)} if s else set()
    if kind == "W":
        return {("I", s, i)}
    return {("F", s, i)} | ({("B", s + 1, i)} if s + 1 < stages else set())


def draw(seed):
    """A model, and a strategy and a batch for it."""
    rng = random.Random(seed)
    while True:
        build_seed = rng.random()
        model, norm = draw_model(random.Random(build_seed))
        mesh = draw_mesh(rng)
        count = 1 if norm else rng.choice([1, 1, 2, 3])
        stages = mesh.axis_size("stage")
        names = model.names
        starts = sorted(rng.sample(range(1, len(names)), stages - 1))
        options = Options(
            mesh=mesh,
            dtype="float64",
            micro_batches=count,
            stages=tuple(starts) if "stage" in mesh.names else None,
            bucket_mib=rng.choice([0, 1e-4, 25]),
            sharded_momentum=rng.random() < 0.2,
            fc_gradients=rng.choice(["sum", "sum", "factors"]),
            all_reduce=rng.choice(["ring", "ring", "doubling", "halving", "tree", "direct", "hierarchical"]),
        )
        rules = draw_splits(rng, model, mesh)
        strategy = place(rules)(model, SHAPE, mesh.size, options)
        orders = draw_schedule(rng, stages, count)
        strategy = replace(
            strategy, schedule=lambda at, orders=orders: list(orders[at]), alive=(count,) * stages
        )
        batch = rng.randrange(8 * count, 8 * count + 12)
        try:
            make_plan(model, SHAPE, strategy, batch)
        except PlacementError as error:
            if "share" not in str(error):  # tied layers in two stages
                raise
            continue
        run = {"rendezvous": rng.random() < 0.4, "debug": rng.random() < 0.2}
        nodes = [rng.randrange(2) for _ in range(mesh.size)] if rng.random() < 0.3 else None
        return lambda s=build_seed: draw_model(random.Random(s))[0], strategy, batch, run, nodes


def data(batch):
    rng = np.random.default_rng(batch)
    return rng.standard_normal((STEPS, batch, *SHAPE)), rng.integers(0, CLASSES, (STEPS, batch))


def one_process(build, batches):
    """A plain loop of tape and SGD."""
    net = build().init(SEED, np.float64)
    trained = [p for p in net.parameters() if p.requires_grad]
    sgd, losses = optimiser({"all": trained}), []
    for step, batch in enumerate(batches):
        x, labels = data(batch)[0][step], data(batch)[1][step]
        net.zero_grad()
        with nn.context(training=True, seed=SEED, step=step, samples=np.arange(batch)):
            loss = F.softmax_cross_entropy(net(Tensor(x)), labels)
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    return losses, net.state_dict()


def train(comm, build, strategy, batches):
    transport = Transport(comm)
    running = Executor(build(), SHAPE, strategy, comm, batches[0], SEED, optimiser)
    losses = []
    for step, batch in enumerate(batches):
        x, labels = data(batch)[0][step], data(batch)[1][step]
        plan = running.plan_for(batch, True)
        start, stop = plan.input_rows(comm.rank)
        before = transport.totals()
        losses.append(running.step(x[start:stop] if start < stop else None, labels).loss)
        moved = [a - b for a, b in zip(transport.totals(), before, strict=True)]
        planned = plan.messages(comm.rank)
        sides = [[m.bytes for m in planned if m.kind == kind] for kind in ("send", "recv")]
        assert moved == [len(sides[0]), sum(sides[0]), len(sides[1]), sum(sides[1])], (
            "bytes are not as planned"
        )
    return losses, gather_state(running), replicas_equal(running)


@pytest.mark.parametrize("seed", range(CASES))
def test_equals_one_process(seed):
    build, strategy, batch, run, nodes = draw(seed)
    last = random.Random(seed).choice([batch, batch, 3, 1])
    if "groups lrn" and any(isinstance(m, nn.BatchNorm) for _, m in build().named_modules()):
        last = batch  # statistics of so few samples are ill-conditioned
    what = f"seed {seed}: {strategy.mesh}, {strategy.splits}, {strategy.options}"
    losses, state = one_process(build, (batch, last))
    if nodes:
        run["nodes"] = nodes
    for found, whole, same in threads.run(strategy.mesh.size, train, build, strategy, (batch, last), **run):
        np.testing.assert_allclose(found, losses, rtol=0, atol=LIMIT, err_msg=what)
        assert same, f"replicas differ: {what}"
        for name in whole or ():
            np.testing.assert_allclose(
                whole[name], state[name], rtol=0, atol=LIMIT, err_msg=f"{name}: {what}"
            )
        assert whole is None or list(whole) == list(state)
