"""Layers: the context, dropout and batch normalisation, shapes, options, and the summary."""

import itertools
import threading

import numpy as np
import pytest

from minidnn import nn
from minidnn.nn.dimensions import Part
from minidnn.tensor import Tensor

# ---- context, dropout, batch normalisation ----


def test_context_nests_restores_and_is_thread_local():
    assert nn.current_context() == nn.Context()
    seen = []
    with nn.context(training=True, seed=3):
        with nn.context(step=5, samples=[1, 2]):
            assert (nn.current_context().seed, nn.current_context().step) == (3, 5)
            thread = threading.Thread(target=lambda: seen.append(nn.current_context()))
            thread.start()
            thread.join()
        assert nn.current_context().step is None
        with pytest.raises(ZeroDivisionError), nn.context(training=False):
            raise ZeroDivisionError
        assert nn.current_context().training is True
    assert seen == [nn.Context()] and nn.current_context().training is None
    with pytest.raises(TypeError), nn.context(trainig=True):
        pass
    with (
        pytest.raises(TypeError, match="samples must be a vector of integers, got float64"),
        nn.context(samples=[0.5]),
    ):
        pass


def test_dropout_masks_follow_sample_and_step_not_the_batch():
    layer = nn.Sequential({"drop": nn.Dropout(0.25)})
    x = Tensor(np.ones((6, 50)))
    with nn.context(training=True, seed=1, step=0, samples=np.arange(6)):
        whole = layer(x).data
    with nn.context(training=True, seed=1, step=0, samples=np.array([4, 1])):
        part = layer(Tensor(np.ones((2, 50)))).data
    with nn.context(training=True, seed=1, step=1, samples=np.arange(6)):
        later = layer(x).data
    np.testing.assert_array_equal(part, whole[[4, 1]])
    assert not np.array_equal(later, whole)
    assert set(np.unique(whole)) == {0.0, 1 / 0.75}
    assert 0.6 < (whole > 0).mean() < 0.9
    np.testing.assert_array_equal(layer.eval()(x).data, x.data)


def test_dropout_of_a_shard_is_the_shard_of_the_mask():
    layer = nn.Sequential({"drop": nn.Dropout(0.5)})["drop"]
    with nn.context(training=True, seed=1, step=2, samples=np.arange(3)):
        whole = layer(Tensor(np.ones((3, 10)))).data
        layer.localise(Part(((4, 9),), ((4, 9),), (10,), (10,)))
        part = layer(Tensor(np.ones((3, 5)))).data
    np.testing.assert_array_equal(part, whole[:, 4:9])


def test_dropout_with_half_a_context_says_what_to_do():
    with (
        pytest.raises(RuntimeError, match=r"drop: dropout must know the step.*nn\.context"),
        nn.context(seed=1),
    ):
        nn.Sequential({"drop": nn.Dropout(0.5)})(Tensor(np.ones((1, 2))))
    with pytest.raises(ValueError, match="numbers 3 samples, the batch has 1"):
        with nn.context(training=True, seed=0, step=0, samples=np.arange(3)):
            nn.Dropout(0.5)(Tensor(np.ones((1, 2))))
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got 1"):
        nn.Dropout(1)


def test_batch_norm_statistics_and_evaluation():
    layer = nn.BatchNorm(3, eps=1e-3, momentum=0.8).init(0, np.float64)
    layer.gamma.assign(np.array([1.0, 2.0, 3.0]))
    layer.beta.assign(np.array([0.5, 0.0, -1.0]))
    x = np.random.default_rng(3).standard_normal((4, 2, 2, 3)) * 2 + 1
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    y = layer(Tensor(x)).data
    np.testing.assert_allclose(
        y, (x - mean) / np.sqrt(var + 1e-3) * [1, 2, 3] + [0.5, 0, -1], rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(layer.running_mean.data, 0.2 * mean)
    np.testing.assert_allclose(layer.running_var.data, 0.8 + 0.2 * var)
    running = layer.running_mean.data.copy(), layer.running_var.data.copy()
    with nn.context(training=False):
        y = layer(Tensor(x)).data
    expected = (x - running[0]) / np.sqrt(running[1] + 1e-3) * [1, 2, 3] + [0.5, 0, -1]
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(layer.running_mean.data, running[0])
    with pytest.raises(ValueError, match="expected 3"):
        layer.output_shape((2, 2, 4))


def test_batch_norm_keeps_float32():
    layer = nn.BatchNorm(2).init(0, np.float32)
    x = Tensor(np.random.default_rng(5).standard_normal((2, 4, 4, 2)).astype(np.float32))
    assert layer(x).dtype == np.float32 and layer.eval()(x).dtype == np.float32
    assert layer.running_var.data.dtype == np.float32


# ---- shapes ----


def test_shapes_macs_and_outputs_agree():
    model = nn.Sequential(
        {
            "conv": nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=((1, 0), (0, 2)), groups=2),
            "max": nn.MaxPool2d(3, 2, ceil_mode=True),
            "lrn": nn.LocalResponseNorm(3, groups=3),
            "wide": nn.Conv2d(6, 4, 3, dilation=2, padding=2, bias=False),
            "avg": nn.AvgPool2d(2, padding="same"),
            "sigmoid": nn.Sigmoid(),
            "flatten": nn.Flatten(),
            "fc": nn.Linear(4 * 2 * 3, 5),
            "softmax": nn.Softmax(),
        }
    ).init(0, np.float64)
    x = Tensor(np.random.default_rng(0).standard_normal((2, 13, 11, 4)))
    for name, layer, (shape,), output in model.shapes(x.shape[1:]):
        assert x.shape[1:] == shape
        x = layer(x)
        assert x.shape[1:] == output, name
    np.testing.assert_allclose(x.data.sum(-1), 1)
    # 13 rows + 1 padding: (14 - 3) / 2 + 1 = 6; 11 columns + 2: 12
    assert model["conv"].output_shape((13, 11, 4)) == (6, 12, 6)
    assert model["conv"].macs((13, 11, 4)) == 6 * 12 * 6 * (3 * 2 * 2)
    assert model["fc"].macs((24,)) == 24 * 5 and model["max"].macs((6, 12, 6)) == 0
    assert "b" not in [name for name, _ in model["wide"].named_parameters()]
    assert model.macs((13, 11, 4)) == sum(
        layer.macs(*shapes) for _, layer, shapes, _ in model.shapes((13, 11, 4))
    )


