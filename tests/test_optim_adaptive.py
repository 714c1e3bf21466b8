"""Adam, AdamW and RMSprop against their formulas and on parts of parameters; clipping; one-cycle and plateau."""

import math
import tracemalloc

import numpy as np
import pytest

from minidnn import nn
from minidnn.functional.factors import Factors
from minidnn.optim import (
    SGD,
    Adam,
    AdamW,
    Plateau,
    RMSprop,
    clip_grad_norm,
    one_cycle,
    scale_gradients,
    sum_of_squares,
)
from minidnn.optim import update as update_module
from minidnn.tensor import Tensor

KINDS = {
    "Adam": (Adam, {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1}),
    "Adam without a mean": (Adam, {"beta1": 0.0}),
    "AdamW": (AdamW, {"beta2": 0.9, "weight_decay": 0.2}),
    "RMSprop": (RMSprop, {"beta": 0.9, "weight_decay": 0.1}),
    "SGD": (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
}
every_kind = pytest.mark.parametrize("kind, options", KINDS.values(), ids=KINDS.keys())


def parameter(values, name="w", dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True, name=name)


def reference(kind, w, gradients, lr, beta1=0.9, beta2=0.999, beta=0.99, eps=1e-8, weight_decay=None):
    """The published update, with temporaries."""
    decay = {AdamW: 0.01}.get(kind, 0.0) if weight_decay is None else weight_decay
    m = v = 0
    for t, g in enumerate(gradients, 1):
        if kind is AdamW:
            w = w - lr * decay * w
        else:
            g = g + decay * w
        if kind is RMSprop:
            v = beta * v + (1 - beta) * g**2
            w = w - lr * g / (np.sqrt(v) + eps)
        else:
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
            w = w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return w


def train(optimiser, gradients):
    """One step for each gradient of all parameters."""
    for gradient in gradients:
        for w in optimiser.parameters():
            w.grad = gradient.copy()
        optimiser.step()


@pytest.mark.parametrize("kind, options", list(KINDS.values())[:4], ids=list(KINDS)[:4])
@pytest.mark.parametrize("layout", ["whole", "blocks", "transposed"])
def test_update_equals_the_formula(monkeypatch, kind, options, layout):
    monkeypatch.setitem(update_module.BLOCK, "numpy", 1000 if layout == "whole" else 7)
    random = np.random.default_rng(0)
    start, gradients = random.standard_normal((5, 4, 3)), random.standard_normal((4, 5, 4, 3))
    w = parameter(start)
    if layout == "transposed":
        w.data = np.asfortranarray(start)
    optimiser = kind([w], lr=0.05, **options)
    train(optimiser, gradients)
    np.testing.assert_allclose(w.data, reference(kind, start, gradients, 0.05, **options), rtol=1e-12)
    assert w.version == 4


@every_kind
def test_a_part_of_a_parameter_is_updated_as_the_whole_would_be(kind, options):
    """Bit for bit: so the update is exact however a parameter is split over ranks."""
    random = np.random.default_rng(0)
    start, gradients = (random.standard_normal(s).astype("f") for s in ((6, 10), (3, 6, 10)))
    w = parameter(start, dtype=np.float32)
    train(kind([w], lr=0.1, **options), gradients)
    for part in (np.s_[2:5], np.s_[:, 3:], np.s_[::2, ::-1]):
        piece = parameter(start[part], dtype=np.float32)
        train(kind([piece], lr=0.1, **options), gradients[(slice(None), *np.atleast_1d(part))])
        np.testing.assert_array_equal(piece.data, w.data[part])


@every_kind
def test_a_parameter_that_is_one_number(kind, options):
    w, row = parameter(2.0), parameter([2.0], "row")
    for step in range(3):
        w.grad, row.grad = np.array(step + 0.5), np.array([step + 0.5])
        kind([w, row], lr=0.1, **options).step()
    assert w.shape == () and w.data == row.data[0] < 2


@every_kind
def test_training_continues_from_a_named_state(kind, options):
    gradients = np.random.default_rng(0).standard_normal((5, 4))
    w, first = parameter(np.ones(4)), parameter(np.ones(4))
    train(kind([w], lr=0.1, **options), gradients)
    before = kind([first], lr=0.1, **options)
    train(before, gradients[:2])
    state = before.state_dict()
    assert sorted(state) == sorted(["iteration", *kind.slots])
    assert all(list(state[slot]) == ["w"] for slot in kind.slots)
    second = parameter(first.data)
    after = kind([second], lr=0.1, **options)
    after.load_state_dict(state)
    train(after, gradients[2:])
    np.testing.assert_array_equal(second.data, w.data)
    assert before.state_dict()["iteration"] == 2  # and what was loaded is not shared
    for slot in kind.slots:
        np.testing.assert_array_equal(before.state_dict()[slot]["w"], state[slot]["w"])


def test_state_of_the_whole_loads_into_a_shard():
    part = nn.Parameter((2, 4)).part((slice(0, 2), slice(1, 3)))
    part.materialise(0, "fc.W", np.float32)
    optimiser, whole = Adam([part]), np.arange(8.0).reshape(2, 4)
    state = {"mean": {"fc.W": whole}, "square": {"fc.W": whole}, "updates": {"fc.W": np.int64(7)}}
    optimiser.load_state_dict({"iteration": 9, **state})
    found = optimiser.state_dict()
    np.testing.assert_array_equal(found["mean"]["fc.W"], [[1, 2], [5, 6]])
    assert found["square"]["fc.W"].dtype == np.float32 and found["updates"]["fc.W"] == 7


def test_state_of_another_optimiser_is_refused():
    w = parameter([1.0])
    with pytest.raises(
        KeyError, match=r"does not fit Adam: has \['iteration', 'velocity'\], expected .*updates"
    ):
        Adam([w]).load_state_dict(SGD([w], 0.1).state_dict())


def test_a_parameter_counts_its_own_updates():
    """The correction of young means is by the updates of the parameter, not by the iteration."""
    w, late = parameter([1.0]), parameter([1.0], "late")
    optimiser = Adam([w, late], lr=0.1)
    for step in range(3):
        w.grad = np.ones(1)
        late.grad = np.ones(1) if step == 2 else None
        optimiser.step()
    assert late.data[0] == pytest.approx(0.9, abs=1e-6)
    assert optimiser.state_dict()["updates"] == {"w": 3, "late": 1}


def test_gradients_kept_as_factors():
    random = np.random.default_rng(0)
    x, gy = random.standard_normal((3, 4)), random.standard_normal((3, 5))
    both = []
    for factored in (True, False):
        W = nn.Parameter((4, 5), nn.init.ones)
        W.materialise(0, "W", np.float64)
        if factored:
            W.factors = Factors(x, gy)
        else:
            W.grad = x.T @ gy
        AdamW([W], lr=0.1).step()
        both.append(W.data)
    np.testing.assert_allclose(*both, rtol=1e-13)


def test_groups_options_and_decay_flags():
    plain, exempt = nn.Parameter((1,), nn.init.ones), nn.Parameter((1,), nn.init.ones, decay=False)
    for p in (plain, exempt):
        p.materialise(0, "p", np.float64)
        p.grad = np.zeros(1)
    AdamW([{"params": [plain]}, {"params": [exempt], "lr": 5}], lr=0.1, weight_decay=0.5).step()
    assert plain.data[0] == pytest.approx(0.95) and exempt.data[0] == 1
    optimiser = Adam([plain], 0.1, 0.8, schedule=lambda i: 1 / (i + 1))
    assert optimiser.groups[0]["beta1"] == 0.8 and optimiser.groups[0]["beta2"] == 0.999
    optimiser.step()
    assert optimiser.learning_rate() == 0.05
    optimiser.zero_grad()
    assert plain.grad is None


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda w: Adam(w, beta1=1), r"group 0: beta1 must be in \[0, 1\), got 1"),
        (lambda w: RMSprop(w, beta=-0.1), "beta must be in"),
        (lambda w: Adam(w, eps=0), "group 0: eps must be positive, got 0"),
        (lambda w: Adam(w, betas=(0.9, 0.99)), "Adam: expected any of lr, beta1, .*; got .*betas"),
        (lambda w: SGD(w, 0.1, 0.9, False, 0, 0, None, 1), "SGD: expected any of lr, momentum"),
        (lambda w: RMSprop(w, lr=None), "needs a learning rate"),
    ],
)
def test_bad_options(make, match):
    with pytest.raises(ValueError, match=match):
        make([parameter([1.0])])


