"""Modules of one's own: names from the start, lists of layers, dropout without a context."""

import numpy as np
import pytest

from minidnn import functional as F
from minidnn import nn
from minidnn.optim import SGD
from minidnn.tensor import Tensor


class TwoDropouts(nn.Module):
    def __init__(self):
        self.fc = nn.Linear(6, 6)
        self.first, self.second = nn.Dropout(0.5), nn.Dropout(0.5)

    def forward(self, x):
        return self.fc(x)


def mask(layer, step=0, width=64):
    with nn.context(training=True, seed=1, step=step, samples=np.arange(2)):
        return layer(Tensor(np.ones((2, width)))).data != 0


def test_layers_are_named_without_init():
    """Masks follow from names: two layers without one would drop the same features."""
    state = TwoDropouts().init(0).state_dict()
    model = TwoDropouts()
    model.load_state_dict(state)
    assert (model.first.name, model.second.name, model.fc.W.name) == ("first", "second", "fc.W")
    assert (mask(model.first) != mask(model.second)).any()
    np.testing.assert_array_equal(mask(model.first), mask(TwoDropouts().init(3).first))

    class Outer(nn.Module):
        def __init__(self):
            self.inner = TwoDropouts()
            self.net = nn.Sequential(nn.Dropout(0.5))

    outer = Outer()
    assert (outer.inner.second.name, outer.net["dropout1"].name) == ("inner.second", "net.dropout1")


class Blocks(nn.Module):
    def __init__(self):
        self.blocks = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])
        self.heads = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 1)})
        self.blocks.append(nn.Dropout(0.5))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.heads["a"](x)


def test_lists_and_dictionaries_of_layers_are_registered():
    model = Blocks().init(1)
    names = ["blocks.0.W", "blocks.0.b", "blocks.1.W", "blocks.1.b", "heads.a.W", "heads.a.b", "heads.b.W"]
    assert [name for name, _ in model.named_parameters()][:7] == names
    assert len(model.parameters()) == 8 and len(model.blocks) == 3 and model.blocks[-1].name == "blocks.2"
    assert list(model.heads) == ["a", "b"] and [name for name, _ in model.heads.items()] == ["a", "b"]
    assert not model.eval().blocks[-1].training
    model(Tensor(np.ones((2, 3), np.float32))).sum().backward()
    assert model.blocks[0].W.grad is not None and model.heads["b"].W.grad is None
    other = Blocks()
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(other.blocks[1].W.data, model.blocks[1].W.data)
    with pytest.raises(TypeError, match="expected a Module, got int"):
        model.heads["c"] = 3


@pytest.mark.parametrize(
    "hidden",
    [[nn.Linear(1, 1)], (nn.ReLU(),), {"a": nn.ReLU()}, [[nn.ReLU()]], [nn.Parameter((2,))]],
    ids=["list", "tuple", "dict", "nested", "parameters"],
)
def test_layers_in_a_plain_list_are_not_lost(hidden):
    model = TwoDropouts()
    model.hidden = hidden
    for use in (model.init, model.parameters, lambda: model.load_state_dict({}), model.eval):
        with pytest.raises(TypeError, match=r"TwoDropouts: nothing finds .*'hidden'.*nn\.ModuleList"):
            use()


def train(model, steps=3):
    model.init(0)
    optimiser = SGD(model.parameters(), lr=0.1)
    x = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.softmax_cross_entropy(model(Tensor(x)), np.arange(8) % 3)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def dropped():
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))


def test_a_plain_loop_trains_with_dropout():
    assert train(dropped()) == train(dropped())  # the layer counts its own calls from 0
    model = nn.Sequential({"drop": nn.Dropout(0.5)})
    x = Tensor(np.ones((2, 64)))
    first, second = model(x).data, model(x).data
    assert (first != second).any() and set(np.unique(first)) == {0, 2}
    np.testing.assert_array_equal(model.eval()(x).data, x.data)


def test_a_context_gives_exactly_the_mask_it_names_whatever_was_drawn_before():
    layer = nn.Sequential({"drop": nn.Dropout(0.5)})["drop"]
    expected = mask(layer, step=7)
    layer(Tensor(np.ones((2, 64))))
    np.testing.assert_array_equal(mask(layer, step=7), expected)


def test_layers_without_a_name_draw_masks_of_their_own():
    x = Tensor(np.ones((2, 64)))
    assert (nn.Dropout(0.5)(x).data != nn.Dropout(0.5)(x).data).any()


def test_zero_grad_of_the_optimiser_forgets_all_gradients():
    model = dropped().init(0)
    optimiser = SGD(model.parameters(), lr=0.1)
    model(Tensor(np.ones((2, 6), np.float32))).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    optimiser.zero_grad()
    assert all(p.grad is None for p in model.parameters())
