"""The record of the sweeps: Optuna studies in a database, read as typed records and written by one process.

Imports no Ray: results can be read when the cluster is gone. Any Optuna tool can open the same database.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import TrialState

from cluster.config import SweepConfig
from cluster.experiments import Experiments
from trainer.domains import Value
from trainer.hyperparameters import TrialConfig, flatten, nearest, unflatten
from trainer.metrics import EpochMetrics

optuna.logging.set_verbosity(optuna.logging.WARNING)

METRIC = "val_accuracy"
STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the database has it. `value` is the validation accuracy of its best epoch (of a pruned one, its last).

    `group` is the worker group that trained it, and `group_began` when (seconds since 1970, by that group's clock).
    """

    number: int
    state: str
    value: float | None
    config: dict[str, Value]
    epochs: tuple[EpochMetrics, ...] = ()
    train_seconds: float = 0.0
    group: str | None = None
    group_began: float | None = None
    parameters: int | None = None
    preset: str | None = None
    error: str | None = None
    begun: datetime | None = None
    ended: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """What `rank --json` says of a trial."""
        return {
            "number": self.number,
            "state": self.state,
            "value": self.value,
            "epochs": len(self.epochs),
            "train_seconds": round(self.train_seconds, 3),
            "parameters": self.parameters,
            "preset": self.preset,
            "config": self.config,
        }


@dataclass(frozen=True)
class Timing:
    """Where a sweep's time went. `overhead_seconds` is the median time between two trials on a warm worker group."""

    wall_seconds: float
    startup_seconds: float
    train_seconds: float
    overhead_seconds: float
    groups: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {name: round(value, 4) for name, value in vars(self).items()}


class Studies:
    """All sweeps of a database."""

    def __init__(self, experiments: Experiments, create: bool = False) -> None:
        """Open the database; without `create`, one that is not there counts as empty. Raises ValueError for a bad URL."""
        self._storage: optuna.storages.BaseStorage | None = None
        self._where = experiments
        if create and experiments.study_storage is None:
            experiments.folder.mkdir(parents=True, exist_ok=True)
        if create or experiments.database_exists:
            self._storage = _open(experiments.database)

    def names(self) -> list[str]:
        """The sweeps' names, the newest last. Other studies in the database are left alone."""
        if self._storage is None:
            return []
        studies = sorted(self._storage.get_all_studies(), key=lambda s: s._study_id)
        return [study.study_name for study in studies if "config" in study.user_attrs]

    def open(self, name: str) -> SweepStudy:
        """The sweep called `name`; raises ValueError, with the nearest name, when there is none."""
        if self._storage is None or name not in (names := self.names()):
            known = self.names()
            hint = nearest(name, known) or (f" Sweeps: {', '.join(known)}." if known else " There are no sweeps yet.")
            raise ValueError(f"There is no sweep {name!r} in {_shown(self._where.database)!r}.{hint}")
        assert names
        return SweepStudy(optuna.load_study(study_name=name, storage=self._storage))

    def create(self, config: SweepConfig, classes: Sequence[str]) -> SweepStudy:
        """A new sweep, its baseline or grid enqueued. Raises ValueError when the name is taken."""
        assert self._storage is not None
        if config.name in [study.study_name for study in self._storage.get_all_studies()]:
            raise ValueError(
                f"There is a sweep {config.name!r} already. Go on with it: `convsweep resume {config.name}`; give it more trials: "
                f"`convsweep extend {config.name} --trials N`; or choose another --name."
            )
        study = optuna.create_study(study_name=config.name, storage=self._storage, direction="maximize")
        study.set_user_attr("classes", list(classes))
        sweep = SweepStudy(study)
        sweep.save_config(config)
        sweep.enqueue_first_trials(config)
        return sweep


def _open(url: str) -> optuna.storages.BaseStorage:
    sqlite = url.startswith("sqlite")
    arguments: dict[str, Any] = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
    try:
        storage = optuna.storages.RDBStorage(url, engine_kwargs=arguments)
        if sqlite:
            sqlalchemy.event.listen(storage.engine, "connect", _set_pragmas)
            storage.engine.dispose()  # connections from now on have them
        return optuna.storages.get_storage(storage)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"The study database {_shown(url)!r} cannot be opened: {reason}.") from error


