"""What a sweep gets on top with `convsweep extend`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.config import SweepConfig
from cluster.study import SweepStudy


@dataclass(frozen=True)
class More:
    """What a sweep is to get on top: `trials`, seconds of `time`, GPU-hours, money, and another `space` for what is yet to be proposed.

    Trials and time are without a limit when only something else is given; GPU-hours and money stay limited as they are. `min_gain` takes
    the place of the sweep's own; without one, a sweep that has ended for it goes on without it.
    """

    trials: int | None = None
    time: float | None = None
    space: Mapping[str, Any] = field(default_factory=dict)
    gpu_hours: float | None = None
    max_cost: float | None = None
    min_gain: float | None = None

    def of(self, study: SweepStudy) -> SweepConfig:
        """The sweep with that. Raises ValueError for what makes no sense."""
        config = study.config
        if self.trials is None and self.time is None and self.gpu_hours is None and self.max_cost is None:
            raise ValueError(
                "Say what the sweep is to get more of: --trials, --time-budget, --gpu-hours or --max-cost."
            )
        if self.trials is not None and self.trials < 1:
            raise ValueError(f"trials must be at least 1, but got {self.trials}.")
        if config.sampler == "grid" and self.space:
            raise ValueError(
                "The order of a grid's trials depends on its space: start another sweep for another space."
            )
        return replace(
            config,
            trials=None if self.trials is None else self._trials(study, config, self.trials),
            time_budget=None if self.time is None else study.seconds_run() + self.time,
            space={**config.space, **self.space},
            min_gain=self._min_gain(study, config),
            **self._held(study, config),
        )

    def _trials(self, study: SweepStudy, config: SweepConfig, more: int) -> int:
        """How many it then has: of those that it was to have, one that ended before it had them gets no others back."""
        wanted = None if study.ending is not None else config.trials
        trials = (wanted or study.finished_count()) + more
        if config.sampler == "grid":
            trials = min(trials, config.grid_trials())
            if trials == config.trials:
                raise ValueError(f"All {trials} trials of the grid of sweep {study.name!r} are there already.")
        return trials

    def _min_gain(self, study: SweepStudy, config: SweepConfig) -> float | None:
        if self.min_gain is not None:
            return self.min_gain
        return None if study.ending is not None and study.ending.setting == "min_gain" else config.min_gain

    def _held(self, study: SweepStudy, config: SweepConfig) -> dict[str, Any]:
        """The limits of GPU-hours and money."""
        for name, more in (("gpu_hours", self.gpu_hours), ("max_cost", self.max_cost)):
            if more is not None and not more > 0:
                raise ValueError(f"{name} must be greater than 0, but got {more:g}.")
        spent, found = study.spent(), {}
        if self.gpu_hours is not None:
            found["gpu_hours"] = spent.gpu_hours + self.gpu_hours
        if self.max_cost is not None:
            found["max_cost"] = (spent.cost(config.price_per_node_hour) or 0.0) + self.max_cost
        for limit in config.budget.limits(spent):
            if limit.is_reached and limit.setting in ("gpu_hours", "max_cost") and limit.setting not in found:
                option = f"--{limit.setting.replace('_', '-')}"
                raise ValueError(
                    f"The sweep's {limit.setting} is spent ({limit}): give it more of that, too, with {option}."
                )
        return found
