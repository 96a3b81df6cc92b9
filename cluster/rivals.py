"""Whom a trial is compared with by the pruner of a sweep with several goals: the trials that cost no more."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from cluster.goals import Objectives


def rivals(study: optuna.Study, objectives: Objectives, costs: Mapping[str, float]) -> optuna.Study:
    """The study as a pruner is to see it for a trial with these costs.

    By the metric alone every small network would be given up for a large one that is a little better. Against those that cost no
    more, a trial that is on the front so far is the best, and goes on.
    """
    # Optuna's pruners ask a study for its trials, its direction and its storage.
    return cast(optuna.Study, _Rivals(study, objectives.costs, costs)) if objectives.costs else study


class _Rivals:
    def __init__(self, study: optuna.Study, names: tuple[str, ...], costs: Mapping[str, float]) -> None:
        self._study, self._names, self._costs = study, names, costs
        self._storage, self.direction = study._storage, study.direction

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=deepcopy, states=states)
        return [t for t in trials if self._costs_no_more(t.user_attrs.get("costs", {}))]

    def _costs_no_more(self, costs: Mapping[str, float]) -> bool:
        return all(name in costs and costs[name] <= self._costs.get(name, math.inf) for name in self._names)
