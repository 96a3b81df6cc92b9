"""What a search can optimise: the metrics of the validation split, each declared once. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from trainer.hyperparameters import nearest
from trainer.metrics import EpochMetrics


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number per epoch: its `name` as users write it, its `label` in tables, and the `field` of EpochMetrics that holds it.

    A share is between 0 and 1, and differences of it are percentage points.
    """

    name: str
    label: str
    field: str
    higher_is_better: bool
    is_share: bool
    meaning: str

    @property
    def title(self) -> str:
        """The label at the beginning of a line."""
        return self.label[0].upper() + self.label[1:]

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """What Optuna calls it."""
        return "maximize" if self.higher_is_better else "minimize"

    def value_of(self, metrics: EpochMetrics) -> float:
        """The epoch's value."""
        return float(getattr(metrics, self.field))

    def merit(self, value: float | None) -> float:
        """A number by which values are compared: the higher, the better, and lowest for what is no number."""
        if value is None or math.isnan(value):
            return -math.inf
        return value if self.higher_is_better else -value

    def is_better(self, value: float | None, other: float | None) -> bool:
        """Whether the one value is truly better than the other; any number is better than none."""
        return self.merit(value) > self.merit(other)

    def best(self, values: Iterable[float]) -> float | None:
        """The best of the values, None where there are none."""
        return max(values, key=self.merit, default=None)

    def best_of(self, epochs: Iterable[EpochMetrics]) -> float | None:
        """The value of the best epoch, None where there is none."""
        return self.best(map(self.value_of, epochs))


ACCURACY = Metric(
    name="accuracy",
    label="accuracy",
    field="val_accuracy",
    higher_is_better=True,
    is_share=True,
    meaning="the share of the images that are classified right",
)
METRICS = {
    known.name: known
    for known in (
        ACCURACY,
        Metric(
            name="macro_f1",
            label="macro-F1",
            field="macro_f1",
            higher_is_better=True,
            is_share=True,
            meaning="the mean of the classes' F1, the harmonic mean of precision and recall",
        ),
        Metric(
            name="balanced_accuracy",
            label="balanced accuracy",
            field="balanced_accuracy",
            higher_is_better=True,
            is_share=True,
            meaning="the mean of the classes' recall: a scarce class counts as much as a frequent one",
        ),
        Metric(
            name="loss",
            label="loss",
            field="val_loss",
            higher_is_better=False,
            is_share=False,
            meaning="the mean loss of an image, lower where the model is sure and right",
        ),
    )
}
"""By name."""


def metric_named(name: str) -> Metric:
    """The metric of this name. Raises ValueError, with the nearest one, when there is none."""
    if name not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, but got {name!r}.{nearest(name, METRICS)}")
    return METRICS[name]
