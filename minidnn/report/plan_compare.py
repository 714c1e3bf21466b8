"""Plans side by side: what each sends in a step and why, what it must hold, and the least it could send."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ..parallel import Plan
from ..parallel.memory import rank_memory
from ..parallel.messages import Message
from ..parallel.totals import totals
from ..text import size, table
from .bandwidth import lower_bound

CAUSES = ("gradient sync", "activations", "FC exchange", "logits", "statistics")
MIB = 1 << 20


def cause(plan: Plan, message: Message) -> str:
    """Why a message is sent: one of `CAUSES`, or "" for the metrics."""
    if message.phase in ("gradient sync", "update"):
        return "gradient sync"
    if message.phase == "metrics":
        return ""
    if message.layer == "loss":
        return "logits"
    names = [layer.name for layer in plan.layers]
    at = names.index(message.layer)
    if plan.layers[at].norms and message.tag >= plan.layers[at].tag and message.op == "all_reduce":
        return "statistics"
    linear = [i for i, x in enumerate(plan.layers) if x.layer is not None and x.layer.factors]
    # what goes into the first fully connected layer are the convolutions' features
    return "FC exchange" if linear and at > linear[0] else "activations"


def sent_by_cause(plan: Plan, rank: int) -> dict[str, tuple[int, int]]:
    """Messages and bytes that `rank` sends in a step, by cause."""
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for m in plan.messages(rank):
        if m.kind == "send":
            why = cause(plan, m)
            messages, n_bytes = found[why]
            found[why] = messages + 1, n_bytes + m.bytes
    return dict(found)


def gradient_bound(plan: Plan, rank: int) -> int:
    """The least bytes that `rank` must send for the collectives of its gradients, on average over the ranks.

    A rank that gets away with less makes another send more (:func:`.bandwidth.lower_bound`).
    """
    total = 0.0
    for bucket in plan.buckets[rank]:
        p = len(plan.mesh.group(rank, bucket.axes))
        if bucket.matrix:
            gathered = (
                sum(bucket.factor_counts) + bucket.elements * bucket.sharded
            )  # factors; the updated weights
            total += lower_bound("all_gather", p, gathered)
        else:
            total += lower_bound("all_reduce", p, bucket.elements)
    return round(total * plan.dtype.itemsize)


def totals_line(plan: Plan) -> str:
    """What all ranks together send in a step."""
    messages, n_bytes = totals(plan)
    ranks = f"{plan.size} rank{'s' * (plan.size > 1)} together"
    return f"all messages of one step, {ranks}: {messages:,}, {size(n_bytes)} ({n_bytes:,} bytes)"


def compare_plans(plans: Mapping[str, Sequence[Plan]]) -> str:
    """One table over plans, by a name for each row; of ranks that differ, the one that sends the most is shown."""
    rows: list[list[str]] = []
    for name, group in plans.items():
        rows += [_row(name, plan) for plan in group] + [[]]
    header = ["strategy", "ranks", "batch", "parameters", *CAUSES]
    header += ["sent, MiB", "messages", "sync bound", "memory"]
    used = [i for i in range(len(header)) if header[i] not in CAUSES or any(row and row[i] for row in rows)]
    title = (
        "Per worker and step (the worker that sends the most): MiB sent by cause (and messages), the least that "
        "summing the gradients takes, memory"
    )
    cells = [[row[i] for i in used] if row else [] for row in rows[:-1]]
    return table(cells, [header[i] for i in used], title)


def _row(name: str, plan: Plan) -> list[str]:
    sent = {rank: plan.bytes_sent(rank) for rank in range(plan.size)}
    rank = max(sent, key=lambda r: sent[r])
    causes = sent_by_cause(plan, rank)
    bound = gradient_bound(plan, rank)
    held = max(rank_memory(plan, r).total for r in range(plan.size))
    parameters = sum({id(p): p.size for x in plan.layers if x.layer for p in x.layer.parameters()}.values())
    by_cause = [f"{causes[c][1] / MIB:.1f} ({causes[c][0]})" if c in causes else "" for c in CAUSES]
    return [
        name,
        str(plan.mesh) if sum(n > 1 for n in plan.mesh.sizes) > 1 else str(plan.size),
        str(plan.batch),
        f"{parameters:,}",
        *by_cause,
        f"{sent[rank] / MIB:.1f}",
        str(sum(messages for messages, _ in causes.values())),
        f"{bound / MIB:.1f}" if bound else "",
        size(held),
    ]
