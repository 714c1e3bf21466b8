"""A plan as text: every rank, every layer and its placement, every message of a step with its bytes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from ..report.text import size, table
from .memory import rank_memory
from .placement import OnRank, Placement, Shard, bounds
from .plan import Chunk, Exchange, LayerPlan, Message, Plan
from .shard import parameter_placement, requirement


def plan_text(plan: Plan, ranks: Iterable[int] | None = None) -> str:
    """The listing that `print(plan)` shows; by default of all ranks up to 8, of rank 0 beyond."""
    if ranks is None:
        ranks = range(plan.size) if plan.size <= 8 else (0,)
    ranks = list(ranks)
    lines = [_title(plan)]
    for rank in ranks:
        lines += ["", *_rank_lines(plan, rank)]
    if len(ranks) < plan.size:
        lines += ["", f"({plan.size - len(ranks)} more ranks; ask for them by number)"]
    return "\n".join(lines)


def _title(plan: Plan) -> str:
    parameters = sum(int(p.size) for layer in plan.layers if layer.layer for p in layer.layer.parameters())
    grid = f"{plan.size} rank{'s' * (plan.size > 1)}"
    if plan.grid.dp > 1:
        grid += f" in a grid of {plan.grid}"
    shape = "x".join(map(str, plan.layers[0].in_shape))
    return (
        f"Plan: {plan.model}, {shape} -> {plan.layers[-1].in_shape[-1]}, {parameters:,} parameters; "
        f"strategy {plan.strategy}, {grid}, batch {plan.batch}, {plan.dtype}"
    )


def _rank_lines(plan: Plan, rank: int) -> list[str]:
    member = rank % plan.grid.mp
    held: dict[str, int] = {}
    for p in plan.parameters[rank]:
        layer = p.name.rpartition(".")[0]
        held[layer] = held.get(layer, 0) + p.size
    rows = []
    for segment, chunks in zip(plan.segments, plan.chunks_of(rank), strict=True):
        boundary = plan.boundaries[segment.index - 1] if segment.index else None
        for position, layer in enumerate(segment.layers):
            exchanges = [e for e in layer.exchanges if e]
            if boundary and position == 0:
                exchanges += boundary.exchanges
            rows += [
                ["", _exchange_text(e, chunks), "", "", "", ""] for e in exchanges if _takes_part(e, member)
            ]
            if not (isinstance(layer.placement, OnRank) and layer.placement.rank != member):
                rows.append(_layer_row(plan, layer, chunks[0], member, held))
    memory = rank_memory(plan, rank)
    messages = plan.messages(rank)
    sent = [m for m in messages if m.kind == "send"]
    start, stop = plan.samples(rank)
    total = sum(p.size for p in plan.parameters[rank])
    return [
        f"rank {rank}: samples {start} to {stop - 1}, {total:,} parameters, {memory.text()}",
        table(rows, ["layer", "placement", "weights", "parameters", "input", "output"]),
        "",
        f"messages of one step: {len(sent)} sent, {size(sum(m.bytes for m in sent))}",
        _message_table(messages),
    ]


def _takes_part(exchange: Exchange, member: int) -> bool:
    """Whether `member` sends, receives or computes anything in an exchange."""
    ends = [p.rank for p in (exchange.src, exchange.dst) if isinstance(p, OnRank)]
    return len(ends) < 2 or member in ends


def _layer_row(plan: Plan, layer: LayerPlan, chunk: Chunk, member: int, held: dict[str, int]) -> list:
    size = plan.grid.mp
    weights = ""
    if layer.layer is not None and layer.layer.parameters():
        weights = str(parameter_placement(layer.placement))
        source = requirement(layer.name, layer.layer, layer.placement, size, layer.in_shape).input
    else:
        source = layer.exchanges[0].dst if layer.exchanges[0] else layer.placement

    def local(features: tuple[int, ...], placement: Placement) -> str:
        if placement == Shard(-1) and features:
            start, stop = bounds(features[-1], size, member)
            features = (*features[:-1], stop - start)
        return "x".join(map(str, (len(chunk.held(placement, member)), *features)))

    return [
        layer.name,
        str(layer.placement) + (f", sums over {layer.sync}" if layer.sync else ""),
        weights,
        f"{held[layer.name]:,}" if layer.name in held else "",
        local(layer.in_shape, source),
        local(layer.out_shape, layer.placement) if layer.layer is not None else "",
    ]


def _exchange_text(exchange: Exchange, chunks: tuple[Chunk, ...]) -> str:
    """One communication layer: what it does forward, and what its adjoint does backward."""
    forward, backward = exchange.forward(chunks[0]), exchange.backward(chunks[0])
    text = f"-- {forward.op}" + (f" x {len(chunks)} chunks" if len(chunks) > 1 else "")
    if backward is not None:
        text += f"; backward {backward.op}"
    return f"{text} ({exchange.src} -> {exchange.dst})"


def _message_table(messages: list[Message]) -> str:
    """Consecutive messages that differ in nothing but their round or chunk share a line."""

    def key(m: Message) -> tuple:
        return (m.phase, m.layer, m.op, m.algorithm, m.count, m.chunk)

    rows = []
    for (phase, layer, op, algorithm, count, chunk), run in groupby(messages, key):
        run = list(run)
        rounds = f"{count} round{'s' * (count > 1)}"
        parts = []
        for kind, verb in (("send", "to"), ("recv", "from")):
            for (peer, n_bytes), same in _count((m.peer, m.bytes) for m in run if m.kind == kind):
                times = f"{same} x " if same > 1 else ""
                parts.append(
                    f"{'send' if kind == 'send' else 'receive'} {times}{size(n_bytes)} {verb} {peer}"
                )
        rows.append([phase, layer, chunk, f"{op} {algorithm}", rounds, "; ".join(parts)])
    if not rows:
        return "(none)"
    return table(rows, ["phase", "layer", "chunk", "operation", "", "messages"])


def _count(items: Iterable[tuple]) -> list[tuple[tuple, int]]:
    counts: dict[tuple, int] = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return list(counts.items())
