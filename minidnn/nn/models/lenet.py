"""LeNet-5 (LeCun et al. 1998, sec. II.B), with two simplifications that have become usual."""

from minidnn.nn.activations import Tanh
from minidnn.nn.init import glorot_uniform
from minidnn.nn.layers import AvgPool2d, Conv2d, Flatten, Linear
from minidnn.nn.models.sizes import flat_features, image_shape, scaled
from minidnn.nn.sequential import Sequential


def lenet(
    image: int | tuple[int, int] = 28, channels: int = 1, classes: int = 10, width: float = 1.0
) -> Sequential:
    """LeNet-5 with plain average pooling, and a third convolution (here fc3) that sees all maps.

    conv1 6 5x5 same, pool1 2x2, conv2 16 5x5, pool2 2x2, fc3 120, fc4 84, fc5 classes; tanh between. For
    28x28x1 images and 10 classes it has 61,706 parameters.

    InputError: the image is too small.
    """
    shape = image_shape(image, channels)
    first, second, third, fourth = (scaled(count, width) for count in (6, 16, 120, 84))
    glorot = {"W_init": glorot_uniform}
    convolutions = {
        "conv1": Conv2d(channels, first, 5, padding="same", **glorot),
        "tanh1": Tanh(),
        "pool1": AvgPool2d(2),
        "conv2": Conv2d(first, second, 5, **glorot),
        "tanh2": Tanh(),
        "pool2": AvgPool2d(2),
        "flatten": Flatten(),
    }
    features = flat_features("lenet", Sequential(convolutions), shape)
    return Sequential(
        convolutions
        | {
            "fc3": Linear(features, third, **glorot),
            "tanh3": Tanh(),
            "fc4": Linear(third, fourth, **glorot),
            "tanh4": Tanh(),
            "fc5": Linear(fourth, classes, **glorot),
        }
    )
