"""What a placement means for one layer: the input it needs, and its local part.

A parallel layer is the sequential layer on a part of its weights, never a re-implementation:
`localise` copies the layer and cuts its parameters.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from .. import functional as F
from .. import nn
from ..errors import InputError
from ..tensor import Tensor
from .placement import OnRank, Partial, Placement, Replicate, Shard, bounds

# Layers whose output channel depends on the same input channel alone.
_CHANNELWISE = (
    nn.ReLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Dropout,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.BatchNorm,
    nn.Add,
)


class PlacementError(InputError):
    """A placement that a layer cannot take."""


@dataclass(frozen=True)
class Requirement:
    """The placement that a layer needs of its inputs, and that it leaves their gradients in."""

    input: Placement
    gradient: Placement


def requirement(name: str, layer: nn.Module, placement: Placement, size: int, in_shape: tuple) -> Requirement:
    """What `layer` needs so that its output is placed as `placement` on `size` members.

    Raises
    ------
    PlacementError
        Where the layer cannot take that placement, with the ones it can.
    """
    if isinstance(placement, Replicate | OnRank) or placement == Shard(0):
        return Requirement(placement, placement)
    whole_input = Requirement(Replicate(), Partial())
    if isinstance(placement, Partial):
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
            return Requirement(Shard(-1), Shard(-1))
        raise PlacementError(
            f"{name}: {type(layer).__name__} cannot be Partial (row-parallel); "
            "only linear layers and ungrouped convolutions sum over input features"
        )
    if isinstance(layer, nn.Linear):
        return whole_input
    if isinstance(layer, nn.Conv2d | nn.LocalResponseNorm):
        local = layer.groups % size == 0  # whole groups stay together: the towers of the 2012 network
        return Requirement(Shard(-1), Shard(-1)) if local else whole_input
    if isinstance(layer, _CHANNELWISE) or (
        isinstance(layer, nn.Flatten) and all(n == 1 for n in in_shape[:-1])
    ):
        return Requirement(Shard(-1), Shard(-1))
    raise PlacementError(
        f"{name}: {type(layer).__name__} cannot be Shard(-1); it mixes or reorders features. "
        "Use Shard(0) or Replicate()"
    )


def parameter_placement(placement: Placement) -> Placement:
    """How the weights of a layer lie, given the placement of its output."""
    if isinstance(placement, Partial):
        return Shard(-1)
    return placement if isinstance(placement, OnRank) or placement == Shard(-1) else Replicate()


def localise(
    layer: nn.Module, placement: Placement, size: int, member: int, in_shape: tuple
) -> nn.Module | None:
    """The part of `layer` that `member` runs, with parameters of its own; None where it runs nothing."""
    if isinstance(placement, OnRank) and placement.rank != member:
        return None
    if size > 1 and isinstance(placement, Partial):
        return _row_parallel(layer, size, member)
    if size > 1 and placement == Shard(-1):
        return _column_parallel(layer, size, member, in_shape)
    return _copy(layer, 0, 1, 0)


def _copy(layer: nn.Module, axis: int, size: int, member: int) -> nn.Module:
    """A copy whose parameters and buffers are part `member` of `size` along `axis` (of 1: the whole)."""
    local = copy.copy(layer)
    for key, value in vars(layer).items():
        if isinstance(value, nn.Parameter | nn.Buffer):
            setattr(local, key, value.shard(axis, *bounds(value.full_shape[axis], size, member)))
    return local


def _row_parallel(layer: nn.Module, size: int, member: int) -> nn.Module:
    """Input features split: W is cut along its input axis, the bias is added by member 0 alone."""
    local = _copy(layer, 0, 1, 0)
    local.W = layer.W.shard(-2, *bounds(layer.W.full_shape[-2], size, member))
    if member > 0:
        local.b = None
    return local


def _column_parallel(layer: nn.Module, size: int, member: int, in_shape: tuple) -> nn.Module:
    """Output features split: every parameter is cut along its last axis."""
    local = _copy(layer, -1, size, member)
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        if layer.groups % size:
            return ConvPieces(local, layer, *bounds(layer.out_channels, size, member))
        local.groups = layer.groups // size
    start, stop = bounds(in_shape[-1], size, member)
    if isinstance(layer, nn.Dropout):
        local.features = (start, stop, in_shape[-1])
    elif isinstance(layer, nn.LocalResponseNorm):
        if layer.groups % size:
            return NormWindow(layer, start, stop, in_shape[-1])
        local.groups = layer.groups // size
    return local


class ConvPieces(nn.Module):
    """Output channels `start:stop` of a grouped convolution whose groups they do not align with.

    One convolution for each group that the range meets, on that group's input channels; the weights
    stay one parameter.
    """

    def __init__(self, local: nn.Conv2d, whole: nn.Conv2d, start: int, stop: int) -> None:
        super().__init__()
        self.name, self.W, self.b = whole.name, local.W, local.b
        self.options = {"stride": whole.stride, "padding": whole.padding, "dilation": whole.dilation}
        per_out, per_in = whole.out_channels // whole.groups, whole.in_channels // whole.groups
        self.pieces = []
        for group in range(whole.groups):
            low, high = max(start, group * per_out), min(stop, (group + 1) * per_out)
            if low < high:
                channels = slice(group * per_in, (group + 1) * per_in)
                self.pieces.append((channels, slice(low - start, high - start)))
        if not self.pieces:  # more members than output channels: an empty output of the right size
            self.pieces = [(slice(0, per_in), slice(0, 0))]

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            F.conv2d(
                x[..., inputs],
                self.W[..., outputs],
                None if self.b is None else self.b[outputs],
                **self.options,
            )
            for inputs, outputs in self.pieces
        ]
        return parts[0] if len(parts) == 1 else F.concatenate(parts, axis=-1)


class NormWindow(nn.Module):
    """Channels `start:stop` of a local response normalisation: their window, then the slice."""

    def __init__(self, norm: nn.LocalResponseNorm, start: int, stop: int, channels: int) -> None:
        super().__init__()
        self.name, self.norm = norm.name, norm
        half = norm.size // 2
        low, high = max(0, start - half), min(channels, stop + half)
        if norm.groups > 1:  # a window would cut the groups
            low, high = 0, channels
        self.window, self.own = slice(low, high), slice(start - low, stop - low)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x[..., self.window])[..., self.own]
