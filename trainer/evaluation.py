"""How good a model is on a split: accuracy, macro-F1, confusion matrix, calibration."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trainer.loop import Evaluation

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Scores:
    """A model's scores on one split of `images` images; loss, accuracy and macro-F1 are those of `EpochScores`.

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


@dataclass(frozen=True)
class EpochScores:
    """A model's scores on the validation split after an epoch. A class without images has no part in them, but for its macro-F1
    where images were taken for it.
    """

    loss: float
    accuracy: float
    macro_f1: float
    balanced_accuracy: float


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Each class's scores: float64 `(classes,)`, and `support`, int64 `(classes,)`, the images of the class.

    What has no value by its formula is 0: the precision of a class that was never predicted, the recall and F1 of one
    without images.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Calibration:
    """How often the model is right where it is how sure, in 15 equal bins of its confidence between 0 and 1.

    `confidence` and `accuracy`, float64 `(15,)`, are the means over a bin's images, NaN in a bin without any; `count`,
    int64 `(15,)`, is how many images it has.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean over all images of what accuracy and confidence of their bin differ by."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.average(np.where(self.count > 0, gaps, 0.0), weights=self.count))


def evaluate(evaluation: Evaluation) -> Scores:
    """The scores of a model's logits."""
    import torch.nn.functional as F
    from sklearn.metrics import confusion_matrix

    predicted, labels = evaluation.logits.argmax(1), evaluation.labels
    classes = list(range(evaluation.logits.shape[1]))
    confusion = confusion_matrix(labels, predicted, labels=classes)
    found = epoch_scores(F.cross_entropy(evaluation.logits, labels).item(), confusion)
    return Scores(
        images=len(labels),
        loss=found.loss,
        accuracy=found.accuracy,
        macro_f1=found.macro_f1,
        calibration_error=calibration_of(evaluation).error,
        confusion=confusion.tolist(),
    )


def calibration_of(evaluation: Evaluation) -> Calibration:
    """The calibration of a model's logits."""
    confidence, predicted = evaluation.logits.softmax(1).max(1)
    return calibrate(confidence.numpy(), (predicted == evaluation.labels).numpy())


def class_scores(confusion: NDArray[np.int64]) -> ClassScores:
    """The classes' scores from the confusion matrix `(classes, classes)`: rows are true, columns predicted classes."""
    hits, support, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return ClassScores(
        precision=hits / np.maximum(predicted, 1),  # without predictions there are no hits either
        recall=hits / np.maximum(support, 1),
        f1=2 * hits / np.maximum(support + predicted, 1),
        support=support,
    )


def epoch_scores(loss: float, confusion: NDArray[np.int64]) -> EpochScores:
    """The scores from the mean loss and the confusion matrix `(classes, classes)`, as scikit-learn has them."""
    classes, predicted = class_scores(confusion), confusion.sum(0)
    return EpochScores(
        loss=loss,
        accuracy=float(confusion.trace() / confusion.sum()),
        macro_f1=float(classes.f1[(classes.support + predicted) > 0].mean()),
        balanced_accuracy=float(classes.recall[classes.support > 0].mean()),
    )


def calibrate(confidence: NDArray[np.float32], correct: NDArray[np.bool_]) -> Calibration:
    """The calibration of predictions: the probability of each, `(N,)`, and whether it was right, `(N,)`."""
    index = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    count = np.bincount(index, minlength=CALIBRATION_BINS)

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        sums = np.bincount(index, weights=values, minlength=CALIBRATION_BINS)
        return np.where(count > 0, sums / np.maximum(count, 1), np.nan)

    return Calibration(mean(confidence), mean(correct), count)
