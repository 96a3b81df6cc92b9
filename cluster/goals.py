"""What a sweep is after besides its metric: networks that cost little, and constraints that a trial must keep to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.costs import COSTS, Costing, Limit
from trainer.hyperparameters import nearest
from trainer.measuring import Metric

_CONSTRAINT = re.compile(r"\s*([^\s<>=!]+)\s*([<>=!]{1,2})\s*(\S.*?)\s*")


@dataclass(frozen=True)
class Objectives:
    """What makes a trial good: its `metric`, then the `costs`, by name, each of them the lower the better; and its `limits`."""

    metric: Metric
    costs: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    latency_batch: int = 1

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """What Optuna calls them: maximize or minimize."""
        return [self.metric.direction] + ["minimize"] * len(self.costs)

    @property
    def costing(self) -> Costing:
        """What has to be measured of every trial."""
        limits = tuple(limit for limit in self.limits if limit.name in COSTS)
        names = dict.fromkeys((*self.costs, *(limit.name for limit in limits)))
        return Costing(tuple(names), limits, self.latency_batch)

    def label(self, cost: str) -> str:
        """A cost's heading with its unit, such as 'latency of 64, ms'."""
        known = COSTS[cost]
        batch = f" of {self.latency_batch}" if cost == "latency_ms" and self.latency_batch > 1 else ""
        return f"{known.label}{batch}" + (f", {known.unit}" if known.unit else "")

    def point(self, value: float | None, costs: Mapping[str, float]) -> tuple[float, ...] | None:
        """A number for each objective, the lower, the better; None where the trial lacks one."""
        merit = self.metric.merit(value)
        if math.isinf(merit) or any(name not in costs for name in self.costs):
            return None
        return -merit, *(float(costs[name]) for name in self.costs)

    def excesses(self, value: float | None, costs: Mapping[str, float]) -> dict[str, float]:
        """For each limit, as users write it, by what share of it the trial is beyond it; without those on what the trial does not have.

        `value` is that of a trial that ran to its end, None of others.
        """
        return {str(limit): limit.excess(known) for limit, known in self._known(value, costs)}

    def infeasible(self, value: float | None, costs: Mapping[str, float]) -> str | None:
        """Which limits the trial does not keep to, such as 'latency_ms 7.3 > 5'; None when it keeps to all."""
        broken = [limit.verdict(known) for limit, known in self._known(value, costs) if limit.excess(known) > 0]
        return ", ".join(broken) or None

    def _known(self, value: float | None, costs: Mapping[str, float]) -> list[tuple[Limit, float]]:
        known = dict(costs) | ({} if value is None else {self.metric.name: value})
        return [(limit, known[limit.name]) for limit in self.limits if limit.name in known]


def check_goals(names: Sequence[Any], metric: Metric) -> tuple[str, ...]:
    """The goals besides the metric. Raises ValueError for what is none of the costs, and for one that is there twice."""
    for name in names:
        if name == metric.name:
            raise ValueError(f"The metric, {name}, is the first goal already: `goals` are those besides it.")
        if not isinstance(name, str) or name not in COSTS:
            raise ValueError(f"A goal is one of {', '.join(COSTS)}, but got {name!r}.{nearest(str(name), COSTS)}")
    if len(set(names)) < len(names):
        raise ValueError(f"A goal counts once, but got {', '.join(names)}.")
    return tuple(names)


def read_limits(texts: Sequence[Any], metric: Metric) -> tuple[Limit, ...]:
    """The constraints. Raises ValueError for one that is none, and for two on the same."""
    limits = tuple(read_limit(text, metric) for text in texts)
    names = [limit.name for limit in limits]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"There can be one constraint on {name}, but got {', '.join(map(str, limits))}.")
    return limits


def read_limit(text: Any, metric: Metric) -> Limit:
    """A constraint such as 'latency_ms <= 5' or, on the metric, 'accuracy >= 0.9'. Raises ValueError for anything else."""
    match = _CONSTRAINT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"A constraint is a cost, <= and a number, such as 'latency_ms <= 5', but got {text!r}.")
    name, sign, number = match.groups()
    known = (*COSTS, metric.name)
    if name not in known:
        raise ValueError(
            f"A constraint is on one of {', '.join(COSTS)}, or on the metric, {metric.name}, but got {text!r}."
            f"{nearest(name, known)}"
        )
    is_least = name == metric.name and metric.higher_is_better
    right = ">=" if is_least else "<="
    if sign != right:
        bound = "at least" if is_least else "at most"
        raise ValueError(f"A constraint says what {name} is {bound}: '{name} {right} {number}', but got {text!r}.")
    try:
        bound_value = float(number)
    except ValueError:
        bound_value = math.nan
    if not math.isfinite(bound_value):
        unit = COSTS[name].unit if name in COSTS else ""
        without = f", without its unit ({unit})" if unit else ""
        raise ValueError(f"A constraint's bound is a number such as 5 or 1e5{without}, but got {text!r}.")
    if name in COSTS and bound_value <= 0:
        raise ValueError(f"No network has that little: the bound must be above 0, but got {text!r}.")
    return Limit(name, bound_value, is_least)
