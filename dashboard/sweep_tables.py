"""Sweeps, and the worker groups of one, as pandas tables. Pure functions: no Streamlit, no database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from cluster.config import SweepConfig
from cluster.record import SweepRecord, SweepSummary, TrialRecord
from dashboard.tables import Column, first_line
from trainer.hyperparameters import in_short

_STATE_WORDS = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}
_ENDED = ("COMPLETE", "PRUNED", "FAIL")

SWEEPS = (
    Column("sweep", "sweep", "The sweep's name"),
    Column("state", "state", "RUNNING, FINISHED, INTERRUPTED, FAILED, or NEW: it has not begun"),
    Column("progress", "progress", "How many of the wanted trials have ended", "Float64", "percent"),
    Column("best", "best", "The best value of a trial that ran to its end, by the sweep's metric", "Float64", "%.4f"),
    Column("metric", "metric", "What the search optimises, on the validation split"),
    Column("data", "data", "The data set, or the folder of images"),
    Column("begun", "begun", "When it first ran, by your clock", "datetime64[ns, UTC]", "D MMM YY, HH:mm"),
    Column("minutes", "took", "How long it ran, all its runs together", "Float64", "%.1f min"),
    Column("groups", "groups", "Worker groups of its last run", "Int64"),
    Column("trials", "trials", "How many have ended, of how many, and what became of them"),
    Column("note", "note", "The first line of the note on it"),
)
"""The columns of the list of sweeps."""

GROUPS = (
    Column("group", "group", "The worker group: one or more ranks that train a trial together"),
    Column("trial", "trial", "The trial that it trains now", "Int64"),
    Column("epoch", "epoch", "Epochs done, of those of a trial that is not pruned"),
    Column("progress", "progress", "The share of its epochs that is done", "Float64", "percent"),
    Column("value", "value", "The sweep's metric after the last epoch", "Float64", "%.4f"),
    Column("speed", "images/s", "Training throughput of the last epoch, all ranks", "Float64", "%,.0f"),
    Column("since", "since", "When the trial began, by your clock", "datetime64[ns, UTC]", "HH:mm:ss"),
    Column("ended", "ended", "Trials that the group has had to their end", "Int64"),
    Column("configuration", "configuration", "The trial's hyperparameters in short"),
)
"""The columns of the list of worker groups."""


def sweeps(summaries: Sequence[SweepSummary], notes: Mapping[str, str]) -> pd.DataFrame:
    """A row per sweep in the given order, columns are `SWEEPS`; `notes` are on the sweeps, by name."""
    rows = [
        {
            "sweep": s.name,
            "state": s.state,
            "progress": min(1.0, _ended(s) / s.trials) if s.trials else None,
            "best": s.best_value,
            "metric": s.metric.label,
            "data": Path(s.data).name,
            "begun": s.begun,
            "minutes": s.wall_seconds / 60 if s.begun else None,
            "groups": s.groups or None,
            "trials": _trials(s),
            "note": first_line(notes.get(s.name, "")) or None,
        }
        for s in summaries
    ]
    return _frame(rows, SWEEPS)


def standing(summaries: Sequence[SweepSummary], name: str) -> str:
    """What became of the trials of one sweep, such as '3 of 20 trials ended: 2 complete, 1 pruned, 1 running'."""
    found = next((s for s in summaries if s.name == name), None)
    return _trials(found, " trials ended") if found else "which is gone"


def groups(sweep: SweepRecord) -> pd.DataFrame:
    """A row per worker group of the sweep's run, in the order of their names; columns are `GROUPS`.

    A group that is between two trials has none. One that has not had a trial yet is not known.
    """
    began = _at(sweep.runs[-1]["begun"]) if sweep.runs else None
    of_group: dict[str, list[TrialRecord]] = {}
    for trial in sorted(sweep.trials, key=lambda t: t.number):
        if trial.group is not None and _belongs(trial, began):
            of_group.setdefault(trial.group, []).append(trial)
    return _frame([_group_row(name, of_group[name], sweep.config) for name in sorted(of_group)], GROUPS)


def queued(sweep: SweepRecord) -> list[int]:
    """The numbers of the trials that were asked for and that no group has yet."""
    return sorted(t.number for t in sweep.trials if t.state == "RUNNING" and t.group is None)


def _ended(summary: SweepSummary) -> int:
    return sum(summary.counts.get(state, 0) for state in _ENDED)


def _trials(summary: SweepSummary, noun: str = "") -> str:
    total = f"{_ended(summary):,}" + (f" of {summary.trials:,}" if summary.trials else "") + noun
    states = [f"{count:,} {_STATE_WORDS[state]}" for state, count in summary.counts.items() if count]
    return f"{total}: {', '.join(states)}" if states else total


def _belongs(trial: TrialRecord, began: datetime | None) -> bool:
    """Whether a group of the run that began then has had the trial: groups of earlier runs are gone."""
    return began is None or trial.state == "RUNNING" or (trial.ended is not None and trial.ended >= began)


def _group_row(name: str, trials: Sequence[TrialRecord], config: SweepConfig) -> dict[str, object]:
    now = next((t for t in reversed(trials) if t.state == "RUNNING"), None)
    row: dict[str, object] = {"group": name, "ended": sum(t.state in _ENDED for t in trials)}
    if now is None:
        return row
    wanted = now.config.get("training.epochs", config.epochs)
    assert isinstance(wanted, int | float)
    wanted *= config.folds
    last = {field: values[-1] for field, values in now.history.items() if values}
    return row | {
        "trial": now.number,
        "epoch": f"{now.epochs_done} of {wanted}",
        "progress": min(1.0, now.epochs_done / wanted) if wanted else None,
        "value": last.get(config.goal.field),
        "speed": last.get("images_per_second"),
        "since": _at(now.group_began) if now.group_began is not None else now.begun,
        "configuration": in_short(now.config),
    }


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _frame(rows: Sequence[Mapping[str, object]], columns: Sequence[Column]) -> pd.DataFrame:
    return pd.DataFrame({c.name: pd.Series([row.get(c.name) for row in rows], dtype=c.dtype) for c in columns})
