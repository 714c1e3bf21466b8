"""A strategy, as data: how each layer is split, where the model is cut, and what each rank does when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf

from ..comm.algorithms import ALGORITHMS
from ..comm.tuning import DEFAULT, Link, choose
from ..errors import InputError
from .mesh import Mesh
from .rule import Split
from .schedule import PIPELINES, Action
from .transfer import Algorithms


@dataclass(frozen=True)
class Options:
    """What can be chosen beside the strategy; each strategy reads those that concern it."""

    mesh: Mesh | None = None  # default: the strategy's own; an axis "stage" makes a pipeline of any strategy
    split: str = ""  # in place of a strategy's, splits by pattern: "conv*: n=data,model; fc*: n=data o=model"
    dtype: str = "float32"
    all_reduce: str = (
        "ring"  # one of `minidnn.comm`, "mpi" (the library's own) or "auto" (by size, from `link`)
    )
    bucket_mib: float = (
        25.0  # of gradients; 0 sums every parameter on its own, after backward: the naive form
    )
    # Sum gradients by reduce_scatter, let each rank keep the momentum of its shard alone, and all_gather the updated
    # weights, as the 2014 code does.
    sharded_momentum: bool = False
    sync_batch_norm: bool = True
    micro_batches: int = 1  # of a pipeline; else gradients accumulate, but for OWT, where `scheme` makes them
    schedule: str = "1f1b"  # of a pipeline: naive, gpipe, 1f1b or zb-h1
    # Of a pipeline: the layers that begin stages 1, 2, ..., by number (from 0) or name; default balanced, by the costs
    # of the layers, which by default are the `estimated_costs` of `batch` samples.
    stages: tuple[int | str, ...] | None = None
    costs: tuple[float, ...] | None = None
    batch: int = 128
    scheme: str = "a"  # of OWT: a, b or c
    fc_update: str = "once"  # of OWT; "each": the fully connected layers step after every micro-batch
    # How the gradients of replicated fully connected weights come together: "sum" (all_reduce), or "factors"
    # (all_gather of x and gy, whose product is the sum: `FactorExchange`) where they step once.
    fc_gradients: str = "sum"
    fc_pairs: bool = (
        False  # of OWT: column/row pairs of fully connected layers in place of columns all through
    )
    dp: int | None = None  # the size of the axis "data" of the default mesh of hybrid, 3d and alexnet2012
    link: Link = DEFAULT  # what a message costs, for all_reduce="auto"

    def __post_init__(self) -> None:
        for name, known in {
            "all_reduce": (*ALGORITHMS["all_reduce"], "mpi", "auto"),
            "dtype": ("float32", "float64"),
            "schedule": tuple(PIPELINES),
            "scheme": ("a", "b", "c"),
            "fc_update": ("once", "each"),
            "fc_gradients": ("sum", "factors"),
        }.items():
            if getattr(self, name) not in known:
                raise InputError.about(name, getattr(self, name), f"one of {', '.join(known)}")
        if self.micro_batches < 1:
            raise InputError.about("micro_batches", self.micro_batches, "1 or more")
        if not 0 <= self.bucket_mib < inf:
            raise InputError.about("bucket_mib", self.bucket_mib, "a size in MiB, 0 for one per parameter")

    @property
    def bucket_bytes(self) -> int:
        return int(self.bucket_mib * (1 << 20))

    @property
    def algorithms(self) -> Algorithms:
        """Those of the transfers of activations: the direct ones, or the chosen all_reduce where it needs no nodes."""
        if self.all_reduce == "direct":
            return Algorithms("direct", "direct", "direct")
        plain = self.all_reduce in ("ring", "doubling", "halving", "tree")
        return Algorithms(self.all_reduce if plain else "ring")

    def all_reduce_for(self, n_bytes: int, size: int, nodes: tuple[int, ...] | None) -> str:
        """The algorithm that sums so many bytes over so many ranks, on these nodes; None: whatever the nodes are."""
        if self.all_reduce == "auto":
            return choose(size, n_bytes, self.link, nodes)
        return "ring" if self.all_reduce == "hierarchical" and nodes is None else self.all_reduce


@dataclass(frozen=True)
class Strategy:
    """How one model is trained on one process mesh."""

    name: str
    mesh: Mesh
    splits: Mapping[str, Split]  # of each layer, by name, and of "loss"
    schedule: Callable[[int], list[Action]]  # by the place along "stage"; metrics, last updates follow
    options: Options
    starts: tuple[str, ...] = ()  # the first layer of each stage after the first
    micro_batches: tuple[int, ...] = (1,)  # into how many the batch is cut in each stage
    # An axis of the mesh: micro-batch j is the samples of its coordinate j (OWT's scheme b). By default a micro-batch
    # is a part of the samples of every rank.
    by_member: str = ""
    pipelined: bool = False  # stage s is at coordinate s of the axis "stage" alone; else all ranks run all
    updates: Mapping[str, str] = field(default_factory=dict)  # parameter group of layers, where not "all"
    alive: tuple[int, ...] = (1,)  # micro-batches of each stage whose activations a rank holds, at most
    notes: tuple[str, ...] = ()  # what could not be done as asked

    def once(self) -> Strategy:
        """The same in one micro-batch, as evaluation runs it."""
        return replace(self, micro_batches=(1,) * len(self.micro_batches), by_member="")

    @property
    def update_groups(self) -> tuple[str, ...]:
        """The parameter groups, in the order of the layers."""
        return tuple(dict.fromkeys(self.updates.get(name, "all") for name in self.splits if name != "loss"))
