"""What a sweep may spend and what it has spent: wall time, GPU-hours, money. Imports no Ray."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

RECORD_SECONDS = 30.0
"""After so many seconds at most what was spent is recorded: so much is lost with a process that is killed."""


@dataclass(frozen=True)
class Amounts:
    """What the runs of a sweep took together: `seconds` of wall time, GPU-hours and node-hours, as `Budget` counts them."""

    seconds: float = 0.0
    gpu_hours: float = 0.0
    node_hours: float = 0.0

    def cost(self, price_per_node_hour: float | None) -> float | None:
        """What the nodes cost, or None without a price."""
        return None if price_per_node_hour is None else self.node_hours * price_per_node_hour


@dataclass(frozen=True)
class Limit:
    """One limit of a budget, by the name of its setting, and what is spent of it."""

    setting: str
    spent: float
    allowed: float

    @property
    def is_reached(self) -> bool:
        """Whether no new trial starts any more."""
        return self.spent >= self.allowed

    def __str__(self) -> str:
        if self.setting == "time_budget":
            return f"{duration(self.spent)} of {duration(self.allowed)}"
        if self.setting == "gpu_hours":
            return f"{self.spent:.2f} of {self.allowed:g} GPU-hours"
        return f"{self.spent:.2f} of {self.allowed:g} for nodes"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a sweep may spend, over all its runs; None: without a limit. Once one limit is reached no new trial starts.

    The trials that have begun by then run to their end, so a little more is spent. What counts:

    `time_budget`: seconds of wall time during which the sweep is run.
    `gpu_hours`: the GPUs of the worker groups whose processes are up, each for as long as they are, whether they train or wait. A
    group of 2 ranks with half a GPU each has one. What a group takes to start does not count, nor does a GPU that is idle.
    `max_cost`, in the currency of `price_per_node_hour`: the nodes on which there are such processes, each as a whole and once,
    however many groups share it. A head that trains nothing, nodes that start or idle, storage and traffic do not count.
    """

    time_budget: float | None = None
    gpu_hours: float | None = None
    max_cost: float | None = None
    price_per_node_hour: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "time_budget" and value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be greater than 0, but got {value:g}.")
        if self.max_cost is not None and self.price_per_node_hour is None:
            raise ValueError(
                f"max_cost needs to know what a node costs, but got {self.max_cost:g} without price_per_node_hour: give both."
            )

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing is limited."""
        return not self.limits(Amounts())

    def limits(self, spent: Amounts) -> tuple[Limit, ...]:
        """Each limit that there is, with what of it is spent."""
        found = (
            ("time_budget", spent.seconds, self.time_budget),
            ("gpu_hours", spent.gpu_hours, self.gpu_hours),
            ("max_cost", spent.cost(self.price_per_node_hour) or 0.0, self.max_cost),
        )
        return tuple(Limit(name, amount, allowed) for name, amount, allowed in found if allowed is not None)

    def check_for(self, gpus_per_group: float) -> None:
        """Raise ValueError when groups of so many GPUs can never spend the GPU-hours."""
        if self.gpu_hours is not None and not gpus_per_group:
            raise ValueError(
                f"gpu_hours limits what worker groups have of GPUs, but got {self.gpu_hours:g} where they have none: give time_budget "
                "or trials instead."
            )


@dataclass(frozen=True)
class Ending:
    """Why a sweep ended before it had all its trials: the setting that ended it, and a sentence."""

    setting: str
    reason: str

    @classmethod
    def from_attribute(cls, value: Any) -> Ending | None:
        """The ending by the study's attribute; None when there is none."""
        return cls(**value) if value else None


class Spent:
    """What a sweep has spent so far: `before` in its earlier runs, and since. Any thread may tell it and ask it.

    `record` is given the amounts by whoever tells, at once and then every `RECORD_SECONDS`.
    """

    def __init__(
        self,
        budget: Budget,
        before: Amounts,
        gpus_per_group: float = 0.0,
        record: Callable[[Amounts], None] = lambda amounts: None,
    ) -> None:
        self._budget, self._before, self._gpus_per_group, self._record = budget, before, gpus_per_group, record
        self._begun = self._told = time.time()
        self._groups = self._nodes = 0
        self._group_hours = self._node_hours = 0.0
        self._recorded = -math.inf
        self._lock = threading.Lock()

    def hold(self, groups: int, nodes: int) -> None:
        """From now on so many groups are up, and their processes are on so many nodes."""
        with self._lock:
            self._count()
            self._groups, self._nodes = groups, nodes
            is_due = self._told - self._recorded >= RECORD_SECONDS
            if is_due:
                self._recorded = self._told
        if is_due:
            self._record(self.amounts())

    def amounts(self) -> Amounts:
        """What is spent by now."""
        with self._lock:
            self._count()
            return Amounts(
                self._before.seconds + max(0.0, self._told - self._begun),
                self._before.gpu_hours + self._group_hours * self._gpus_per_group,
                self._before.node_hours + self._node_hours,
            )

    def _count(self) -> None:
        now = time.time()
        hours = max(0.0, now - self._told) / 3600  # a clock may be set back
        self._group_hours += self._groups * hours
        self._node_hours += self._nodes * hours
        self._told = now

    def limits(self) -> tuple[Limit, ...]:
        """Each limit of the budget, with what of it is spent by now."""
        return self._budget.limits(self.amounts())

    def is_over(self) -> bool:
        """Whether a limit is reached: no new trial starts."""
        return any(limit.is_reached for limit in self.limits())

    def ending(self, trials: int) -> Ending | None:
        """Why the sweep ended after so many trials, if a limit was the reason."""
        for limit in self.limits():
            if limit.is_reached:
                after = f"{trials} {'trial' if trials == 1 else 'trials'}"
                return Ending(limit.setting, f"The sweep has ended: {limit} spent after {after}.")
        return None


def duration(seconds: float) -> str:
    """Such as 4s, 3m 05s or 2h 07m."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
