"""What is said beside a sweep's charts, in the pages and in the report. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from cluster.record import SweepRecord, TrialRecord
from dashboard import optuna_charts
from dashboard.optuna_charts import ENOUGH_TRIALS, Importances
from dashboard.parts import counted
from trainer.measuring import Metric


def best_so_far(goal: Metric, drawn: int, there: int) -> str:
    """Of the points that are `drawn` of those that are `there`."""
    few = f" {counted(drawn, 'point')} of {there:,} are shown." if drawn < there else ""
    return (
        f"Each trial's validation {goal.label}, of a pruned one its last. The line is the best of the complete trials so far."
        + few
    )


def curves(curves: pd.DataFrame, trials: Sequence[TrialRecord], goal: Metric) -> str:
    """Of which of the trials there are `search_tables.metric_curves`."""
    number, trained = curves["trial"].nunique(), sum(t.epochs_done > 0 for t in trials)
    which = "the trials" if number == trained else f"{number:,} of {trained:,} trials: the best and a sample"
    return f"Validation {goal.label} of {which}."


FATES = "Trials that got to each epoch, and what became of them."


def timeline(bars: pd.DataFrame, trials: Sequence[TrialRecord]) -> str:
    """What the bars of `search_tables.timeline` are."""
    begun = sum(t.group_began is not None for t in trials)
    which = f"the last {len(bars):,} of {begun:,} trials" if len(bars) < begun else "each trial"
    return (
        f"A bar for {which}, from when its worker group took it to its last report. A group that was lost, or that "
        "belongs to a run before an interruption, has a row of its own."
    )


def importances(found: Importances, sweep: SweepRecord, shown: Callable[[str], str] = str) -> list[str]:
    """What the importances are and how far they can be trusted, a sentence or two per line; `shown` writes a name."""

    def listed(names: Iterable[str]) -> str:
        return ", ".join(map(shown, names))

    complete = optuna_charts.complete_trials(sweep)
    sampled = f" a sample of {found.trials:,} of" if found.trials < len(complete) else ""
    said = [
        "How much each hyperparameter decides whether a trial is among the best tenth: Optuna's PED-ANOVA, from"
        f"{sampled} {counted(len(complete), 'complete trial')}. One that only some trials have counts where it is there."
    ]
    if found.trials < ENOUGH_TRIALS:
        said.append(f"Only a hint: fewer than {ENOUGH_TRIALS} complete trials.")
    if found.rough:
        said.append(f"Rough, because a single trial has another range of it, or is without it: {listed(found.rough)}.")
    fixed = dict.fromkeys(name for t in complete for name in t.config if name not in found.values)
    if fixed:
        said.append(f"Not searched, so left out: {listed(fixed)}.")
    return said


def front(has_bounds: bool, drawn: int, there: int) -> str:
    """What the line of `charts.value_against_cost` is, of the trials that are `drawn` of those that are `there`."""
    about = "The line is the front: no complete trial that is shown is both better and cheaper."
    bounds = " Dashed: what a constraint allows." * has_bounds
    some = f" {drawn:,} of {there:,} complete trials are drawn, the whole front among them." * (drawn < there)
    return about + bounds + some
