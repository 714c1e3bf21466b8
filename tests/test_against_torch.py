"""The same training in PyTorch, from the same weights on the same batches: losses and weights must coincide.

`TorchModel` reads the layers of a model and runs each by PyTorch's own operation, so PyTorch's convolutions,
pooling, normalisations, gradients and SGD stand against all of ours.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

from minidnn import functional as F  # noqa: E402
from minidnn import nn  # noqa: E402
from minidnn.nn import models  # noqa: E402
from minidnn.optim import SGD  # noqa: E402
from minidnn.random import random_bits  # noqa: E402
from minidnn.tensor import Tensor  # noqa: E402

TF = torch.nn.functional
torch.set_num_threads(1)  # the arrays are small
OPTIONS = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
KERAS_DECAY = 1e-6


class TorchModel:
    """A `Sequential`, computed by PyTorch on images (n, c, h, w)."""

    def __init__(self, model, seed):
        self.model, self.seed = model, seed
        self.values = {}
        for name, value in model.state_dict().items():
            tensor = torch.tensor(np.ascontiguousarray(_to_torch(value)))
            self.values[name] = tensor.requires_grad_(".running" not in name)

    def parameter_groups(self):
        """For PyTorch's optimisers, where what weight decay leaves out takes a group of its own."""
        trained = {name: value for name, value in self.values.items() if value.requires_grad}
        without = (".b", ".beta", ".gamma")
        vectors = [value for name, value in trained.items() if name.endswith(without)]
        matrices = [value for name, value in trained.items() if not name.endswith(without)]
        return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]

    def __call__(self, images, step=None):
        """Logits; dropout with the masks of training step `step`, none of it in evaluation (None)."""
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        for name, layer in self.model:
            x = getattr(self, type(layer).__name__)(x, name, layer, step)
        return x

    def Conv2d(self, x, name, layer, step):
        x = self._padded(x, layer, 0.0)
        W, b = self.values[f"{name}.W"], self.values[f"{name}.b"]
        return TF.conv2d(x, W, b, layer.stride, 0, layer.dilation, layer.groups)

    def MaxPool2d(self, x, name, layer, step):
        return TF.max_pool2d(self._padded(x, layer, -torch.inf), layer.kernel_size, layer.stride)

    def AvgPool2d(self, x, name, layer, step):
        return TF.avg_pool2d(x, layer.kernel_size, layer.stride)

    def _padded(self, x, layer, value):
        """With the padding of a layer around the images; "same" as in Keras, the odd pixel at bottom and right."""
        sides = []
        for n, k, s in zip(x.shape[2:], layer.kernel_size, layer.stride, strict=True):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            number = 0 if layer.padding == "valid" else layer.padding
            sides.append((total // 2, total - total // 2) if layer.padding == "same" else (number, number))
        return TF.pad(x, (*sides[1], *sides[0]), value=value)

    def ReLU(self, x, name, layer, step):
        return TF.relu(x)

    def Tanh(self, x, name, layer, step):
        return torch.tanh(x)

    def LocalResponseNorm(self, x, name, layer, step):
        # PyTorch divides alpha by the size of the neighbourhood, and knows no groups
        alpha = layer.alpha * layer.size
        parts = x.chunk(layer.groups, dim=1)
        return torch.cat(
            [TF.local_response_norm(p, layer.size, alpha, layer.beta, layer.k) for p in parts], dim=1
        )

    def BatchNorm(self, x, name, layer, step):
        mean, var, gamma, beta = (
            self.values[f"{name}.{v}"] for v in ("running_mean", "running_var", "gamma", "beta")
        )
        # our running variance is that of the batch, PyTorch's has n / (n - 1) of it: only training is compared
        return TF.batch_norm(x, mean, var, gamma, beta, step is not None, 1 - layer.momentum, layer.eps)

    def Flatten(self, x, name, layer, step):
        return x.permute(0, 2, 3, 1).reshape(len(x), -1)  # features in our order, channels last

    def Linear(self, x, name, layer, step):
        return TF.linear(x, self.values[f"{name}.W"], self.values[f"{name}.b"])

    def Dropout(self, x, name, layer, step):
        if step is None or not layer.p:
            return x
        bits = random_bits(self.seed, name, step, np.arange(len(x)), tuple(x.shape[1:]))
        return x * torch.from_numpy(bits >= round(layer.p * 65536)) / (1 - layer.p)

    def state_dict(self):
        """All values in our layout."""
        return {name: _from_torch(value.detach().numpy()) for name, value in self.values.items()}


def _to_torch(W):
    """(kh, kw, c, o) -> (o, c, kh, kw) and (i, o) -> (o, i); vectors stay."""
    return W.transpose(3, 2, 0, 1) if W.ndim == 4 else W.T


def _from_torch(W):
    return W.transpose(2, 3, 1, 0) if W.ndim == 4 else W.T


class Pair:
    """One training in both: `step` gives the two losses."""

    def __init__(self, model, seed, dtype):
        self.model, self.seed = model.init(seed, dtype), seed
        self.torch_model = TorchModel(model, seed)
        self.sgd = SGD(model.parameters(), decay=KERAS_DECAY, **OPTIONS)
        groups = self.torch_model.parameter_groups()
        self.torch_sgd = torch.optim.SGD(groups, **OPTIONS)
        self.number = 0

    def step(self, images, labels):
        """One training step of both on one batch."""
        number, self.number = self.number, self.number + 1
        self.model.zero_grad()
        with nn.context(training=True, seed=self.seed, step=number, samples=np.arange(len(labels))):
            loss = F.softmax_cross_entropy(self.model(Tensor(images)), labels)
        loss.backward()
        self.sgd.step()
        for group in self.torch_sgd.param_groups:
            group["lr"] = OPTIONS["lr"] / (1 + KERAS_DECAY * number)
        self.torch_sgd.zero_grad()
        torch_loss = TF.cross_entropy(self.torch_model(images, number), torch.from_numpy(labels))
        torch_loss.backward()
        self.torch_sgd.step()
        return loss.item(), torch_loss.item()

    def weight_difference(self):
        """The largest difference of any trained value."""
        theirs = self.torch_model.state_dict()
        return max(np.abs(p.data - theirs[name]).max() for name, p in self.model.named_parameters())


MODELS = {
    "thesis": (models.alexnet, {"image": 47, "classes": 7, "width": 1 / 16}),
    "thesis, batch norm": (models.alexnet, {"image": 47, "classes": 7, "width": 1 / 16, "norm": "batch"}),
    "2012": (models.alexnet, {"variant": "2012", "image": 99, "classes": 7, "width": 1 / 16}),
    "owt": (models.alexnet, {"variant": "owt", "image": 64, "classes": 7, "width": 1 / 16}),
    "lenet": (models.lenet, {"image": 28, "channels": 3, "classes": 7}),
}


@pytest.mark.parametrize("name", MODELS)
def test_training_equals_pytorch(name):
    build, options = MODELS[name]
    pair, rng = Pair(build(**options), 1, np.float64), np.random.default_rng(0)
    losses = []
    for _ in range(4):
        images = rng.standard_normal((6, options["image"], options["image"], 3))
        labels = rng.integers(0, 7, 6)
        losses.append(pair.step(images, labels))
    ours, theirs = np.array(losses).T
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert pair.weight_difference() < 1e-12
    assert np.ptp(ours) > 1e-3  # it did train

    if "batch norm" not in name:
        with nn.context(training=False):
            logits = pair.model(Tensor(images)).data
        with torch.no_grad():
            np.testing.assert_allclose(logits, pair.torch_model(images).numpy(), rtol=0, atol=1e-12)
