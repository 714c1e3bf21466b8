"""PyTorch's side of the measurements: the same models, eager, and DistributedDataParallel over gloo.

    python -m benchmarks.torch_workers SOCKET KIND JSON

The model is built layer by layer from ours, so the two cannot come apart; arrays are PyTorch's own (N, C, H, W).
"""

from __future__ import annotations

import os
from typing import Any

import torch

from benchmarks.workers import MOMENTUM, RATE, Handler, model_of, peak_memory, resident_memory, serve, timed
from minidnn import nn


def layer_of(layer: nn.Module, shape: tuple[int, ...]) -> torch.nn.Module:
    """PyTorch's layer for one of ours that takes samples of the given (H, W, C) shape."""
    if isinstance(layer, nn.Conv2d):
        sizes = layer.kernel_size, layer.stride, _padding(layer, shape)[0]
        return torch.nn.Conv2d(layer.in_channels, layer.out_channels, *sizes, groups=layer.groups)
    if isinstance(layer, nn.MaxPool2d):
        padding, odd = _padding(layer, shape)
        return torch.nn.MaxPool2d(layer.kernel_size, layer.stride, padding, ceil_mode=odd)
    if isinstance(layer, nn.LocalResponseNorm):
        # PyTorch divides alpha by size. Its neighbours cross the border between two groups; the work is the same.
        return torch.nn.LocalResponseNorm(layer.size, layer.alpha * layer.size, layer.beta, layer.k)
    if isinstance(layer, nn.Linear):
        return torch.nn.Linear(layer.in_features, layer.out_features)
    if isinstance(layer, nn.Dropout):
        return torch.nn.Dropout(layer.p)
    if isinstance(layer, nn.ReLU):
        return torch.nn.ReLU(inplace=True)
    if isinstance(layer, nn.Flatten):
        return torch.nn.Flatten()
    raise TypeError(f"no counterpart of {layer!r}")


def _padding(layer: Any, shape: tuple[int, ...]) -> tuple[int, bool]:
    """The padding on each side, and whether one more pixel at the end is needed (ceil_mode does that)."""
    if layer.padding in (0, "valid"):
        return 0, False
    if isinstance(layer.padding, int):
        return layer.padding, False
    kernel, stride, size = layer.kernel_size[0], layer.stride[0], shape[0]
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, bool(total % 2)


def counterpart(options: dict[str, Any]) -> tuple[torch.nn.Sequential, tuple[int, ...]]:
    """The whole model, and the shape of one sample, (C, H, W) or (features,)."""
    model, shape = model_of(options)
    layers, ours = [], shape
    for _, layer in model:
        layers.append(layer_of(layer, ours))
        ours = layer.output_shape(ours)
    return torch.nn.Sequential(*layers), (shape[-1], *shape[:-1])


def training(options: dict[str, Any], distributed: bool = False) -> Handler:
    """Forward, backward and momentum update; distributed: of this process's share of the batch."""
    base, threads = resident_memory(), int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, shape = counterpart(options)
    batch = options["batch"]
    if distributed:
        torch.set_num_interop_threads(1)
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        meeting = f"file://{os.environ['MEETING']}"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
        model, batch = torch.nn.parallel.DistributedDataParallel(model), batch // size
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    images = torch.randn(batch, *shape)
    labels = torch.randint(options.get("options", {}).get("classes", 10), (batch,))

    def step() -> None:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        before = torch.distributed.barrier if distributed else lambda: None
        seconds = timed(step, request["steps"], before)
        return {"seconds": seconds, "peak": peak_memory(), "base": base}

    timed(step, options.get("warmup", 2))
    return handle


if __name__ == "__main__":
    serve({"torch": training, "torch_ddp": lambda options: training(options, distributed=True)})