def test_conv_layer_against_loops():
    layer = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=((1, 0), (0, 2)), dilation=(1, 2), groups=2)
    layer.init(2, np.float64)
    layer.b.assign(np.arange(6.0))
    x = np.random.default_rng(0).standard_normal((1, 6, 5, 4))
    padded = np.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)))
    y = layer(Tensor(x)).data
    assert y.shape[1:] == layer.output_shape((6, 5, 4)) == (3, 5, 6)
    for i, j, o in itertools.product(range(3), range(5), range(6)):
        group = slice(0, 2) if o < 3 else slice(2, 4)
        window = padded[0, 2 * i : 2 * i + 3, j : j + 3 : 2, group]
        assert y[0, i, j, o] == pytest.approx((window * layer.W.data[..., o]).sum() + o)


@pytest.mark.parametrize(
    "layer, shape, match",
    [
        (nn.Conv2d(3, 4, 5), (4, 9, 3), "layer: a window of 5x5 .*does not fit in an image of 4x9"),
        (nn.Conv2d(3, 4, 7, padding=1), (4, 9, 3), "window of 7x7 .*image of 4x9 with padding 1"),
        (
            nn.Conv2d(3, 4, 3, dilation=3),
            (6, 9, 3),
            r"window of 3x3 with dilation \(3, 3\) does not fit in an image of 6x9",
        ),
        (nn.Conv2d(3, 4, 5), (9, 9, 1), "layer: input has 1 channels, expected 3"),
        (nn.Conv2d(3, 4, 5), (27,), r"input of shape \(27,\), expected \(height, width, channels\)"),
        (nn.MaxPool2d(3), (2, 2, 1), "layer: a window of 3x3 .*image of 2x2"),
        (nn.Linear(12, 2), (2, 2, 3), "expected 12 features .put a Flatten before it"),
        (nn.LocalResponseNorm(groups=2), (4, 4, 3), "3 channels do not divide into 2 groups"),
    ],
)
def test_input_that_does_not_fit_names_the_layer(layer, shape, match):
    with pytest.raises(ValueError, match=match):
        nn.Sequential({"layer": layer}).output_shape(shape)


@pytest.mark.parametrize(
    "build, match",
    [
        (lambda: nn.Linear(0, 2), "Linear: in_features must be at least 1, got 0"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "3 and 4 channels do not divide into 2 groups"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), "Conv2d: kernel_size=.*expected an int >= 1"),
        (lambda: nn.Conv2d(3, 4, 3, stride=0), "Conv2d: stride=0, expected an int >= 1"),
        (lambda: nn.Conv2d(3, 4, 3, padding="full"), "Conv2d: padding='full', expected 'same', 'valid'"),
        (lambda: nn.MaxPool2d(2, padding=-1), "MaxPool2d: padding=-1, expected an int >= 0"),
        (lambda: nn.BatchNorm(2, momentum=2), r"momentum in \[0, 1\]"),
        (lambda: nn.LocalResponseNorm(0), "size and groups must be at least 1"),
        (lambda: nn.Add(()), "must name at least one"),
    ],
)
def test_bad_options(build, match):
    with pytest.raises(ValueError, match=match):
        build()


# ---- summary ----


