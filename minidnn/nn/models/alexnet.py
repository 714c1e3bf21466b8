"""AlexNet: five convolutions, three max poolings, two normalisations, three fully connected layers.

In every variant the order is that of the 2012 paper, sec. 3.5: convolution, ReLU, normalisation, pooling.
"""

from minidnn.errors import InputError
from minidnn.nn.activations import ReLU
from minidnn.nn.dropout import Dropout
from minidnn.nn.init import Initializer, he_normal, normal, ones, zeros
from minidnn.nn.layers import Conv2d, Flatten, Linear, MaxPool2d
from minidnn.nn.models.sizes import flat_features, image_shape, scaled
from minidnn.nn.module import Module
from minidnn.nn.normalize import BatchNorm, LocalResponseNorm
from minidnn.nn.sequential import Sequential

# variant -> default image and classes, filters of conv1..conv5, padding of conv1, of the other convolutions
# ("same" keeps height and width, as the 2012 network's 2, 1, 1, 1 do) and of the poolings, groups
_VARIANTS = {
    "thesis": (56, 200, (96, 256, 384, 384, 256), 0, "same", 1),
    "2012": (227, 1000, (96, 256, 384, 384, 256), 0, "valid", 2),
    "owt": (224, 1000, (64, 192, 384, 256, 256), 2, "valid", 1),
}
_KERNELS = (11, 5, 3, 3, 3)
_POOLED = (1, 2, 5)  # convolutions followed by a pooling
_NORMALISED = (1, 2)  # and by a normalisation
_BIASES_OF_ONE = ("conv2", "conv4", "conv5", "fc6", "fc7")  # 2012 paper, sec. 5


def alexnet(
    image: int | tuple[int, int] | None = None,
    classes: int | None = None,
    variant: str = "thesis",
    norm: str = "lrn",
    dropout: float = 0.5,
    width: float = 1.0,
    channels: int = 3,
) -> Sequential:
    """AlexNet as a `Sequential`.

    Its layers are conv1 relu1 norm1 pool1 ... pool5 flatten fc6 relu6 drop6 fc7 relu7 drop7 fc8, which gives
    logits.

    * "thesis": for small images. conv1 is 96 filters of 11x11, stride 4, without padding; the other
      convolutions keep the size. All poolings are 3x3 with stride 2 and padding "same", so that the output
      is ceil(input / 2), where the paper has no padding: small images survive. 56 becomes 12, 6, 3, 2 after
      conv1 and the poolings, and 128 becomes 30, 15, 8, 4. One tower (groups=1). He initialisation (fc8:
      Gaussian, 0.01) and biases
      of zero, with which it trains from scratch at a batch of 16.
    * "2012": Krizhevsky, Sutskever and Hinton 2012, for 227x227 images: 60,965,224 parameters. Convolutions
      2, 4 and 5 have groups=2, the two GPUs of the paper; response normalisation has, too, since each GPU
      normalised the channels that it held. Poolings have no padding. Gaussian initialisation (0.01), and
      biases of one in conv2, conv4, conv5, fc6 and fc7 (sec. 5).
    * "owt": the single tower of One Weird Trick (arXiv 1404.5997), for 224x224 images: 64, 192, 384, 256
      and 256 filters, groups=1. 61,100,840 parameters, of which the convolutions have 2,469,696. Initialised
      as "2012".

    Parameters
    ----------
    image : int or (height, width)
        Pixels; by default 56, 227 and 224 in the order above.
    classes : int
        Width of fc8; by default 200, 1000 and 1000.
    variant : "thesis", "2012" or "owt"
    norm : "lrn", "batch" or "none"
        Local response normalisation (k = 2, n = 5, alpha = 1e-4, beta = 0.75), batch normalisation, or none.
    dropout : float
        Probability in drop6 and drop7.
    width : float
        Scales the filters and the features of fc6 and fc7.
    channels : int
        Of the image.

    Raises
    ------
    InputError
        Unknown variant or norm; an image that is too small, naming the smallest that works.
    """
    if variant not in _VARIANTS:
        raise InputError(f"unknown AlexNet variant {variant!r}; known: {', '.join(_VARIANTS)}")
    default_image, default_classes, filters, padding, pooling, groups = _VARIANTS[variant]
    shape = image_shape(default_image if image is None else image, channels)
    classes = default_classes if classes is None else classes

    layers: dict[str, Module] = {}
    for number, (count, kernel) in enumerate(zip(filters, _KERNELS, strict=True), start=1):
        name = f"conv{number}"
        out = scaled(count, width, groups)
        options = {"stride": 4, "padding": padding} if number == 1 else {"padding": "same"}
        if number in (2, 4, 5):
            options["groups"] = groups
        layers[name] = Conv2d(channels, out, kernel, **options, **_inits(variant, name))
        layers[f"relu{number}"] = ReLU()
        if number in _NORMALISED and norm != "none":
            layers[f"norm{number}"] = _normalisation(norm, out, groups)
        if number in _POOLED:
            layers[f"pool{number}"] = MaxPool2d(3, 2, padding=pooling)
        channels = out
    layers["flatten"] = Flatten()

    features = flat_features(f"alexnet ({variant})", Sequential(layers), shape)
    hidden = scaled(4096, width)
    for number in (6, 7):
        name = f"fc{number}"
        layers[name] = Linear(features, hidden, **_inits(variant, name))
        layers[f"relu{number}"] = ReLU()
        layers[f"drop{number}"] = Dropout(dropout)
        features = hidden
    layers["fc8"] = Linear(features, classes, **_inits(variant, "fc8"))
    return Sequential(layers)


def _inits(variant: str, name: str) -> dict[str, Initializer]:
    if variant == "thesis":
        # fc8 small, so that training starts from the loss of even odds, ln(classes), not from confident errors
        return {"W_init": normal(0.01) if name == "fc8" else he_normal, "b_init": zeros}
    return {"W_init": normal(0.01), "b_init": ones if name in _BIASES_OF_ONE else zeros}


def _normalisation(norm: str, channels: int, groups: int) -> Module:
    if norm == "lrn":
        return LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=2.0, groups=groups)
    if norm == "batch":
        return BatchNorm(channels)
    raise InputError(f"unknown normalisation {norm!r}; known: lrn, batch, none")
