"""What the database says of sweeps and trials, as frozen values. Imports neither Ray nor Optuna."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from cluster.budget import Amounts, Ending, Limit
from cluster.config import SweepConfig
from cluster.confirmed import FinalScore
from cluster.pareto import front
from trainer.domains import Value
from trainer.fold_scores import interval
from trainer.gradients import Gradients
from trainer.measuring import ACCURACY, Metric
from trainer.metrics import EpochMetrics, epochs_of

SWEEP_ATTRIBUTE = "convsweep"
"""The study's attribute that holds its SweepConfig as JSON: a study that has it is a sweep, others are other programs'."""
HELD_ATTRIBUTE = "spent"
"""The study's attribute that has the GPU-hours and the node-hours of all runs."""
ENDING_ATTRIBUTE = "ending"
"""The study's attribute that says why the sweep ended before it had all its trials."""
STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the database has it. `value` is that of its best epoch by the sweep's metric (of a pruned one, its last).

    Of a cross-validated one it is the mean of the `fold_values`, each that of the best epoch of a fold that is over.

    `history` has a list with a value per epoch for each field of EpochMetrics. `group` is the worker group that trained it,
    and `group_began` when (seconds since 1970, by that group's clock). `log` is the file (host:path) that has more about its
    error, `id` the database's own number of the trial. `costs` has what was measured of its network, where the sweep has goals or
    constraints, and `infeasible` says which constraints it does not keep to. Times are in UTC. `gradient_text` is JSON: see
    `gradients`.
    """

    number: int
    state: str
    value: float | None
    config: dict[str, Value]
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    train_seconds: float = 0.0
    group: str | None = None
    group_began: float | None = None
    parameters: int | None = None
    preset: str | None = None
    error: str | None = None
    log: str | None = None
    begun: datetime | None = None
    ended: datetime | None = None
    id: int | None = None
    fold_values: tuple[float, ...] = ()
    costs: Mapping[str, float] = field(default_factory=dict)
    infeasible: str | None = None
    gradient_text: str | None = None

    @property
    def gradients(self) -> Gradients:
        """The norms of its layers' gradients. They are parsed here, for who looks at one trial, and not for all of a sweep."""
        return Gradients.from_text(self.gradient_text)

    @property
    def epochs_done(self) -> int:
        """How many epochs it trained and validated."""
        return len(self.history.get("epoch", ()))

    @property
    def epochs(self) -> tuple[EpochMetrics, ...]:
        """Its epochs in their order."""
        return tuple(epochs_of(self.history))

    def to_json(self) -> dict[str, Any]:
        """What `rank --json` says of a trial; of its folds only where one has ended."""
        folds = {"folds": [*self.fold_values], "interval": interval(self.fold_values)} if self.fold_values else {}
        return {
            "number": self.number,
            "state": self.state,
            "value": self.value,
            "epochs": self.epochs_done,
            "train_seconds": round(self.train_seconds, 3),
            "parameters": self.parameters,
            "costs": dict(self.costs),
            "infeasible": self.infeasible,
            "preset": self.preset,
            **folds,
            "config": self.config,
        }


@dataclass(frozen=True)
class Timing:
    """Where a sweep's time went. `overhead_seconds` is the median time between two trials on a warm worker group."""

    wall_seconds: float
    startup_seconds: float
    train_seconds: float
    overhead_seconds: float
    groups: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {name: round(value, 4) for name, value in vars(self).items()}


@dataclass(frozen=True)
class SweepRecord:
    """A sweep as the database had it at one moment; `trials` are best first: complete ones by value, then pruned ones, then the rest.

    `state` is NEW, RUNNING, FINISHED, INTERRUPTED or FAILED, `image_shape` (C, H, W) of every image; `runs` are the times at
    which it ran (a resumed sweep has several), `storage_path` where its checkpoints are if not in the experiments folder, `notes`
    what people wrote: under None to the sweep, under a number to a trial, `confirmed` what `convsweep confirm` has found on the test
    split. `held` are GPU-hours and node-hours of all runs (empty where nobody has counted), `ending` is why the sweep ended before it
    had all its trials. `stamp` is this process's own number of the record.
    """

    name: str
    state: str
    config: SweepConfig
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    runs: tuple[Mapping[str, Any], ...]
    trials: tuple[TrialRecord, ...]
    notes: Mapping[int | None, str] = field(default_factory=dict)
    storage_path: str | None = None
    confirmed: tuple[FinalScore, ...] = ()
    held: Mapping[str, float] = field(default_factory=dict)
    ending: Ending | None = None
    stamp: int = field(default_factory=itertools.count().__next__, compare=False)

    @property
    def is_live(self) -> bool:
        """Whether a process works on it, so that there will be news."""
        return self.state == "RUNNING"

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many trials there are in each state."""
        found = Counter(t.state for t in self.trials)
        return {state: found[state] for state in STATES}

    @property
    def best(self) -> TrialRecord | None:
        """The best trial that ran to its end and keeps to the constraints."""
        complete = itertools.takewhile(lambda t: t.state == "COMPLETE", self.trials)
        return next((t for t in complete if t.infeasible is None), None)

    @cached_property
    def front(self) -> frozenset[int]:
        """The numbers of the trials on the Pareto front of the sweep's objectives; with one objective the best ones."""
        return front(self.trials, self.config.objectives)

    @property
    def baseline(self) -> TrialRecord | None:
        """The preset's trial, if it ran to its end: what the others are compared with."""
        return next((t for t in self.trials if t.preset and t.state == "COMPLETE"), None)

    def trial(self, number: int) -> TrialRecord:
        """The trial with this number; raises ValueError when there is none."""
        found = self._by_number.get(number)
        if found is None:
            has = f"it has trials 0 to {len(self.trials) - 1}" if self.trials else "it has none yet"
            raise ValueError(f"Sweep {self.name!r} has no trial {number}: {has}.")
        return found

    @cached_property
    def _by_number(self) -> dict[int, TrialRecord]:
        return {t.number: t for t in self.trials}

    def best_or_error(self) -> TrialRecord:
        """The best complete trial. Raises ValueError when there is none."""
        if self.best is None:
            counted = ", ".join(f"{count} {state}" for state, count in self.counts.items() if count)
            keeps = " and keeps to its constraints" if self.config.constraints else ""
            raise ValueError(
                f"Sweep {self.name!r} has no trial that ran to its end{keeps}: {counted or 'it has no trials'}."
            )
        return self.best

    @cached_property
    def timing(self) -> Timing:
        """Where the time went, over all runs."""
        waits = _waits(self.trials)
        return Timing(
            wall_seconds=wall_seconds(self.runs),
            startup_seconds=sum(run.get("startup_seconds") or 0.0 for run in self.runs),
            train_seconds=sum(t.train_seconds for t in self.trials),
            overhead_seconds=statistics.median(waits) if waits else 0.0,
            groups=self.runs[-1]["groups"] if self.runs else 0,
        )

    @property
    def spent(self) -> Amounts:
        """What all runs have spent, as far as it is recorded."""
        return Amounts(wall_seconds(self.runs), **self.held)

    def spent_to_json(self) -> dict[str, float | None]:
        """What is spent over all runs; None: nobody has counted, or nobody has said what a node costs."""
        amounts = self.spent
        cost = amounts.cost(self.config.price_per_node_hour) if self.held else None
        return {
            "trials": sum(self.counts[state] for state in ("COMPLETE", "PRUNED", "FAIL")),
            "seconds": round(amounts.seconds, 3),
            "gpu_hours": round(amounts.gpu_hours, 6) if self.held else None,
            "node_hours": round(amounts.node_hours, 6) if self.held else None,
            "cost": None if cost is None else round(cost, 4),
        }


@dataclass(frozen=True)
class SweepSummary:
    """What a list of sweeps says of one. `trials` is how many it shall have, None when only something else is limited: `limits`, with
    what is spent of each. `ending` is why it ended before it had all its trials.
    """

    name: str
    state: str
    data: str
    trials: int | None
    counts: Mapping[str, int]
    best_value: float | None
    begun: datetime | None
    wall_seconds: float
    groups: int
    metric: Metric = ACCURACY
    limits: tuple[Limit, ...] = ()
    ending: Ending | None = None

    def to_json(self) -> dict[str, Any]:
        """What `list --json` says of a sweep."""
        return {
            "name": self.name,
            "state": self.state,
            "data": self.data,
            "trials": dict(self.counts),
            "metric": self.metric.field,
            "best_value": self.best_value,
        }


def rank(trials: Sequence[TrialRecord], metric: Metric = ACCURACY) -> tuple[TrialRecord, ...]:
    """The trials, best first: complete ones by value, then pruned ones by value, then the rest by number."""
    order = {state: place for place, state in enumerate(STATES)}
    return tuple(sorted(trials, key=lambda t: (order[t.state], -metric.merit(t.value), t.number)))


def wall_seconds(runs: Sequence[Mapping[str, Any]]) -> float:
    """How long the runs took; the last one may still be at it."""
    return sum(float((run.get("ended") or time.time()) - run["begun"]) for run in runs)


def _waits(trials: Sequence[TrialRecord]) -> list[float]:
    """For each trial but a group's first: the seconds from the group's last report that counted to its beginning.

    What a group still did for a trial that was already given up is thus waiting time.
    """
    begun = [
        (t.group, t.group_began, t.train_seconds) for t in trials if t.group is not None and t.group_began is not None
    ]
    pairs = itertools.pairwise(sorted(begun))
    return [after[1] - (before[1] + before[2]) for before, after in pairs if before[0] == after[0]]
