"""Trials, and sweeps, side by side, as pandas tables. Pure functions: no Streamlit, no database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cluster.record import SweepRecord, TrialRecord
from dashboard import gains, search_tables, tables
from dashboard.search_tables import Over
from trainer.costs import COSTS
from trainer.fold_scores import with_margin
from trainer.hyperparameters import parameters

NOTHING = "–"
MOST_CHANGED = 5


def suggested_trials(sweep: SweepRecord) -> list[int]:
    """The numbers of two trials to begin with, if there are two: the best and the preset's, else the two best."""
    first = [t.number for t in sweep.trials[:2]]
    if sweep.best and sweep.baseline and sweep.best != sweep.baseline:
        return [sweep.best.number, sweep.baseline.number]
    return first


def suggested_sweeps(names: Sequence[str], data: Sequence[str], name: str) -> list[str]:
    """`name` and the first other sweep on the same data, `data[i]` being what the sweep `names[i]` is on."""
    of = dict(zip(names, data, strict=True))
    return [name, *(other for other in names if other != name and of[other] == of.get(name))][:2]


def outcome(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> pd.DataFrame:
    """What became of the trials: a row per fact, a column `outcome` with its name, and one for each trial with its text."""
    goal, baseline = sweep.config.goal, sweep.baseline.value if sweep.baseline else None
    rows: dict[str, list[str]] = {
        "state": [t.state for t in trials],
        f"validation {goal.label}": [
            NOTHING if t.value is None else with_margin(t.value, t.fold_values) for t in trials
        ],
        "gain over the preset": [
            NOTHING
            if t.value is None or baseline is None
            else f"{gains.gain(goal, t.value, baseline):{gains.form(goal)}}{' points' if goal.is_share else ''}"
            for t in trials
        ],
        "epochs done": [f"{t.epochs_done:,}" for t in trials],
        "parameters": [_number(t.parameters, ",") for t in trials],
        "train time": [tables.duration(t.train_seconds) for t in trials],
        "images/s": [_number(tables.median(t, "images_per_second"), ",.0f") for t in trials],
        "latency, ms": [_number(tables.median(t, "latency"), ".4f") for t in trials],
        "preset": [t.preset or NOTHING for t in trials],
    }
    for name, cost in COSTS.items():
        if name != "parameters" and any(name in t.costs for t in trials):
            rows[f"measured {cost.label}, {cost.unit}"] = [_number(t.costs.get(name), ".4g") for t in trials]
    if any(t.infeasible for t in trials):
        rows["beyond a constraint"] = [t.infeasible or NOTHING for t in trials]
    return _side_by_side("outcome", rows, trials)


def configuration(trials: Sequence[TrialRecord]) -> pd.DataFrame:
    """A row per hyperparameter that any of the trials has: its name, each trial's value as text, and its meaning."""
    values = tables.hyperparameter_values(trials)
    names = [c.name for c in tables.hyperparameter_columns(trials)]
    rows = {name: [_text(value) for value in values[name]] for name in names}
    table = _side_by_side("hyperparameter", rows, trials)
    declared = {p.name: p.doc for p in parameters()}
    table["meaning"] = [declared.get(name, "not a hyperparameter of this version") for name in names]
    return table


def differing(configuration: pd.DataFrame) -> pd.DataFrame:
    """The rows in which the trials are not all the same."""
    of_trials = configuration.drop(columns=["hyperparameter", "meaning"])
    return configuration[of_trials.nunique(axis=1) > 1]


@dataclass(frozen=True, eq=False)
class ConfusionChange:
    """How the mistakes of a second trial differ from those of a first one, on the same images.

    `cells`: a row per pair of classes: true, predicted, first, second (images), change, better (more that are right, fewer that
    are wrong), strength (0 to 1). `classes`: a row per class: class, images, first, second (shares that are right), change.
    """

    cells: pd.DataFrame
    classes: pd.DataFrame


def confusion_change(first: NDArray[np.int64], second: NDArray[np.int64], classes: Sequence[str]) -> ConfusionChange:
    """From two confusion matrices `(classes, classes)`, true classes in the rows.

    Raises ValueError when they are not of the same images.
    """
    if first.shape != second.shape or (first.sum(1) != second.sum(1)).any():
        raise ValueError("The two analyses are not of the same images: make both anew to compare them.")
    names = list(classes)
    change = second - first
    right = np.eye(len(names), dtype=bool)
    pairs = pd.MultiIndex.from_product([names, names], names=["true", "predicted"]).to_frame(index=False)
    cells = pairs.assign(
        first=first.ravel(),
        second=second.ravel(),
        change=change.ravel(),
        better=(change > 0).ravel() == right.ravel(),
        strength=(np.abs(change) / max(1, int(np.abs(change).max()))).ravel(),
    )
    images = first.sum(1)
    shares = [np.divide(m.diagonal(), images, out=np.zeros(len(names)), where=images > 0) for m in (first, second)]
    by_class = pd.DataFrame(
        {"class": names, "images": images, "first": shares[0], "second": shares[1], "change": shares[1] - shares[0]}
    )
    return ConfusionChange(cells, by_class.sort_values("change", ascending=False, kind="stable", ignore_index=True))


def most_changed(classes: pd.DataFrame, most: int = MOST_CHANGED) -> pd.DataFrame:
    """Of a `ConfusionChange.classes` those that gained most and those that lost most, without those that stayed."""
    gained, lost = classes[classes["change"] > 0], classes[classes["change"] < 0]
    return pd.concat([gained.head(most), lost.tail(most)], ignore_index=True)


def sweep_facts(sweeps: Sequence[SweepRecord]) -> pd.DataFrame:
    """A row per sweep with its headline facts; what it does not have is missing."""
    rows = [
        {
            "sweep": s.name,
            "state": s.state,
            "data": s.config.data.name,
            "metric": s.config.goal.label,
            "best": s.best.value if s.best else None,
            "preset": s.baseline.value if s.baseline else None,
            "trials": len(s.trials),
            "complete": s.counts["COMPLETE"],
            "pruned": s.counts["PRUNED"],
            "failed": s.counts["FAIL"],
            "epochs": s.config.epochs,
            "sampler": s.config.sampler,
            "minutes": s.timing.wall_seconds / 60,
            "groups": s.timing.groups,
        }
        for s in sweeps
    ]
    return pd.DataFrame(rows).astype({"best": "Float64", "preset": "Float64"})


def measured(sweeps: Sequence[SweepRecord]) -> str:
    """What the values of the sweeps are, such as 'validation accuracy'; 'value' where that is not the same of all."""
    labels = {s.config.goal.label for s in sweeps}
    return f"validation {labels.pop()}" if len(labels) == 1 else "value"


def progress_of(sweeps: Sequence[SweepRecord], over: Over) -> pd.DataFrame:
    """The best so far of each sweep, a row for each new best and its last trial: sweep, x, name, best."""
    parts: list[pd.DataFrame] = []
    for sweep in sweeps:
        progress = search_tables.progress(sweep, over).dropna(subset="best")
        steps = progress[progress["gain"] | (progress.index == progress.index.max())]
        parts.append(steps.assign(sweep=sweep.name)[["sweep", "x", "name", "best"]])
    return pd.concat(parts, ignore_index=True)


def _side_by_side(title: str, rows: dict[str, list[str]], trials: Sequence[TrialRecord]) -> pd.DataFrame:
    values = {tables.trial_name(t.number): [texts[i] for texts in rows.values()] for i, t in enumerate(trials)}
    return pd.DataFrame({title: list(rows), **values}, dtype="str")


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _text(value: object) -> str:
    if value is None:
        return NOTHING
    return f"{value:.4g}" if isinstance(value, float) else str(value)
