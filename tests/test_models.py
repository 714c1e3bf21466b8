"""The models: sizes known from the literature, smallest images, and that they learn."""

import math

import numpy as np
import pytest

from minidnn import nn
from minidnn.errors import InputError
from minidnn.functional import binary_cross_entropy, mean_squared_error, softmax_cross_entropy
from minidnn.optim import SGD
from minidnn.tensor import Tape, Tensor


def count(model, prefix=""):
    return sum(p.size for name, p in model.named_parameters() if name.startswith(prefix))


def rows(model, shape):
    return {row.name: row for row in nn.summary_rows(model, shape)}


def train(model, x, labels, steps, lr, momentum=0.9, loss_function=softmax_cross_entropy):
    optimizer = SGD(model.parameters(), lr, momentum)
    losses = []
    for number in range(steps):
        with nn.context(training=True, seed=0, step=number, samples=np.arange(len(x))), Tape() as tape:
            loss = loss_function(model(Tensor(x)), labels)
            tape.backward(loss)
        optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
    return losses


# ---- AlexNet ----


def test_alexnet_2012_has_the_paper_s_size():
    model = nn.alexnet(variant="2012")
    assert count(model) == 60_965_224
    table = rows(model, (227, 227, 3))
    assert [table[f"conv{i}"].parameters for i in range(1, 6)] == [34944, 307456, 885120, 663936, 442624]
    shapes = [table[name].output_shape for name in ("conv1", "pool1", "pool2", "conv4", "pool5")]
    assert shapes == [(55, 55, 96), (27, 27, 96), (13, 13, 256), (13, 13, 384), (6, 6, 256)]
    assert table["conv1"].macs == 55 * 55 * 96 * 11 * 11 * 3
    # the neurons of sec. 3.5, but for conv1: the paper's 253,440 do not follow from its own 11x11, stride 4
    assert math.prod(table["conv1"].output_shape) == 290_400
    assert [math.prod(table[f"conv{i}"].output_shape) for i in (2, 3, 4, 5)] == [
        186_624,
        64_896,
        64_896,
        43_264,
    ]
    assert (
        model["norm1"].groups == model["conv2"].groups == model["conv4"].groups == model["conv5"].groups == 2
    )
    assert model["conv3"].groups == 1
    assert (model["norm1"].k, model["norm1"].size, model["norm1"].alpha, model["norm1"].beta) == (
        2,
        5,
        1e-4,
        0.75,
    )
    assert model.output_shape((227, 227, 3)) == (1000,)


def test_alexnet_2012_initialisation():
    model = nn.alexnet(variant="2012", width=0.05, image=67, classes=5).init(0, np.float64)
    for name, parameter in model.named_parameters():
        layer, kind = name.split(".")
        if kind == "b":
            expected = 1 if layer in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0
            np.testing.assert_array_equal(parameter.data, expected)
        else:
            assert abs(parameter.data.std() / 0.01 - 1) < 4 / math.sqrt(parameter.size)


def test_alexnet_owt_has_the_single_tower_s_size():
    model = nn.alexnet(variant="owt")
    weights = sum(p.size for name, p in model.named_parameters() if name.endswith(".W"))
    assert count(model) == 61_100_840 and weights == 61_090_496
    assert count(model, "conv") == 2_469_696
    macs = {name: row.macs for name, row in rows(model, (224, 224, 3)).items()}
    share = sum(macs[f"fc{i}"] for i in (6, 7, 8)) / sum(macs.values())
    assert round(share, 3) == 0.082  # of the multiply-accumulates, with 96 % of the weights
    assert model["flatten"].output_shape(model.between("conv1", "pool5").output_shape((224, 224, 3))) == (
        9216,
    )


@pytest.mark.parametrize("image, classes, sizes", [(56, 200, (12, 6, 3, 2)), (128, 2, (30, 15, 8, 4))])
def test_alexnet_thesis(image, classes, sizes):
    model = nn.alexnet(image, classes)
    table = rows(model, (image, image, 3))
    assert tuple(table[n].output_shape[0] for n in ("conv1", "pool1", "pool2", "pool5")) == sizes
    assert (
        model.names
        == (
            "conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5 "
            "flatten fc6 relu6 drop6 fc7 relu7 drop7 fc8"
        ).split()
    )
    kinds = [row.kind for row in table.values()]
    assert [kinds.count(k) for k in ("Conv2d", "MaxPool2d", "LocalResponseNorm", "Linear")] == [5, 3, 2, 3]
    conv = 96 * (363 + 1) + 256 * (2400 + 1) + 384 * (2304 + 1) + 384 * (3456 + 1) + 256 * (3456 + 1)
    features = 256 * sizes[-1] ** 2
    assert count(model) == conv + 4096 * (features + 1) + 4096 * 4097 + classes * 4097
    assert model.output_shape((image, image, 3)) == (classes,)
    assert all(p.data is None for p in model.parameters())


def test_alexnet_defaults_and_options():
    assert nn.alexnet().output_shape((56, 56, 3)) == (200,)
    assert type(nn.alexnet(norm="batch")["norm2"]) is nn.BatchNorm
    assert "norm1" not in nn.alexnet(norm="none").names
    assert nn.alexnet(dropout=0.25)["drop7"].p == 0.25
    assert nn.alexnet((60, 90), 4, channels=1)["conv1"].in_channels == 1
    tiny = nn.alexnet(variant="2012", width=1e-6, classes=3)
    assert tiny["conv1"].out_channels == 2 and tiny["fc6"].out_features == 1
    assert nn.alexnet(width=0.5)["conv5"].out_channels == 128


