"""The plan of one training step, as data: the planner makes it, the executor runs it, `print` shows it, and the tests
hold the ledger of a real run equal to it, byte for byte.

Nothing here needs MPI or arrays.  What differs from rank to rank is worked out when it is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .mesh import Mesh
from .placement import Blocks, Layout, MicroBatch, Region, Replicate
from .planned import Exchange, Input, LayerPlan, Stage
from .strategy import Options
from .transfer import Transfer, steps, transfers


class PerRank(Mapping):
    """Something of every rank, by number, made when it is asked for."""

    def __init__(self, size: int, make: Callable[[int], Any]) -> None:
        self.size, self.make, self.made = size, make, {}

    def __getitem__(self, rank: int) -> Any:
        if rank not in self.made:
            self.made[rank] = self.make(rank)
        return self.made[rank]

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size))

    def __len__(self) -> int:
        return self.size


@dataclass(eq=False, repr=False)
class Plan:
    """One training step of `model` by `strategy` over a process mesh.

    By rank: its schedule, the events that it is lowered to, those of an evaluation, what the rank holds of the
    parameters, the buckets of gradients that it sums, and all that it sends or receives, in the order of its events (a
    list of `Message`). `nodes` is the node (host) of each rank; `notes` say what could not be done as asked.
    """

    model: str
    strategy: str
    mesh: Mesh
    batch: int
    blocks: Blocks
    inputs: dict[str, Input]
    stages: tuple[Stage, ...]
    options: Options
    nodes: tuple[int, ...]
    notes: tuple[str, ...]
    schedules: PerRank
    events: PerRank
    evaluation: PerRank
    held: PerRank
    buckets: PerRank
    messages: Callable[[int], list]
    text: Callable[[], str]
    _layer_samples: dict[tuple[str, int, int], np.ndarray] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    @property
    def size(self) -> int:
        return self.mesh.size

    @cached_property
    def dtype(self) -> np.dtype:
        return np.dtype(self.options.dtype)

    @cached_property
    def layers(self) -> list[LayerPlan]:
        return [layer for stage in self.stages for layer in stage.layers]

    @cached_property
    def by_name(self) -> dict[str, LayerPlan]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def users(self) -> dict[str, list[str]]:
        """The layers that use each parameter or buffer, by its name: several where they are tied."""
        first: dict[int, str] = {}
        found: dict[str, list[str]] = {}
        for plan in self.layers:
            for name, variable in plan.layer.named_variables(prefix=plan.name) if plan.layer else ():
                found.setdefault(first.setdefault(id(variable), name), []).append(plan.name)
        return found

    @cached_property
    def use_counts(self) -> Counter:
        """How often each value is taken, by its stage and name: by layers, and by what goes on to later stages."""
        found = Counter((layer.stage, value) for layer in self.layers for value in layer.inputs)
        for stage in self.stages:
            for entry in stage.entries:
                found[entry.origin, entry.value] += len(stage.micro_batches) if entry.at_once else 1
        return found

    @cached_property
    def groups(self) -> list[tuple[str, ...]]:
        """The sets of axes along which anything moves, in one order on every rank."""
        found = {self.mesh.names}
        for layer in self.layers:
            found |= {v.sums for v in layer.derived.variables.values()} | {layer.derived.statistics}
        moves = [e for stage in self.stages for e in stage.entries]
        for exchange in moves + [e for layer in self.layers for e in layer.exchanges if e]:
            for direction in ("forward", "backward"):
                found |= {axes for *_, axes in steps(*exchange.layouts(direction), self.mesh)}
        return sorted(found - {()})

    @property
    def repeats(self) -> bool:
        """Whether ranks compute the same gradients each by itself: then all must round alike."""
        variables = (v for layer in self.layers for v in layer.derived.variables.values())
        return self.options.fc_gradients == "factors" or any(
            p == Replicate() and n > 1 and axis not in v.sums
            for v in variables
            for axis, n, p in zip(self.mesh.names, self.mesh.sizes, v.layout, strict=True)
        )

    def runs(self, rank: int, layer: LayerPlan) -> bool:
        """Whether a rank computes anything of a layer."""
        return self.region(layer.derived.gradient, (), rank) is not None

    def region(self, layout: Layout, shape: Sequence[int], rank: int) -> Region | None:
        """What a rank holds of a value whose samples have `shape`; None where it holds nothing."""
        return self.blocks.region(layout, shape, rank)

    def samples(self, layout: Layout, rank: int, batch: MicroBatch) -> np.ndarray:
        """The numbers, in the batch, of the samples that a rank holds of a value so laid out."""
        region = self.region(layout, (), rank)
        return batch.samples(region.blocks if region else ())

    def layer_samples(self, layer: LayerPlan, rank: int, micro_batch: int) -> np.ndarray:
        """The samples on which a rank computes a layer; kept, as each step asks for them several times."""
        key = layer.name, rank, micro_batch
        if key not in self._layer_samples:
            batch = self.stages[layer.stage].micro_batches[micro_batch]
            self._layer_samples[key] = self.samples(layer.derived.gradient, rank, batch)
        return self._layer_samples[key]

    def transfers(self, exchange: Exchange, direction: str, number: int, rank: int) -> tuple[Transfer, ...]:
        """The transfers of an exchange, in micro-batch `number`, that concern a rank."""
        batch, layouts = self.stages[exchange.stage].micro_batches[number], exchange.layouts(direction)
        return transfers(*layouts, exchange.shape, batch, self.blocks, rank, self.options.algorithms)

    def input_rows(self, rank: int) -> tuple[int, int]:
        """Start and stop, in the whole batch, of the samples that `rank` loads."""
        pairs = (
            (x.layout, batch) for x in self.inputs.values() for batch in self.stages[x.stage].micro_batches
        )
        found = np.concatenate([self.samples(layout, rank, batch) for layout, batch in pairs])
        return (int(found.min()), int(found.max()) + 1) if found.size else (0, 0)

    def bytes_sent(self, rank: int) -> int:
        """Bytes that `rank` sends in one step."""
        return sum(m.bytes for m in self.messages(rank) if m.kind == "send")
