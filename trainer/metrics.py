"""What an epoch gave: the only thing that every part of convsweep says about training. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch gave. Losses are means per image; `val_loss` is without label smoothing or augmentation.

    `macro_f1` and `balanced_accuracy` are of the validation split too; 0 where they were recorded before there were any.
    `learning_rate` is that of the epoch's last step, `seconds` the wall time of training and evaluation, and
    `images_per_second` counts the training alone, over all ranks. `latency` is the milliseconds that a rank takes to
    classify one image of the validation split, in large batches; 0 where nobody has measured it. A training that holds nothing
    out has 0 for `val_loss`, `val_accuracy` and `latency`. Of a cross-validated trial, whose epochs are counted through, `fold` is the
    one that the epoch is of, from 1; of others 0.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    images_per_second: float
    seconds: float
    latency: float = 0.0
    macro_f1: float = 0.0
    balanced_accuracy: float = 0.0
    fold: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain values, without a `fold` that is 0; `EpochMetrics(**values)` is the way back."""
        return {name: value for name, value in asdict(self).items() if name != _FOLD or value}


_FOLD = "fold"


def history(epochs: Sequence[EpochMetrics]) -> dict[str, list[float]]:
    """A list for each field, with a value per epoch: a fraction of the size and of the reading time of a list of epochs.

    Where there are no folds it does not say so of every epoch.
    """
    names = [field.name for field in fields(EpochMetrics) if field.name != _FOLD or any(e.fold for e in epochs)]
    return {name: [getattr(e, name) for e in epochs] for name in names}


def epochs_of(history: Mapping[str, Sequence[float]]) -> list[EpochMetrics]:
    """The epochs that `history` was made of."""
    names: list[str] = list(history)
    rows: Any = zip(*history.values(), strict=True)
    return [EpochMetrics(**dict(zip(names, row, strict=True))) for row in rows]
