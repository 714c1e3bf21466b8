"""What a newcomer tries first: either it works as NumPy's users expect, or the error says what to write."""

import subprocess
import sys

import numpy as np
import pytest

from minidnn import functional as F
from minidnn import nn
from minidnn.optim import SGD
from minidnn.tensor import Tensor, no_grad


def test_a_tensor_becomes_an_array():
    x = Tensor(np.arange(6.0).reshape(2, 3))
    assert np.asarray(x) is x.data
    assert np.asarray(x, np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(x), x.data)
    np.testing.assert_allclose(x, [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(ValueError, match="copy"):
        np.array(x, np.float32, copy=False)
    with pytest.raises(RuntimeError, match=r"call model\.init"):
        np.asarray(nn.Linear(2, 3).W)


def test_a_tensor_of_one_element_becomes_a_number():
    loss = Tensor([[2.5]], requires_grad=True)
    assert (float(loss), int(loss), f"{loss:.3f}", f"{loss:>5}") == (2.5, 2, "2.500", "  2.5")
    assert f"{loss}" == repr(loss)
    assert isinstance(float(Tensor(3)), float)
    x = Tensor(np.ones((2, 3)), name="fc.W")
    for convert in (float, int, Tensor.item, "{:.3f}".format):
        with pytest.raises(ValueError, match=r"fc\.W of shape \(2, 3\) is not one number: numpy\(\)"):
            convert(x)


def test_comparisons_give_boolean_arrays():
    x, y = Tensor([-1.0, 2.0], requires_grad=True), np.array([0.0, 2.0])
    for got, expected in (
        (x < y, [True, False]),
        (x <= y, [True, True]),
        (x > 0, [False, True]),
        (x >= Tensor(y), [False, True]),
        (y < x, [False, False]),
        (1 > x, [True, False]),
    ):
        assert type(got) is np.ndarray and got.tolist() == expected
    assert Tensor(0.5) < 1 and not Tensor(0.0) and Tensor([3.0])
    with pytest.raises(ValueError, match="ambiguous"):
        bool(x > y)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(x)


def test_abs():
    x = Tensor([-2.0, 0.0, 3.0], requires_grad=True)
    y = abs(x)
    y.sum().backward()
    assert y.data.tolist() == [2, 0, 3] and x.grad.tolist() == [-1, 0, 1]


def test_a_scalar_tensor_has_no_rows():
    for use in (len, list, iter):
        with pytest.raises(TypeError, match=r"shape \(\) has no length"):
            use(Tensor(1.0))


def test_operators_in_place_are_refused():
    w, start = Tensor(np.array([1.0, 2.0]), requires_grad=True, name="w"), np.array([1.0, 2.0])

    def isub(x, y):
        x -= y

    with pytest.raises(
        TypeError, match=r"w -= \.\.\. on a tensor would make a new one: call assign\(array\)"
    ):
        isub(w, 0.1)
    with pytest.raises(TypeError, match="assign"), no_grad():
        isub(w, start)
    with pytest.raises(TypeError, match=r"write x = x - \.\.\."):
        isub(w * 2, w)
    for symbol in ("+", "-", "*", "/", "**", "@"):
        with pytest.raises(TypeError, match="assign"):
            exec(f"w {symbol}= y", {"w": w, "y": 2})
    np.testing.assert_array_equal(w.data, start)
    w.assign(w.data - 0.5)
    w.assign(Tensor(w.data * 2))
    np.testing.assert_array_equal(w.data, [1.0, 3.0])


def test_a_list_of_tensors_is_not_silently_cut_off_from_its_graph():
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match="concatenate"):
        Tensor([x, x])
    with pytest.raises(TypeError, match="concatenate"):
        F.exp([x[0], x[1]])


def test_mixed_dtypes_name_the_layer_and_the_remedy():
    model = nn.Sequential({"fc1": nn.Linear(3, 2)}).init()
    with pytest.raises(TypeError) as caught:
        model(np.ones((4, 3)))
    assert str(caught.value) == (
        "fc1 (Linear): dtypes are never mixed, got input 0 float64, fc1.W float32, fc1.b float32; give the data as "
        "array.astype(np.float32), or draw the weights by model.init(dtype=np.float64)"
    )
    assert caught.value.__context__ is None  # the traceback shows this error alone
    with pytest.raises(TypeError, match=r"input 0 uint8.*array.astype\(np.float32\)$"):
        model(np.ones((4, 3), np.uint8))
    assert model(np.ones((4, 3), np.float32)).dtype == np.float32
    assert model.init(dtype=np.float64)(np.ones((4, 3))).dtype == np.float64


def test_losses_take_lists():
    p, t = [0.25, 0.5], [0.0, 1.0]
    assert float(F.binary_cross_entropy(p, t)) == pytest.approx(-(np.log(0.75) + np.log(0.5)) / 2, rel=1e-12)
    assert float(F.mean_squared_error(p, t)) == pytest.approx((0.0625 + 0.25) / 2, rel=1e-12)
    assert float(F.softmax_cross_entropy([[0.0, 0.0]], [1])) == pytest.approx(np.log(2), rel=1e-12)
    with pytest.raises(TypeError, match="binary_cross_entropy: got dtype int64, expected float32 or float64"):
        F.binary_cross_entropy([0, 1], [0, 1])
    with pytest.raises(ValueError, match=r"mean_squared_error: got one number, shape \(\)"):
        F.mean_squared_error(0.5, 1.0)
    with pytest.raises(
        TypeError, match=r"target of dtype int64 for float64; use target.astype\(np.float64\)"
    ):
        F.binary_cross_entropy(p, np.array([0, 1]))


def test_linear_acts_on_the_last_axis():
    layer, rng = nn.Linear(4, 3).init(dtype=np.float64), np.random.default_rng(0)
    x, gy = Tensor(rng.standard_normal((5, 2, 4)), requires_grad=True), rng.standard_normal((5, 2, 3))
    y = layer(x)
    y.backward(gy)
    W = layer.W.data
    np.testing.assert_allclose(y.data, np.einsum("nsi,io->nso", x.data, W), rtol=1e-13)
    np.testing.assert_allclose(x.grad, np.einsum("nso,io->nsi", gy, W), rtol=1e-13)
    np.testing.assert_allclose(layer.W.grad, np.einsum("nsi,nso->io", x.data, gy), rtol=1e-13)
    np.testing.assert_allclose(layer.b.grad, gy.sum(axis=(0, 1)), rtol=1e-13)
    assert layer(np.ones(4)).shape == (3,)
    with pytest.raises(ValueError, match=r"linear: got x \(2, 3, 5\), W \(4, 3\), expected x \(\.\.\., i\)"):
        layer(np.ones((2, 3, 5)))


LAZY = """
import sys
import minidnn as mn

heavy = {"numpy", "mpi4py", "cupy", "matplotlib", "PIL", "importlib.metadata"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert {"Tensor", "nn", "functional", "optim", "parallel", "data", "comm", "no_grad", "gradcheck"} <= set(dir(mn))
modules = mn.functional, mn.nn, mn.optim, mn.parallel, mn.data, mn.comm, mn.random, mn.report, mn.train, mn.backend
assert not (heavy - {"numpy", "importlib.metadata"}) & set(sys.modules)
assert all(isinstance(module, type(sys)) for module in modules)

import minidnn.gradcheck

assert mn.gradcheck is minidnn.gradcheck and mn.gradcheck.gradcheck_table
mn.gradcheck(lambda x: x * x, mn.Tensor([1.0, 2.0], requires_grad=True).data)
with mn.no_grad():
    assert not (mn.Tensor([1.0], requires_grad=True) * 2).requires_grad
assert mn.__version__[0].isdigit()
from minidnn import *

assert Tensor is mn.Tensor and nn is mn.nn
try:
    mn.Tensr
except AttributeError as error:
    assert (error.name, error.obj) == ("Tensr", mn)
print("fine")
"""


def test_everything_is_imported_when_first_used():
    run = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "fine\n"), run.stderr


def test_weight_decay_leaves_biases_out():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(3, 2))
    model.init(dtype=np.float64)
    for name, parameter in model.named_parameters():
        parameter.assign(np.ones(parameter.shape))
        parameter.grad = np.zeros(parameter.shape)
        assert parameter.decay == name.endswith("W")
        assert parameter.part(tuple(slice(0, 1) for _ in parameter.shape)).decay == parameter.decay
    SGD(model.parameters(), lr=0.5, weight_decay=0.5).step()
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.data, 0.75 if name.endswith("W") else 1.0)
