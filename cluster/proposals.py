"""What the sampler knows: the study's trials in memory, as many as it needs, so that a proposal costs the same at any size.

Optuna's TPE looks at every trial for every hyperparameter: 5,000 trials take it a second per proposal, and each answer is a
transaction of its own. Here it looks at the best trials and at an even selection of the others, and its answer is written once.
What a trial chose is taken from its configuration, and so counts as far as it lies in the space as it is now: the space may have
been another, or the trial another sweep's.

A sweep with several goals has a study with several objectives here, so that the sampler looks for the front; the record has the metric
alone, by which trials are pruned. Costs count by their logarithm: between 1,000 and 10,000 parameters lies as much as between 10,000 and
100,000. A trial that was pruned is worse than every complete one, as it is to the pruner, whatever it costs: there is no front of
values from different epochs.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from cluster.config import SweepConfig
from cluster.goals import Objectives
from cluster.pareto import layers
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
        self._objectives = config.objectives
        self._numbers: dict[int, int] = {}
        teachers = _selected([t for t in trials if _teaches(t, self._objectives)], self._objectives)
        self._begin([_known(trial, self._space, self._objectives) for trial in teachers])

    def _begin(self, trials: list[FrozenTrial]) -> None:
        finished = _selected([t for t in trials if t.state.is_finished()], self._objectives)
        running = [t for t in trials if not t.state.is_finished()]
        sampler = _sampler(self._config, self._seed)
        self._study = optuna.create_study(directions=self._objectives.directions, sampler=sampler)
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

    def ended(
        self,
        number: int,
        state: TrialState,
        value: float | None,
        epoch: int,
        fits: bool = True,
        costs: Mapping[str, float] | None = None,
    ) -> None:
        """The trial with this number ended so, with this value in its last epoch; a trial that waits again is forgotten.

        One that does not `fit` into memory, or does not keep to the constraints, counts as worse than all others.
        """
        mine = self._numbers.pop(number, None)
        if mine is None:
            return
        final = value if state == TrialState.COMPLETE else None
        values = None if final is None else _values(final, costs or {}, self._objectives)
        if not fits:
            optuna.Trial(self._study, self._trial_id(mine)).set_constraint(INFEASIBLE, 1.0)
            state = TrialState.PRUNED
        elif state == TrialState.PRUNED and value is not None and not self._objectives.costs:
            self._study._storage.set_trial_intermediate_value(self._trial_id(mine), epoch, value)
        elif state == TrialState.COMPLETE and values is None:
            state = TrialState.FAIL
        for limit, excess in self._objectives.excesses(final, costs or {}).items():
            set_constraint(self._study, self._trial_id(mine), limit, excess)
        if self._objectives.costs:
            self._study._storage.set_trial_user_attr(self._trial_id(mine), "costs", dict(costs or {}))
        self._study.tell(mine, values, state=state)

    def _trial_id(self, number: int) -> int:
        return self._study.get_trials(deepcopy=False)[number]._trial_id


def set_constraint(study: optuna.Study, trial_id: int, name: str, excess: float) -> None:
    """As `optuna.Trial.set_constraint` does; but an `optuna.Trial` asks the sampler for a configuration when it is made."""
    study._storage.set_trial_system_attr(trial_id, f"constraints:{name}", excess)


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


def without_latency(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials of a sweep that measured the latency of another number of images at a time."""
    found = []
    for trial in trials:
        other = copy.copy(trial)
        other.user_attrs = trial.user_attrs | {"costs": _costs(trial.user_attrs)}
        other.user_attrs["costs"].pop("latency_ms", None)
        found.append(other)
    return found


def _costs(attributes: Mapping[str, Any]) -> dict[str, float]:
    """What is recorded of a trial's costs; of one of a sweep without goals its parameters."""
    known: dict[str, float] = {} if attributes.get("parameters") is None else {"parameters": attributes["parameters"]}
    known.update(attributes.get("costs", {}))
    return known


