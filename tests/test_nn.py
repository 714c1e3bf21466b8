"""Modules: lazy parameters, state, containers and names."""

import copy

import numpy as np
import pytest

from minidnn import nn
from minidnn.nn.init import fans, glorot_normal, glorot_uniform, he_normal, he_uniform, normal, uniform
from minidnn.random import rng
from minidnn.tensor import Tape, Tensor


def small_model():
    return nn.Sequential(
        {
            "conv": nn.Conv2d(2, 4, 3, padding="same"),
            "norm": nn.BatchNorm(4),
            "relu": nn.ReLU(),
            "flatten": nn.Flatten(),
            "fc": nn.Linear(4 * 4 * 4, 3),
        }
    )


# ---- parameters ----


def test_parameters_are_lazy_and_know_their_shape():
    layer = nn.Linear(10**6, 10**6)  # 4 TB in float32
    assert layer.W.data is None and layer.W.shape == (10**6, 10**6) and layer.W.size == 10**12
    assert "no values yet" in repr(layer.W)
    with pytest.raises(RuntimeError, match=r"fc.*call model\.init\(seed=\.\.\.\)"):
        nn.Sequential({"fc": nn.Linear(3, 2)})(Tensor(np.ones((1, 3))))
    with pytest.raises(RuntimeError, match=r"conv\.W .*call model\.init"):
        small_model().state_dict()


def test_init_draws_by_full_name_in_float64_and_casts():
    model = nn.Sequential({"block": nn.Sequential({"fc": nn.Linear(5, 3)})}).init(seed=7, dtype=np.float32)
    parameter = model["block.fc"].W
    expected = rng(7, "block.fc.W").standard_normal((5, 3)) * np.sqrt(2 / 5)
    assert parameter.name == "block.fc.W" and parameter.data.dtype == np.float32
    np.testing.assert_array_equal(parameter.data, expected.astype(np.float32))
    assert not np.any(model["block.fc"].b.data)
    other = nn.Sequential({"other": nn.Linear(5, 3)}).init(seed=7)
    assert not np.array_equal(other["other"].W.data, parameter.data)
    with pytest.raises(ValueError, match="floating-point dtype, got int32"):
        model.init(dtype=np.int32)


def test_a_shard_is_the_slice_of_the_whole():
    whole = nn.Sequential({"fc": nn.Linear(6, 8)}).init(3, np.float64)["fc"]
    parts = []
    for start, stop in [(0, 3), (3, 8)]:
        layer = copy.copy(nn.Linear(6, 8))
        own = slice(start, stop)
        layer.W, layer.b = layer.W.part((slice(0, 6), own)), layer.b.part((own,))
        assert layer.W.shape == (6, stop - start) and layer.W.full_shape == (6, 8)
        parts.append(nn.Sequential({"fc": layer}).init(3, np.float64)["fc"])
    assert all(part.W.data.flags.c_contiguous for part in parts)
    np.testing.assert_array_equal(np.concatenate([part.W.data for part in parts], -1), whole.W.data)
    x = np.random.default_rng(0).standard_normal((2, 6))
    joined = np.concatenate([part(Tensor(x)).data for part in parts], -1)
    np.testing.assert_allclose(joined, whole(Tensor(x)).data, rtol=1e-14)
    with pytest.raises(ValueError, match=r"1 slices for a parameter of shape \(6, 8\)"):
        nn.Parameter((6, 8), slices=(slice(0, 2),))


def test_initialiser_of_the_wrong_shape_is_named():
    layer = nn.Linear(2, 2, W_init=lambda generator, shape: np.zeros(3))
    with pytest.raises(ValueError, match=r"fc\.W: the initialiser returned shape \(3,\), expected \(2, 2\)"):
        nn.Sequential({"fc": layer}).init()


@pytest.mark.parametrize(
    "init, variance",
    [
        (he_normal, 2 / 150),
        (he_uniform, 2 / 150),
        (glorot_normal, 2 / (150 + 500)),
        (glorot_uniform, 2 / (150 + 500)),
        (normal(0.3, 1.0), 0.09),
        (uniform(0.6), 0.12),
    ],
)
def test_initialisers_have_the_published_variance(init, variance):
    shape = (5, 5, 6, 20)
    assert fans(shape) == (150, 500) and fans((7, 3)) == (7, 3)
    values = np.concatenate([init(np.random.default_rng(i), shape).ravel() for i in range(10)])
    assert values.dtype == np.float64
    assert abs(values.var() / variance - 1) < 0.03
    assert abs(values.mean() - (1.0 if variance == 0.09 else 0.0)) < 0.02


