"""How a search went, as pandas tables: the best so far, curves, what ended at which epoch, the worker groups' time.

Pure functions: no Streamlit, no database. Of many trials they take so many that a browser bears them.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import pandas as pd

from cluster.record import SweepRecord, TrialRecord
from dashboard.tables import Column, finite, trial_name
from trainer.fold_scores import averaged
from trainer.measuring import ACCURACY, Metric

Over = Literal["trials", "time"]
OVER: tuple[Over, ...] = get_args(Over)

MOST_POINTS = 2000
MOST_CURVES = 300
MOST_BARS = 1000

FATES = {
    "went on": "went on",
    "COMPLETE": "was complete",
    "PRUNED": "was pruned",
    "FAIL": "failed",
    "RUNNING": "is running",
    "WAITING": "is waiting",
}
"""What became of a trial after an epoch: it went on, or it has its state, in words."""

GROUP_WORK = (
    Column("group", "group", "The worker group, as they began"),
    Column("trials", "trials", "How many trials it began", "Int64", "%,d"),
    Column("minutes", "at work", "From its first trial's beginning to its last one's end", "Float64", "%.1f min"),
    Column("busy", "busy", "Share of that time in which it trained or validated", "Float64", "%.0f %%"),
)
"""The columns of `group_work`."""


def progress(sweep: SweepRecord, over: Over) -> pd.DataFrame:
    """A row per trial that has a value: x, trial, name, state, value, best, gain.

    `x` is the trial's number, or the minutes from the sweep's beginning to the trial's end. `best` is that of the complete
    trials so far, `gain` whether this one is the new best.
    """
    scored = [t for t in sweep.trials if t.value is not None and (over == "trials" or t.ended is not None)]
    start = _began(sweep)
    places = {t.number: t.number if over == "trials" else _minutes(t, start) for t in scored}
    rows = []
    best: float | None = None
    for t in sorted(scored, key=lambda t: (places[t.number], t.number)):
        assert t.value is not None
        gain = t.state == "COMPLETE" and (best is None or sweep.config.goal.is_better(t.value, best))
        best = t.value if gain else best
        rows.append((places[t.number], t.number, trial_name(t.number), t.state, finite(t.value), best, gain))
    table = pd.DataFrame(rows, columns=["x", "trial", "name", "state", "value", "best", "gain"])
    return table.astype({"best": "float64", "gain": "bool"})


def thinned(progress: pd.DataFrame, most: int = MOST_POINTS) -> pd.DataFrame:
    """At most about so many rows of a progress: each new best, the last one, and a sample, always the same one."""
    if len(progress) <= most:
        return progress
    sample = random.Random(0).sample(range(len(progress)), most)  # each n-th would follow a rhythm that trials may have
    return progress[progress["gain"] | progress.index.isin([*sample, len(progress) - 1])]


def metric_curves(trials: Sequence[TrialRecord], goal: Metric = ACCURACY, most: int = MOST_CURVES) -> pd.DataFrame:
    """A row per epoch of at most so many trials (`drawn`): trial, name, state, epoch, value. What is not finite is left out.

    Of a cross-validated trial they are the means of its folds.
    """
    chosen = drawn([t for t in trials if t.epochs_done], most // 3, most)
    rows = [
        (t.number, trial_name(t.number), t.state, epoch, value)
        for t in chosen
        for curve in (averaged(t.history),)
        for epoch, value in zip(curve["epoch"], curve.get(goal.field, ()), strict=False)
        if finite(value) is not None
    ]
    return pd.DataFrame(rows, columns=["trial", "name", "state", "epoch", "value"])


def drawn(trials: Sequence[TrialRecord], best: int, most: int) -> list[TrialRecord]:
    """Of `trials`, best first, the `best` first and a sample of the others, always the same one, up to `most` in all."""
    if len(trials) <= most:
        return list(trials)
    rest = random.Random(0).sample(range(best, len(trials)), most - best)
    return [*trials[:best], *(trials[i] for i in sorted(rest))]


def fates(trials: Iterable[TrialRecord]) -> pd.DataFrame:
    """A row per epoch and what became of the trials after it: epoch, fate, trials, share (of those that got there)."""
    ended = Counter((t.epochs_done, t.state) for t in trials if t.epochs_done)
    last = max((epoch for epoch, _ in ended), default=0)
    rows = []
    for epoch in range(1, last + 1):
        here = {state: ended[epoch, state] for state in FATES if ended[epoch, state]}
        further = sum(count for (done, _), count in ended.items() if done > epoch)
        if further:
            here["went on"] = further
        reached = sum(here.values())
        rows += [(epoch, fate, here[fate], here[fate] / reached) for fate in FATES if fate in here]
    return pd.DataFrame(rows, columns=["epoch", "fate", "trials", "share"])


def timeline(trials: Iterable[TrialRecord], most: int = MOST_BARS) -> pd.DataFrame:
    """A row per trial that a group began, the latest ones: group, trial, name, state, value, epochs, begin, end, seconds.

    Groups are 'group 1' and so on, as they began; `begin` and `end` are minutes since the first one began its first trial.
    """
    begun = _begun(trials)
    names = _group_names(begun)
    rows = []
    for group, began, t in begun[-most:]:
        begin = (began - begun[0][1]) / 60
        end = begin + t.train_seconds / 60
        name = trial_name(t.number)
        rows.append((names[group], t.number, name, t.state, t.value, t.epochs_done, begin, end, t.train_seconds))
    columns = ["group", "trial", "name", "state", "value", "epochs", "begin", "end", "seconds"]
    return pd.DataFrame(rows, columns=columns).astype({"value": "float64"})


def group_work(trials: Iterable[TrialRecord]) -> pd.DataFrame:
    """A row per worker group; columns are `GROUP_WORK`."""
    begun = _begun(trials)
    of_group: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for group, began, t in begun:
        of_group[group].append((began, t.train_seconds))
    rows = []
    for group, name in _group_names(begun).items():
        work = of_group[group]
        span = max(began + seconds for began, seconds in work) - work[0][0]
        busy = min(100.0, 100 * sum(seconds for _, seconds in work) / span) if span else None
        rows.append((name, len(work), span / 60, busy))
    return pd.DataFrame(rows, columns=["group", "trials", "minutes", "busy"]).astype({"busy": "Float64"})


def _begun(trials: Iterable[TrialRecord]) -> list[tuple[str, float, TrialRecord]]:
    """The trials that a worker group began, with that group and when, in that order."""
    found = [(t.group, t.group_began, t) for t in trials if t.group is not None and t.group_began is not None]
    return sorted(found, key=lambda begun: (begun[1], begun[2].number))


def _group_names(begun: Iterable[tuple[str, float, TrialRecord]]) -> dict[str, str]:
    groups = dict.fromkeys(group for group, _, _ in begun)
    return {group: f"group {place}" for place, group in enumerate(groups, 1)}


def _began(sweep: SweepRecord) -> float:
    """Seconds since 1970; where the clocks of two machines disagree, no trial began before the sweep."""
    begun = [t.begun.timestamp() for t in sweep.trials if t.begun is not None]
    return min([float(run["begun"]) for run in sweep.runs[:1]] + begun, default=0.0)


def _minutes(trial: TrialRecord, start: float) -> float:
    assert trial.ended is not None
    return (trial.ended.timestamp() - start) / 60