@pytest.mark.parametrize("variant, smallest", [("thesis", 11), ("2012", 67), ("owt", 63)])
def test_alexnet_names_the_smallest_image(variant, smallest):
    with pytest.raises(
        InputError, match=rf"{variant}.* too small, use at least {smallest}x{smallest} .(conv|pool)"
    ):
        nn.alexnet(smallest - 1, 10, variant)
    assert nn.alexnet(smallest, 10, variant).output_shape((smallest, smallest, 3)) == (10,)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"variant": "2014"}, "unknown AlexNet variant '2014'; known: thesis, 2012, owt"),
        ({"norm": "layer"}, "unknown normalisation 'layer'; known: lrn, batch, none"),
        ({"width": 0}, "width must be positive, got 0"),
        ({"image": 0}, "0x0x3 has no pixels"),
    ],
)
def test_alexnet_bad_options(options, match):
    with pytest.raises(InputError, match=match):
        nn.alexnet(**options)


@pytest.mark.parametrize("norm", ["lrn", "batch"])
def test_alexnet_learns_from_scratch_at_batch_16(norm):
    random = np.random.default_rng(0)
    labels = np.arange(16) % 4
    patterns = random.standard_normal((4, 40, 40, 3))
    x = (patterns[labels] + 0.5 * random.standard_normal((16, 40, 40, 3))).astype(np.float32)
    model = nn.alexnet(40, 4, norm=norm, width=0.1).init(1)
    losses = train(model, x, labels, steps=40, lr=0.01)
    assert abs(losses[0] - math.log(4)) < 1.5 and losses[-1] < 0.3
    assert all(p.data.dtype == np.float32 for p in model.parameters())


# ---- the others ----


def test_lenet_has_the_known_size():
    model = nn.lenet()
    assert count(model) == 61_706
    assert model.output_shape((28, 28, 1)) == (10,)
    assert nn.lenet((20, 30), 3, 7, width=0.5).output_shape((20, 30, 3)) == (7,)
    with pytest.raises(
        InputError, match="lenet: images of 11x11 are too small, use at least 12x12 .pool2: .*image of 1x1"
    ):
        nn.lenet(11)


def test_lenet_learns():
    random = np.random.default_rng(0)
    labels = np.arange(20) % 5
    x = random.standard_normal((5, 14, 14, 1))[labels].astype(np.float32)
    losses = train(nn.lenet(14, classes=5).init(0), x, labels, steps=30, lr=0.05)
    assert losses[-1] < 0.1 * losses[0]


def test_mlp_learns_what_no_line_separates():
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float64)
    model = nn.mlp(2, (16,), 2, "tanh").init(0, np.float64)
    losses = train(model, x, np.array([0, 1, 1, 0]), steps=300, lr=0.1)
    assert losses[-1] < 0.02
    assert nn.mlp((4, 4, 3), (8, 8), 5).names == ["flatten", "fc1", "relu1", "fc2", "relu2", "fc3"]
    with pytest.raises(InputError, match="unknown activation 'gelu'; known: relu, sigmoid, tanh"):
        nn.mlp(activation="gelu")


def test_linear_regression_finds_the_least_squares_solution():
    random = np.random.default_rng(0)
    x, noise = random.standard_normal((50, 3)), 0.1 * random.standard_normal((50, 2))
    y = x @ random.standard_normal((3, 2)) + 0.7 + noise
    model = nn.linear_regression(3, 2).init(0, np.float64)
    train(model, x, y, steps=300, lr=0.2, loss_function=mean_squared_error)
    solution = np.linalg.lstsq(np.column_stack([x, np.ones(50)]), y, rcond=None)[0]
    np.testing.assert_allclose(model["fc"].W.data, solution[:3], atol=1e-6)
    np.testing.assert_allclose(model["fc"].b.data, solution[3], atol=1e-6)


def test_logistic_regression_gradient_step_by_hand():
    x, y = np.array([[1.0, 2.0], [3.0, -1.0]]), np.array([[1.0], [0.0]])
    model = nn.logistic_regression(2).init(0, np.float64)
    losses = train(model, x, y, steps=1, lr=0.5, momentum=0.0, loss_function=binary_cross_entropy)
    assert losses[0] == pytest.approx(math.log(2))  # p = 1/2 everywhere
    # gradient of the mean: x^T (p - y) / 2 = [-0.5 + 1.5, -1 - 0.5] / 2
    np.testing.assert_allclose(model["fc"].W.data[:, 0], [-0.25, 0.375])
    np.testing.assert_allclose(model["fc"].b.data, [0.0], atol=1e-15)


def test_registry():
    assert nn.build("alexnet", image=128, classes=2).output_shape((128, 128, 3)) == (2,)
    assert set(nn.MODELS) == {"alexnet", "lenet", "mlp", "linear_regression", "logistic_regression"}
    with pytest.raises(InputError, match="unknown model 'vgg'; known: alexnet, lenet, mlp, linear_reg"):
        nn.build("vgg")
