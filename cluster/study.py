"""One sweep's record, an Optuna study: which trials there are to run, and what became of them.

Imports no Ray: results can be read when the cluster is gone. Any Optuna tool can open the same database.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter

import optuna
from optuna.trial import FrozenTrial, TrialState

from cluster.config import MAX_GRID, SweepConfig
from cluster.notes import write_note
from cluster.proposals import Proposals
from cluster.reading import StudyReader
from cluster.record import STATES, SWEEP_ATTRIBUTE, SweepRecord
from trainer.domains import Value
from trainer.hyperparameters import TrialConfig, flatten, unflatten
from trainer.metrics import EpochMetrics, history

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
        found = Counter(t.state.name for t in self._study.get_trials(deepcopy=False))
        return {state: found[state] for state in STATES}

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
        if config.sampler == "grid":
            self.enqueue_grid(config)

    def enqueue_grid(self, config: SweepConfig) -> None:
        """The combinations of the grid that are not enqueued yet, as far as the sweep's number of trials reaches."""
        space, known = config.build_space(), len(self._study.get_trials(deepcopy=False))
        before = config.trials_before_grid()
        for flat in itertools.islice(space.grid(), known - before, (config.trials or MAX_GRID) - before):
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
        trials = self._study.get_trials(deepcopy=False)
        # A resumed sweep must not propose its first points again.
        self._proposals = Proposals(config, config.seed + len(trials), trials)
        self._waiting = sum(t.state == TrialState.WAITING for t in trials)
        self._space = config.build_space()
        self._study.sampler = optuna.samplers.RandomSampler(
            seed=config.seed
        )  # for what the study itself would never ask
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

    def ask(self) -> RunningTrial:
        """The next trial of the run: a waiting one if there is any, else a new one that the sampler proposes."""
        if self._waiting:
            self._waiting -= 1
            trial = self._study.ask()
            given = trial.user_attrs["config"]
            chosen = unflatten(given)
            self._space.record(trial, given)
            self._proposals.note(trial.number, self._study._storage.get_trial(trial._trial_id))
        else:
            chosen, proposed = self._proposals.propose(self._space)
            trial = self._create(proposed, chosen)
            self._proposals.note(trial.number)
        return RunningTrial(self._study, trial, chosen, self._proposals)

    def _create(self, proposed: FrozenTrial, chosen: TrialConfig) -> optuna.Trial:
        """A running trial with all its parameters, in one transaction."""
        # What Optuna's public `add_trial` does, but for the trial's id, which that does not give.
        new = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=proposed.params,
            distributions=proposed.distributions,
            user_attrs={"config": flatten(chosen)},
        )
        return optuna.Trial(self._study, self._study._storage.create_new_trial(self._study._study_id, new))


class RunningTrial:
    """A trial that is being run, and the ways in which it ends."""

    def __init__(self, study: optuna.Study, trial: optuna.Trial, config: TrialConfig, proposals: Proposals) -> None:
        self._study, self._trial, self.config, self._proposals = study, trial, config, proposals
        self.epochs: list[EpochMetrics] = []
        self.error: str | None = None
        self._reported_before = frozenset(study._storage.get_trial(trial._trial_id).intermediate_values)

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
        self._trial.set_user_attr("history", history(self.epochs))
        self._trial.set_user_attr("train_seconds", train_seconds)

    def should_prune(self) -> bool:
        """Whether the pruner gives the trial up. Never the preset's: it is what the others are compared with."""
        return "preset" not in self._trial.user_attrs and self._trial.should_prune()

    def complete(self) -> None:
        """It ran to its end; its value is that of its best epoch, whose weights were kept."""
        self._end(TrialState.COMPLETE, max(e.val_accuracy for e in self.epochs))

    def prune(self) -> None:
        """It was stopped for its score."""
        self._end(TrialState.PRUNED)

    def fail(self, error: str, log: str | None = None) -> None:
        """It could not go on, why, and the file (host:path) that has more about it."""
        self.error = error
        if log is not None:
            self._trial.set_user_attr("log", log)
        self._trial.set_user_attr("error", error)
        self._end(TrialState.FAIL)

    def wait(self) -> None:
        """Nothing was wrong with it, but the sweep stops: it waits for `resume`."""
        self._study._storage.set_trial_state_values(self._trial._trial_id, TrialState.WAITING)

    def _end(self, state: TrialState, value: float | None = None) -> None:
        self._study.tell(self._trial, value, state=state)
        if value is None and self.epochs:
            value = self.epochs[-1].val_accuracy
        self._proposals.ended(self.number, state, value, len(self.epochs))


def _pruner(config: SweepConfig) -> optuna.pruners.BasePruner:
    first = max(1, config.epochs // 4)  # before that, a learning rate that is still rising says little about a network
    if config.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=first)
    if config.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)
