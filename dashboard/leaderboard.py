"""The table of a sweep's trials with what belongs to it: its filters, its columns, and a selection that stays with the trials."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from cluster.record import STATES, SweepRecord, TrialRecord
from dashboard import filters, tables
from dashboard.parts import configured, counted, plain
from dashboard.records import filter_labels, ranking_table
from dashboard.tables import Column
from trainer.measuring import Metric

HEIGHT = 390
_FIXED = ("rank", "trial")
_EVERY_COLUMN = {"differ": "those that differ", "all": "all", "chosen": "chosen"}


@dataclass(frozen=True)
class Board:
    """The trials that fit the filters, best first, their rows of the ranking, and what the filters are, in words."""

    trials: Sequence[TrialRecord]
    table: pd.DataFrame
    conditions: tuple[str, ...] = ()


def choose(sweep: SweepRecord) -> tuple[Board, list[str]]:
    """The controls of what the table shows. Returns the trials that fit the filters, and the columns' names."""
    table = ranking_table(sweep)
    with st.popover("Filter"):
        states, chosen = _choose_filters(sweep)
    with st.popover("Columns"):
        columns = _choose_columns(sweep, table)
    board = _fitting(sweep, table, states, chosen)
    st.download_button(
        "Download CSV",
        partial(tables.export, board.trials),
        file_name=f"{sweep.name}-trials.csv",
        mime="text/csv",
        help="The trials that the table shows, with every hyperparameter",
        on_click="ignore",
    )
    return board, columns


def show(sweep: SweepRecord, board: Board, columns: Sequence[str], marks: pd.Series[Any]) -> list[TrialRecord]:
    """The table; returns the trials that are selected, also those that the filters hide, best first."""
    if board.conditions:
        conditions = plain("; ".join(board.conditions))
        st.caption(f"{len(board.trials):,} of {counted(len(sweep.trials), 'trial')}: {conditions}")
    numbers = [t.number for t in board.trials]
    key = f"ranking of {sweep.name}"
    if not numbers:
        st.info("No trial fits the filters. Take one away, or widen its range.")
        _forget_rows(key)
    else:
        _put_selection(key, numbers)
        shown = board.table[columns]
        shown.insert(2, "marks", marks)
        st.dataframe(
            shown,
            column_config=_column_config(tables.columns(board.table, sweep.config.goal), sweep),
            hide_index=True,
            placeholder="",
            height=HEIGHT if len(numbers) > 10 else "content",
            key=key,
            on_select=partial(_take_selection, key),
            selection_mode="multi-row",
            alt=f"The trials of sweep {sweep.name}, best first",
        )
    selected = set(selection(sweep))
    return [t for t in sweep.trials if t.number in selected] if selected else []


def selection(sweep: SweepRecord) -> list[int]:
    """The numbers of the selected trials."""
    found: list[int] = st.session_state.get(f"ranking of {sweep.name}, selected", [])
    return found


def select(sweep: SweepRecord, numbers: Sequence[int]) -> None:
    """Select these trials and no others. To be called before the table is shown."""
    key = f"ranking of {sweep.name}"
    st.session_state[f"{key}, selected"] = list(numbers)
    _forget_rows(key)


def _choose_filters(sweep: SweepRecord) -> tuple[list[str], dict[str, Sequence[Any]]]:
    """The states that a trial may be in, and by name what it must have; what leaves no trial out is left out."""
    present = [state for state in STATES if sweep.counts[state]]
    states = st.pills("State", present, selection_mode="multi", key="state", bind="query-params")
    labels = filter_labels(sweep)
    names = st.multiselect(
        "Filter by",
        list(labels),
        format_func=labels.__getitem__,
        placeholder="Choose hyperparameters",
        select_all=False,
        key="by",
        bind="query-params",
    )
    wanted = {name: _choose_values(filters.make(sweep, name, labels[name])) for name in names}
    return states, {name: values for name, values in wanted.items() if values}


def _choose_values(wanted: filters.Filter) -> Sequence[Any]:
    """A range of numbers, or texts of which one must be the trial's; empty when that leaves no trial out."""
    if not wanted.steps:
        return st.multiselect(
            wanted.label, wanted.choices, help=wanted.help, placeholder="Any", key=wanted.name, bind="query-params"
        )
    span = st.select_slider(
        wanted.label,
        wanted.steps,
        value=wanted.everything,
        format_func=filters.written,
        help=wanted.help,
        key=wanted.name,
        bind="query-params",
    )
    return span if span != wanted.everything else ()


