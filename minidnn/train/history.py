"""Losses, accuracies and times of the epochs of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class History:
    """What the epochs came to.

    Attributes
    ----------
    losses : list of float
        Of every step.
    epochs : list of dict
        step (the number of steps so far), loss, accuracy, validation_loss, validation_accuracy, seconds,
        images_per_second.
    """

    losses: list[float] = field(default_factory=list)
    epochs: list[dict] = field(default_factory=list)

    def add(
        self,
        losses: Sequence[float],
        accuracy: float,
        validation: tuple[float, float] | None,
        seconds: float,
        images: int,
    ) -> None:
        """Add an epoch."""
        self.losses += losses
        self.epochs.append(
            {
                "step": len(self.losses),
                "loss": float(np.mean(losses)),
                "accuracy": accuracy,
                "validation_loss": validation[0] if validation else None,
                "validation_accuracy": validation[1] if validation else None,
                "seconds": seconds,
                "images_per_second": images / seconds,
            }
        )

    def line(self, epoch: int) -> str:
        """One line about an epoch."""
        e = self.epochs[epoch]
        text = f"epoch {epoch + 1}: loss {e['loss']:.4f}, accuracy {100 * e['accuracy']:.1f} %"
        if e["validation_loss"] is not None:
            text += f"; validation loss {e['validation_loss']:.4f}, accuracy {100 * e['validation_accuracy']:.1f} %"
        return f"{text}; {e['seconds']:.1f} s, {e['images_per_second']:.0f} images/s"

    def closing(self) -> str:
        """The last validation accuracy, or the training one where there is no validation."""
        e = self.epochs[-1]
        if e["validation_accuracy"] is None:
            return f"training accuracy {100 * e['accuracy']:.1f} % (no validation)"
        return f"validation accuracy {100 * e['validation_accuracy']:.1f} %"

    def plot(self, path: str, by_rank: np.ndarray, title: str) -> None:
        """Draw the curves and, for each rank, where a step's time went; see `minidnn.report.curves`."""
        from ..report.curves import draw_run

        draw_run(self, by_rank, path, title)
