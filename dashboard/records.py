"""What the pages read: the database is opened once, and a sweep read at most once a second, for all who look on.

What is derived from a sweep is kept by the sweep's `stamp`, which is another one as soon as anything has changed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import optuna
import pandas as pd
import sqlalchemy
import streamlit as st

from cluster.experiments import Experiments
from cluster.record import SweepRecord, SweepSummary
from cluster.studies import Studies
from dashboard import comparison, filters, optuna_charts, tables
from trainer.measuring import Metric

if TYPE_CHECKING:
    import plotly.graph_objects as go

FRESH_SECONDS = 1.0

P = ParamSpec("P")
R = TypeVar("R")


def _told(done: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Turns what a database may raise into a ValueError with one sentence: it cannot be `done`."""

    def told(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
                reason = str(error.__cause__ or error).split("\n", 1)[0]
                raise ValueError(f"The study database cannot be {done}: {reason}.") from error

        return call

    return told


_readable = _told("read")


@_readable
def summaries(experiments: Experiments) -> list[SweepSummary]:
    """All sweeps, the newest first; none when there is no database. Raises ValueError for a broken one."""
    if not experiments.database_exists:
        return []
    return _summaries(experiments, _file_identity(experiments))


def warm_up(experiments: Experiments) -> None:
    """Read the newest sweep, so that the first visitor does not wait for it. What cannot be read is for the pages to say."""
    with contextlib.suppress(ValueError):
        if found := summaries(experiments):
            ranking_table(read_sweep(experiments, found[0].name))


@_readable
def sweep_notes(experiments: Experiments) -> dict[str, str]:
    """The notes on whole sweeps, by the sweep's name."""
    return _notes(experiments, _file_identity(experiments))


@_readable
def foreign_studies(experiments: Experiments) -> list[str]:
    """The names of the studies in the database that other programs made."""
    return _foreign(experiments, _file_identity(experiments))


@_readable
def read_sweep(experiments: Experiments, name: str) -> SweepRecord:
    """The sweep as it is now. Raises ValueError when it or the database cannot be read."""
    return _read(experiments, _file_identity(experiments), name)


@_readable
def optuna_study(experiments: Experiments, sweep: SweepRecord, numbers: frozenset[int]) -> optuna.Study:
    """A copy of these trials in memory, for Optuna's own plots; not to be changed: others look at it too."""
    return _optuna_study(experiments, _file_identity(experiments), sweep, numbers)


@_told("written")
def write_note(
    experiments: Experiments, sweep: SweepRecord, text: str, trial: int | None = None, *, before: str | None = None
) -> str:
    """Write a note on the sweep or one of its trials, unless it says something else than `before` now; return what it says then.

    Without `before` it is written in any case. Raises ValueError for too long a text, and when it cannot be written.
    """
    study = _studies(experiments, _file_identity(experiments)).open(sweep.name)
    now = study.read().notes.get(trial, "")
    _read.clear()
    if before is not None and now not in (before, text):
        return now
    study.write_note(text, trial)
    return text


# The records are frozen, so that sessions can share them; st.cache_data would pickle every epoch at every reading.
@st.cache_resource(ttl=FRESH_SECONDS, max_entries=16, show_spinner=False, hash_funcs={Experiments: repr})
def _read(experiments: Experiments, file: tuple[int, int] | None, name: str) -> SweepRecord:
    return _studies(experiments, file).read(name)


@st.cache_resource(ttl=FRESH_SECONDS, max_entries=2, show_spinner=False, hash_funcs={Experiments: repr})
def _summaries(experiments: Experiments, file: tuple[int, int] | None) -> list[SweepSummary]:
    return _studies(experiments, file).summaries()[::-1]


@st.cache_resource(ttl=FRESH_SECONDS, max_entries=2, show_spinner=False, hash_funcs={Experiments: repr})
def _notes(experiments: Experiments, file: tuple[int, int] | None) -> dict[str, str]:
    return _studies(experiments, file).notes()


@st.cache_resource(ttl=FRESH_SECONDS, max_entries=2, show_spinner=False, hash_funcs={Experiments: repr})
def _foreign(experiments: Experiments, file: tuple[int, int] | None) -> list[str]:
    return _studies(experiments, file).foreign()


@st.cache_resource(max_entries=2, show_spinner=False, hash_funcs={Experiments: repr})
def _studies(experiments: Experiments, file: tuple[int, int] | None) -> Studies:
    """The open database. `file` is another one when the folder was removed and made anew, which an open file outlives."""
    return Studies(experiments)


_BY_STAMP: dict[str | type[Any], Callable[[Any], Any]] = {SweepRecord: lambda sweep: sweep.stamp, Experiments: repr}


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=_BY_STAMP)
def ranking_table(sweep: SweepRecord) -> pd.DataFrame:
    """`tables.ranking` of all trials; not to be changed: others look at it too."""
    return _rankings(sweep.name, sweep.config.goal).of(sweep.trials)


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs={Metric: repr})
def _rankings(name: str, goal: Metric) -> tables.Rankings:
    return tables.Rankings(goal)


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=_BY_STAMP)
def filter_labels(sweep: SweepRecord) -> dict[str, str]:
    """`filters.labels` of all trials."""
    return filters.labels(sweep.trials, sweep.config.goal)


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=_BY_STAMP)
def _optuna_study(
    experiments: Experiments, file: tuple[int, int] | None, sweep: SweepRecord, numbers: frozenset[int]
) -> optuna.Study:
    return _studies(experiments, file).optuna_study(sweep.name, numbers.__contains__)


