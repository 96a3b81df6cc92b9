"""One sweep's record, an Optuna study: which trials there are to run, and what became of them.

Imports no Ray: results can be read when the cluster is gone. Any Optuna tool can open the same database.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.trial import FrozenTrial, TrialState

from cluster.budget import Amounts, Ending
from cluster.config import MAX_GRID, SweepConfig
from cluster.confirmed import FinalScore
from cluster.lease import Lease
from cluster.notes import write_note
from cluster.proposals import Proposals, valued_by, without_latency
from cluster.reading import StudyReader
from cluster.record import ENDING_ATTRIBUTE, HELD_ATTRIBUTE, STATES, SWEEP_ATTRIBUTE, SweepRecord, wall_seconds
from cluster.running_trial import RunningTrial
from cluster.writing import create_trial
from trainer.domains import Value
from trainer.environment import environment
from trainer.hyperparameters import TrialConfig, flatten, unflatten

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
        runs = [
            *self._study.user_attrs.get("runs", []),
            {"begun": time.time(), "groups": groups, "environment": dict(environment())},
        ]
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

    def save_confirmed(self, scores: Sequence[FinalScore]) -> None:
        """Record the scores on the test split, in place of all before. Whoever holds the lease writes them."""
        self._study.set_user_attr("confirmed", [score.to_json() for score in scores])

    def seconds_run(self) -> float:
        """How long the sweep has been run so far."""
        return wall_seconds(self._study.user_attrs.get("runs", []))

    def spent(self) -> Amounts:
        """What its runs have spent so far, as far as it is recorded."""
        return Amounts(self.seconds_run(), **self._study.user_attrs.get(HELD_ATTRIBUTE, {}))

    def note_spent(self, amounts: Amounts) -> None:
        """Record what all runs have spent by now. The seconds follow from the times of the runs."""
        held = {"gpu_hours": amounts.gpu_hours, "node_hours": amounts.node_hours}
        self._study.set_user_attr(HELD_ATTRIBUTE, held)

    @property
    def ending(self) -> Ending | None:
        """Why the sweep has ended, or is to end, before it has all its trials."""
        return Ending.from_attribute(self._study.user_attrs.get(ENDING_ATTRIBUTE))

    def note_ending(self, ending: Ending | None) -> None:
        """Record it; None: it goes on."""
        if ending != self.ending:
            self._study.set_user_attr(ENDING_ATTRIBUTE, ending and asdict(ending))

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


def _pruner(config: SweepConfig) -> optuna.pruners.BasePruner:
    if config.folds > 1:
        return _fold_pruner(config.pruner)
    first = max(1, config.epochs // 4)  # before that, a learning rate that is still rising says little about a network
    if config.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=first)
    if config.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)


def _fold_pruner(name: str) -> optuna.pruners.BasePruner:
    """For trials whose steps are folds: the first one says enough about a network to be pruned for it."""
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5)
    if name == "none":
        return optuna.pruners.NopPruner()
    # Halves after 1, 2, 4 and 8 folds: a third, as of epochs, would be little to leave after a single fold.
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
