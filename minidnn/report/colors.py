"""One set of colours for every picture, told apart with any kind of colour vision.

Layers that belong together (conv1, relu1, pool1) share a colour, so that a deep network needs few. The layer
colours are Paul Tol's "muted" set (Colour Schemes, SRON/EPS/TN/09-002, 2021); above nine they are drawn from
cividis, whose lightness rises evenly. Forward is the lighter shade of a layer's colour.
"""

MUTED = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#AA4499", "#882255", "#CC6677",
)  # fmt: skip
CIVIDIS = (
    "#00224E", "#0D2C6C", "#2A3F6D", "#434E6C", "#575D6D", "#696C71", "#7C7B78", "#918B78", "#A59C74",
    "#BBAD6C", "#D2C060", "#E9D34D", "#FEE838",
)  # fmt: skip
STATE_COLORS = {
    "input": "#B8A07E",
    "update": "#6F7F8F",
    "other": "#C9CDD2",
    "exposed": "#D55E00",
    "hidden": "#0072B2",
    "sender_late": "#FFFFFF",
    "receiver_late": "#FFFFFF",
}
HATCHING = "#8A8F98"
HATCHES = {"sender_late": "////", "receiver_late": "\\\\\\\\"}
FOLLOWERS = (
    "relu", "sigmoid", "tanh", "softmax", "norm", "bn", "batchnorm", "pool", "maxpool", "avgpool", "drop",
    "dropout", "flatten", "add",
)  # fmt: skip


def families(layers: list[str]) -> dict[str, str]:
    """For each layer the one whose colour it takes: activations, norms and pools follow the one before."""
    result: dict[str, str] = {}
    leader = ""
    for layer in layers:
        stem = layer.rpartition(".")[2].rstrip("0123456789_").lower()
        if stem not in FOLLOWERS or not leader:
            leader = layer
        result[layer] = leader
    return result


def layer_colors(layers: list[str]) -> dict[str, str]:
    """A colour for each layer, by family."""
    family = families(layers)
    leaders = list(dict.fromkeys(family.values()))
    if len(leaders) <= len(MUTED):
        colors = MUTED
    else:
        places = [round(i * (len(CIVIDIS) - 1) / (len(leaders) - 1)) for i in range(len(leaders))]
        colors = [CIVIDIS[place] for place in places]
    chosen = dict(zip(leaders, colors, strict=False))
    return {layer: chosen[family[layer]] for layer in layers}


def lighter(color: str, share: float = 0.45) -> str:
    """A colour mixed with white: the forward shade."""
    parts = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * share):02X}" for part in parts)


def ink(color: str) -> str:
    """Black or white, whichever reads better on a colour (WCAG 2.1 relative luminance)."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return "#000000" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 else "#FFFFFF"


def part_style(part: str) -> dict:
    """How a part of the step's time is drawn in stacked bars."""
    if part == "compute":
        return {"color": "#44AA99"}
    if part in HATCHES:
        return {"color": "white", "edgecolor": HATCHING, "hatch": HATCHES[part]}
    return {"color": STATE_COLORS[part]}
