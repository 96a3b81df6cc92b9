"""Run a sweep: start, resume and extend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
import sqlalchemy

from cluster.config import SweepConfig
from cluster.connection import Cluster, connect
from cluster.experiments import Experiments
from cluster.interruption import Stop, interruptible
from cluster.lease import Lease
from cluster.plan import Plan
from cluster.progress import Progress, say_skipped
from cluster.record import SweepRecord
from cluster.studies import Studies
from cluster.study import RunningTrial, SweepStudy
from cluster.winner import lacks_winner, train_winner
from trainer.checkpoint import CheckpointStore
from trainer.data import OnProgress, load_data
from trainer.folds import check_folds

HOPELESS_AFTER = 10
"""So many trials that all fail are taken for a mistake in the sweep rather than in the trials."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: FINISHED, INTERRUPTED or FAILED, and if there is more to say about it, why."""

    sweep: SweepRecord
    state: str
    reason: str | None = None


def start(
    config: SweepConfig, experiments: Experiments, address: str | None, on_progress: OnProgress | None
) -> Outcome:
    """A new sweep. Everything is checked before anything is written; raises ValueError for what cannot be run."""
    if config.name in Studies(experiments).names():
        Studies(experiments, create=True).create(config, ())  # raises: the name is taken
    experiments.check()
    data = load_data(config.data, on_progress)
    say_skipped(data.skipped)
    check_folds(data, config.folds)
    with connect(address) as cluster:
        plan = cluster.plan(config.shape, config.trials or 1_000_000)
        study, stop = Studies(experiments, create=True).create(config, data.classes, data.image_shape), Stop()
        with (
            study.lease(takeover=False, on_lost=stop.because) as lease,
            interruptible(stop.event),
            _database_may_go(config.name),
        ):
            return _run(study, lease, stop, config, cluster, plan, experiments)


def resume(
    name: str,
    experiments: Experiments,
    address: str | None,
    on_progress: OnProgress | None,
    takeover: bool = False,
) -> Outcome:
    """Go on with a sweep that was interrupted. A finished one is left as it is.

    Raises LeaseHeldError when another process runs it.
    """
    return _go_on(name, lambda study: study.config, experiments, address, on_progress, takeover)


@dataclass(frozen=True)
class More:
    """What a sweep is to get on top: `trials`, seconds of `time`, and another `space` for what is yet to be proposed."""

    trials: int | None = None
    time: float | None = None
    space: Mapping[str, Any] = field(default_factory=dict)

    def of(self, study: SweepStudy) -> SweepConfig:
        """The sweep with that. Raises ValueError for what makes no sense."""
        config = study.config
        if self.trials is None and self.time is None:
            raise ValueError("Say what the sweep is to get more of: --trials, --time-budget or both.")
        if self.trials is not None and self.trials < 1:
            raise ValueError(f"trials must be at least 1, but got {self.trials}.")
        if config.sampler == "grid" and self.space:
            raise ValueError(
                "The order of a grid's trials depends on its space: start another sweep for another space."
            )
        trials = None if self.trials is None else (config.trials or study.finished_count()) + self.trials
        if config.sampler == "grid" and trials is not None:
            trials = min(trials, config.grid_trials())
            if trials == config.trials:
                raise ValueError(f"All {trials} trials of the grid of sweep {study.name!r} are there already.")
        budget = None if self.time is None else study.seconds_run() + self.time
        return replace(config, trials=trials, time_budget=budget, space={**config.space, **self.space})


def extend(
    name: str,
    more: More,
    experiments: Experiments,
    address: str | None,
    on_progress: OnProgress | None,
    takeover: bool = False,
) -> Outcome:
    """Give a sweep more trials or time, and run them. Raises ValueError for what makes no sense, LeaseHeldError as `resume`."""
    return _go_on(name, more.of, experiments, address, on_progress, takeover)