def test_clipping_is_by_the_norm_of_all_gradients():
    a, b, c = parameter([0.0, 0]), parameter([[0.0]]), parameter([1.0])
    a.grad, b.grad = np.array([3.0, 0]), np.array([[4.0]])
    assert clip_grad_norm([a, b, c], 10) == 5
    np.testing.assert_array_equal(a.grad, [3, 0])  # within: untouched
    assert clip_grad_norm((p for p in (a, b, c)), 1) == 5
    np.testing.assert_allclose([a.grad[0], b.grad[0, 0]], [0.6, 0.8], rtol=1e-6)
    assert c.grad is None
    with pytest.raises(ValueError, match="max_norm must be positive, got 0"):
        clip_grad_norm([a], 0)


def test_clipping_in_parts_is_clipping_of_the_whole():
    g = np.random.default_rng(0).standard_normal(10)
    whole, parts = parameter(np.zeros(10)), [parameter(np.zeros(4)), parameter(np.zeros(6))]
    whole.grad, parts[0].grad, parts[1].grad = g.copy(), g[:4].copy(), g[4:].copy()
    norm = clip_grad_norm([whole], 0.5)
    squares = [sum_of_squares([part]) for part in parts]  # one on each rank
    assert sum(squares) ** 0.5 == pytest.approx(norm)
    for part in parts:
        scale_gradients([part], 0.5 / (norm + 1e-6))
    np.testing.assert_allclose(np.concatenate([p.grad for p in parts]), whole.grad, rtol=1e-12)


