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
from dashboard.parts import counted, plain
from dashboard.records import filter_labels, ranking_table
from dashboard.tables import Column

HEIGHT = 390
_EVERY_COLUMN = {"differ": "those that differ", "all": "all", "chosen": "chosen"}


@dataclass(frozen=True)
class Board:
    """The trials that fit the filters, best first, and their rows of the ranking."""

    trials: Sequence[TrialRecord]
    table: pd.DataFrame


def choose(sweep: SweepRecord) -> tuple[Board, list[str]]:
    """A row of controls: the filters, the columns and the download. Returns the trials that fit and the columns' names."""
    table = ranking_table(sweep)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        present = [state for state in STATES if sweep.counts[state]]
        states = st.pills("State", present, selection_mode="multi", key="state", bind="query-params")
        chosen = _choose_filters(sweep)
        columns = _choose_columns(table)
        board = _fitting(sweep, table, states, chosen)
        st.download_button(
            "Download CSV",
            partial(tables.export, board.trials),
            file_name=f"{sweep.name}-trials.csv",
            mime="text/csv",
            help="The trials that the table shows, with every hyperparameter",
            on_click="ignore",
        )
    if states or chosen:
        labels = filter_labels(sweep)
        conditions = [" or ".join(states)] * bool(states)
        conditions += [f"{labels[name]} {_in_words(wanted)}" for name, wanted in chosen.items()]
        st.caption(f"{len(board.trials):,} of {counted(len(sweep.trials), 'trial')}: {plain('; '.join(conditions))}")
    return board, columns


def show(sweep: SweepRecord, board: Board, columns: Sequence[str], marks: pd.Series[Any]) -> list[TrialRecord]:
    """The table; returns the trials that are selected, also those that the filters hide, best first."""
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
            column_config=_column_config(tables.columns(board.table)),
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


def clear_selection(sweep: SweepRecord) -> None:
    """Select no trial any more."""
    key = f"ranking of {sweep.name}"
    st.session_state[f"{key}, selected"] = []
    _forget_rows(key)


def _choose_filters(sweep: SweepRecord) -> dict[str, Sequence[Any]]:
    """By name, what a trial must have: a range of numbers, or one of the texts. What leaves no trial out is left out."""
    labels = filter_labels(sweep)
    chosen: dict[str, Sequence[Any]] = {}
    with st.popover("Filter"):
        names = st.multiselect(
            "Filter by",
            list(labels),
            format_func=labels.__getitem__,
            placeholder="Choose hyperparameters",
            key="by",
            bind="query-params",
        )
        for name in names:
            found = filters.make(sweep, name)
            if found.choices:
                values = st.multiselect(
                    found.label, found.choices, help=found.help, placeholder="Any", key=name, bind="query-params"
                )
                if values:
                    chosen[name] = values
            else:
                span = st.select_slider(
                    found.label,
                    found.steps,
                    value=found.everything,
                    format_func=filters.written,
                    help=found.help,
                    key=name,
                    bind="query-params",
                )
                if span != found.everything:
                    chosen[name] = span
    return chosen


def _choose_columns(table: pd.DataFrame) -> list[str]:
    """The names of the columns to show: what became of the trials always, and of the hyperparameters what was chosen."""
    known = tables.columns(table)
    usual = tables.varied(table)
    with st.popover("Columns"):
        which = st.segmented_control(
            "Columns",
            list(_EVERY_COLUMN),
            format_func=_EVERY_COLUMN.__getitem__,
            default="differ",
            required=True,
            help="All hyperparameters, those that are not the same in all trials, or the columns of your choice",
            key="columns",
            bind="query-params",
        )
        if which == "all":
            return list(known)
        if which == "differ":
            return usual
        fixed = [name for name in ("rank", "trial") if name in known]
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
    return Board([t for t, fit in zip(sweep.trials, fits, strict=True) if fit], table[fits].reset_index(drop=True))


def _in_words(wanted: Sequence[Any]) -> str:
    if isinstance(wanted, tuple):
        return " to ".join(map(filters.written, wanted))
    return " or ".join(wanted)


# Streamlit keeps a selection with the rows' positions, which change with every trial that ends and with every filter. So the
# numbers of the selected trials are kept beside it, and the positions set anew whenever other rows are shown.


def _take_selection(key: str) -> None:
    """The reader has selected rows: note the trials that they were. Those that the filters hide stay selected."""
    shown: Sequence[int] = st.session_state[f"{key}, as shown"]
    now = [shown[row] for row in st.session_state[key]["selection"]["rows"]]
    hidden = set(st.session_state.get(f"{key}, selected", ())).difference(shown)
    st.session_state[f"{key}, selected"] = [*hidden, *now]


def _put_selection(key: str, numbers: Sequence[int]) -> None:
    """Select the rows in which the selected trials are now."""
    if st.session_state.get(f"{key}, as shown") != numbers:
        selected = set(st.session_state.get(f"{key}, selected", ()))
        if selected or key in st.session_state:
            rows = [row for row, number in enumerate(numbers) if number in selected]
            st.session_state[key] = {"selection": {"rows": rows}}
        st.session_state[f"{key}, as shown"] = numbers


def _forget_rows(key: str) -> None:
    st.session_state.pop(f"{key}, as shown", None)


def _column_config(columns: dict[str, Column]) -> dict[str, Any]:
    marks = st.column_config.MultiselectColumn(
        "mark",
        help="preset: the baseline, which the others are compared with. front: no trial shown is both more accurate and cheaper",
        options=["preset", "front"],
        color=["orange", "green"],
        width=105,
    )
    return {"marks": marks} | {name: _configured(column) for name, column in columns.items()}


def _configured(column: Column) -> Any:
    pinned = column.name in ("rank", "trial")
    if column.name == "curve":
        return st.column_config.LineChartColumn(
            column.label, help=column.help, y_min=0.0, y_max=1.0, color="blue", width="small"
        )
    if column.dtype == "boolean":
        return st.column_config.CheckboxColumn(column.label, help=column.help)
    if column.dtype in ("Int64", "Float64"):
        return st.column_config.NumberColumn(column.label, help=column.help, format=column.format, pinned=pinned)
    return st.column_config.Column(column.label, help=column.help)


def marks(table: pd.DataFrame, front: Collection[int]) -> pd.Series[Any]:
    """For each row its marks: 'preset' for the baseline, 'front' for a Pareto-optimal trial."""
    presets = table["preset"].notna() if "preset" in table else [False] * len(table)
    rows = zip(table["trial"], presets, strict=True)
    return pd.Series(
        [["preset"] * bool(preset) + ["front"] * (trial in front) for trial, preset in rows], dtype="object"
    )
