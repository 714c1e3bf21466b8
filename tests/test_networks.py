"""One training step of small networks by the fast kernels, equal to that by the plain ones."""

import numpy as np
import pytest

from minidnn import functional as F
from minidnn import nn
from minidnn.backend import kernels
from minidnn.optim import SGD
from minidnn.tensor import Tensor


def weights_after_a_step(build, shape, dtype, fast):
    model = build().init(3, dtype)
    images = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    optimiser = SGD(model.parameters(), lr=0.01, momentum=0.9)
    with kernels.use_fast(fast):
        y = model(Tensor(images))
        F.mean_squared_error(y, np.ones(y.shape, dtype)).backward()
        optimiser.step()
    return {"output": y.data} | model.state_dict()


def test_convolutions_to_one_channel_train_with_default_settings():
    def build():
        last = nn.Conv2d(32, 1, 5, padding="same")
        return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1, 1), last)

    plain, fast = (weights_after_a_step(build, (4, 14, 14, 3), np.float32, way) for way in (False, True))
    for name, value in plain.items():
        np.testing.assert_allclose(fast[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def layers(rng):
    """Three or four layers on images of four channels, drawn by `rng`."""
    kinds = (
        lambda: nn.Conv2d(4, 4, int(rng.integers(1, 6)), padding="same", groups=int(rng.choice([1, 2, 4]))),
        lambda: nn.Conv2d(4, 4, 3, stride=int(rng.integers(1, 3)), padding="same"),
        lambda: nn.Conv2d(4, 4, 3, dilation=2, padding="same"),
        lambda: nn.MaxPool2d(3, int(rng.integers(1, 3)), 1),
        lambda: nn.AvgPool2d(2, 1, "same"),
        lambda: nn.LocalResponseNorm(3),
        lambda: nn.BatchNorm(4),
        nn.ReLU,
    )
    body = [kinds[i]() for i in rng.integers(0, len(kinds), 3)]
    return nn.Sequential(*body, nn.Conv2d(4, int(rng.choice([1, 8])), 3, padding=1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("seed", range(30))
def test_random_networks(seed, dtype):
    shape = (3, 9, 8, 4)
    plain, fast = (
        weights_after_a_step(lambda: layers(np.random.default_rng(seed)), shape, dtype, way)
        for way in (False, True)
    )
    tolerance = {np.float64: 1e-10, np.float32: 1e-3, np.float16: 2e-1}[dtype]
    for name, value in plain.items():
        assert np.isfinite(value).all(), name
        np.testing.assert_allclose(fast[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
