"""The study as Tune's searcher and Tune's scheduler: Tune runs the trials, the study decides.

Tune's own OptunaSearch is not used: it tells pruned trials as COMPLETE, leaves trials without a number RUNNING and keeps no
pruner state over a restart.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ray.tune import Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cluster.budget import Spent
from cluster.config import SweepConfig
from cluster.lean_tune import keep_actors
from cluster.running_trial import RunningTrial
from cluster.study import SweepStudy
from cluster.watchers import Watcher
from trainer.failures import NO_GROUP, OVER_LIMIT, STORAGE
from trainer.mailbox import Assignment, Report

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial


class Trials:
    """The trials in flight, between the study and Tune; knows when the sweep has enough of them.

    No new trial is asked for once it `is_over` before it has all: by default, once its budget is spent.
    """

    def __init__(
        self,
        study: SweepStudy,
        config: SweepConfig,
        groups: Callable[[], int],
        mailbox: Any,
        checkpoints: str,
        should_stop: Callable[[], bool],
        watchers: Sequence[Watcher],
        is_ours: Callable[[], bool] = lambda: True,
        is_over: Callable[[], bool] | None = None,
    ) -> None:
        self._study, self._config, self._groups = study, config, groups
        self._mailbox, self._checkpoints = mailbox, checkpoints
        self._told_to_stop, self._watchers, self._is_ours = should_stop, watchers, is_ours
        self._costing = config.objectives.costing
        self._begun = time.time()
        self._is_over = is_over or Spent(config.budget, study.spent()).is_over
        self.broken: str | None = None
        self._posted: deque[RunningTrial] = deque()
        self._running: dict[str, RunningTrial] = {}
        self._finished, self._waiting, self._asked = study.finished_count(), 0, 0
        self._first_report, self._is_complete = True, False

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Tune pickles its searcher and its stopper for a restore of its own, which is not used."""
        return str, ("the study is the record",)

    def should_stop(self) -> bool:
        """Whether the sweep is to end now: somebody says so, or it is `broken`, for a reason that no trial is to blame for."""
        return self.broken is not None or self._told_to_stop()

    def prepare(self) -> None:
        """Ask for the first trials and hand them in: the groups begin with them as soon as they are up."""
        self._fill()

    @property
    def has_room(self) -> bool:
        """Whether a group is there for one more trial."""
        return len(self._running) < self._groups()

    def next(self, tune_id: str) -> RunningTrial | None:
        """The trial whose reports Tune is to follow next, or None when there are no more."""
        if not self._posted:
            self._ask()
        if not self._posted or self.should_stop():
            return None
        trial = self._running[tune_id] = self._posted.popleft()
        self._tell(lambda watcher: watcher.started(trial))
        self._fill()
        return trial

    def _fill(self) -> None:
        """Ask for trials ahead of their time, one per group: a group that is through with one finds the next at once."""
        while len(self._posted) < self._groups() and self._ask():
            pass

    def _ask(self) -> bool:
        if self._enough() or self.should_stop():
            if not self._is_complete:
                self._mailbox.no_more.remote(self._asked)
                self._is_complete = True
            return False
        trial = self._study.ask()
        self._asked += 1
        self._posted.append(trial)
        assignment = Assignment(
            trial.number,
            trial.config,
            self._config.data,
            self._checkpoints,
            trial.was_begun,
            self._config.max_retries,
            self._config.epoch_timeout,
            self._config.metric,
            folds=self._config.folds,
            costing=self._costing,
        )
        self._mailbox.post.remote(assignment)
        return True

    def _enough(self) -> bool:
        asked = self._finished + len(self._running) + len(self._posted)
        full = self._config.trials is not None and asked >= self._config.trials
        return full or (self._asked >= self._study.unfinished and self._is_over())

    def left(self) -> bool:
        """Whether the sweep was stopped before its end: trials are unfinished, or more were to come."""
        return bool(self._running or self._posted or self._waiting) or (self.should_stop() and not self._enough())

    def is_running(self, tune_id: str) -> bool:
        """Whether the trial is not over yet."""
        return tune_id in self._running

    def report(self, tune_id: str, report: Report) -> bool:
        """Record what a worker group says; whether the trial goes on. Another process's sweep is left alone."""
        if not self._is_ours():
            return False
        trial = self._running[tune_id]
        if report.kind in (STORAGE, NO_GROUP):
            self.broken = f"{report.error} Trial {trial.number} waits, and nothing that was finished is lost."
            self._end(tune_id, "WAITING", trial.wait)
            return False
        is_new = False
        if report.metrics is not None:
            if trial.begin(report.parameters, report.group, report.begun_at - report.earlier, report.costs):
                self._tell(lambda watcher: watcher.begun_again(trial))
            is_new = trial.report(report.metrics, report.seconds, report.gradients, ends_fold=report.ends_fold)
        if self._first_report:
            self._study.note_startup(report.begun_at - self._begun)
            self._first_report = False
        if is_new:
            self._tell(lambda watcher: watcher.reported(trial))
        if report.error is not None and report.kind == OVER_LIMIT:
            error = report.error
            trial.begin(report.parameters, report.group, report.begun_at - report.earlier, report.costs)
            self._end(tune_id, "PRUNED", lambda: trial.refuse(error, report.costs, report.seconds))
        elif report.error is not None:
            error = report.error
            self._end(tune_id, "FAIL", lambda: trial.fail(error, report.log, report.kind))
        elif report.done:
            self._end(tune_id, "COMPLETE", trial.complete)
        elif is_new and (self._config.folds == 1 or report.ends_fold) and trial.should_prune():
            self._mailbox.stop.remote(trial.number)
            self._end(tune_id, "PRUNED", trial.prune)
        return tune_id in self._running

    def lost(self, tune_id: str, cause: str) -> None:
        """Nobody reads the trial's reports any more, or nobody makes them."""
        if tune_id in self._running and self._is_ours():
            self._mailbox.stop.remote(self._running[tune_id].number)
            self._end(tune_id, "FAIL", lambda: self._running[tune_id].fail(cause or "It was lost."))

    def stop(self, tune_id: str) -> None:
        """Tune ends a trial that is not over, because the sweep stops."""
        if not self._is_ours():
            self._waiting += self._running.pop(tune_id, None) is not None
        elif tune_id in self._running:
            self._end(tune_id, "WAITING", self._running[tune_id].wait)

    def _end(self, tune_id: str, state: str, tell: Callable[[], None]) -> None:
        tell()
        trial = self._running.pop(tune_id)
        self._waiting += state == "WAITING"
        self._finished += state != "WAITING"
        self._tell(lambda watcher: watcher.ended(trial, state))

    def _tell(self, what: Callable[[Watcher], None]) -> None:
        for watcher in self._watchers:
            what(watcher)


