"""A strategy, as data: where each layer lives, where the model is cut, and what each rank does when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from ..comm.algorithms import ALGORITHMS
from ..comm.tuning import DEFAULT, Link, choose
from ..errors import InputError
from .placement import Grid, Placement
from .schedule import PIPELINES, Action, accumulate
from .transfer import Algorithms

MIB = 1 << 20


@dataclass(frozen=True)
class Strategy:
    """How one model is trained on one process grid.

    Attributes
    ----------
    placements : dict
        The placement of every layer by name, and of "loss".
    starts : tuple of str
        The first layer of each segment after the first.
    chunks : tuple of int
        Into how many chunks the batch is cut in each segment.
    chunking : {"interleaved", "by member", "contiguous"}
        A chunk is a part of every member's rows, one member's rows, or consecutive rows.
    schedule : callable
        member -> actions; the planner adds the sums of gradients, the metrics and the last updates.
    update_groups : tuple of str
        The parameter group of each segment, for its own learning rate and update period.
    alive : tuple of int
        The most chunks of each segment whose activations a rank holds at once; `check_plan` holds the
        schedule to it.
    """

    name: str
    grid: Grid
    placements: dict[str, Placement]
    starts: tuple[str, ...] = ()
    chunks: tuple[int, ...] = (1,)
    chunking: str = "interleaved"
    schedule: Callable[[int], list[Action]] = field(default=lambda member: accumulate(1))
    update_groups: tuple[str, ...] = ("all",)
    alive: tuple[int, ...] = (1,)

    def segment_of(self, layer: str, names: Sequence[str]) -> int:
        """The number of the segment of a layer; `names` are those of all layers, in order."""
        return sum(names.index(start) <= names.index(layer) for start in self.starts)

    def once(self) -> Strategy:
        """The same in one chunk, as evaluation runs it."""
        return replace(self, chunks=(1,) * len(self.chunks))


@dataclass(frozen=True)
class Options:
    """What can be chosen beside the strategy; each strategy reads those that concern it.

    Attributes
    ----------
    all_reduce : str
        One of the algorithms of `minidnn.comm`, "mpi" (the library's own) or "auto" (by size, from
        the measured `link`).
    bucket_mib : float
        Size of a gradient bucket; 0 sums every parameter on its own, after backward: the naive form.
    sharded_momentum : bool
        Sum gradients by reduce_scatter, let each rank keep the momentum of its shard alone, and
        all_gather the updated weights, as the 2014 code does.
    micro_batches : int
        Chunks of a layer split; gradient accumulation elsewhere, but for OWT, whose chunks `scheme` makes.
    schedule : str
        Of a layer split: naive, gpipe, 1f1b or zb-h1.
    stages : sequence of int or str, optional
        Of a layer split: the layers that begin stages 1, 2, ..., by number (from 0) or name; default balanced.
    costs : sequence of float, optional
        Of a layer split: the cost of each layer to balance by; default `estimated_costs` of `batch` samples.
    scheme, fc_update : str
        Of OWT: a, b or c, and "once" or "each" (the fully connected layers step after every chunk).
    fc_gradients : str
        How the gradients of replicated fully connected weights come together: "sum" (all_reduce), or
        "factors" (all_gather of x and gy, whose product is the sum: `FactorExchange`). Layers that step
        after every chunk are summed all the same.
    fc_pairs : bool
        Of OWT: column/row pairs of fully connected layers in place of columns all through.
    dp : int, optional
        Of hybrid and alexnet2012: the rows of the process grid.
    link : Link
        What a message costs, for all_reduce="auto".
    nodes : tuple of int, optional
        The node of each rank, for all_reduce="hierarchical"; default all on one.
    """

    dtype: str = "float32"
    all_reduce: str = "ring"
    bucket_mib: float = 25.0
    sharded_momentum: bool = False
    sync_batch_norm: bool = True
    micro_batches: int = 1
    schedule: str = "1f1b"
    stages: tuple[int | str, ...] | None = None
    costs: tuple[float, ...] | None = None
    batch: int = 128
    scheme: str = "a"
    fc_update: str = "once"
    fc_gradients: str = "sum"
    fc_pairs: bool = False
    dp: int | None = None
    link: Link = DEFAULT
    nodes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        known = (*ALGORITHMS["all_reduce"], "mpi", "auto")
        _one_of("--all-reduce", self.all_reduce, known)
        _one_of("--dtype", self.dtype, ("float32", "float64"))
        _one_of("--schedule", self.schedule, tuple(PIPELINES))
        _one_of("--scheme", self.scheme, ("a", "b", "c"))
        _one_of("--fc-update", self.fc_update, ("once", "each"))
        _one_of("--fc-gradients", self.fc_gradients, ("sum", "factors"))
        if self.micro_batches < 1:
            raise InputError(f"--micro-batches {self.micro_batches}: expected 1 or more")
        if not 0 <= self.bucket_mib < inf:
            raise InputError(f"--buckets {self.bucket_mib}: expected a size in MiB, 0 for one per parameter")

    @property
    def bucket_bytes(self) -> int:
        return int(self.bucket_mib * MIB)

    @property
    def algorithms(self) -> Algorithms:
        """Those of the transfers of activations: the direct ones, or the chosen all_reduce where it needs no nodes."""
        if self.all_reduce == "direct":
            return Algorithms("direct", "direct", "direct")
        plain = self.all_reduce in ("ring", "doubling", "halving", "tree")
        return Algorithms(self.all_reduce if plain else "ring")

    def all_reduce_for(self, n_bytes: int, size: int) -> str:
        """The algorithm that sums `n_bytes` over `size` ranks."""
        if self.all_reduce != "auto":
            return self.all_reduce
        nodes = self.nodes if self.nodes and len(self.nodes) == size else None
        return choose(size, n_bytes, self.link, nodes)


def _one_of(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{option} {value}: expected one of {', '.join(known)}")
