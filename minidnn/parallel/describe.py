"""A plan as text: every rank, every layer and its layout, every message of a step with its bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import groupby

from ..text import size, table
from .memory import rank_memory
from .messages import Message, step_messages
from .placement import layout_text
from .planned import Exchange, LayerPlan, Planned, Stage


def plan_text(plan: Planned, ranks: Iterable[int] | None = None) -> str:
    """The listing that `print(plan)` shows; by default of all ranks up to 8, of rank 0 beyond."""
    if ranks is None:
        ranks = range(plan.size) if plan.size <= 8 else (0,)
    ranks = list(ranks)
    lines = [_title(plan), *(f"note: {note}" for note in plan.notes)]
    for rank in ranks:
        lines += ["", *_rank_lines(plan, rank)]
    if len(ranks) < plan.size:
        lines += ["", f"({plan.size - len(ranks)} more ranks; ask for them by number)"]
    return "\n".join(lines)


def _title(plan: Planned) -> str:
    variables = {id(p): p.size for layer in plan.layers if layer.layer for p in layer.layer.parameters()}
    ranks = f"{plan.size} rank{'s' * (plan.size > 1)}"
    if len([n for n in plan.mesh.sizes if n > 1]) > 1:
        ranks += f" in a mesh of {plan.mesh}"
    shape = "x".join(map(str, plan.layers[0].shapes[0]))
    return (
        f"Plan: {plan.model}, {shape} -> {plan.layers[-1].shapes[0][-1]}, {sum(variables.values()):,} parameters; "
        f"strategy {plan.strategy}, {ranks}, batch {plan.batch}, {plan.dtype}"
    )


def _rank_lines(plan: Planned, rank: int) -> list[str]:
    held: Counter = Counter()
    for p in plan.held[rank]:
        held[p.layer] += p.size if p.trained else 0
    rows = []
    for stage in plan.stages:
        for layer in stage.layers:
            arriving = [e for e in stage.entries if e.layer == layer.name]
            for exchange in (*arriving, *(e for e in layer.exchanges if e)):
                text = _exchange_text(plan, exchange, rank, stage)
                rows += [["", text, "", "", "", ""]] if text else []
            if plan.runs(rank, layer):
                rows.append(_layer_row(plan, layer, stage, rank, held))
    messages = list(step_messages(plan, rank, plan.events[rank]))
    sent = [m for m in messages if m.kind == "send"]
    total = sum(held.values())
    return [
        f"rank {rank}: {_samples(plan, rank)}, {total:,} parameters, {rank_memory(plan, rank)}",
        table(rows, ["layer", "placement", "weights", "parameters", "input", "output"]),
        "",
        f"messages of one step: {len(sent)} sent, {size(sum(m.bytes for m in sent))}",
        _message_table(messages),
    ]


def _samples(plan: Planned, rank: int) -> str:
    """The samples that a rank works on."""
    own = sorted(
        {int(n) for layer in plan.layers if plan.runs(rank, layer) for batch in plan.stages[layer.stage].micro_batches
         for n in plan.samples(layer.derived.gradient, rank, batch)}
    )  # fmt: skip
    return f"samples {own[0]} to {own[-1]}" if own else "no samples"


def _layer_row(plan: Planned, layer: LayerPlan, stage: Stage, rank: int, held: Counter) -> list:
    weights = ""
    if layer.name in held:
        weights = layout_text(next(iter(layer.derived.variables.values())).layout, plan.mesh)

    def local(layout, shape) -> str:
        return "x".join(map(str, plan.local_shape(layout, shape, rank, stage.micro_batches[0])))

    return [
        layer.name,
        layout_text(layer.layout, plan.mesh)
        + (f", sums over {', '.join(layer.derived.statistics)}" if layer.norms else ""),
        weights,
        f"{held[layer.name]:,}" if layer.name in held else "",
        local(layer.derived.inputs[0], layer.shapes[0]),
        local(layer.layout, layer.out_shape) if layer.layer is not None else "",
    ]


def _exchange_text(plan: Planned, exchange: Exchange, rank: int, stage: Stage) -> str:
    """One communication layer: what it does forward, and what its adjoint does backward; "" where a rank has no
    part."""
    directions = ("forward", "backward") if exchange.differentiable else ("forward",)
    ops = [" and ".join(t.op for t in plan.transfers(exchange, d, 0, rank)) for d in directions]
    if not any(ops):
        return ""
    text = f"-- {ops[0] or 'none'}"
    text += f" x {len(stage.micro_batches)} micro-batches" if len(stage.micro_batches) > 1 else ""
    text += f"; backward {ops[1] or 'none'}" if len(ops) > 1 else ""
    return f"{text} ({layout_text(exchange.source, plan.mesh)} -> {layout_text(exchange.target, plan.mesh)})"


def _message_table(messages: list[Message]) -> str:
    """Consecutive messages that differ in nothing but their round share a line."""

    def key(m: Message) -> tuple:
        return (m.phase, m.layer, m.op, m.algorithm, m.count, m.micro_batch)

    rows = []
    for (phase, layer, op, algorithm, count, micro_batch), run in groupby(messages, key):
        run = list(run)
        parts = []
        for kind, verb, side in (("send", "send", "to"), ("recv", "receive", "from")):
            alike = Counter((m.peer, m.bytes) for m in run if m.kind == kind)
            for (peer, n_bytes), times in alike.items():
                parts.append(f"{verb} {f'{times} x ' if times > 1 else ''}{size(n_bytes)} {side} {peer}")
        rounds = f"{count} round{'s' * (count > 1)}"
        rows.append([phase, layer, micro_batch, f"{op} {algorithm}", rounds, "; ".join(parts)])
    if not rows:
        return "(none)"
    return table(rows, ["phase", "layer", "micro-batch", "operation", "", "messages"])
