"""The layers that one rank holds, with their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import nn
from ..comm import collectives
from ..comm.communicator import Communicator
from .messages import METRICS_ALGORITHM
from .plan import Plan
from .shard import localise


class Replica:
    """The local parts of a plan's layers, their weights drawn from the seed.

    Attributes
    ----------
    layers : dict
        Local layer by name; a layer that this rank holds nothing of is missing.
    parameters : dict
        Local parameters by name.
    """

    def __init__(
        self, plan: Plan, rank: int, seed: int, xp: Any, group: Callable[[str], Communicator]
    ) -> None:
        self.layers: dict[str, nn.Module] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self._flops: dict[str, tuple[float, float]] = {}
        member = rank % plan.grid.mp
        first = True
        for layer in plan.layers:
            if layer.layer is None:
                continue
            local = localise(layer.layer, layer.placement, plan.grid.mp, member, layer.in_shape)
            if local is None:
                continue
            local.init(seed, plan.dtype, xp)
            if layer.sync:
                local.all_sum = _all_sum(group(layer.sync))
            self.layers[layer.name] = local
            own = dict(local.named_parameters())
            self.parameters |= own
            share = sum(p.size for p in own.values()) / max(1, sum(p.size for p in layer.layer.parameters()))
            macs = layer.layer.macs(layer.in_shape) * share
            # two operations a multiply-add; backward makes two products, the first layer of all only one
            self._flops[layer.name] = (2 * macs, 2 * macs if first else 4 * macs)
            first = first and not own

    def parameters_of(self, layer: str) -> list[nn.Parameter]:
        """The local parameters of one layer."""
        return list(self.layers[layer].parameters()) if layer in self.layers else []

    def flops(self, layer: str, n: int, phase: str) -> int:
        """Floating-point operations of a layer's matrix products on `n` samples."""
        forward, backward = self._flops.get(layer, (0.0, 0.0))
        return int(n * (forward if phase == "forward" else backward))


def _all_sum(comm: Communicator) -> Callable[[Any], Any]:
    """The sum over ranks that a synchronised batch norm takes its statistics from."""
    return lambda vector: collectives.all_reduce(comm, vector, METRICS_ALGORITHM)