def test_squares_of_float32_are_added_in_float64():
    w = parameter(np.zeros(1 << 20), dtype=np.float32)
    w.grad = np.full(1 << 20, 1e25, np.float32)  # their squares are beyond float32
    tracemalloc.start()
    assert sum_of_squares([w]) == pytest.approx(2**20 * 1e50, rel=1e-6)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20  # in blocks, not by a copy of 8 MB
    tracemalloc.stop()


def test_one_cycle_rises_and_falls():
    schedule = one_cycle(100, rising=0.3, start=10, end=100)
    values = [schedule(i) for i in range(100)]
    assert values[0] == pytest.approx(0.1) and values[29] == 1 and values[99] == pytest.approx(1e-3)
    assert np.all(np.diff(values[:30]) > 0) and np.all(np.diff(values[29:]) < 0)
    assert values[15] == pytest.approx(1 - 0.9 * (1 + math.cos(math.pi * 15 / 29)) / 2)
    assert schedule(1000) == values[99]
    for iterations, rising in ((100, 0), (100, 1.5), (2, 0.3)):
        with pytest.raises(ValueError, match="one_cycle: "):
            one_cycle(iterations, rising)


def test_plateau_lowers_after_patience():
    plateau, seen = Plateau(factor=0.5, patience=1, threshold=0.1, minimum=0.3), []
    for loss in (1.0, 0.95, 0.8, 0.8, 0.79, 0.5, 0.5, 0.5, 0.5, 0.5):
        plateau.observe(loss)
        seen.append(plateau(0))
    assert seen == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3]
    assert SGD([parameter([1.0])], 0.1, schedule=plateau).learning_rate() == pytest.approx(0.03)
    assert Plateau(**vars(plateau)) == plateau  # the fields are its whole state


def test_schedules_equal_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    w = torch.ones(1, requires_grad=True)
    sgd = torch.optim.SGD([w], lr=1.0)
    options = {"pct_start": 0.4, "cycle_momentum": False, "div_factor": 8, "final_div_factor": 50}
    theirs = torch.optim.lr_scheduler.OneCycleLR(sgd, 1.0, 40, **options)
    for i in range(40):
        assert one_cycle(40, 0.4, 8, 50)(i) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)
        sgd.step()
        if i < 39:
            theirs.step()
    sgd, ours = torch.optim.SGD([w], lr=1.0), Plateau(0.3, 2, 0.05, 0.01)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, "min", 0.3, 2, 0.05, min_lr=0.01)
    for loss in np.random.default_rng(0).uniform(0.5, 1, 60).tolist():
        ours.observe(loss)
        theirs.step(loss)
        assert ours(0) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-9)
