"""A sweep in short: what it was told to do, its headline numbers, its baseline. Pure functions: the pages and the report show them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.record import SweepRecord, TrialRecord
from dashboard import budget_bars, gains, tables
from dashboard.parts import counted
from trainer.costs import COSTS
from trainer.fold_scores import with_margin


@dataclass(frozen=True)
class Number:
    """A headline number with what stands below it, and what it means."""

    label: str
    value: str
    below: str
    about: str


def settings(sweep: SweepRecord, shown: Callable[[str], str] = str) -> list[str]:
    """What the sweep was told to do, such as '20 trials'; `shown` writes what a user named: Markdown needs its signs escaped."""
    config = sweep.config
    return [
        shown(config.data.name),
        counted(config.trials, "trial") if config.trials else f"trials for {budget_bars.allowed(config.budget)}",
        f"up to {counted(config.epochs, 'epoch')}" + f" in each of {config.folds} folds" * (config.folds > 1),
        f"best by {config.goal.label}" + "".join(f", {COSTS[name].label}" for name in config.goals),
        *(shown(constraint) for constraint in config.constraints),
        f"sampler {config.sampler}",
        f"pruner {config.pruner}",
        counted(sweep.timing.groups, "worker group"),
    ]


def headline(sweep: SweepRecord) -> list[Number]:
    """The best value, the gain over the preset where there are both, the trials and the time."""
    best, baseline, timing, goal = sweep.best, sweep.baseline, sweep.timing, sweep.config.goal
    about = "On the validation split, of the best trial that ran to its end. The search does not see the test split."
    if best and best.fold_values:
        about = (
            f"The mean of {len(best.fold_values)} folds and its 95 % interval. The search does not see the test split."
        )
    found = [
        Number(
            f"Best {goal.label}",
            with_margin(best.value, best.fold_values) if best and best.value is not None else "–",
            f"trial {best.number}" if best else "none yet",
            f"{goal.meaning[0].upper()}{goal.meaning[1:]}. {about}",
        )
    ]
    if best and baseline and best.value is not None and baseline.value is not None:
        found.append(
            Number(
                "Gain over the preset",
                f"{gains.gain(goal, best.value, baseline.value):{gains.form(goal)}}",
                gains.from_to(goal, baseline.value, best.value),
                f"{gains.meaning(goal)}; below, both trials",
            )
        )
    below, states = tables.counts(sweep)
    spent = (
        f"Until the first trial began {tables.duration(timing.startup_seconds)}, between two trials "
        f"{timing.overhead_seconds:.2f} s (median), training {tables.duration(timing.train_seconds)} over all groups."
    )
    return [
        *found,
        Number("Trials", f"{len(sweep.trials):,}", below, states),
        Number("Wall time", tables.duration(timing.wall_seconds), counted(timing.groups, "group"), spent),
    ]


def baseline_in_words(sweep: SweepRecord, baseline: TrialRecord, shown: Callable[[str], str] = str) -> str:
    """Which trial the others are compared with, its value and its rank."""
    place = next(place for place, t in enumerate(sweep.trials, 1) if t is baseline)
    return (
        f"The baseline, {shown(baseline.preset or '')}, is {tables.trial_name(baseline.number)}: "
        f"{sweep.config.goal.label} {baseline.value:.4f}, rank {place:,}."
    )
