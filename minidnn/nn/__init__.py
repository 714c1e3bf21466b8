"""Layers, containers, initialisers and models."""

from minidnn.nn import init
from minidnn.nn.containers import ModuleDict, ModuleList
from minidnn.nn.context import Context, context, current_context
from minidnn.nn.dropout import Dropout
from minidnn.nn.layers import Add, AvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sigmoid, Softmax, Tanh
from minidnn.nn.models import MODELS, alexnet, build, lenet, linear_regression, logistic_regression, mlp
from minidnn.nn.module import Module
from minidnn.nn.normalize import BatchNorm, LocalResponseNorm
from minidnn.nn.parameter import Buffer, Parameter
from minidnn.nn.sequential import Sequential
from minidnn.nn.summary import summary, summary_rows

__all__ = [
    "MODELS",
    "Add",
    "AvgPool2d",
    "BatchNorm",
    "Buffer",
    "Context",
    "Conv2d",
    "Dropout",
    "Flatten",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "alexnet",
    "build",
    "context",
    "current_context",
    "init",
    "lenet",
    "linear_regression",
    "logistic_regression",
    "mlp",
    "summary",
    "summary_rows",
]
