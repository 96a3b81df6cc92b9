"""A trial's analysis as tables and captions. Pure functions: no Streamlit, no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dashboard import pictures
from trainer.analysis import Analysis, Pictures
from trainer.evaluation import CALIBRATION_BINS, Calibration

MOST_CLASSES = 100
"""How many classes a confusion matrix shows at most."""

MOST_PAIRS = 20


def confusion_cells(analysis: Analysis, as_share: bool) -> pd.DataFrame:
    """A row per cell of the confusion matrix: true, predicted, count, share (of the true class), kind, strength, text.

    `kind` is right, wrong or none, `strength` how opaque the cell is, 0 to 1: the strongest mistake as much as the surest
    class. Of more than 100 classes it has those with the most mistakes.
    """
    counts = analysis.confusion
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    chosen = most_confused(analysis)
    counts, shares = counts[np.ix_(chosen, chosen)], shares[np.ix_(chosen, chosen)]
    right = np.eye(len(chosen), dtype=bool)
    worst = shares[~right].max(initial=0.0) or 1.0
    strength = np.where(right, 0.15 + 0.8 * shares, np.where(counts > 0, 0.18 + 0.77 * shares / worst, 0.05))
    kind = np.where(right, "right", np.where(counts > 0, "wrong", "none"))
    names = np.array(analysis.classes, dtype=object)[chosen]
    rows, columns = np.indices(counts.shape)
    texts = [
        f"{100 * share:.0f}" if as_share else f"{count}" for count, share in zip(counts.flat, shares.flat, strict=True)
    ]
    cells = pd.DataFrame(
        {
            "true": names[rows.ravel()],
            "predicted": names[columns.ravel()],
            "count": counts.ravel(),
            "share": shares.ravel(),
            "kind": kind.ravel(),
            "strength": strength.ravel(),
            "text": texts,
        }
    )
    cells.loc[cells["kind"] == "none", "text"] = ""
    # Empty cells make the grid of a small matrix; a large one is drawn quicker without.
    return cells if len(chosen) <= 20 else cells[cells["kind"] != "none"].reset_index(drop=True)


def most_confused(analysis: Analysis) -> NDArray[np.int64]:
    """The classes that a confusion matrix has room for, in their order: all, or the 100 with the most mistakes."""
    counts = analysis.confusion
    wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    return np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])


def confused_pairs(analysis: Analysis) -> pd.DataFrame:
    """The commonest mistakes, at most 20, the commonest first: true, taken for, images, share (of the true class, percent)."""
    counts = analysis.confusion
    wrong = counts - np.diag(counts.diagonal())
    shares = 100 * wrong / np.maximum(counts.sum(1, keepdims=True), 1)
    order = np.lexsort((-shares.ravel(), -wrong.ravel()))[:MOST_PAIRS]
    true, predicted = np.unravel_index(order[wrong.flat[order] > 0], counts.shape)
    names = analysis.classes
    return pd.DataFrame(
        {
            "true": [names[i] for i in true],
            "taken for": [names[i] for i in predicted],
            "images": counts[true, predicted],
            "share": shares[true, predicted],
        }
    )


def class_table(analysis: Analysis) -> pd.DataFrame:
    """A row per class: class, precision, recall, F1, images."""
    scores = analysis.per_class
    columns = {"precision": scores.precision, "recall": scores.recall, "F1": scores.f1, "images": scores.support}
    return pd.DataFrame({"class": list(analysis.classes), **columns})


def calibration_bins(calibration: Calibration) -> pd.DataFrame:
    """A row per bin with images: begin and end (of the confidence), confidence, accuracy, images, gap (accuracy minus confidence)."""
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = pd.DataFrame(
        {
            "begin": edges[:-1],
            "end": edges[1:],
            "confidence": calibration.confidence,
            "accuracy": calibration.accuracy,
            "images": calibration.count,
            "gap": calibration.accuracy - calibration.confidence,
        }
    )
    return bins[bins["images"] > 0].reset_index(drop=True)


def scores_in_short(analysis: Analysis) -> str:
    """The scores on the validation split in one line."""
    scores = analysis.scores
    return (
        f"{scores.images:,} images of the validation split · accuracy {scores.accuracy:.4f} · macro-F1 {scores.macro_f1:.4f} · "
        f"loss {scores.loss:.4f} · calibration error {scores.calibration_error:.4f}"
    )


def caption(analysis: Analysis, pictures: Pictures, i: int) -> str:
    """What the model makes of a picture: '7 taken for 1 (0.98)', or '7 (0.99)' where it is right."""
    true, predicted = analysis.classes[pictures.labels[i]], analysis.classes[pictures.predicted[i]]
    taken = true if pictures.labels[i] == pictures.predicted[i] else f"{true} taken for {predicted}"
    return f"{taken} ({pictures.probability[i]:.2f})"


def heat_caption(name: str, probability: float, heat: NDArray[np.float32]) -> str:
    """What a heat map shows: 'speaks for 7 (0.98)', with the probability that the class has."""
    what = "speaks" if heat.any() else "nothing speaks"
    return f"{what} for {name} ({probability:.2f})"


def picture_table(analysis: Analysis, chosen: Pictures) -> pd.DataFrame:
    """A row per picture: picture (as a URL), class ('cat → frog' for a cat that was taken for a frog)."""
    pairs = zip(chosen.labels, chosen.predicted, strict=True)
    names = [" → ".join(dict.fromkeys(analysis.classes[label] for label in pair)) for pair in pairs]
    return pd.DataFrame({"picture": [pictures.data_url(image) for image in chosen.images], "class": names})


def kernel_heading(kernels: NDArray[np.float32]) -> str:
    """How many kernels there are, and how large, in Markdown."""
    filters, _, height, width = kernels.shape
    shown = f", the first {pictures.MOST_FILTERS} of them" if filters > pictures.MOST_FILTERS else ""
    return f"**{filters} kernels of {height}×{width}** in the first layer{shown}"


def kernel_caption(kernels: NDArray[np.float32]) -> str:
    """What the colours of kernels and answers mean."""
    if kernels.shape[1] == 3:
        return "In the colours that they answer to, gray being none. Answers: red where the kernel fits, blue where its opposite does."
    return "Weights: red positive, blue negative, white zero. Answers: red where the kernel fits, blue where its opposite does."


def probability_table(
    classes: Sequence[str], probabilities: NDArray[np.float32], label: int, most: int = 5
) -> pd.DataFrame:
    """The likeliest classes, the likeliest first: class, probability, and whether it is the `true` one."""
    order = np.argsort(-probabilities, kind="stable")[:most]
    return pd.DataFrame(
        {
            "class": [classes[i] for i in order],
            "probability": probabilities[order],
            "true": [int(i) == label for i in order],
        }
    )
