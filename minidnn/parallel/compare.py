"""Plans side by side: what each sends in a step and why, what it must hold, and the least it could send."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ..report.text import size, table
from .memory import rank_memory
from .plan import Message, Plan

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
    layers = {layer.name: layer for layer in plan.layers}
    layer = layers[message.layer]
    if layer.sync and message.op == "all_reduce":
        return "statistics"
    names = [
        x.name for x in plan.layers if len(x.in_shape) == 1 and x.layer is not None and x.layer.parameters()
    ]
    return "FC exchange" if message.layer in names[1:] else "activations"


def bytes_by_cause(plan: Plan, rank: int) -> dict[str, int]:
    """Bytes that `rank` sends in a step, by cause."""
    found: dict[str, int] = defaultdict(int)
    for m in plan.messages(rank):
        if m.kind == "send":
            found[cause(plan, m)] += m.bytes
    return dict(found)


def lower_bound(plan: Plan, rank: int) -> int:
    """The least bytes that `rank` must send for the collectives of its gradients.

    Summing n bytes over p ranks, with the sum on all of them, takes 2 (p - 1)/p n bytes sent by each
    rank on average (Patarasuk and Yuan 2009, sec. 2); a rank that gets away with less makes another send more.
    Gathering n bytes takes (p - 1)/p n.
    """
    total = 0.0
    for bucket in plan.buckets[rank]:
        p = len(plan.group(bucket.group, rank))
        elements = sum(bucket.factor_counts) if bucket.matrix else 2 * bucket.elements
        if bucket.matrix and bucket.sharded:
            elements += bucket.elements  # the updated weights
        total += (p - 1) / p * elements * plan.dtype.itemsize
    return round(total)


def compare_plans(plans: Sequence[Plan]) -> str:
    """One table over plans; of ranks that differ, the one that sends the most is shown."""
    rows = []
    previous = None
    for plan in plans:
        if previous not in (None, plan.strategy):
            rows.append([])
        previous = plan.strategy
        sent = {rank: plan.bytes_sent(rank) for rank in range(plan.size)}
        rank = max(sent, key=lambda r: sent[r])
        causes = bytes_by_cause(plan, rank)
        messages = sum(m.kind == "send" for m in plan.messages(rank))
        held = max(rank_memory(plan, r).total for r in range(plan.size))
        bound = lower_bound(plan, rank)
        cells = [f"{causes[c] / MIB:.1f}" if causes.get(c) else "" for c in CAUSES]
        parameters = sum(p.size for layer in plan.layers if layer.layer for p in layer.layer.parameters())
        rows.append(
            [
                plan.strategy,
                plan.size,
                plan.batch,
                f"{parameters:,}",
                *cells,
                f"{sent[rank] / MIB:.1f}",
                messages,
                f"{bound / MIB:.1f}" if bound else "",
                size(held),
            ]
        )
    used = [i for i, c in enumerate(CAUSES) if any(row and row[4 + i] for row in rows)]
    keep = [
        0,
        1,
        2,
        3,
        *(4 + i for i in used),
        4 + len(CAUSES),
        5 + len(CAUSES),
        6 + len(CAUSES),
        7 + len(CAUSES),
    ]
    header = [
        "strategy",
        "ranks",
        "batch",
        "parameters",
        *CAUSES,
        "sent, MiB",
        "messages",
        "sync bound",
        "memory",
    ]
    title = "Per worker and step: MiB sent by cause (of the worker that sends the most), messages, memory"
    return table([[row[i] for i in keep] if row else [] for row in rows], [header[i] for i in keep], title)