def _shown(url: str) -> str:
    """The URL without its password."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


def _set_pragmas(connection: Any, record: object) -> None:
    """With a write-ahead log, readers (the dashboard) and the writer do not wait for each other; synced at its checkpoints
    it survives the death of any process, and a commit takes 0.1 ms instead of several.
    """
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


class SweepStudy:
    """One sweep's record. Reading is for anyone; the process that runs the sweep alone writes."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self._study.study_name

    @property
    def config(self) -> SweepConfig:
        """What the user asked for."""
        return SweepConfig.from_json(json.loads(self._study.user_attrs["config"]))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the data set's classes."""
        return tuple(self._study.user_attrs.get("classes", ()))

    @property
    def state(self) -> str:
        """NEW, RUNNING, FINISHED, INTERRUPTED or FAILED."""
        return str(self._study.user_attrs.get("state", "NEW"))

    def counts(self) -> dict[str, int]:
        """How many trials there are in each state."""
        found = Counter(t.state.name for t in self._study.get_trials(deepcopy=False))
        return {state: found[state] for state in STATES}

    def trials(self) -> list[TrialRecord]:
        """All trials by number."""
        return [_record(t) for t in self._study.get_trials(deepcopy=False)]

    def ranking(self) -> list[TrialRecord]:
        """All trials, best first: complete ones by value, then pruned ones by value, then the rest by number."""
        order = {state: place for place, state in enumerate(STATES)}
        return sorted(
            self.trials(), key=lambda t: (order[t.state], -(t.value if t.value is not None else -math.inf), t.number)
        )

    def trial(self, number: int) -> TrialRecord:
        """The trial with this number; raises ValueError when there is none."""
        trials = self._study.get_trials(deepcopy=False)
        if not 0 <= number < len(trials):
            raise ValueError(f"Sweep {self.name!r} has no trial {number}: it has trials 0 to {len(trials) - 1}.")
        return _record(trials[number])

    def best(self) -> TrialRecord:
        """The best complete trial. Raises ValueError when there is none."""
        complete = [t for t in self.ranking() if t.state == "COMPLETE"]
        if not complete:
            raise ValueError(f"Sweep {self.name!r} has no trial that ran to its end: {_counted(self.counts())}.")
        return complete[0]

    def timing(self) -> Timing:
        """Where the time went, over all runs (a resumed sweep has several)."""
        runs = self._study.user_attrs.get("runs", [])
        trials = self.trials()
        waits = _waits(trials)
        return Timing(
            wall_seconds=sum((run.get("ended") or time.time()) - run["begun"] for run in runs),
            startup_seconds=sum(run.get("startup_seconds") or 0.0 for run in runs),
            train_seconds=sum(t.train_seconds for t in trials),
            overhead_seconds=statistics.median(waits) if waits else 0.0,
            groups=runs[-1]["groups"] if runs else 0,
        )

    # ---- writing: the process that runs the sweep ----

    def save_config(self, config: SweepConfig) -> None:
        """Record what the user asked for."""
        self._study.set_user_attr("config", json.dumps(config.to_json()))

    def enqueue_first_trials(self, config: SweepConfig) -> None:
        """The baseline, or the grid's configurations, as waiting trials."""
        space = config.build_space()
        if config.baseline is not None:
            from trainer.presets import preset

            baseline = flatten(
                unflatten({"training.epochs": config.epochs, "training.seed": config.seed}, preset(config.baseline))
            )
            self._enqueue(baseline, space.part_of(baseline), preset=config.baseline)
        elif config.sampler == "grid":
            for flat, _ in zip(space.grid(), range(config.trials or 10_000), strict=False):
                self._enqueue(flat, space.part_of(flat))

    def _enqueue(self, flat: dict[str, Value], known: dict[str, Value], **attributes: Value) -> None:
        self._study.enqueue_trial(known, user_attrs={"config": flat, **attributes})

    def begin_run(self, config: SweepConfig, groups: int) -> None:
        """A run of the sweep begins. Trials that a run before left unfinished wait for their turn again."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._requeue(trial._trial_id)
        runs = [*self._study.user_attrs.get("runs", []), {"begun": time.time(), "groups": groups}]
        self._study.set_user_attr("runs", runs)
        self._study.set_user_attr("state", "RUNNING")
        self._study.sampler = _sampler(config, seed_offset=len(self._study.get_trials(deepcopy=False)))
        self._study.pruner = _pruner(config)

    def note_startup(self, seconds: float) -> None:
        """The first trial of this run has begun, that long after the run."""
        runs = self._study.user_attrs["runs"]
        self._study.set_user_attr("runs", [*runs[:-1], {**runs[-1], "startup_seconds": seconds}])

    def end_run(self, state: str) -> None:
        """The run is over: FINISHED, INTERRUPTED or FAILED. Nothing stays RUNNING."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._requeue(trial._trial_id)
        if state == "FINISHED":  # a time budget may leave enqueued trials that nobody waits for
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                self._study._storage.set_trial_user_attr(trial._trial_id, "error", "the sweep ended before its turn")
                self._study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        runs = self._study.user_attrs["runs"]
        self._study.set_user_attr("runs", [*runs[:-1], {**runs[-1], "ended": time.time()}])
        self._study.set_user_attr("state", state)

    def _requeue(self, trial_id: int) -> None:
        # Optuna's public interface cannot hand a running trial back; its storage can, and `ask` then takes it again
        # with the number and the parameters that it has.
        self._study._storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def finished_count(self) -> int:
        """How many trials have ended, however."""
        return sum(1 for t in self._study.get_trials(deepcopy=False) if t.state.is_finished())

    def ask(self, config: SweepConfig) -> RunningTrial:
        """The next trial: a waiting one if there is any, else a new one that the sampler proposes."""
        space = config.build_space()
        trial = self._study.ask()
        given = trial.user_attrs.get("config")
        if given is None:
            chosen = space.suggest(trial)
            trial.set_user_attr("config", flatten(chosen))
        else:
            chosen = unflatten(given)
            space.record(trial, given)
        return RunningTrial(self._study, trial, chosen)