def test_summary_rows_and_table():
    layers = {"conv": nn.Conv2d(2, 4, 3, padding="same"), "norm": nn.BatchNorm(4), "relu": nn.ReLU()}
    model = nn.Sequential(layers | {"flatten": nn.Flatten(), "fc": nn.Linear(4 * 4 * 4, 3)})
    rows = nn.summary_rows(model, (4, 4, 2), batch=10, dtype=np.float64)
    assert [row.parameters for row in rows] == [3 * 3 * 2 * 4 + 4, 8, 0, 0, 64 * 3 + 3]
    assert rows[0].macs == 4 * 4 * 4 * 18 and rows[0].output_shape == (4, 4, 4)
    assert rows[0].activation_bytes == 10 * 64 * 8
    text = nn.summary(model, (4, 4, 2)).splitlines()
    assert text[2].split() == "conv Conv2d 4x4x4 76 1,152 256".split()
    assert all(len(line) == len(text[0]) for line in text)
    assert text[-1].split() == ["total", "279", "1,344", "1,036"]
    assert nn.summary_rows(nn.Linear(3, 2), (3,))[0].name == "Linear"


# ---- further layers ----

FURTHER = {
    "GELU": (lambda: nn.GELU(), (3, 4)),
    "SiLU": (lambda: nn.SiLU(), (3, 4)),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.2), (5,)),
    "Identity": (lambda: nn.Identity(), (5,)),
    "GlobalAvgPool2d": (lambda: nn.GlobalAvgPool2d(), (4, 5, 6)),
    "AvgPool2d": (lambda: nn.AvgPool2d(3, 2, 1, True, count_include_pad=True), (6, 5, 2)),
    "LayerNorm": (lambda: nn.LayerNorm(6), (4, 5, 6)),
    "GroupNorm": (lambda: nn.GroupNorm(3, 6), (4, 5, 6)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(6, 4, 3, 2, 1, groups=2, output_padding=1), (4, 5, 6)),
    "ConvTranspose2d same": (lambda: nn.ConvTranspose2d(6, 4, (3, 2), (2, 3), "same", bias=False), (4, 5, 6)),
}


@pytest.mark.parametrize("make, shape", FURTHER.values(), ids=FURTHER.keys())
def test_output_shape_is_that_of_the_output_and_all_parameters_train(make, shape):
    layer = nn.Sequential(make()).init(0)
    x = Tensor(np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32), requires_grad=True)
    y = layer(x)
    assert y.shape[1:] == layer.output_shape(shape) and y.dtype == np.float32
    y.backward(np.random.default_rng(1).standard_normal(y.shape).astype(np.float32))
    assert x.grad is not None and all(p.grad.any() for p in layer.parameters())
    assert np.array_equal(nn.Sequential(make()).init(0)(x).data, y.data)


def test_embedding_looks_up_rows_and_trains_only_those():
    layer = nn.Sequential({"words": nn.Embedding(5, 3), "mix": nn.LayerNorm(3)}).init(0, np.float64)
    numbers = np.array([[1, 4], [1, 1]])
    assert layer.output_shape((2,)) == (2, 3)
    words = layer["words"]
    y = words(Tensor(numbers))
    np.testing.assert_array_equal(y.data, words.W.data[numbers])
    y.backward(np.ones(y.shape))
    np.testing.assert_array_equal(words.W.grad[:, 0], [0, 3, 0, 0, 1])
    assert 0.5 < words.W.data.std() < 1.5


def test_concatenated_features():
    model = nn.Sequential({"a": nn.Linear(4, 3), "b": nn.ReLU(), "c": nn.Concatenate(("a", "input"))}).init(0)
    x = Tensor(np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32))
    y, a = model(x), model["a"](x).data
    np.testing.assert_array_equal(y.data, np.concatenate([np.maximum(a, 0), a, x.data], axis=1))
    assert model.output_shape((4,)) == (10,)
    with pytest.raises(ValueError, match=r"c: cannot add \(2, 2\) of input"):
        nn.Sequential({"p": nn.Flatten(), "q": nn.Identity(), "c": nn.Concatenate("input")}).output_shape(
            (2, 2, 3)
        )


def test_transposed_convolution_counts_a_product_for_each_weight_and_pixel():
    layer = nn.ConvTranspose2d(6, 4, (3, 2), 2, groups=2)
    assert layer.macs((5, 7, 6)) == 5 * 7 * 3 * 2 * 3 * 4
    assert layer.W.full_shape == (3, 2, 3, 4)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nn.GroupNorm(4, 6), "GroupNorm: 6 channels do not divide into 4 groups"),
        (lambda: nn.LayerNorm(0), "LayerNorm: needs features >= 1, got 0"),
        (lambda: nn.LayerNorm(3).output_shape((4,)), "LayerNorm: input has 4 features, expected 3"),
        (lambda: nn.Embedding(0, 3), "Embedding: count must be at least 1, got 0"),
        (lambda: nn.ConvTranspose2d(3, 4, 2, groups=2), "ConvTranspose2d: 3 and 4 channels do not divide"),
        (lambda: nn.ConvTranspose2d(2, 4, 2, output_padding=1), "output_padding=1, expected less than"),
        (lambda: nn.ConvTranspose2d(2, 4, 2).output_shape((3, 3, 1)), "input has 1 channels, expected 2"),
        (lambda: nn.Concatenate(()), "Concatenate: `also` must name"),
        (lambda: nn.GlobalAvgPool2d().output_shape((3,)), r"expected \(height, width, channels\)"),
    ],
)
def test_further_layers_refuse_what_does_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()
