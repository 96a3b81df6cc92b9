"""When a training is over: after its epochs or when too many in a row were not better. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.hyperparameters import TrainingConfig
from trainer.metrics import EpochMetrics


def is_over(config: TrainingConfig, history: Sequence[EpochMetrics]) -> bool:
    """Whether nothing comes after the epochs of `history`. It depends on them alone, so all ranks agree."""
    return bool(history) and (history[-1].epoch >= config.epochs or is_out_of_patience(config, history))


def is_out_of_patience(config: TrainingConfig, history: Sequence[EpochMetrics]) -> bool:
    """Whether the last `patience` epochs of `history` were not better than those before them."""
    best, waited = None, 0
    for metrics in history:
        if best is None or is_better(metrics, best):
            best, waited = metrics, 0
        else:
            waited += 1
    return 0 < config.patience <= waited


def is_better(metrics: EpochMetrics, than: EpochMetrics) -> bool:
    """Whether the validation score of one epoch is better than that of another."""
    return metrics.val_accuracy > than.val_accuracy
