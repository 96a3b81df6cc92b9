"""How good a model is on a split: accuracy, macro-F1, confusion matrix, calibration; and how fast: latency."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix, f1_score

from trainer.loop import Evaluation
from trainer.model import Classifier


@dataclass(frozen=True)
class Scores:
    """A model's scores on one split of `images` images.

    `confusion[i][j]` counts images of class i that were taken for class j; `calibration_error` is the expected
    calibration error over 15 equal bins of confidence (Guo et al. 2017, arXiv:1706.04599).
    """

    images: int
    loss: float
    accuracy: float
    macro_f1: float
    calibration_error: float
    confusion: list[list[int]]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def evaluate(evaluation: Evaluation) -> Scores:
    """The scores of a model's logits."""
    probabilities = evaluation.logits.softmax(1)
    confidence, predicted = probabilities.max(1)
    labels = evaluation.labels
    classes = list(range(probabilities.shape[1]))
    return Scores(
        images=len(labels),
        loss=F.cross_entropy(evaluation.logits, labels).item(),
        accuracy=(predicted == labels).double().mean().item(),
        macro_f1=float(f1_score(labels, predicted, labels=classes, average="macro", zero_division=0.0)),
        calibration_error=_calibration_error(confidence, predicted == labels),
        confusion=confusion_matrix(labels, predicted, labels=classes).tolist(),
    )


def _calibration_error(confidence: torch.Tensor, correct: torch.Tensor, bins: int = 15) -> float:
    index = (confidence * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, (correct.double() - confidence.double()))
    return (gap.abs().sum() / len(confidence)).item()


def latency_milliseconds(model: Classifier, batch: torch.Tensor, repeats: int = 20) -> float:
    """The median time of one forward pass over `batch` uint8 `(N, C, H, W)`, after three to warm up."""
    model.eval()
    times = []
    with torch.inference_mode():
        for i in range(repeats + 3):
            started = time.perf_counter()
            model(batch)
            if batch.device.type == "cuda":
                torch.cuda.synchronize(batch.device)
            if i >= 3:
                times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)
