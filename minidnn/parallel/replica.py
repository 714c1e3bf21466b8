"""The layers that one rank holds, with their weights."""

from __future__ import annotations

from math import prod
from typing import Any

from .. import nn
from .placement import Partial, intervals
from .plan import Plan
from .planned import LayerPlan
from .rule import localise


class Replica:
    """The local parts of the layers that a rank runs, their weights drawn from the seed.

    By name: `layers`, `variables` (what it holds of parameters and buffers), and of a layer its `norms`, the batch
    norms that sum their statistics over ranks.
    """

    def __init__(self, plan: Plan, rank: int, seed: int, xp: Any) -> None:
        self.layers: dict[str, nn.Module] = {}
        self.variables: dict[str, nn.Variable] = {}
        self.norms: dict[str, list[nn.Module]] = {}
        self._flops: dict[str, tuple[float, float]] = {}
        held, shared = {p.name for p in plan.held[rank]}, {}
        for layer in plan.layers:
            if layer.layer is None or not plan.runs(rank, layer):
                continue
            shapes = layer.shapes[0], layer.out_shape
            local = localise(layer.layer, layer.derived, plan.mesh, rank, *shapes, shared)
            self.layers[layer.name] = local
            for name, variable in local.named_variables(prefix=layer.name):
                if name in held:
                    variable.materialise(seed, name, plan.dtype, xp)
                    self.variables[name] = variable
            inside = dict(local.named_modules())
            self.norms[layer.name] = [inside[path] for path in layer.norms]
            self._flops[layer.name] = _flops(plan, layer, rank)

    def flops(self, layer: str, n: int, phase: str) -> int:
        """Floating-point operations of a layer's matrix products on `n` samples."""
        product, inputs = self._flops.get(layer, (0.0, 0.0))
        return int(n * (inputs if phase == "input" else product + inputs * (phase == "both")))


def _flops(plan: Plan, layer: LayerPlan, rank: int) -> tuple[float, float]:
    """Of one sample: of a product, and of that for the gradient of the input, which the first layer needs not."""
    share = 1.0
    operands = [(layer.layout, layer.out_shape)]
    if Partial() in layer.layout:  # a part of the sum
        operands.append((layer.derived.inputs[0], layer.shapes[0]))
    for layout, shape in operands:
        box = intervals(layout, (0, *shape), plan.mesh.coordinates[rank], plan.mesh)[1:]
        share *= prod(stop - start for start, stop in box) / max(1, prod(shape))
    flops = 2 * layer.layer.macs(*layer.shapes) * share  # two operations a multiply-add
    return flops, flops if any(layer.differentiable) else 0.0
