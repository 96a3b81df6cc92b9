"""Trial records as pandas tables. Pure functions: no Streamlit, no database."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from cluster.record import SweepRecord, TrialRecord
from dashboard import gains
from trainer.domains import Between, Value
from trainer.fold_scores import averaged, margin
from trainer.hyperparameters import Parameter, parameter, parameters
from trainer.measuring import ACCURACY, Metric
from trainer.metrics import epochs_of

METRICS = {
    "val_accuracy": "validation accuracy",
    "val_loss": "validation loss",
    "train_loss": "training loss",
}
"""What the learning curves show besides the sweep's metric: fields of `EpochMetrics` and their names for people."""


@dataclass(frozen=True)
class Column:
    """A column of the ranking: its heading, what it means and how its values are written (printf)."""

    name: str
    label: str
    help: str
    dtype: str = "string"
    format: str | None = None


def outcome(goal: Metric) -> tuple[Column, ...]:
    """`OUTCOME` of a sweep with this metric."""
    across = ", from 0 to 1" if goal.is_share else ""
    own = (
        Column(
            "value",
            goal.label,
            f"Validation {goal.label} of the best epoch; of a pruned trial, the last; with folds, their mean",
            "Float64",
            "%.4f",
        ),
        Column("margin", "±", "Half of the 95 % interval of the folds' mean, by Student's t", "Float64", "%.4f"),
        Column("gain", "gain", gains.meaning(goal), "Float64", f"%{gains.form(goal)}"),
        Column("curve", "by epoch", f"Validation {goal.label} after each epoch{across}", "list"),
    )
    return (*_FIRST, *own, *_LAST)


_FIRST = (
    Column("rank", "#", "Complete trials by value, then pruned ones by value", "Int64"),
    Column("trial", "trial", "The trial's number in the sweep", "Int64"),
    Column(
        "state",
        "state",
        "COMPLETE ran to its end, PRUNED was stopped for its score or not trained for its cost, FAIL could not go on",
    ),
)
_LAST = (
    Column("parameters", "parameters", "Trainable parameters of the network", "Int64", "%,d"),
    Column("train_seconds", "train time", "Time of training and validation, seconds", "Float64", "%.1f s"),
    Column("epochs", "epochs done", "Epochs that were trained and validated", "Int64"),
    Column("images_per_second", "images/s", "Median training throughput of its epochs, all ranks", "Float64", "%,.0f"),
    Column(
        "latency",
        "latency",
        "Milliseconds to classify an image of the validation split, in large batches; median of its epochs",
        "Float64",
        "%.4f ms",
    ),
    Column("size_mb", "size", "Size of the network's weights as they are stored, in 10^6 bytes", "Float64", "%.3f MB"),
    Column(
        "latency_ms",
        "measured latency",
        "Milliseconds of a forward pass of as many images as the sweep's latency_batch says, before the first epoch",
        "Float64",
        "%.3f ms",
    ),
    Column("preset", "preset", "The named configuration that the trial had, if any"),
    Column("infeasible", "beyond a constraint", "Which of the sweep's constraints the trial does not keep to"),
    Column("error", "error", "Why a failed trial could not go on; in full below the table"),
)
OUTCOME = outcome(ACCURACY)
"""The ranking's columns that say what became of a trial; those that may be left out are in `_OPTIONAL`."""

_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
_OPTIONAL = ("margin", "gain", "latency", "size_mb", "latency_ms", "preset", "infeasible", "error")
_ARROW = {"Int64": pa.int64(), "Float64": pa.float64(), "string": pa.large_string(), "boolean": pa.bool_()}
_PANDAS = {arrow: pd.api.types.pandas_dtype(name) for name, arrow in _ARROW.items()}
_DTYPES: dict[type, str] = {bool: "boolean", int: "Int64", float: "Float64", str: "string"}


def ranking(trials: Sequence[TrialRecord], goal: Metric = ACCURACY) -> pd.DataFrame:
    """A row per trial in the given order; columns are those of `OUTCOME` and the hyperparameters that any trial has.

    A hyperparameter with a value per block is one column, '3-5-3'. Values that a trial does not have are missing.
    """
    return Rankings(goal).of(trials)


