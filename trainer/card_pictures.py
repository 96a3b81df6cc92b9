"""The pictures of a model card: the confusion matrix and the reliability diagram, as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.bundle import PICTURES
from trainer.evaluation import Calibration, calibration_of, evaluate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from trainer.loop import Evaluation

MOST_NUMBERED = 20
"""So many classes have a number in each cell, more have colours alone."""
MOST_NAMED = 60


def write(folder: Path, evaluation: Evaluation, classes: tuple[str, ...]) -> None:
    """Write both pictures of a model's logits for a split into the folder."""
    from matplotlib.figure import Figure  # without pyplot: no windows, no state

    confusion, reliability = PICTURES
    side = float(np.clip(3 + 0.4 * len(classes), 5, 16))
    figure = Figure(figsize=(side, side), layout="constrained")
    _draw_confusion(figure.add_subplot(), np.array(evaluate(evaluation).confusion), classes)
    figure.savefig(folder / confusion, dpi=100)
    figure = Figure(figsize=(5, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw_reliability(upper, lower, calibration_of(evaluation))
    figure.savefig(folder / reliability, dpi=100)


def _draw_confusion(axes: Axes, confusion: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    """Rows are the true classes; colours are shares of a row, numbers are images."""
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    places = range(len(classes)) if len(classes) <= MOST_NAMED else ()
    names = [_plain(classes[i]) for i in places]
    axes.set_xticks(places, names, rotation=90 if max(map(len, names), default=0) > 2 else 0, parse_math=False)
    axes.set_yticks(places, names, parse_math=False)
    if len(classes) <= MOST_NUMBERED:
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)


def _draw_reliability(upper: Axes, lower: Axes, calibration: Calibration) -> None:
    """How often the model is right by how sure it is, and below on how many images that rests."""
    edges = np.linspace(0, 1, len(calibration.count) + 1)
    width = edges[1] - edges[0]
    upper.bar(edges[:-1], np.nan_to_num(calibration.accuracy), width, align="edge", edgecolor="white", label="model")
    upper.plot((0, 1), (0, 1), "--", color="gray", label="as sure as it is right")
    upper.set(ylabel="share that is right", ylim=(0, 1), xlim=(0, 1))
    upper.set_title(f"expected calibration error {calibration.error:.4f}", fontsize=10)
    upper.legend(loc="upper left")
    lower.bar(edges[:-1], calibration.count, width, align="edge", edgecolor="white", color="gray")
    lower.set(xlabel="probability of the class that it says", ylabel="images")


def _plain(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
