"""A trial that is being run, and the ways in which it ends. Imports no Ray."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from cluster.goals import Objectives
from cluster.proposals import INFEASIBLE, Proposals, set_constraint
from cluster.rivals import rivals
from cluster.writing import end_trial, report
from trainer.failures import OUT_OF_MEMORY
from trainer.gradients import Gradients
from trainer.hyperparameters import TrialConfig
from trainer.metrics import EpochMetrics, epochs_of, history


class RunningTrial:
    """A trial that is being run, and the ways in which it ends. `number` is its own in the study.

    `known` is what a run before, which may have trained it for some epochs, has left of it; one that is to be kept is never pruned.
    `value` is the one that it has ended with, if it has one.
    """

    def __init__(
        self,
        study: optuna.Study,
        engine: sqlalchemy.Engine,
        trial_id: int,
        number: int,
        config: TrialConfig,
        proposals: Proposals,
        objectives: Objectives,
        known: FrozenTrial | None,
        keep: bool,
    ) -> None:
        self._study, self._engine, self._id, self._keep = study, engine, trial_id, keep
        self.number, self.config, self._proposals = number, config, proposals
        self._objectives, self._goal = objectives, objectives.metric
        self.was_begun = known is not None
        self.epochs = epochs_of(known.user_attrs.get("history", {})) if known else []
        self.fold_values: list[float] = list(known.user_attrs.get("fold_values", ())) if known else []
        self.costs: Mapping[str, float] = known.user_attrs.get("costs", {}) if known else {}
        self._gradients = Gradients.from_json(known.user_attrs.get("gradients", {}) if known else {})
        self._taken: tuple[str, float] | None = None
        self._unwritten: dict[str, Any] = {}
        self._fits = True
        self._final_value: float | None = None
        self.error: str | None = None
        self.value: float | None = None

    @property
    def infeasible(self) -> str | None:
        """Which of the sweep's constraints it does not keep to, as far as is known."""
        return self._objectives.infeasible(self._final_value, self.costs)

    def begin(self, parameters: int, group: str, group_began: float, costs: Mapping[str, float] | None = None) -> bool:
        """Note which worker group has taken it and when, and what is known then; whether one had taken it before in this run.

        Recorded with the next epoch, or the trial's end. Of costs those that were measured first count.
        """
        if costs and not self.costs:
            self.costs = self._unwritten["costs"] = dict(costs)
        before, self._taken = self._taken, (group, group_began)
        if before == self._taken:
            return False
        self._unwritten |= {"parameters": parameters, "group": group, "group_began": group_began}
        return before is not None

    def report(
        self,
        metrics: EpochMetrics,
        train_seconds: float,
        gradients: Gradients | None = None,
        *,
        ends_fold: bool = False,
    ) -> bool:
        """Record an epoch; whether it is new. One that is trained again after a loss takes the place of the epochs from there on.

        Of a cross-validated trial Optuna gets the mean of the folds so far, with their number, whenever one ends.
        The last row of the `gradients` is that epoch's.
        """
        if self.epochs[metrics.epoch - 1 : metrics.epoch] == [metrics]:
            return False
        self.epochs[metrics.epoch - 1 :] = [metrics]
        self._unwritten |= {"history": history(self.epochs), "train_seconds": train_seconds}
        if gradients is not None and gradients.norms:
            self._gradients = self._gradients.then(metrics.epoch, gradients)
            self._unwritten |= {"gradients": self._gradients.to_json()}
        values = {metrics.epoch: self._goal.value_of(metrics)}
        if metrics.fold:
            values = self._note_fold(metrics.fold, ends_fold)
        report(self._engine, self._id, values, self._unwritten)
        self._unwritten = {}
        return True

    def _note_fold(self, fold: int, is_over: bool) -> dict[int, float]:
        """The values of the folds before this one stay, and its own is added when it is over; what Optuna gets to know."""
        best = self._goal.best_of(e for e in self.epochs if e.fold == fold)
        self.fold_values = [*self.fold_values[: fold - 1], *([best] if is_over and best is not None else [])]
        self._unwritten["fold_values"] = self.fold_values
        return {fold: statistics.fmean(self.fold_values)} if is_over else {}

    @property
    def best_value(self) -> float | None:
        """That of its best epoch so far by the sweep's metric; once a fold has ended, the mean of those that have."""
        return statistics.fmean(self.fold_values) if self.fold_values else self._goal.best_of(self.epochs)

    @property
    def last_value(self) -> float | None:
        """That of its last epoch so far; once a fold has ended, the mean of those that have."""
        if self.fold_values:
            return statistics.fmean(self.fold_values)
        return self._goal.value_of(self.epochs[-1]) if self.epochs else None

    def should_prune(self) -> bool:
        """Whether the pruner gives the trial up. Never the preset's: it is what the others are compared with.

        With several goals it is compared with those that cost no more.
        """
        against = rivals(self._study, self._objectives, self.costs)
        return not self._keep and self._study.pruner.prune(against, self._study._storage.get_trial(self._id))

    def complete(self) -> None:
        """It ran to its end; its value is that of its best epoch, whose weights were kept, or the mean of its folds."""
        self._end(TrialState.COMPLETE, self.best_value)

    def prune(self) -> None:
        """It was stopped for its score."""
        self._end(TrialState.PRUNED, self.last_value)

    def refuse(self, reason: str, costs: Mapping[str, float], train_seconds: float) -> None:
        """Its network costs more than the sweep's constraints allow, and is not trained; to find out took so long."""
        self.error, self.costs = reason, dict(costs)
        self._unwritten |= {"costs": self.costs, "train_seconds": train_seconds}
        self._end(TrialState.PRUNED)

    def fail(self, error: str, log: str | None = None, kind: str | None = None) -> None:
        """It could not go on, why, of which kind that is, and the file (host:path) that has more about it."""
        self.error = error
        self._fits = kind != OUT_OF_MEMORY
        if not self._fits:
            optuna.Trial(self._study, self._id).set_constraint(INFEASIBLE, 1.0)
        self._unwritten |= {"error": error} | ({} if log is None else {"log": log})
        self._end(TrialState.FAIL)

    def wait(self) -> None:
        """Nothing was wrong with it, but the sweep stops: it waits for `resume`."""
        self._study._storage.set_trial_state_values(self._id, TrialState.WAITING)

    def _end(self, state: TrialState, value: float | None = None) -> None:
        self._final_value = value if state == TrialState.COMPLETE else None
        if state != TrialState.FAIL and self._objectives.limits:
            self._judge()
        self.value = value
        end_trial(self._engine, self._id, state, value, self._unwritten)
        step = len(self.fold_values) or len(self.epochs)
        self._proposals.ended(self.number, state, value, step, self._fits, self.costs)

    def _judge(self) -> None:
        """Record by how much it keeps to each constraint, and which it does not keep to."""
        for limit, excess in self._objectives.excesses(self._final_value, self.costs).items():
            set_constraint(self._study, self._id, limit, excess)
        if self.infeasible:
            self._unwritten["infeasible"] = self.infeasible