@_readable
@st.cache_resource(max_entries=4, show_spinner=False, hash_funcs=_BY_STAMP)
def importances(experiments: Experiments, sweep: SweepRecord) -> optuna_charts.Importances:
    """The importances of the hyperparameters. Raises ValueError when the trials say nothing about them."""
    return optuna_charts.compute_importances(optuna_study(experiments, sweep, optuna_charts.sampled_trials(sweep)))


@_readable
@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=_BY_STAMP)
def telling_parameters(experiments: Experiments, sweep: SweepRecord, plot: int) -> list[str]:
    """The parameters that one of `optuna_charts.PLOTS` can show."""
    shown = optuna_charts.shown_trials(sweep, optuna_charts.PLOTS[plot].trials)
    return optuna_charts.telling_parameters(optuna_study(experiments, sweep, shown))


@_readable
@st.cache_resource(max_entries=16, show_spinner=False, hash_funcs=_BY_STAMP)
def optuna_figure(experiments: Experiments, sweep: SweepRecord, plot: int, parameters: tuple[str, ...]) -> go.Figure:
    """One of `optuna_charts.PLOTS`; not to be changed. Raises ValueError when Optuna cannot draw it."""
    drawn = optuna_charts.PLOTS[plot]
    study = optuna_study(experiments, sweep, optuna_charts.shown_trials(sweep, drawn.trials))
    return optuna_charts.draw(study, drawn, parameters, f"validation {sweep.config.goal.label}")


@st.cache_resource(max_entries=8, show_spinner=False, hash_funcs=_BY_STAMP)
def optuna_distribution(sweeps: tuple[SweepRecord, ...]) -> go.Figure:
    """The distribution of the values of each sweep's complete trials, of which there must be some; not to be changed."""
    values = {s.name: optuna_charts.complete_values(s) for s in sweeps}
    return optuna_charts.draw_distribution(values, comparison.measured(sweeps))


def _file_identity(experiments: Experiments) -> tuple[int, int] | None:
    file = Path(experiments.database.removeprefix("sqlite:///"))
    if not experiments.database.startswith("sqlite:///") or not file.exists():
        return None
    status = file.stat()
    return status.st_dev, status.st_ino
