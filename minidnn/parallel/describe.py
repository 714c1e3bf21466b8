"""A plan as text: every rank, every layer and its layout, every message of a step with its bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import groupby

from ..text import size, table
from .memory import rank_memory
from .messages import Message
from .placement import layout_text
from .plan import Plan
from .planned import Exchange, LayerPlan


def plan_text(plan: Plan, ranks: Iterable[int] | None = None) -> str:
    """The listing that `print(plan)` shows; by default of all ranks up to 8, of rank 0 beyond."""
    if ranks is None:
        ranks = range(plan.size) if plan.size <= 8 else (0,)
    ranks, shape = list(ranks), "x".join(map(str, plan.layers[0].shapes[0]))
    variables = {id(p): p.size for layer in plan.layers if layer.layer for p in layer.layer.parameters()}
    several = f" in a mesh of {plan.mesh}" if sum(n > 1 for n in plan.mesh.sizes) > 1 else ""
    lines = [
        f"Plan: {plan.model}, {shape} -> {plan.layers[-1].shapes[0][-1]}, {sum(variables.values()):,} parameters; "
        f"strategy {plan.strategy}, {plan.size} rank{'s' * (plan.size > 1)}{several}, batch {plan.batch}, {plan.dtype}",
        *(f"note: {note}" for note in plan.notes),
    ]
    for rank in ranks:
        lines += ["", *_rank_lines(plan, rank)]
    if len(ranks) < plan.size:
        lines += ["", f"({plan.size - len(ranks)} more ranks; ask for them by number)"]
    return "\n".join(lines)


def _rank_lines(plan: Plan, rank: int) -> list[str]:
    held: Counter = Counter()
    for p in plan.held[rank]:
        held[p.layer] += p.size if p.trained else 0
    rows, samples = [], set()
    for layer in plan.layers:
        stage = plan.stages[layer.stage]
        for exchange in (*(e for e in stage.entries if e.layer == layer.name), *layer.exchanges):
            text = _exchange_text(plan, exchange, rank) if exchange else ""
            rows += [["", text, "", "", "", ""]] if text else []
        if plan.runs(rank, layer):
            rows.append(_layer_row(plan, layer, rank, held))
            for batch in stage.micro_batches:
                samples.update(plan.samples(layer.derived.gradient, rank, batch).tolist())
    messages = plan.messages(rank)
    sent = [m.bytes for m in messages if m.kind == "send"]
    on = f"samples {min(samples)} to {max(samples)}" if samples else "no samples"
    return [
        f"rank {rank}: {on}, {sum(held.values()):,} parameters, {rank_memory(plan, rank)}",
        table(rows, ["layer", "placement", "weights", "parameters", "input", "output"]),
        "",
        f"messages of one step: {len(sent)} sent, {size(sum(sent))}",
        _message_table(messages),
    ]


def _layer_row(plan: Plan, layer: LayerPlan, rank: int, held: Counter) -> list[str]:
    derived, batch = layer.derived, plan.stages[layer.stage].micro_batches[0]

    def local(layout, shape) -> str:
        return "x".join(map(str, batch.shape(plan.region(layout, shape, rank))))

    placed, weights = layout_text(layer.layout, plan.mesh), ["", ""]
    if layer.norms:
        placed += f", sums over {', '.join(derived.statistics)}"
    if layer.name in held:
        first = next(iter(derived.variables.values())).layout
        weights = [layout_text(first, plan.mesh), f"{held[layer.name]:,}"]
    output = local(layer.layout, layer.out_shape) if layer.layer is not None else ""
    return [layer.name, placed, *weights, local(derived.inputs[0], layer.shapes[0]), output]


def _exchange_text(plan: Plan, exchange: Exchange, rank: int) -> str:
    """One communication layer: what it does forward, and what its adjoint does backward; "" where a rank has no
    part."""
    directions = ("forward", "backward") if exchange.differentiable else ("forward",)
    ops = [" and ".join(t.op for t in plan.transfers(exchange, d, 0, rank)) for d in directions]
    if not any(ops):
        return ""
    parts = len(plan.stages[exchange.stage].micro_batches)
    text = f"-- {ops[0] or 'none'}" + (f" x {parts} micro-batches" if parts > 1 else "")
    text += f"; backward {ops[1] or 'none'}" if len(ops) > 1 else ""
    return f"{text} ({layout_text(exchange.source, plan.mesh)} -> {layout_text(exchange.target, plan.mesh)})"


def _message_table(messages: list[Message]) -> str:
    """Consecutive messages that differ in nothing but their round share a line."""

    def key(m: Message) -> tuple:
        return m.phase, m.layer, m.micro_batch, f"{m.op} {m.algorithm}", m.count

    rows = []
    for (*label, count), run in groupby(messages, key):
        alike = Counter((m.kind, m.peer, m.bytes) for m in run)
        parts = [
            f"{verb} {f'{times} x ' if times > 1 else ''}{size(n_bytes)} {side} {peer}"
            for which, verb, side in (("send", "send", "to"), ("recv", "receive", "from"))
            for (kind, peer, n_bytes), times in alike.items()
            if kind == which
        ]
        rows.append([*label, f"{count} round{'s' * (count > 1)}", "; ".join(parts)])
    return table(rows, ["phase", "layer", "micro-batch", "operation", "", "messages"]) if rows else "(none)"