class Rankings:
    """`ranking` of trials that change one by one: those that are the same objects as the last time keep their rows."""

    def __init__(self, goal: Metric = ACCURACY) -> None:
        self._goal = goal
        self._last: tuple[Sequence[TrialRecord], pd.DataFrame] = ((), _rows((), goal))

    def of(self, trials: Sequence[TrialRecord]) -> pd.DataFrame:
        """`ranking(trials)`."""
        rows = self._rows(trials)
        self._last = trials, rows  # both at once: sessions share this
        baseline = next((t.value for t in trials if t.preset and t.state == "COMPLETE"), None)
        ranked = rows["value"].notna()
        places = pd.Series(range(1, len(rows) + 1), dtype="Int64").where(ranked)
        over = gains.gain(self._goal, rows["value"], math.nan if baseline is None else baseline)
        found = rows.assign(rank=places, gain=over.astype("Float64"))
        own = [c.name for c in OUTCOME]
        missing = {name for name in found if (name in _OPTIONAL or name not in own) and found[name].isna().all()}
        missing |= {"latency"} if "latency_ms" not in missing else set()  # what was measured, not what evaluations took
        others = _hyperparameter_columns({str(name): None for name in rows.columns if name not in own})
        shown = [name for name in [*own, *(c.name for c in others)] if name not in missing]
        shown.sort(key=lambda name: name == "error")  # the longest goes last
        return found[shown]

    def _rows(self, trials: Sequence[TrialRecord]) -> pd.DataFrame:
        before, rows = self._last
        places = {id(trial): place for place, trial in enumerate(before)}
        new = [trial for trial in trials if id(trial) not in places]
        if 4 * len(new) > len(trials):
            return _rows(trials, self._goal)
        places |= {id(trial): place for place, trial in enumerate(new, len(before))}
        found = pd.concat([rows, _rows(new, self._goal)]) if new else rows
        return found.take([places[id(trial)] for trial in trials]).reset_index(drop=True)


def columns(table: pd.DataFrame, goal: Metric = ACCURACY) -> dict[str, Column]:
    """What the columns of a ranking are, by name."""
    own = {c.name: c for c in outcome(goal)}
    names = [str(name) for name in table.columns]
    others = {c.name: c for c in _hyperparameter_columns({name: None for name in names if name not in own})}
    return {name: own.get(name) or others[name] for name in names}


def hyperparameter_columns(trials: Sequence[TrialRecord]) -> list[Column]:
    """The columns of the hyperparameters that any of the trials has, in the order of their declaration."""
    return _hyperparameter_columns(hyperparameter_names(trials))


def hyperparameter_values(trials: Sequence[TrialRecord]) -> dict[str, list[Value | None]]:
    """The trials' values of each hyperparameter that any of them has; of one with a value per block '3-5-3'."""
    single: dict[str, list[Value | None]] = {}
    for place, trial in enumerate(trials):  # trial by trial: column by column takes six times as long
        for name, value in trial.config.items():
            if name not in single:
                single[name] = [None] * len(trials)
            single[name][place] = value
    found: dict[str, list[Value | None]] = {}
    for name, parts in _joined(single).items():
        rows = zip(*(single[part] for part in parts), strict=True)
        whole = parts == [name]
        found[name] = (
            single[name] if whole else ["-".join([str(v) for v in row if v is not None]) or None for row in rows]
        )
    return found


def hyperparameter_names(trials: Iterable[TrialRecord]) -> dict[str, list[str]]:
    """The hyperparameters that any of the trials has, with the names that each has in configurations: one, or one per block."""
    layouts = dict.fromkeys(tuple(t.config) for t in trials)  # many have the same names, and each is looked at once
    return _joined(dict.fromkeys(itertools.chain.from_iterable(layouts)))


def varied(table: pd.DataFrame) -> list[str]:
    """The columns of a ranking that tell its trials apart: what became of them, and what was not the same for all."""
    own = {c.name for c in OUTCOME}
    return [n for n in table.columns if n in own or len(table) < 2 or table[n].nunique(dropna=False) > 1]


def learning_curves(trials: Iterable[TrialRecord], goal: Metric = ACCURACY) -> pd.DataFrame:
    """A row per trial, epoch and metric: trial, name, state, epoch, metric, value. What is not finite is missing.

    Of a cross-validated trial they are the means of its folds.
    """
    shown = METRICS | {goal.field: f"validation {goal.label}"}
    rows = [
        (t.number, trial_name(t.number), t.state, e.epoch, label, finite(getattr(e, field)))
        for t in trials
        for e in epochs_of(averaged(t.history))
        for field, label in shown.items()
    ]
    return pd.DataFrame(rows, columns=["trial", "name", "state", "epoch", "metric", "value"])


def best_so_far(trials: Iterable[TrialRecord], goal: Metric = ACCURACY) -> pd.DataFrame:
    """A row per trial that has a value, by number: trial, name, state, value, best. `best` is that of the complete ones."""
    rows = []
    best = math.nan
    for t in sorted(trials, key=lambda t: t.number):
        if t.value is None:
            continue
        if t.state == "COMPLETE":
            best = t.value if goal.is_better(t.value, best) else best
        rows.append((t.number, trial_name(t.number), t.state, finite(t.value), best))
    return pd.DataFrame(rows, columns=["trial", "name", "state", "value", "best"])


