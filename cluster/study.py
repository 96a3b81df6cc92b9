"""One sweep's record, an Optuna study: which trials there are to run, and what became of them.

Imports no Ray: results can be read when the cluster is gone. Any Optuna tool can open the same database.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.trial import FrozenTrial, TrialState

from cluster.config import MAX_GRID, SweepConfig
from cluster.goals import Objectives
from cluster.lease import Lease
from cluster.notes import write_note
from cluster.proposals import INFEASIBLE, Proposals, set_constraint, valued_by, without_latency
from cluster.reading import StudyReader
from cluster.record import STATES, SWEEP_ATTRIBUTE, SweepRecord, wall_seconds
from cluster.rivals import rivals
from cluster.writing import create_trial, end_trial, report
from trainer.domains import Value
from trainer.failures import OUT_OF_MEMORY
from trainer.hyperparameters import TrialConfig, flatten, unflatten
from trainer.metrics import EpochMetrics, epochs_of, history

optuna.logging.set_verbosity(optuna.logging.WARNING)


class SweepStudy:
    """One sweep's record. Reading, and writing notes, is for anyone; the rest is for the process that runs the sweep."""

    def __init__(self, study: optuna.Study, reader: StudyReader) -> None:
        self._study, self._reader = study, reader

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self._study.study_name

    @property
    def config(self) -> SweepConfig:
        """What the user asked for."""
        return SweepConfig.from_text(self._study.user_attrs[SWEEP_ATTRIBUTE])

    @property
    def state(self) -> str:
        """NEW, RUNNING, FINISHED, INTERRUPTED or FAILED."""
        return str(self._study.user_attrs.get("state", "NEW"))

    def counts(self) -> dict[str, int]:
        """How many trials there are in each state."""
        found = self._reader.states()
        return {state: len(found[state]) for state in STATES}

    def read(self) -> SweepRecord:
        """The sweep as it is now."""
        return self._reader.read()

    def write_note(self, text: str, trial: int | None = None) -> None:
        """Write a note on the sweep, or on one of its trials. Raises ValueError for an unknown trial and for too long a text."""
        trial_id = None if trial is None else self.read().trial(trial).id
        write_note(self._study, trial_id, text)

    # ---- the process that runs the sweep ----

    def save_config(self, config: SweepConfig) -> None:
        """Record what the user asked for."""
        self._study.set_user_attr(SWEEP_ATTRIBUTE, json.dumps(config.to_json()))

    def enqueue_first_trials(self, config: SweepConfig) -> None:
        """The baseline, the data set's recipe, the configurations that are to be first and the grid's, as waiting trials."""
        space = config.build_space()
        if config.baseline is not None:
            baseline = flatten(config.starting_point())
            self._enqueue(baseline, space.part_of(baseline), preset=config.baseline)
        recipe = config.recipe_trial()
        for given in map(flatten, [*([recipe] if recipe else []), *config.first_trials()]):
            self._enqueue(given, space.part_of(given))
        if config.warm_start_from:
            self._enqueue_best_of(config.warm_start_from, config)
        if config.sampler == "grid":
            self.enqueue_grid(config)

    def _enqueue_best_of(self, other: str, config: SweepConfig) -> None:
        """The other sweep's best configuration, with this one's epochs and seed, unless it lies outside of the space."""
        complete = [
            t for t in self._trials_of(other, config) if t.state == TrialState.COMPLETE and "config" in t.user_attrs
        ]
        if complete:
            best = max(complete, key=lambda t: config.goal.merit(t.value)).user_attrs["config"]
            given = best | {"training.epochs": config.epochs, "training.seed": config.seed}
            space = config.build_space()
            if space.contains(given):
                self._enqueue(given, space.part_of(given))

    def enqueue_grid(self, config: SweepConfig) -> None:
        """The combinations of the grid that are not enqueued yet, as far as the sweep's number of trials reaches."""
        space, known = config.build_space(), len(self._study.get_trials(deepcopy=False))
        before = config.trials_before_grid()
        for flat in itertools.islice(space.grid(), known - before, (config.trials or MAX_GRID) - before):
            self._enqueue(flat, space.part_of(flat))

    def _enqueue(self, flat: dict[str, Value], known: dict[str, Value], **attributes: Value) -> None:
        self._study.enqueue_trial(known, user_attrs={"config": flat, **attributes})

    def lease(self, takeover: bool, on_lost: Callable[[str], None]) -> Lease:
        """The right to run the sweep; see there."""
        return Lease(self._reader.engine, self._study._study_id, self.name, takeover, on_lost)

    def begin_run(self, config: SweepConfig, groups: int) -> None:
        """A run of the sweep begins. The `unfinished` trials of a run before wait for their turn again."""
        self.unfinished = 0
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            was_running = trial.state == TrialState.RUNNING
            self.unfinished += was_running or "history" in trial.user_attrs
            if was_running:
                self._requeue(trial._trial_id)
        runs = [*self._study.user_attrs.get("runs", []), {"begun": time.time(), "groups": groups}]
        self._is_first_run, self._objectives = len(runs) == 1, config.objectives
        self._study.set_user_attr("runs", runs)
        self._study.set_user_attr("state", "RUNNING")
        trials = self._study.get_trials(deepcopy=False)
        others = self._trials_of(config.warm_start_from, config) if config.warm_start_from else []
        # A resumed sweep must not propose its first points again.
        self._proposals = Proposals(config, config.seed + len(trials), [*others, *trials])
        self._waiting = sum(t.state == TrialState.WAITING for t in trials)
        self._distributions = {name: d for t in reversed(trials) for name, d in t.distributions.items()}
        # For what the study itself would never ask.
        self._study.sampler = optuna.samplers.RandomSampler(seed=config.seed)
        self._study.pruner = _pruner(config)

    def _trials_of(self, other: str, config: SweepConfig) -> list[FrozenTrial]:
        """The other sweep's trials, each with the values that it has by this sweep's metric, and the costs that compare."""
        try:
            study = optuna.load_study(study_name=other, storage=self._study._storage)
            theirs = SweepConfig.from_text(study.user_attrs[SWEEP_ATTRIBUTE])
        except KeyError:  # it has been deleted since
            return []
        trials = study.get_trials(deepcopy=False)
        trials = trials if theirs.goal == config.goal else valued_by(config.goal, trials)
        return trials if theirs.latency_batch == config.latency_batch else without_latency(trials)

    def note_startup(self, seconds: float) -> None:
        """The first trial of this run has begun, that long after the run."""
        runs = self._study.user_attrs["runs"]
        self._study.set_user_attr("runs", [*runs[:-1], {**runs[-1], "startup_seconds": seconds}])

    def end_run(self, state: str) -> None:
        """The run is over: FINISHED, INTERRUPTED or FAILED. Nothing stays RUNNING."""
        # Not by Optuna, which would read all trials and keep them: of 5,000 400 MB.
        for trial_id in self._reader.states()["RUNNING"]:
            self._requeue(trial_id)
        if state == "FINISHED":  # a time budget may leave enqueued trials that nobody waits for
            for trial_id in self._reader.states()["WAITING"]:
                self._study._storage.set_trial_user_attr(trial_id, "error", "the sweep ended before its turn")
                self._study._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        runs = self._study.user_attrs["runs"]
        self._study.set_user_attr("runs", [*runs[:-1], {"ended": time.time(), **runs[-1]}])
        self._study.set_user_attr("state", state)

    def close_lost_run(self, ended: float) -> None:
        """The process of the last run is gone without a word; it was last heard of at `ended` (seconds since 1970)."""
        runs = self._study.user_attrs.get("runs", [])
        if runs and "ended" not in runs[-1]:
            ended = max(ended, runs[-1]["begun"])
            self._study.set_user_attr("runs", [*runs[:-1], {**runs[-1], "ended": ended}])

    def seconds_run(self) -> float:
        """How long the sweep has been run so far."""
        return wall_seconds(self._study.user_attrs.get("runs", []))

    def _requeue(self, trial_id: int) -> None:
        # Optuna's public interface cannot hand a running trial back; its storage can, and `ask` then takes it again
        # with the number and the parameters that it has.
        self._study._storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def finished_count(self) -> int:
        """How many trials have ended, however."""
        found = self._reader.states()
        return sum(len(found[state.name]) for state in TrialState if state.is_finished())

    def ask(self) -> RunningTrial:
        """The next trial of the run: a waiting one if there is any, else a new one that the sampler proposes."""
        if self._waiting:
            self._waiting -= 1
            trial = self._study.ask()
            given = trial.user_attrs["config"]
            chosen = self._proposals.note(trial.number, given)
            for name, (value, distribution) in self._compatible(chosen).items():
                self._study._storage.set_trial_param(
                    trial._trial_id, name, distribution.to_internal_repr(value), distribution
                )
            known = None if self._is_first_run else self._study._storage.get_trial(trial._trial_id)
            keep = "preset" in trial.user_attrs
            return self._running(trial._trial_id, trial.number, unflatten(given), known, keep)
        config, chosen = self._proposals.propose()
        trial_id, number = create_trial(
            self._reader.engine, self._study._study_id, self._compatible(chosen), {"config": flatten(config)}
        )
        self._proposals.note(number)
        return self._running(trial_id, number, config)

    def _running(
        self, trial_id: int, number: int, config: TrialConfig, known: FrozenTrial | None = None, keep: bool = False
    ) -> RunningTrial:
        return RunningTrial(
            self._study, self._reader.engine, trial_id, number, config, self._proposals, self._objectives, known, keep
        )

    def _compatible(self, chosen: FrozenTrial) -> dict[str, tuple[Any, BaseDistribution]]:
        """What the trial chose, as far as Optuna can record it: a study may not change the choices of a parameter.

        The trial's configuration has all of it. The choices differ only after `extend` with another space.
        """
        entered: dict[str, tuple[Any, BaseDistribution]] = {}
        for name, value in chosen.params.items():
            own = chosen.distributions[name]
            known = self._distributions.setdefault(name, own)
            try:
                check_distribution_compatibility(known, own)
                entered[name] = value, own
            except ValueError:
                if _holds(known, value):
                    entered[name] = value, known
        return entered


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except ValueError:  # a category that it does not have
        return False