def _final(trial: FrozenTrial) -> float | None:
    """A complete trial's value by the metric, in the record as in the sampler's study."""
    return trial.values[0] if trial.state == TrialState.COMPLETE and trial.values else None


def _known_values(trial: FrozenTrial, objectives: Objectives) -> list[float] | None:
    value = _final(trial)
    return None if value is None else _values(value, _costs(trial.user_attrs), objectives)


def _values(value: float, costs: Mapping[str, float], objectives: Objectives) -> list[float] | None:
    """The sampler's values of a complete trial, None where it lacks one."""
    if any(name not in costs for name in objectives.costs):
        return None
    return [value, *(math.log(max(costs[name], 1e-9)) for name in objectives.costs)]


def _teaches(trial: FrozenTrial, objectives: Objectives) -> bool:
    """Whether the sampler learns from it: it has all values, or was pruned for one, or breaks a constraint of this sweep."""
    if "config" not in trial.user_attrs:
        return False
    if _known_values(trial, objectives) is not None or (trial.state == TrialState.PRUNED and trial.intermediate_values):
        return True
    return any(excess > 0 for excess in _constraints(trial, objectives).values())


def _known(trial: FrozenTrial, space: Space, objectives: Objectives) -> FrozenTrial:
    """The trial as the sampler takes it: with its choices in this space, and PRUNED if there was no memory for it."""
    params, distributions = in_space(trial.user_attrs["config"], space)
    values = _known_values(trial, objectives)
    more = {"costs": _costs(trial.user_attrs)} if objectives.costs else {}
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if values is not None else TrialState.PRUNED,
        values=values,
        params=params,
        distributions=distributions,
        intermediate_values={} if objectives.costs else trial.intermediate_values,
        user_attrs={"config": trial.user_attrs["config"]} | more,
        constraints=_constraints(trial, objectives) or None,
    )


def _constraints(trial: FrozenTrial, objectives: Objectives) -> dict[str, float]:
    """What Optuna knows of it by this sweep's constraints: above 0 for one that is broken."""
    memory: dict[str, float] = {name: excess for name, excess in trial.constraints.items() if name == INFEASIBLE}
    return memory | objectives.excesses(_final(trial), _costs(trial.user_attrs))


def _selected(finished: list[FrozenTrial], objectives: Objectives) -> list[FrozenTrial]:
    """All of them, or when they are too many the best and an even selection of the others."""
    if len(finished) <= 2 * MOST:
        return finished
    fronts = _fronts(finished, objectives) if objectives.costs else {}
    best_first = sorted(
        finished, key=lambda t: (-fronts.get(id(t), len(finished)), *_merit(t, objectives.metric)), reverse=True
    )
    others = sorted(best_first[BEST:], key=lambda t: t.number)
    step = len(others) / (MOST - BEST)
    chosen = best_first[:BEST] + [others[int(i * step)] for i in range(MOST - BEST)]
    return sorted(chosen, key=lambda t: t.number)


def _fronts(finished: list[FrozenTrial], objectives: Objectives) -> dict[int, int]:
    """On which front each complete trial is that keeps to the constraints, 0 for the first, by its `id`: sweeps number alike."""
    fit = [t for t in finished if not any(excess > 0 for excess in _constraints(t, objectives).values())]
    points = {id(t): objectives.point(_final(t), _costs(t.user_attrs)) for t in fit}
    return layers({key: point for key, point in points.items() if point is not None}, BEST)


def _merit(trial: FrozenTrial, goal: Metric) -> tuple[int, int, float]:
    """Complete before pruned ones; those by their value, these by how far they came, as TPE orders them."""
    if trial.state == TrialState.COMPLETE:
        return 1, 0, goal.merit(_final(trial))
    last = max(trial.intermediate_values, default=0)
    return 0, last, goal.merit(trial.intermediate_values.get(last))


def _sampler(config: SweepConfig, seed: int) -> optuna.samplers.BaseSampler:
    if config.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(4, (config.trials or 40) // 4)))
    return optuna.samplers.RandomSampler(seed=seed)
