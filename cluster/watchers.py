"""Who is told what happens to a sweep's trials, and two who act on it: the keeper of the checkpoints, and who sees that all is in vain."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.pareto import unbeaten
from cluster.running_trial import RunningTrial
from cluster.study import SweepStudy
from trainer.checkpoint import CheckpointStore

HOPELESS_AFTER = 10
"""So many trials that all fail are taken for a mistake in the sweep rather than in the trials."""


class Watcher:
    """Is told what happens to the trials, by the thread that runs the sweep; what does not interest it is left as it is here."""

    def started(self, trial: RunningTrial) -> None:
        """A worker group gets the trial."""

    def reported(self, trial: RunningTrial) -> None:
        """The trial's next epoch is recorded."""

    def begun_again(self, trial: RunningTrial) -> None:
        """The processes that trained the trial died; it goes on after the last epoch that it has."""

    def ended(self, trial: RunningTrial, state: str) -> None:
        """The trial is COMPLETE, PRUNED, FAIL or, when the sweep stops before its end, WAITING."""


class CheckpointKeeper(Watcher):
    """Keeps the checkpoints of the best few trials, with several goals of the front too, and removes the others as trials end."""

    def __init__(self, store: CheckpointStore, keep: int, study: SweepStudy) -> None:
        self._store, self._keep, self._objectives = store, keep, study.config.objectives
        present, trials = set(store.trials()), study.read().trials
        known = (t for t in trials if t.number in present and t.value is not None)
        self._values: dict[int, float | None] = {t.number: t.value for t in known}
        self._points: dict[int, tuple[float, ...]] = {}
        for trial in trials:
            if trial.state == "COMPLETE" and trial.infeasible is None:
                self._note_point(trial.number, trial.value, trial.costs)

    def _note_point(self, number: int, value: float | None, costs: Mapping[str, float]) -> None:
        point = self._objectives.point(value, costs)
        if point is not None and self._objectives.costs:
            self._points[number] = point

    def ended(self, trial: RunningTrial, state: str) -> None:
        """A pruned or failed trial's weights go at once, a complete one's when others are better; none has to go on any more."""
        if state != "WAITING":
            self._store.delete_state(trial.number)
        if state in ("PRUNED", "FAIL"):
            self._store.delete(trial.number)
        elif state == "COMPLETE":
            self._values[trial.number] = trial.best_value
            if trial.infeasible is None:
                self._note_point(trial.number, trial.best_value, trial.costs)
            front = unbeaten(self._points)
            for surplus in self._best_first()[self._keep :]:
                if surplus not in front:
                    del self._values[surplus]
                    self._store.delete(surplus)

    def _best_first(self) -> list[int]:
        merit = self._objectives.metric.merit
        return sorted(self._values, key=lambda number: (-merit(self._values[number]), number))

    def tidy(self, study: SweepStudy) -> None:
        """Once the groups are gone: a group may have saved a trial again after it was given up."""
        waiting = {t.number for t in study.read().trials if t.state == "WAITING"}
        self._store.remove(self._store.surplus(set(self._values), waiting))


class Hopeless(Watcher):
    """Notices that the first trials all failed."""

    def __init__(self) -> None:
        self._errors: list[str] | None = []
        self.reason: str | None = None

    def ended(self, trial: RunningTrial, state: str) -> None:
        """Count failures until the first trial that does not fail."""
        if state == "PRUNED" and trial.error is not None:  # over a limit: that says nothing about training
            return
        if state in ("COMPLETE", "PRUNED"):
            self._errors = None
        elif state == "FAIL" and self._errors is not None:
            self._errors.append(trial.error or "unknown")
            if len(self._errors) >= HOPELESS_AFTER:
                self.reason = f"The first {HOPELESS_AFTER} trials all failed, the last one with: {self._errors[-1].splitlines()[0]}"
