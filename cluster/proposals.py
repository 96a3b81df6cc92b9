"""What the sampler knows: the study's trials in memory, as many as it needs, so that a proposal costs the same at any size.

Optuna's TPE looks at every trial for every hyperparameter: 5,000 trials take it a second per proposal, and each answer is a
transaction of its own. Here it looks at the best trials and at an even selection of the others, and its answer is written once.
"""

from __future__ import annotations

from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial, TrialState

from cluster.config import SweepConfig
from cluster.space import Space
from trainer.hyperparameters import TrialConfig

BEST, MOST = 50, 250
"""How many trials the sampler is left with when it has twice as many as `MOST`: TPE models its 25 best ones against the rest."""


class Proposals:
    """The sampler of one run, and the trials that it learns from. `seed` differs between the runs of a sweep."""

    def __init__(self, config: SweepConfig, seed: int, trials: Iterable[FrozenTrial]) -> None:
        self._config, self._seed = config, seed
        self._numbers: dict[int, int] = {}
        self._begin([t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)])

    def _begin(self, trials: list[FrozenTrial]) -> None:
        running = [t for t in trials if not t.state.is_finished()]
        finished = [t for t in trials if t.state.is_finished()]
        if len(trials) > 2 * MOST:
            best_first = sorted(finished, key=_merit, reverse=True)
            others = sorted(best_first[BEST:], key=lambda t: t.number)
            step = len(others) / (MOST - BEST)
            finished = best_first[:BEST] + [others[int(i * step)] for i in range(MOST - BEST)]
            finished.sort(key=lambda t: t.number)
        self._study = optuna.create_study(direction="maximize", sampler=_sampler(self._config, self._seed))
        self._seed += 1
        before = {mine: theirs for theirs, mine in self._numbers.items()}
        self._numbers = {}
        for place, trial in enumerate([*finished, *running]):
            if trial.number in before:
                self._numbers[before[trial.number]] = place
            self._study.add_trial(trial)

    def propose(self, space: Space) -> tuple[TrialConfig, FrozenTrial]:
        """A configuration, and the trial that holds it; `note` says which number the trial has got."""
        if len(self._study.get_trials(deepcopy=False)) > 2 * MOST:
            self._begin(self._study.get_trials(deepcopy=False))
        trial = self._study.ask()
        self._last = trial.number
        chosen = space.suggest(trial)
        return chosen, self._study.get_trials(deepcopy=False)[trial.number]

    def note(self, number: int, trial: FrozenTrial | None = None) -> None:
        """The trial that was proposed last, or `trial`, which somebody else chose, runs with this number."""
        if trial is not None:
            self._study.add_trial(trial)
            self._last = len(self._study.get_trials(deepcopy=False)) - 1
        self._numbers[number] = self._last

    def ended(self, number: int, state: TrialState, value: float | None, epoch: int) -> None:
        """The trial with this number ended so, with this value in its last epoch; a trial that waits again is forgotten."""
        mine = self._numbers.pop(number, None)
        if mine is None:
            return
        if state == TrialState.PRUNED and value is not None:
            self._study._storage.set_trial_intermediate_value(self._trial_id(mine), epoch, value)
        self._study.tell(mine, value if state == TrialState.COMPLETE else None, state=state)

    def _trial_id(self, number: int) -> int:
        return self._study.get_trials(deepcopy=False)[number]._trial_id


def _merit(trial: FrozenTrial) -> tuple[int, int, float]:
    """Complete before pruned ones; those by their value, these by how far they came, as TPE orders them."""
    if trial.state == TrialState.COMPLETE:
        return 1, 0, trial.value if trial.value is not None else float("-inf")
    last = max(trial.intermediate_values, default=0)
    return 0, last, trial.intermediate_values.get(last, float("-inf"))


def _sampler(config: SweepConfig, seed: int) -> optuna.samplers.BaseSampler:
    if config.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(4, (config.trials or 40) // 4)))
    return optuna.samplers.RandomSampler(seed=seed)
