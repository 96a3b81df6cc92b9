"""When a training is over: after its epochs or when too many in a row were not better. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.hyperparameters import TrainingConfig
from trainer.measuring import Metric
from trainer.metrics import EpochMetrics


def is_over(config: TrainingConfig, history: Sequence[EpochMetrics], goal: Metric | None) -> bool:
    """Whether nothing comes after the epochs of `history`. It depends on them alone, so all ranks agree.

    Without a `goal` nothing was scored, and only the number of epochs counts.
    """
    if not history:
        return False
    return history[-1].epoch >= config.epochs or (goal is not None and is_out_of_patience(config, history, goal))


def is_out_of_patience(config: TrainingConfig, history: Sequence[EpochMetrics], goal: Metric) -> bool:
    """Whether the last `patience` epochs of `history` were not better by the `goal` than those before them."""
    best: float | None = None
    waited = 0
    for value in map(goal.value_of, history):
        waited = 0 if goal.is_better(value, best) else waited + 1
        best = goal.best([value] if best is None else [best, value])
    return 0 < config.patience <= waited
