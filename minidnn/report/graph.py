"""A picture of a plan: layers, placements and communication layers, rank by rank.

Drawn with Graphviz where its Python package and the program `dot` are installed, else with matplotlib.
"""

import shutil
from html import escape
from pathlib import Path

from minidnn.errors import InputError
from minidnn.files import writing
from minidnn.pictures import FORMATS, save, styled
from minidnn.report.colors import STATE_COLORS, ink, layer_colors, lighter
from minidnn.report.plan_rows import cell_text, row_text, rows_of, title

COMMUNICATION = STATE_COLORS["exposed"]
BOX = f'shape=box, style="filled,rounded", color=white, fillcolor="{COMMUNICATION}", fontcolor=white'
TABLE = '<TABLE BORDER="0" CELLBORDER="1" CELLSPACING="0" CELLPADDING="3" COLOR="#999999">'


def save_graph(plan, path: str | Path) -> str:
    """Draw a plan into a .svg, .png or .pdf file; says what drew it, "Graphviz" or "matplotlib"."""
    graph = rows_of(plan)
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: a graph is written as .svg, .png or .pdf")
    try:
        import graphviz
    except ImportError:
        graphviz = None
    if graphviz is not None and shutil.which("dot"):
        with writing(path, "wb") as file:
            file.write(graphviz.Source(dot(graph)).pipe(format=path.suffix[1:].lower()))
        return "Graphviz"
    with styled() as Figure:
        save(draw(graph, Figure), path, dpi=150, bbox_inches="tight")
    return "matplotlib"


def dot(graph: dict) -> str:
    """The graph in Graphviz's language: a column of blocks for each rank, communication between them."""
    colors = layer_colors([row["name"] for row in graph["rows"] if row["kind"] == "layer"])
    ranks = range(graph["size"])
    heads = [f"  rank{r} [shape=plaintext, group=g{r}, label=<<B>rank {r}</B>>];" for r in ranks]
    legend = "layer, placement, output of one sample, parameters held"
    lines = [
        "digraph plan {",
        f'  label="{title(graph)}\\n{legend}"; labelloc=t; fontname="Helvetica"; fontsize=14;',
        "  nodesep=0.3; ranksep=0.3;",
        '  node [shape=plain, fontname="Helvetica", fontsize=10]; edge [color="#555555", arrowsize=0.6];',
        "  { rank=same;",
        *heads,
        "  }",
    ]
    last = [f"rank{r}" for r in ranks]
    block: list[dict] = []
    for number, row in enumerate(graph["rows"]):
        if row["kind"] == "layer":
            block.append(row)
        elif row["kind"] == "exchange":
            lines += _blocks(block, number, last, colors)
            block = []
            for group in row["groups"]:
                name = f"c{number}_{group[0]}"
                text = f"{escape(row_text(row))}\\n{row['from']} to {row['to']}\\n{_bytes(row, group)}"
                lines.append(f'  {name} [{BOX}, label="{text}"];')
                lines += [f"  {last[r]} -> {name};" for r in group]
                for r in group:
                    last[r] = name
    lines += _blocks(block, len(graph["rows"]), last, colors)
    return "\n".join([*lines, *_gradients(graph, last), "}"])


def _bytes(row: dict, group: list[int]) -> str:
    """Who sends how much, in a few words."""
    texts = {r: cell_text(row, row["cells"][r]) for r in group}
    if len(set(texts.values())) == 1:
        return f"each of ranks {', '.join(map(str, group))} {texts[group[0]]}"
    return "\\n".join(f"rank {r} {text}" for r, text in texts.items())


def _blocks(rows: list[dict], number: int, last: list[str], colors: dict[str, str]) -> list[str]:
    """Consecutive layers as one table for each rank that holds some of them."""
    lines = []
    for r in range(len(last)):
        cells = ""
        for row in rows:
            if row["cells"][r] is not None:
                name = f'<TD BGCOLOR="{lighter(colors[row["name"]])}"><B>{escape(row["name"])}</B></TD>'
                held = f'<TD ALIGN="RIGHT">{cell_text(row, row["cells"][r])}</TD>'
                cells += f"<TR>{name}<TD>{escape(row['placement'])}</TD><TD>{row['shape']}</TD>{held}</TR>"
        if cells:
            node = f"b{number}_{r}"
            lines += [f"  {node} [group=g{r}, label=<{TABLE}{cells}</TABLE>>];", f"  {last[r]} -> {node};"]
            last[r] = node
    return lines


def _gradients(graph: dict, last: list[str]) -> list[str]:
    """The sums of gradients as one node, tied to every rank that takes part."""
    rows = [row for row in graph["rows"] if row["kind"] == "sync"]
    texts = [f"{escape(row_text(row))}: {_bytes(row, group)}" for row in rows for group in row["groups"]]
    if not texts:
        return []
    part = sorted({rank for row in rows for group in row["groups"] for rank in group})
    label = "".join(text + "\\l" for text in texts)  # \l: a line, to the left
    lines = [f'  sync [{BOX}, label="{label}"];']
    return lines + [f"  {last[r]} -> sync [style=dashed, dir=both];" for r in part]


def draw(graph: dict, Figure: type):
    """The same with matplotlib: a row for each layer, a column for each rank, bands for communication."""
    from matplotlib.patches import Rectangle

    rows, columns = graph["rows"], graph["size"]
    colors = layer_colors([row["name"] for row in rows if row["kind"] == "layer"])
    left, wide = -3.6, 1.9
    figure = Figure(figsize=(1.15 * (wide * columns - left), 0.8 + 0.34 * len(rows)))
    axes = figure.subplots()
    axes.set(xlim=(left, wide * columns), ylim=(len(rows) + 0.2, -1.2))
    axes.axis("off")
    axes.set_title(title(graph), loc="left")
    text = {"va": "center", "fontsize": 8}
    for r in range(columns):
        axes.text(wide * (r + 0.5), -0.5, f"rank {r}", ha="center", weight="bold", **text)
    for y, row in enumerate(rows):
        if row["kind"] == "layer":
            axes.text(left, y + 0.5, row["name"], weight="bold", **text)
            style = {"ha": "right", "color": "#555555"} | text
            axes.text(-0.1, y + 0.5, f"{row['placement']}  {row['shape']}", **style)
            color = lighter(colors[row["name"]])
        else:
            color = COMMUNICATION
            axes.text(left, y + 0.5, row_text(row), color=COMMUNICATION, **text)
            for group in row["groups"]:  # a bar that ties the group's cells together
                span = wide * (group[0] + 0.5), wide * (group[-1] + 0.5)
                axes.plot(span, (y + 0.5, y + 0.5), color=COMMUNICATION, linewidth=2, zorder=1)
        for r, cell in enumerate(row["cells"]):
            if cell is not None:
                box = Rectangle((wide * r + 0.05, y + 0.06), wide - 0.1, 0.88, facecolor=color, zorder=2)
                axes.add_patch(box)
                words = cell_text(row, cell)
                axes.text(wide * (r + 0.5), y + 0.5, words, ha="center", color=ink(color), zorder=3, **text)
    return figure
