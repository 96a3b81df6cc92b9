"""The winner of a cross-validated sweep, trained once more on all images but the test split's: the model that is exported."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from cluster.config import SweepConfig
from cluster.connection import Cluster
from cluster.experiments import Experiments
from cluster.finals import Final, train_finals
from cluster.record import SweepRecord
from trainer.hyperparameters import unflatten


def winner(sweep: SweepRecord) -> Final | None:
    """What is to be trained on everything: the best trial's configuration; None without folds, or without a complete trial."""
    if sweep.config.folds == 1 or sweep.best is None:
        return None
    number = sweep.best.number
    return Final(number, f"trial {number} on all images", unflatten(sweep.best.config))


def lacks_winner(sweep: SweepRecord, experiments: Experiments) -> bool:
    """Whether the winner's training on everything is still to come."""
    final = winner(sweep)
    return final is not None and experiments.winner(sweep.name).configuration(final.key) != final.config


def train_winner(
    sweep: SweepRecord, config: SweepConfig, cluster: Cluster, experiments: Experiments, should_stop: Callable[[], bool]
) -> str | None:
    """Train it, unless it is there or `should_stop()` says so, in place of an earlier winner; why it failed, if it did.

    Raises as `train_finals`.
    """
    final = winner(sweep)
    if final is None:
        return None
    store = experiments.winner(sweep.name)
    trained = train_finals([final], config, store, experiments, lambda: contextlib.nullcontext(cluster), should_stop)
    if final.key in trained.done:
        for number in store.trials():
            if number != final.key:
                store.delete(number)
    cause = trained.failures.get(final.key)
    return cause and f"The training of trial {final.key} on all images failed, which `resume` tries again: {cause}"