# ---- state ----


def test_state_dict_round_trip_keeps_dtype_and_copies():
    model = small_model().init(1, np.float64)
    state = model.state_dict()
    assert list(state) == [
        "conv.W",
        "conv.b",
        "norm.gamma",
        "norm.beta",
        "norm.running_mean",
        "norm.running_var",
        "fc.W",
        "fc.b",
    ]
    assert [name for name, _ in model.named_buffers()] == ["norm.running_mean", "norm.running_var"]
    assert len(model.parameters()) == 6
    state["fc.W"] += 1
    assert not np.array_equal(state["fc.W"], model["fc"].W.data)
    other = small_model().init(2, np.float32)
    other.load_state_dict(state)
    assert other["fc"].W.data.dtype == np.float32
    np.testing.assert_array_equal(other["fc"].W.data, state["fc.W"].astype(np.float32))
    fresh = small_model()
    fresh.load_state_dict(state)
    assert fresh["fc"].W.data.dtype == np.float64 and fresh["fc"].W.data is not state["fc.W"]


def test_loading_bumps_the_version_and_cuts_shards():
    state = nn.Sequential({"fc": nn.Linear(4, 6)}).init(1).state_dict()
    layer = nn.Linear(4, 6)
    layer.W, layer.b = layer.W.part((slice(None), slice(2, 5))), layer.b.part((slice(2, 5),))
    part = nn.Sequential({"fc": layer}).init(9)
    before = layer.W.version
    part.load_state_dict(state)
    assert layer.W.version > before
    np.testing.assert_array_equal(layer.W.data, state["fc.W"][:, 2:5])


def test_state_that_does_not_fit_changes_nothing():
    model = small_model().init(1)
    before = model.state_dict()
    with pytest.raises(KeyError, match=r"missing \['fc.b'\], unexpected \['fc9.b'\]"):
        model.load_state_dict({("fc9.b" if name == "fc.b" else name): a for name, a in before.items()})
    wrong = {**{name: array + 1 for name, array in before.items()}, "fc.W": np.zeros((2, 2))}
    with pytest.raises(ValueError, match=r"fc.W: got an array of shape \(2, 2\), expected \(64, 3\)"):
        model.load_state_dict(wrong)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    model.load_state_dict({"fc.b": np.ones(3), "unknown": np.ones(1)}, strict=False)
    np.testing.assert_array_equal(model["fc"].b.data, 1)


# ---- containers ----


def test_sequential_names_layers_and_iterates():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert model.names == ["linear1", "relu1", "linear2"] and len(model) == 3
    assert [(name, type(layer).__name__) for name, layer in model][1] == ("relu1", "ReLU")
    assert model["linear2"].name == "linear2"
    assert nn.Sequential([("a", nn.ReLU()), ("b", nn.Tanh())]).names == ["a", "b"]
    assert "relu1: ReLU()" in repr(model) and "in_features=4" in repr(model)
    with pytest.raises(KeyError, match="no layer 'fc'; the layers are linear1, relu1, linear2"):
        model["fc"]


@pytest.mark.parametrize(
    "layers, error, match",
    [
        ([("a", nn.ReLU()), ("a", nn.ReLU())], ValueError, "two layers are named 'a'"),
        ({"": nn.ReLU()}, ValueError, "'' cannot name a layer"),
        ({"input": nn.ReLU()}, ValueError, "'input' cannot name"),
        ({"a": 3}, TypeError, "a: expected a Module, got int"),
        ({"a": nn.ReLU(), "add": nn.Add("b"), "b": nn.ReLU()}, ValueError, "add takes 'b'.*no earlier"),
    ],
)
def test_sequential_rejects(layers, error, match):
    with pytest.raises(error, match=match):
        nn.Sequential(layers)


