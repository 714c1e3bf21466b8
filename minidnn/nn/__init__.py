"""Layers, containers, initialisers and models."""

from minidnn.nn import init
from minidnn.nn.activations import GELU, Identity, LeakyReLU, ReLU, Sigmoid, SiLU, Softmax, Tanh
from minidnn.nn.containers import ModuleDict, ModuleList
from minidnn.nn.context import Context, context, current_context
from minidnn.nn.dropout import Dropout
from minidnn.nn.embedding import Embedding
from minidnn.nn.layers import (
    Add,
    AvgPool2d,
    Concatenate,
    Conv2d,
    ConvTranspose2d,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
)
from minidnn.nn.models import MODELS, alexnet, build, lenet, linear_regression, logistic_regression, mlp
from minidnn.nn.module import Module
from minidnn.nn.normalize import BatchNorm, GroupNorm, LayerNorm, LocalResponseNorm
from minidnn.nn.parameter import Buffer, Parameter
from minidnn.nn.sequential import Sequential
from minidnn.nn.summary import summary, summary_rows

__all__ = [
    "Add", "AvgPool2d", "BatchNorm", "Buffer", "Concatenate", "Context", "Conv2d", "ConvTranspose2d",
    "Dropout", "Embedding", "Flatten", "GELU", "GlobalAvgPool2d", "GroupNorm", "Identity", "LayerNorm",
    "LeakyReLU", "Linear", "LocalResponseNorm", "MODELS", "MaxPool2d", "Module", "ModuleDict", "ModuleList",
    "Parameter", "ReLU", "Sequential", "SiLU", "Sigmoid", "Softmax", "Tanh", "alexnet", "build", "context",
    "current_context", "init", "lenet", "linear_regression", "logistic_regression", "mlp", "summary",
    "summary_rows",
]  # fmt: skip