def _choose_columns(sweep: SweepRecord, table: pd.DataFrame) -> list[str]:
    """The names of the columns to show."""
    known, usual = tables.columns(table, sweep.config.goal), tables.varied(table)
    which = st.segmented_control(
        "Columns",
        list(_EVERY_COLUMN),
        format_func=_EVERY_COLUMN.__getitem__,
        default="differ",
        required=True,
        help="Those of the hyperparameters that are not the same in all trials, all of them, or those of your choice",
        key="columns",
        bind="query-params",
    )
    if which != "chosen":
        return usual if which == "differ" else list(known)
    fixed = [name for name in _FIXED if name in known]
    more = st.multiselect(
        "Shown",
        [name for name in known if name not in fixed],
        default=[name for name in usual if name not in fixed][:8],
        format_func=lambda name: known[name].label,
        key="shown",
        bind="query-params",
    )
    return [*fixed, *more]


def _fitting(sweep: SweepRecord, table: pd.DataFrame, states: Sequence[str], chosen: dict[str, Sequence[Any]]) -> Board:
    if not states and not chosen:
        return Board(sweep.trials, table)
    fits = filters.fitting(sweep.trials, states, chosen)
    labels = filter_labels(sweep)
    conditions = [" or ".join(states)] * bool(states)
    conditions += [f"{labels[name]} {_in_words(wanted)}" for name, wanted in chosen.items()]
    trials = [t for t, fit in zip(sweep.trials, fits, strict=True) if fit]
    return Board(trials, table[fits].reset_index(drop=True), tuple(conditions))


def _in_words(wanted: Sequence[Any]) -> str:
    if isinstance(wanted, tuple):
        return " to ".join(map(filters.written, wanted))
    return " or ".join(wanted)


# Streamlit keeps a selection with the rows' positions, which change with every trial that ends and with every filter. So the
# numbers of the selected trials are kept beside it, and the positions set anew whenever other rows are shown.


def selected_after(before: Collection[int], shown: Sequence[int], rows: Sequence[int]) -> list[int]:
    """The numbers of the selected trials when these rows of those shown are: what the filters hide stays selected."""
    hidden = set(before).difference(shown)
    return [*hidden, *(shown[row] for row in rows if row < len(shown))]  # a click may be older than the rows


def _take_selection(key: str) -> None:
    """The reader has selected rows: note the trials that they are."""
    before = st.session_state.get(f"{key}, selected", ())
    shown = st.session_state.get(f"{key}, as shown", ())
    rows = st.session_state[key]["selection"]["rows"]
    st.session_state[f"{key}, selected"] = selected_after(before, shown, rows)


def _put_selection(key: str, numbers: Sequence[int]) -> None:
    """Select the rows in which the selected trials are now."""
    selected = set(st.session_state.get(f"{key}, selected", ()))
    others = st.session_state.get(f"{key}, as shown") != numbers
    known = key in st.session_state  # not when the reader comes back from another page
    if (others and known) or (selected and not known):
        rows = [row for row, number in enumerate(numbers) if number in selected]
        st.session_state[key] = {"selection": {"rows": rows}}
    st.session_state[f"{key}, as shown"] = numbers


def _forget_rows(key: str) -> None:
    st.session_state.pop(f"{key}, as shown", None)


def _column_config(columns: dict[str, Column], sweep: SweepRecord) -> dict[str, Any]:
    goal, goals = sweep.config.goal, ", ".join((sweep.config.goal.name, *sweep.config.goals))
    front = f"no trial is better in one of {goals} and as good in the others"
    front = front if sweep.config.goals else "no trial shown is both better and cheaper"
    marks = st.column_config.MultiselectColumn(
        "mark",
        help=f"preset: the baseline, which the others are compared with. front: {front}",
        options=["preset", "front"],
        color=["orange", "green"],
        width=115,
    )
    return {"marks": marks} | {name: _configured(column, goal) for name, column in columns.items()}


def _configured(column: Column, goal: Metric) -> Any:
    pinned = column.name in _FIXED
    if column.name == "curve":
        low, high = (0.0, 1.0) if goal.is_share else (None, None)
        return st.column_config.LineChartColumn(
            column.label, help=column.help, y_min=low, y_max=high, color="blue", width="small"
        )
    return configured(column, pinned)


def marks(table: pd.DataFrame, front: Collection[int]) -> pd.Series[Any]:
    """For each row its marks: 'preset' for the baseline, 'front' for a Pareto-optimal trial."""
    presets = table["preset"].notna() if "preset" in table else [False] * len(table)
    rows = zip(table["trial"], presets, strict=True)
    return pd.Series(
        [["preset"] * bool(preset) + ["front"] * (trial in front) for trial, preset in rows], dtype="object"
    )
