"""A plan as rows of plain data, in the order of the forward pass: what graphs and report.html draw.

Every row has `cells`, one for each rank, None where the rank takes no part, and `groups`, the world ranks
that communicate with each other:

========  ==========================================  ================================================
kind      meaning                                     cell
========  ==========================================  ================================================
layer     a layer, and its placement                  number of parameters held
exchange  a communication layer before `layer`        [bytes sent forward, bytes sent backward]
sync      the sum of the gradients of a bucket        bytes sent
========  ==========================================  ================================================
"""

from minidnn.parallel.placement import layout_text
from minidnn.text import size


def rows_of(plan) -> dict:
    """Rows and headings of a plan (`minidnn.parallel.Plan`), ready for JSON."""
    ranks = range(plan.size)
    held = [_held(plan, rank) for rank in ranks]
    rows = []
    for layer in plan.layers:
        entries = [e for e in plan.stages[layer.stage].entries if e.layer == layer.name]
        rows += [_exchange(plan, e) for e in (*entries, *layer.exchanges) if e is not None]
        rows.append({
            "kind": "layer", "name": layer.name, "placement": layout_text(layer.layout, plan.mesh),
            "shape": "x".join(map(str, layer.out_shape)) if layer.layer is not None else "",
            "cells": [held[r].get(layer.name, 0) if plan.runs(r, layer) else None for r in ranks], "groups": [],
        })  # fmt: skip
    rows += _syncs(plan)
    facts = {"model": plan.model, "strategy": plan.strategy, "size": plan.size, "batch": plan.batch}
    return {**facts, "rows": [row for row in rows if any(cell is not None for cell in row["cells"])]}


def _held(plan, rank: int) -> dict[str, int]:
    held: dict[str, int] = {}
    for p in plan.held[rank]:
        held[p.layer] = held.get(p.layer, 0) + (0 if p.buffer else p.size)
    return held


def _exchange(plan, exchange) -> dict:
    """A communication layer, with the bytes that each rank sends in both directions."""
    cells, names, groups = [], [{}, {}], set()
    directions = ("forward", "backward") if exchange.differentiable else ("forward",)
    for rank in range(plan.size):
        sent, part = [0, 0], False
        for number in range(len(plan.stages[exchange.stage].micro_batches)):
            for i, direction in enumerate(directions):
                for transfer in plan.transfers(exchange, direction, number, rank):
                    names[i][transfer.op] = None
                    for moves in transfer.rounds(
                        transfer.ranks.index(rank), [plan.nodes[r] for r in transfer.ranks]
                    ):
                        part = part or bool(moves)
                        sent[i] += plan.dtype.itemsize * sum(m.elements for m in moves if m.kind == "send")
                    groups |= {transfer.ranks} if part else set()
        cells.append(sent if part else None)
    taking_part = [[rank for rank in group if cells[rank] is not None] for group in sorted(groups)]
    return {
        "kind": "exchange", "name": " and ".join(names[0]), "adjoint": " and ".join(names[1]),
        "layer": exchange.layer, "groups": taking_part, "from": layout_text(exchange.source, plan.mesh),
        "to": layout_text(exchange.target, plan.mesh), "cells": cells,
    }  # fmt: skip


def _syncs(plan) -> list[dict]:
    """The buckets of gradients; what ranks of the same layers sum in different groups is one row."""
    phases = ("gradient sync", "update")
    sent: list[dict[str, int]] = []
    for rank in range(plan.size):
        own: dict[str, int] = {}
        for m in plan.messages(rank):
            if m.kind == "send" and m.phase in phases:
                own[m.layer] = own.get(m.layer, 0) + m.bytes
        sent.append(own)
    buckets: dict[str, dict] = {}
    for rank in range(plan.size):
        for bucket in plan.buckets[rank]:
            name = f"{bucket.op}, all_gather" if bucket.sharded else bucket.op
            blank = {"kind": "sync", "name": name, "layer": bucket.layer, "groups": []}
            row = buckets.setdefault(bucket.layer, {**blank, "cells": [None] * plan.size})
            row["cells"][rank] = sent[rank].get(bucket.layer)
            group = list(plan.mesh.group(rank, bucket.axes))
            if row["cells"][rank] and group not in row["groups"]:
                row["groups"].append(group)
    return list(buckets.values())


def title(graph: dict) -> str:
    """The heading of a picture of the plan."""
    plural = "s" if graph["size"] > 1 else ""
    return f"{graph['model']}, {graph['strategy']}, {graph['size']} rank{plural}, batch {graph['batch']}"


def row_text(row: dict) -> str:
    """What a row of communication is."""
    if row["kind"] == "sync":
        return f"gradients of {row['layer']}: {row['name']}"
    back = {"": "", "slice": ", backward: slice (nothing sent)", "keep": ", backward: nothing sent"}
    return f"{row['name']} for {row['layer']}" + back.get(row["adjoint"], f", backward: {row['adjoint']}")


def cell_text(row: dict, cell) -> str:
    """What a rank's cell says: parameters held, or bytes sent."""
    if cell is None:
        return ""
    if row["kind"] == "layer":
        return f"{cell:,}" if cell else ""
    if row["kind"] == "sync":
        return f"sends {size(cell)}"
    parts = [f"sends {size(cell[0])}"] if cell[0] else []
    if cell[1]:
        parts.append(f"{size(cell[1])} back" if parts else f"sends {size(cell[1])} back")
    return ", ".join(parts) or "receives"