def _go_on(
    name: str,
    how: Callable[[SweepStudy], SweepConfig],
    experiments: Experiments,
    address: str | None,
    on_progress: OnProgress | None,
    takeover: bool,
) -> Outcome:
    study, stop = Studies(experiments).open(name), Stop()
    with study.lease(takeover, on_lost=stop.because) as lease:
        if lease.before is not None:
            study.close_lost_run(ended=lease.before.beat)
        config, experiments = how(study), experiments.of(study.read().storage_path)
        if _is_done(study, config) and lacks_winner(study.read(), experiments):
            load_data(config.data, on_progress)
            with connect(address) as cluster, interruptible(stop.event), _database_may_go(config.name):
                return _run_winner(study, lease, stop, config, cluster, experiments)
        if _is_done(study, config):
            if study.state != "FINISHED":  # whoever ran it was killed after its last trial
                _end_run(study, "FINISHED", _keeper(study, config, experiments), experiments)
            return Outcome(study.read(), "FINISHED", "There is nothing left to do.")
        load_data(config.data, on_progress)
        with connect(address) as cluster:
            plan = cluster.plan(config.shape, (config.trials or 1_000_000) - study.finished_count())
            study.save_config(config)  # not before: what is refused leaves the record as it is
            if config.sampler == "grid":
                study.enqueue_grid(config)
            with interruptible(stop.event), _database_may_go(config.name):
                return _run(study, lease, stop, config, cluster, plan, experiments)


def _is_done(study: SweepStudy, config: SweepConfig) -> bool:
    """Whether the sweep has all that it was to have."""
    has_all = config.trials is not None and study.finished_count() >= config.trials
    return has_all or (study.state == "FINISHED" and config == study.config)


def _run(
    study: SweepStudy,
    lease: Lease,
    stop: Stop,
    config: SweepConfig,
    cluster: Cluster,
    plan: Plan,
    experiments: Experiments,
) -> Outcome:
    """Run trials until there are enough, the time is up or somebody stops it; the study tells the truth afterwards."""
    from ray import tune

    from cluster.lean_train import this_node
    from cluster.search import StudyScheduler, StudySearcher, SweepStopper, Trials, Watcher
    from cluster.worker_group import TrialReader, WorkerGroups

    keeper = _keeper(study, config, experiments)
    hopeless = _Hopeless()
    progress = Progress(config, plan, study)
    watchers: list[Watcher] = [keeper, hopeless, progress]

    state = "INTERRUPTED"
    study.begin_run(config, plan.groups)
    groups = WorkerGroups(plan, experiments.groups_uri(config.name), cluster, progress.say)
    mailbox = groups.mailbox
    trials = Trials(
        study,
        config,
        groups.count,
        mailbox,
        experiments.checkpoints_uri(config.name),
        should_stop=lambda: stop.event.is_set() or hopeless.reason is not None,
        watchers=watchers,
        is_ours=lambda: lease.is_mine,
    )

    # One byte: a CPU of the actor that Tune sees would be missing to the ranks. Here: no node that goes takes it along.
    reader = tune.PlacementGroupFactory([{"memory": 1.0}], bundle_label_selector=[this_node()])
    try:
        with progress:
            tuner = tune.Tuner(
                # Not in the configurations: Tune copies those several times, and a handle takes 50 kB.
                tune.with_resources(tune.with_parameters(TrialReader, mailbox=mailbox), reader),
                tune_config=tune.TuneConfig(
                    search_alg=StudySearcher(trials),
                    scheduler=StudyScheduler(trials),
                    num_samples=-1,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name=config.name,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a reader has nothing to save
                    storage_path=str(experiments.tune_folder(config.name)),
                    verbose=0,
                    stop=SweepStopper(trials),
                    failure_config=tune.FailureConfig(max_failures=config.max_retries),
                ),
            )
            with groups:
                trials.prepare()
                groups.wait_until_up(trials.should_stop)
                if not trials.should_stop():
                    tuner.fit()
        reason = hopeless.reason or trials.broken
        state = "FAILED" if reason else "INTERRUPTED" if trials.left() else "FINISHED"
        if state == "FINISHED" and config.folds > 1:
            state, reason = _crown(study, config, cluster, experiments, stop)
    except Exception:
        state = "FAILED"
        raise
    finally:
        if lease.is_mine:  # else the trials are those of whoever has it
            _end_run(study, state, keeper, experiments)
    return Outcome(study.read(), state, reason or stop.reason)


