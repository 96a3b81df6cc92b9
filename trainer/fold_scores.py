"""What the folds of a cross-validated trial say together: the value of each, their mean, and how sure that is. Imports no torch."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainer.measuring import METRICS, Metric
from trainer.metrics import EpochMetrics

MOST_FOLDS = 20
CONFIDENCE = 0.95

History = Mapping[str, Sequence[float]]
"""What `trainer.metrics.history` gives."""


@dataclass(frozen=True)
class FoldFigures:
    """A trial's value by `metric` in each fold: that of the fold's best epoch. For a bundle and its card."""

    metric: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the folds."""
        return statistics.fmean(self.values)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"mean": self.mean, "interval": interval(self.values)}

    def __str__(self) -> str:
        return (
            f"{METRICS[self.metric].label} {with_margin(self.mean, self.values)}, the mean of {len(self.values)} folds"
        )


def margin(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the folds' mean by Student's t; None for fewer than two folds.

    It takes the folds for independent. They share most of their training images, so that it is a little too narrow (Bengio and
    Grandvalet 2004, JMLR 5, 1089-1105).
    """
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    return float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * statistics.stdev(values) / math.sqrt(len(values))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The mean less and plus its `margin`."""
    half = margin(values)
    return None if half is None else (statistics.fmean(values) - half, statistics.fmean(values) + half)


def with_margin(value: float, values: Sequence[float]) -> str:
    """Such as '0.9876 ± 0.0021'; without folds, or with one, '0.9876'."""
    half = margin(values)
    return f"{value:.4f}" if half is None else f"{value:.4f} ± {half:.4f}"


def epochs_of_fold(epochs: Iterable[EpochMetrics], fold: int) -> list[EpochMetrics]:
    """The fold's epochs, numbered from 1."""
    return [replace(e, epoch=number) for number, e in enumerate((e for e in epochs if e.fold == fold), 1)]


def numbered_by_fold(history: History) -> list[int]:
    """For each epoch of a history its number in its fold; where there are no folds, its own."""
    done: dict[float, int] = defaultdict(int)
    numbers = []
    for fold in history.get("fold") or [0] * len(history.get("epoch", ())):
        done[fold] += 1
        numbers.append(done[fold])
    return numbers


def averaged(history: History) -> History:
    """The folds as one training: each epoch has the means of the folds that got so far. A history without folds is given back."""
    if "fold" not in history:
        return history
    places: dict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(numbered_by_fold(history)):
        places[number].append(place)
    means = {
        name: [statistics.fmean(values[place] for place in places[number]) for number in places]
        for name, values in history.items()
        if name not in ("epoch", "fold")
    }
    return {"epoch": [*places], **means}


def best_by_fold(history: History, goal: Metric) -> list[float]:
    """The value of each fold's best epoch, in the folds' order; empty for a history without folds, or without the metric."""
    found: dict[float, list[float]] = defaultdict(list)
    for fold, value in zip(history.get("fold", ()), history.get(goal.field, ()), strict=False):
        found[fold].append(value)
    return [max(values, key=goal.merit) for values in found.values()]
