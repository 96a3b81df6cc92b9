"""What the sampler knows: the study's trials in memory, as many as it needs, so that a proposal costs the same at any size.

Optuna's TPE looks at every trial for every hyperparameter: 5,000 trials take it a second per proposal, and each answer is a
transaction of its own. Here it looks at the best trials and at an even selection of the others, and its answer is written once.
What a trial chose is taken from its configuration, and so counts as far as it lies in the space as it is now: the space may have
been another, or the trial another sweep's.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterable, Mapping

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from cluster.config import SweepConfig
from cluster.space import Space
from trainer.domains import Value
from trainer.fold_scores import best_by_fold
from trainer.hyperparameters import TrialConfig
from trainer.measuring import Metric

BEST, MOST = 40, 100
"""How many trials the sampler is left with when it has twice as many as `MOST`: TPE models its 10 to 20 best ones against the rest."""
INFEASIBLE = "memory"
"""The constraint that a configuration violates which the machine has no memory for."""


class Proposals:
    """The sampler of one run, and the trials that it learns from. `seed` differs between the runs of a sweep."""

    def __init__(self, config: SweepConfig, seed: int, trials: Iterable[FrozenTrial]) -> None:
        self._config, self._seed, self._space = config, seed, config.build_space()
        self._numbers: dict[int, int] = {}
        teachers = _selected([t for t in trials if _teaches(t)], config.goal)
        self._begin([_known(trial, self._space) for trial in teachers])

    def _begin(self, trials: list[FrozenTrial]) -> None:
        finished = _selected([t for t in trials if t.state.is_finished()], self._config.goal)
        running = [t for t in trials if not t.state.is_finished()]
        direction, sampler = self._config.goal.direction, _sampler(self._config, self._seed)
        self._study = optuna.create_study(direction=direction, sampler=sampler)
        self._seed += 1
        before = {mine: theirs for theirs, mine in self._numbers.items()}
        self._numbers = {}
        for place, trial in enumerate([*finished, *running]):
            if trial.number in before:
                self._numbers[before[trial.number]] = place
            self._study.add_trial(trial)

    def propose(self) -> tuple[TrialConfig, FrozenTrial]:
        """A configuration, and the trial that holds it; `note` says which number the trial has got."""
        known = self._study.get_trials(deepcopy=False)
        if len(known) - len(self._numbers) > 2 * MOST:
            self._begin(known)
        trial = self._study.ask()
        self._last = trial.number
        chosen = self._space.suggest(trial)
        return chosen, self._study.get_trials(deepcopy=False)[trial.number]

    def note(self, number: int, given: Mapping[str, Value] | None = None) -> FrozenTrial:
        """The trial that was proposed last, or one with a `given` configuration, runs with this number. Gives what it chose."""
        if given is not None:
            params, distributions = in_space(given, self._space)
            running = optuna.trial.create_trial(
                state=TrialState.RUNNING, params=params, distributions=distributions, user_attrs={"config": given}
            )
            self._study.add_trial(running)
            self._last = len(self._study.get_trials(deepcopy=False)) - 1
        self._numbers[number] = self._last
        return self._study.get_trials(deepcopy=False)[self._last]

    def ended(self, number: int, state: TrialState, value: float | None, epoch: int, fits: bool = True) -> None:
        """The trial with this number ended so, with this value in its last epoch; a trial that waits again is forgotten.

        One that does not `fit` into memory counts as worse than all others.
        """
        mine = self._numbers.pop(number, None)
        if mine is None:
            return
        if not fits:
            optuna.Trial(self._study, self._trial_id(mine)).set_constraint(INFEASIBLE, 1.0)
            state = TrialState.PRUNED
        elif state == TrialState.PRUNED and value is not None:
            self._study._storage.set_trial_intermediate_value(self._trial_id(mine), epoch, value)
        self._study.tell(mine, value if state == TrialState.COMPLETE else None, state=state)

    def _trial_id(self, number: int) -> int:
        return self._study.get_trials(deepcopy=False)[number]._trial_id


def in_space(flat: Mapping[str, Value], space: Space) -> tuple[dict[str, Value], dict[str, BaseDistribution]]:
    """Of a configuration, what is searched and lies in the space, with the distributions that the sampler knows for it."""
    trial = FixedTrial(space.part_of(flat))
    space.record(trial, flat)
    return trial.params, trial.distributions


def valued_by(goal: Metric, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials of a sweep with another metric, valued by this one; without those that were recorded without it."""
    found = []
    for trial in trials:
        values, is_by_fold = _reported(trial, goal), "fold_values" in trial.user_attrs
        if values or INFEASIBLE in trial.constraints:
            other = copy.copy(trial)
            other.intermediate_values = dict(enumerate(values, 1))
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                is_best = trial.state == TrialState.COMPLETE and not is_by_fold
                other.value = goal.best(values) if is_best else values[-1]
            found.append(other)
    return found


def _reported(trial: FrozenTrial, goal: Metric) -> list[float]:
    """What the trial would have reported by this metric: a value per epoch, or for each fold the mean of those so far."""
    history, folds = trial.user_attrs.get("history", {}), trial.user_attrs.get("fold_values")
    if folds is None:
        return [*history.get(goal.field, ())]
    ended = best_by_fold(history, goal)[: len(folds)]
    return [statistics.fmean(ended[:count]) for count in range(1, len(ended) + 1)]


def _teaches(trial: FrozenTrial) -> bool:
    finished = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return "config" in trial.user_attrs and (finished or INFEASIBLE in trial.constraints)


def _known(trial: FrozenTrial, space: Space) -> FrozenTrial:
    """The trial as the sampler takes it: with its choices in this space, and PRUNED if there was no memory for it."""
    params, distributions = in_space(trial.user_attrs["config"], space)
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if trial.state == TrialState.COMPLETE else TrialState.PRUNED,
        value=trial.value if trial.state == TrialState.COMPLETE else None,
        params=params,
        distributions=distributions,
        intermediate_values=trial.intermediate_values,
        user_attrs={"config": trial.user_attrs["config"]},
        constraints=trial.constraints or None,
    )


def _selected(finished: list[FrozenTrial], goal: Metric) -> list[FrozenTrial]:
    """All of them, or when they are too many the best and an even selection of the others."""
    if len(finished) <= 2 * MOST:
        return finished
    best_first = sorted(finished, key=lambda t: _merit(t, goal), reverse=True)
    others = sorted(best_first[BEST:], key=lambda t: t.number)
    step = len(others) / (MOST - BEST)
    chosen = best_first[:BEST] + [others[int(i * step)] for i in range(MOST - BEST)]
    return sorted(chosen, key=lambda t: t.number)


def _merit(trial: FrozenTrial, goal: Metric) -> tuple[int, int, float]:
    """Complete before pruned ones; those by their value, these by how far they came, as TPE orders them."""
    if trial.state == TrialState.COMPLETE:
        return 1, 0, goal.merit(trial.value)
    last = max(trial.intermediate_values, default=0)
    return 0, last, goal.merit(trial.intermediate_values.get(last))


def _sampler(config: SweepConfig, seed: int) -> optuna.samplers.BaseSampler:
    if config.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(4, (config.trials or 40) // 4)))
    return optuna.samplers.RandomSampler(seed=seed)