def test_skip_connections_and_blocks():
    def block():
        return nn.Sequential({"fc": nn.Linear(3, 3), "tanh": nn.Tanh(), "add": nn.Add(("input", "fc"))})

    model = nn.Sequential({"in": nn.Linear(2, 3), "one": block(), "two": block(), "out": nn.Linear(3, 1)})
    assert model.names == ["in", "one.fc", "one.tanh", "one.add", "two.fc", "two.tanh", "two.add", "out"]
    assert model["two.add"].also == ("one.add", "two.fc")
    model.init(4, np.float64)
    x = np.random.default_rng(1).standard_normal((5, 2))
    state = model.state_dict()
    h = x @ state["in.W"]
    for name in ("one", "two"):
        z = h @ state[f"{name}.fc.W"]
        h = np.tanh(z) + h + z
    np.testing.assert_allclose(model(Tensor(x)).data, h @ state["out.W"], rtol=1e-12)
    assert model.output_shape((2,)) == (1,)
    with pytest.raises(ValueError, match=r"add1: cannot add \(2,\) of input to \(3,\)"):
        nn.Sequential(nn.Linear(2, 3), nn.Add("input")).output_shape((2,))
    alone = block().init(4, np.float64)  # the block's own names still hold outside of the model
    np.testing.assert_array_equal(alone(Tensor(x @ state["in.W"])).shape, (5, 3))


def test_gradient_of_a_skip_connection():
    model = nn.Sequential({"fc": nn.Linear(1, 1), "relu": nn.ReLU(), "add": nn.Add("fc")}).init(0, np.float64)
    model["fc"].W.assign(np.array([[2.0]]))
    with Tape() as tape:
        y = model(Tensor(np.array([[3.0]])))
        tape.backward(y)
    assert y.data[0, 0] == 12.0  # relu(6) + 6
    assert model["fc"].W.grad[0, 0] == 6.0  # 2 x
    model.zero_grad()
    assert model["fc"].W.grad is None


def test_between_shares_layers_and_lists_what_it_needs():
    model = nn.Sequential(
        {
            "a": nn.Linear(2, 2),
            "b": nn.Tanh(),
            "c": nn.Linear(2, 2),
            "d": nn.Add(("a", "input")),
            "e": nn.ReLU(),
        }
    ).init(1, np.float64)
    first, second = model.between("a", "b"), model.between("c", "e")
    assert first.names == ["a", "b"] and second.names == ["c", "d", "e"]
    assert first["a"] is model["a"] and first.external == () and second.external == ("a", "input")
    x = Tensor(np.random.default_rng(1).standard_normal((3, 2)))
    parts = second(first(x), model["a"](x), x)
    np.testing.assert_array_equal(parts.data, model(x).data)
    assert second.output_shape((2,), (2,), (2,)) == (2,)
    with pytest.raises(KeyError, match="no layer 'z'"):
        model.between("a", "z")


def test_layers_label_the_tape():
    model = nn.Sequential({"fc": nn.Linear(2, 2), "relu": nn.ReLU()}).init()
    with Tape() as tape:
        y = model(Tensor(np.ones((1, 2), np.float32)))
        assert tape.layer is None
        assert [node.layer for node in tape.nodes] == ["fc", "relu"]
        assert y.creator.layer == "relu"


def test_a_module_of_one_s_own():
    class Twice(nn.Module):
        def __init__(self):
            self.inner = nn.Linear(2, 2)
            self.scale = nn.Parameter((2,), nn.init.ones, decay=False)

        def forward(self, x):
            return self.inner(self.inner(x)) * self.scale

    module = Twice().init(3, np.float64)
    assert [name for name, _ in module.named_parameters()] == ["scale", "inner.W", "inner.b"]
    W = module.state_dict()["inner.W"]
    x = np.ones((1, 2))
    np.testing.assert_allclose(module(Tensor(x)).data, x @ W @ W, rtol=1e-12)
    model = nn.Sequential({"twice": module})
    assert [name for name, _ in model.named_parameters()][1] == "twice.inner.W"
    assert not module.scale.part((slice(0, 1),)).decay
    with pytest.raises(TypeError, match="Module defines no forward"):
        nn.Module()(Tensor(x))


def test_train_and_eval_reach_all_layers():
    model = small_model()
    assert model.training and model["norm"].training
    assert not model.eval()["norm"].training and model.train()["norm"].training