class RunningTrial:
    """A trial that is being run, and the ways in which it ends. `number` is its own in the study.

    `known` is what a run before, which may have trained it for some epochs, has left of it; one that is to be kept is never pruned.
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
        self.costs: Mapping[str, float] = known.user_attrs.get("costs", {}) if known else {}
        self._taken: tuple[str, float] | None = None
        self._unwritten: dict[str, Any] = {}
        self._fits = True
        self._final_value: float | None = None
        self.error: str | None = None

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

    def report(self, metrics: EpochMetrics, train_seconds: float) -> bool:
        """Record an epoch; whether it is new. One that is trained again after a loss takes the place of the epochs from there on."""
        if self.epochs[metrics.epoch - 1 : metrics.epoch] == [metrics]:
            return False
        self.epochs[metrics.epoch - 1 :] = [metrics]
        self._unwritten |= {"history": history(self.epochs), "train_seconds": train_seconds}
        report(self._engine, self._id, metrics.epoch, self._goal.value_of(metrics), self._unwritten)
        self._unwritten = {}
        return True

    @property
    def best_value(self) -> float | None:
        """That of its best epoch so far by the sweep's metric."""
        return self._goal.best_of(self.epochs)

    @property
    def last_value(self) -> float | None:
        """That of its last epoch so far."""
        return self._goal.value_of(self.epochs[-1]) if self.epochs else None

    def should_prune(self) -> bool:
        """Whether the pruner gives the trial up. Never the preset's: it is what the others are compared with.

        With several goals it is compared with those that cost no more.
        """
        against = rivals(self._study, self._objectives, self.costs)
        return not self._keep and self._study.pruner.prune(against, self._study._storage.get_trial(self._id))

    def complete(self) -> None:
        """It ran to its end; its value is that of its best epoch, whose weights were kept."""
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
        end_trial(self._engine, self._id, state, value, self._unwritten)
        self._proposals.ended(self.number, state, value, len(self.epochs), self._fits, self.costs)

    def _judge(self) -> None:
        """Record by how much it keeps to each constraint, and which it does not keep to."""
        for limit, excess in self._objectives.excesses(self._final_value, self.costs).items():
            set_constraint(self._study, self._id, limit, excess)
        if self.infeasible:
            self._unwritten["infeasible"] = self.infeasible


def _pruner(config: SweepConfig) -> optuna.pruners.BasePruner:
    first = max(1, config.epochs // 4)  # before that, a learning rate that is still rising says little about a network
    if config.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=first)
    if config.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)
