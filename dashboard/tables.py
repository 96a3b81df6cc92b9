"""Trial records as pandas tables. Pure functions: no Streamlit, no database."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from cluster.study import TrialRecord
from trainer.domains import Between, Value
from trainer.hyperparameters import Parameter, parameter, parameters

METRICS = {
    "val_accuracy": "validation accuracy",
    "val_loss": "validation loss",
    "train_loss": "training loss",
}
"""What the learning curves show: fields of `EpochMetrics` and their names for people."""


@dataclass(frozen=True)
class Column:
    """A column of the ranking: its heading, what it means and how its values are written (printf)."""

    name: str
    label: str
    help: str
    dtype: str = "string"
    format: str | None = None


OUTCOME = (
    Column("rank", "#", "Complete trials by value, then pruned ones by value", "Int64"),
    Column("trial", "trial", "The trial's number in the sweep", "Int64"),
    Column("state", "state", "COMPLETE ran to its end, PRUNED was stopped for its score, FAIL could not go on"),
    Column(
        "value", "accuracy", "Validation accuracy of the best epoch; of a pruned trial, the last", "Float64", "%.4f"
    ),
    Column("curve", "by epoch", "Validation accuracy after each epoch, from 0 to 1", "object"),
    Column("epochs", "epochs done", "Epochs that were trained and validated", "Int64"),
    Column("train_seconds", "train time", "Time of training and validation, seconds", "Float64", "%.1f s"),
    Column("images_per_second", "images/s", "Median training throughput of its epochs, all ranks", "Float64", "%,.0f"),
    Column("parameters", "parameters", "Trainable parameters of the network", "Int64", "%,d"),
    Column("preset", "preset", "The named configuration that the trial had, if any"),
    Column("error", "error", "Why a failed trial could not go on; in full below the table"),
)
"""The ranking's columns that say what became of a trial; those that may be left out are in `_OPTIONAL`."""

_OPTIONAL = ("preset", "error")
_DTYPES: dict[type, str] = {bool: "boolean", int: "Int64", float: "Float64", str: "string"}


def ranking(trials: Sequence[TrialRecord]) -> pd.DataFrame:
    """A row per trial in the given order; columns are those of `OUTCOME` and the hyperparameters that any trial has.

    A hyperparameter with a value per block is one column, '3-5-3'. Values that a trial does not have are missing.
    """
    rows = []
    for place, trial in enumerate(trials, 1):
        speeds = pd.Series([e.images_per_second for e in trial.epochs], dtype="float64")
        rows.append(
            {
                "rank": place if trial.value is not None else None,
                "trial": trial.number,
                "state": trial.state,
                "value": trial.value,
                "curve": [_finite(e.val_accuracy) for e in trial.epochs],
                "epochs": len(trial.epochs),
                "train_seconds": trial.train_seconds,
                "images_per_second": speeds.median() if trial.epochs else None,
                "parameters": trial.parameters,
                "preset": trial.preset,
                "error": first_line(trial.error) if trial.error else None,
                **_joined(trial.config),
            }
        )
    shown = [c for c in OUTCOME if c.name not in _OPTIONAL or any(row[c.name] is not None for row in rows)]
    columns = [*shown, *hyperparameter_columns(trials)]
    columns.sort(key=lambda column: column.name == "error")  # the longest goes last
    return pd.DataFrame({c.name: pd.Series([row.get(c.name) for row in rows], dtype=c.dtype) for c in columns})


def hyperparameter_columns(trials: Iterable[TrialRecord]) -> list[Column]:
    """The columns of the hyperparameters that any of the trials has, in the order of their declaration."""
    found = dict.fromkeys(name for trial in trials for name in _joined(trial.config))
    declared = [p for p in parameters() if p.name in found]
    unknown = found.keys() - {p.name for p in declared}  # another version's, or another tool's study
    return [
        *map(_column, declared),
        *(Column(n, n, "Not a hyperparameter of this version", "object") for n in sorted(unknown)),
    ]


def varied(table: pd.DataFrame) -> list[str]:
    """The columns of a ranking that tell its trials apart: what became of them, and what was not the same for all."""
    outcome = {c.name for c in OUTCOME}
    return [n for n in table.columns if n in outcome or len(table) < 2 or table[n].nunique(dropna=False) > 1]


def learning_curves(trials: Iterable[TrialRecord]) -> pd.DataFrame:
    """A row per trial, epoch and metric: trial, name, state, epoch, metric, value. What is not finite is missing."""
    rows = [
        (t.number, trial_name(t.number), t.state, e.epoch, label, _finite(getattr(e, field)))
        for t in trials
        for e in t.epochs
        for field, label in METRICS.items()
    ]
    return pd.DataFrame(rows, columns=["trial", "name", "state", "epoch", "metric", "value"])


def best_so_far(trials: Iterable[TrialRecord]) -> pd.DataFrame:
    """A row per trial that has a value, by number: trial, name, state, value, best. `best` is that of the complete ones."""
    rows = []
    best = math.nan
    for t in sorted(trials, key=lambda t: t.number):
        if t.value is None:
            continue
        if t.state == "COMPLETE":
            best = t.value if math.isnan(best) else max(best, t.value)
        rows.append((t.number, trial_name(t.number), t.state, _finite(t.value), best))
    return pd.DataFrame(rows, columns=["trial", "name", "state", "value", "best"])


def failures(trials: Iterable[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """The failed trials, by number, under the first line of their errors: many fail for the same reason."""
    found: dict[str, list[TrialRecord]] = {}
    for trial in sorted(trials, key=lambda t: t.number):
        if trial.state == "FAIL":
            found.setdefault(first_line(trial.error or "no cause was recorded"), []).append(trial)
    return found


def export(trials: Sequence[TrialRecord]) -> str:
    """The trials as CSV, for other programs: every hyperparameter under its full name, a column for each block."""
    rows = [{**t.to_json(), "error": t.error} | t.config for t in trials]
    return pd.DataFrame(rows).drop(columns="config", errors="ignore").to_csv(index=False)


def trial_name(number: int) -> str:
    """The name of a trial for people."""
    return f"trial {number}"


def first_line(text: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def duration(seconds: float) -> str:
    """Such as '4.2 s', '3 min 05 s' or '2 h 07 min'."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _column(p: Parameter) -> Column:
    label = (p.section if p.key == "name" else p.key).replace("_", " ")
    values = f"; {p.domain}" + (", for each block" if p.per_block else "")
    condition = f"; only with {p.condition.name} {' or '.join(map(str, p.condition.values))}" if p.condition else ""
    logarithmic = isinstance(p.domain, Between) and p.domain.log
    number_format = ("%.2e" if logarithmic else "%.3f") if p.type is float else None
    dtype = "string" if p.per_block else _DTYPES[p.type]
    return Column(p.name, label, f"`{p.name}`: {p.doc}{values}{condition}", dtype, number_format)


def _joined(config: dict[str, Value]) -> dict[str, Value]:
    joined: dict[str, Value] = {}
    for name, value in config.items():
        try:
            declared = parameter(name)
        except ValueError:
            joined[name] = value
            continue
        if declared.per_block:
            before = joined.get(declared.name)
            joined[declared.name] = str(value) if before is None else f"{before}-{value}"
        else:
            joined[name] = value
    return joined


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