class RunningTrial:
    """A trial that is being run, and the ways in which it ends."""

    def __init__(self, study: optuna.Study, trial: optuna.Trial, config: TrialConfig) -> None:
        self._study, self._trial, self.config = study, trial, config
        self.epochs: list[EpochMetrics] = []
        self.error: str | None = None
        self._reported_before = frozenset(study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    @property
    def number(self) -> int:
        """The trial's number in the study."""
        return self._trial.number

    def begin(self, parameters: int, group: str, group_began: float) -> None:
        """Record what is known once a worker group has begun."""
        self._trial.set_user_attr("parameters", parameters)
        self._trial.set_user_attr("group", group)
        self._trial.set_user_attr("group_began", group_began)

    def report(self, metrics: EpochMetrics, train_seconds: float) -> None:
        """Record an epoch."""
        self.epochs.append(metrics)
        if metrics.epoch not in self._reported_before:  # a trial that goes on after an interruption begins anew
            self._trial.report(metrics.val_accuracy, metrics.epoch)
        self._trial.set_user_attr("epochs", [e.to_json() for e in self.epochs])
        self._trial.set_user_attr("train_seconds", train_seconds)

    def should_prune(self) -> bool:
        """Whether the pruner gives the trial up. Never the preset's: it is what the others are compared with."""
        return "preset" not in self._trial.user_attrs and self._trial.should_prune()

    def complete(self) -> None:
        """It ran to its end; its value is that of its best epoch, whose weights were kept."""
        self._study.tell(self._trial, max(e.val_accuracy for e in self.epochs))

    def prune(self) -> None:
        """It was stopped for its score."""
        self._study.tell(self._trial, state=TrialState.PRUNED)

    def fail(self, error: str) -> None:
        """It could not go on, and why."""
        self.error = error
        self._trial.set_user_attr("error", error)
        self._study.tell(self._trial, state=TrialState.FAIL)

    def wait(self) -> None:
        """Nothing was wrong with it, but the sweep stops: it waits for `resume`."""
        self._study._storage.set_trial_state_values(self._trial._trial_id, TrialState.WAITING)


def _record(trial: optuna.trial.FrozenTrial) -> TrialRecord:
    attributes = trial.user_attrs
    return TrialRecord(
        number=trial.number,
        state=trial.state.name,
        value=trial.value if trial.values else None,
        config=dict(attributes.get("config", trial.params)),
        epochs=tuple(EpochMetrics(**e) for e in attributes.get("epochs", ())),
        train_seconds=float(attributes.get("train_seconds", 0.0)),
        group=attributes.get("group"),
        group_began=attributes.get("group_began"),
        parameters=attributes.get("parameters"),
        preset=attributes.get("preset"),
        error=attributes.get("error"),
        begun=trial.datetime_start,
        ended=trial.datetime_complete,
    )


def _waits(trials: Sequence[TrialRecord]) -> list[float]:
    """For each trial but a group's first: the seconds from the group's last report that counted to its beginning.

    What a group still did for a trial that was already given up is thus waiting time.
    """
    begun = [
        (t.group, t.group_began, t.train_seconds) for t in trials if t.group is not None and t.group_began is not None
    ]
    pairs = itertools.pairwise(sorted(begun))
    return [after[1] - (before[1] + before[2]) for before, after in pairs if before[0] == after[0]]


def _sampler(config: SweepConfig, seed_offset: int) -> optuna.samplers.BaseSampler:
    seed = config.seed + seed_offset  # a resumed sweep must not propose its first points again
    if config.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(4, (config.trials or 40) // 4)))
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(config: SweepConfig) -> optuna.pruners.BasePruner:
    first = max(1, config.epochs // 4)  # before that, a learning rate that is still rising says little about a network
    if config.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=first)
    if config.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "it has no trials"