def failures(trials: Iterable[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """The failed trials, by number, under the first line of their errors: many fail for the same reason."""
    found: dict[str, list[TrialRecord]] = {}
    for trial in sorted((t for t in trials if t.state == "FAIL"), key=lambda t: t.number):
        found.setdefault(first_line(trial.error or "no cause was recorded"), []).append(trial)
    return found


def export(trials: Sequence[TrialRecord]) -> str:
    """The trials as CSV, for other programs: every hyperparameter under its full name, a column for each block."""
    rows = [{**t.to_json(), "error": t.error, **t.costs} | t.config for t in trials]
    return pd.DataFrame(rows).drop(columns=["config", "costs"], errors="ignore").to_csv(index=False)


def counts(sweep: SweepRecord) -> tuple[str, str]:
    """How many trials there are in which state: what is most worth knowing, such as '2 failed', and all of it."""
    counts = [(state, f"{count:,} {_STATES[state]}") for state, count in sweep.counts.items() if count]
    failed = [text for state, text in counts if state == "FAIL"]
    complete = f"{sweep.counts['COMPLETE']:,} complete"
    return (failed or [complete])[0], ", ".join(text for _, text in counts)


def trial_names(trials: Sequence[TrialRecord], at_most: int = 8) -> str:
    """Such as 'Trial 3' or 'Trials 3, 5'; of many the first ones and how many there are."""
    numbers = ", ".join(str(t.number) for t in trials[:at_most])
    more = f" and {len(trials) - at_most:,} more" if len(trials) > at_most else ""
    return f"Trial{'s' if len(trials) > 1 else ''} {numbers}{more}"


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
    condition = f"; only with {p.condition.name} {p.condition}" if p.condition else ""
    logarithmic = isinstance(p.domain, Between) and p.domain.log
    number_format = ("%.2e" if logarithmic else "%.3f") if p.type is float else None
    dtype = "string" if p.per_block else _DTYPES[p.type]
    return Column(p.name, label, f"`{p.name}`: {p.doc}{values}{condition}", dtype, number_format)


def _rows(trials: Sequence[TrialRecord], goal: Metric) -> pd.DataFrame:
    """The columns of the ranking but for those that depend on the other trials."""
    own = [c for c in OUTCOME if c.name not in ("rank", "gain")]
    lists = [*zip(*(_outcome(trial, goal) for trial in trials), strict=True)] or [()] * len(own)
    found = {c.name: _series(values, c.dtype) for c, values in zip(own, lists, strict=True)}
    values = hyperparameter_values(trials)
    found |= {c.name: _series(values[c.name], c.dtype) for c in _hyperparameter_columns(values) if c.name not in found}
    return pd.DataFrame(found, copy=False)


def _outcome(trial: TrialRecord, goal: Metric) -> tuple[object, ...]:
    """A trial's values of the columns of `OUTCOME`, without rank and gain."""
    return (
        trial.number,
        trial.state,
        trial.value,
        margin(trial.fold_values),
        averaged(trial.history).get(goal.field, ()),
        trial.parameters,
        trial.train_seconds,
        trial.epochs_done,
        median(trial, "images_per_second"),
        median(trial, "latency"),
        trial.costs.get("size_mb"),
        trial.costs.get("latency_ms"),
        trial.preset,
        trial.infeasible,
        first_line(trial.error) if trial.error else None,
    )


def median(trial: TrialRecord, metric: str) -> float | None:
    """The median over the trial's epochs, or None before the first."""
    values = trial.history.get(metric)
    return statistics.median(values) if values else None


def _hyperparameter_columns(names: Mapping[str, object]) -> list[Column]:
    declared = [p for p in parameters() if p.name in names]
    unknown = names.keys() - {p.name for p in declared}  # another version's, or another tool's study
    return [
        *map(_column, declared),
        *(Column(n, n, "Not a hyperparameter of this version", "object") for n in sorted(unknown)),
    ]


def _joined(names: Iterable[str]) -> dict[str, list[str]]:
    """The names that belong to each column: those of the blocks to their hyperparameter's."""
    found: dict[str, list[str]] = {}
    for name in names:
        try:
            declared = parameter(name)
        except ValueError:
            found[name] = [name]
            continue
        found.setdefault(declared.name, []).append(name)
    return {name: sorted(parts) for name, parts in found.items()}


def _series(values: Sequence[Any], dtype: str) -> pd.Series[Any]:
    if dtype == "list":
        return _lists(values)
    if dtype not in _ARROW:
        return pd.Series(values, dtype=dtype)
    try:  # by way of Arrow it takes a quarter of the time
        found: pd.Series[Any] = pa.array(values, _ARROW[dtype], from_pandas=True).to_pandas(types_mapper=_PANDAS.get)
    except (TypeError, ValueError):  # another version's values, of another type
        return _series([None if value is None else str(value) for value in values], "string")
    return found


def _lists(values: Sequence[Sequence[float]]) -> pd.Series[Any]:
    """A column of lists of numbers, ready for the browser: made list by list, it would take ten times as long."""
    ends = pa.array(itertools.accumulate(map(len, values), initial=0), pa.int32())
    numbers = pa.array(itertools.chain.from_iterable(values), pa.float32())
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.ListArray.from_arrays(ends, numbers)))


def finite(value: float) -> float | None:
    """The number, or None for one that charts cannot show."""
    return value if math.isfinite(value) else None