def _end_run(study: SweepStudy, state: str, keeper: _CheckpointKeeper, experiments: Experiments) -> None:
    study.end_run(state)
    keeper.tidy(study)
    experiments.remove_ray_files(study.name)


def _run_winner(
    study: SweepStudy, lease: Lease, stop: Stop, config: SweepConfig, cluster: Cluster, experiments: Experiments
) -> Outcome:
    """A run of a sweep that has all its trials, but not yet the best configuration trained on everything."""
    state = "FAILED"
    study.begin_run(config, study.read().timing.groups)
    try:
        state, reason = _crown(study, config, cluster, experiments, stop)
    finally:
        if lease.is_mine:
            _end_run(study, state, _keeper(study, config, experiments), experiments)
    return Outcome(study.read(), state, reason or stop.reason)


def _crown(
    study: SweepStudy, config: SweepConfig, cluster: Cluster, experiments: Experiments, stop: Stop
) -> tuple[str, str | None]:
    """What the sweep still needs once its trials are over; its state then, and why if that is FAILED."""
    failure = train_winner(study.read(), config, cluster, experiments, stop.event.is_set)
    if failure:
        return "FAILED", failure
    return ("INTERRUPTED" if lacks_winner(study.read(), experiments) else "FINISHED"), None


@contextlib.contextmanager
def _database_may_go(sweep: str) -> Iterator[None]:
    """Raises OSError, with what to do then, when the study database cannot be used any more."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise OSError(
            f"The study database cannot be used any more: {cause}. What it has is safe; when it is back, go on with "
            f"`convsweep resume {sweep}`."
        ) from error


class _CheckpointKeeper:
    """Keeps the checkpoints of the best few trials and removes the others as trials end."""

    def __init__(self, store: CheckpointStore, keep: int, study: SweepStudy) -> None:
        self._store, self._keep, self._merit = store, keep, study.config.goal.merit
        present = set(store.trials())
        known = (t for t in study.read().trials if t.number in present and t.value is not None)
        self._values: dict[int, float | None] = {t.number: t.value for t in known}

    def started(self, trial: RunningTrial) -> None:
        """Nothing to do."""

    def reported(self, trial: RunningTrial) -> None:
        """Nothing to do."""

    def begun_again(self, trial: RunningTrial) -> None:
        """Nothing to do."""

    def ended(self, trial: RunningTrial, state: str) -> None:
        """A pruned or failed trial's weights go at once, a complete one's when others are better; none has to go on any more."""
        if state != "WAITING":
            self._store.delete_state(trial.number)
        if state in ("PRUNED", "FAIL"):
            self._store.delete(trial.number)
        elif state == "COMPLETE":
            self._values[trial.number] = trial.best_value
            while len(self._values) > self._keep:
                worst = min(self._values, key=lambda number: (self._merit(self._values[number]), -number))
                del self._values[worst]
                self._store.delete(worst)

    def tidy(self, study: SweepStudy) -> None:
        """Once the groups are gone: a group may have saved a trial again after it was given up."""
        waiting = {t.number for t in study.read().trials if t.state == "WAITING"}
        self._store.remove(self._store.surplus(set(self._values), waiting))


def _keeper(study: SweepStudy, config: SweepConfig, experiments: Experiments) -> _CheckpointKeeper:
    return _CheckpointKeeper(experiments.checkpoints(config.name), config.keep_checkpoints, study)


class _Hopeless:
    """Notices that the first trials all failed."""

    def __init__(self) -> None:
        self._errors: list[str] | None = []
        self.reason: str | None = None

    def started(self, trial: RunningTrial) -> None:
        """Nothing to do."""

    def reported(self, trial: RunningTrial) -> None:
        """Nothing to do."""

    def begun_again(self, trial: RunningTrial) -> None:
        """Nothing to do."""

    def ended(self, trial: RunningTrial, state: str) -> None:
        """Count failures until the first trial that does not fail."""
        if state in ("COMPLETE", "PRUNED"):
            self._errors = None
        elif state == "FAIL" and self._errors is not None:
            self._errors.append(trial.error or "unknown")
            if len(self._errors) >= HOPELESS_AFTER:
                self.reason = f"The first {HOPELESS_AFTER} trials all failed, the last one with: {self._errors[-1].splitlines()[0]}"
