"""The picture of `--plot`: how loss and accuracy went, and where each rank's time of a step went."""

from collections.abc import Sequence
from pathlib import Path

from minidnn.pictures import save, styled
from minidnn.report.colors import part_style

STATES = {
    "input": ("input", "input"),
    "compute": ("compute", "compute"),
    "comm": ("communication", "exposed"),
    "wait": ("idle (waiting)", "sender_late"),
    "other": ("other", "other"),
}


def draw_run(history, by_rank: Sequence[Sequence[float]], path: str | Path, title: str = "") -> None:
    """Draw the losses of all steps, the accuracies of all epochs, and stacked bars of time for each rank.

    Parameters
    ----------
    history
        With `losses`, one for each step, and `epochs`, dicts with "step" (the number of steps so far),
        "accuracy", "validation_loss" and "validation_accuracy" (None where there was no validation).
    by_rank
        Milliseconds of a step, (ranks, states), in the states' order input, compute, comm, wait, other.
    path
        .png, .svg or .pdf.
    """
    with styled() as Figure:
        figure = Figure(figsize=(15, 4.2), layout="constrained")
        _panels(figure, history, by_rank)
        figure.suptitle(title)
        save(figure, path, dpi=150)


def _panels(figure, history, by_rank: Sequence[Sequence[float]]) -> None:
    loss, accuracy, time = figure.subplots(1, 3)
    epochs = [{**epoch, "epoch": number} for number, epoch in enumerate(history.epochs, 1)]
    training = {"color": "#332288", "label": "training"}
    validation = {"color": "#D55E00", "label": "validation", "marker": "o"}
    loss.plot(range(1, len(history.losses) + 1), history.losses, linewidth=1, **training)
    _line(loss, epochs, "step", "validation_loss", 1, **validation)
    loss.set(title="Loss", xlabel="step", ylim=(0, None))
    _line(accuracy, epochs, "epoch", "accuracy", 100, marker="s", **training)
    _line(accuracy, epochs, "epoch", "validation_accuracy", 100, **validation)
    accuracy.set(title="Accuracy", xlabel="epoch", ylabel="%", ylim=(0, 102))
    accuracy.xaxis.get_major_locator().set_params(integer=True)
    _stack(time, by_rank)
    for panel in (loss, accuracy):
        panel.legend(frameon=False)
    for panel in (loss, accuracy, time):
        panel.spines[["top", "right"]].set_visible(False)


def _line(axes, epochs: list[dict], x: str, y: str, scale: float, **style) -> None:
    """A line through the epochs that have a value."""
    points = [(epoch[x], scale * epoch[y]) for epoch in epochs if epoch.get(y) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def _stack(axes, by_rank: Sequence[Sequence[float]]) -> None:
    """A bar for each rank, in ms."""
    ranks = [f"rank {rank}" for rank in range(len(by_rank))]
    left = [0.0] * len(ranks)
    for place, (name, part) in enumerate(STATES.values()):
        widths = [float(row[place]) for row in by_rank]
        axes.barh(ranks, widths, left=left, height=0.6, label=name, **part_style(part))
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(title="Where the time of a step went", xlabel="ms")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=3)