class StudySearcher(Searcher):
    """Tune asks here for configurations."""

    def __init__(self, trials: Trials) -> None:
        super().__init__()
        self._trials = trials

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial's configuration as Tune's trainable takes it; None as long as there is no group for it."""
        if not self._trials.has_room and not self._trials.should_stop():
            return None
        trial = self._trials.next(trial_id)
        return Searcher.FINISHED if trial is None else {"trial": trial.number}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune has ended the trial; if the study does not know yet, the sweep is stopping."""
        self._trials.stop(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is the record."""


class StudyScheduler(FIFOScheduler):
    """Tune asks here whether a trial goes on."""

    def __init__(self, trials: Trials) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trials, self._is_first = trials, True

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """With the first trial the controller shows itself."""
        if self._is_first:
            keep_actors(tune_controller)
            self._is_first = False

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Record the epoch; stop the trial when the study prunes it."""
        goes_on = self._trials.report(trial.trial_id, result["report"])
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        """Record a last epoch, which Tune does not pass through `on_trial_result`; a trial that was stopped has none."""
        if self._trials.is_running(trial.trial_id):
            self._trials.report(trial.trial_id, result["report"])

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """The actor that reads the trial's reports is lost. Tune starts another, which reads them anew, but not for ever."""
        if trial.should_recover():  # type: ignore[no-untyped-call]
            return
        error = trial.get_pickled_error()
        self._trials.lost(trial.trial_id, str(error).strip() if error else "Its actor was lost.")


class SweepStopper(Stopper):
    """Tune asks here whether to end everything."""

    def __init__(self, trials: Trials) -> None:
        self._trials = trials

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never one trial alone: that is the scheduler's."""
        return False

    def stop_all(self) -> bool:
        """Whether the sweep is to stop before its end."""
        return self._trials.should_stop()
