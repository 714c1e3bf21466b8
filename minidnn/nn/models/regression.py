"""Linear and logistic regression: one layer each, convex, so they start from zero."""

from minidnn.nn.activations import Sigmoid
from minidnn.nn.init import zeros
from minidnn.nn.layers import Linear
from minidnn.nn.sequential import Sequential


def linear_regression(features: int = 1, outputs: int = 1) -> Sequential:
    """y = x W + b, for ``mean_squared_error``."""
    return Sequential({"fc": Linear(features, outputs, W_init=zeros)})


def logistic_regression(features: int = 2) -> Sequential:
    """p = sigmoid(x W + b), the probability of class 1, for ``binary_cross_entropy``."""
    return Sequential({"fc": Linear(features, 1, W_init=zeros), "sigmoid": Sigmoid()})
