"""The page of a sweep's ranking: headline numbers, the ranked trials, their learning curves, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from cluster.experiments import Experiments
from cluster.record import SweepRecord, TrialRecord
from dashboard import charts, tables
from dashboard.parts import counted, follow, heading, plain
from dashboard.records import ranking_table
from dashboard.tables import Column

SHOWN_BY_DEFAULT = 5


def show(experiments: Experiments, name: str) -> None:
    """The page; while the sweep runs, it follows it."""
    follow(experiments, name, _content)


def _content(sweep: SweepRecord) -> None:
    heading(sweep.name, sweep.state)
    _facts(sweep)
    _headline(sweep)
    if not sweep.trials:
        st.info("The sweep has no trials yet.")
        return
    selected = _ranked_trials(sweep)
    _learning_curves(selected or _best(sweep), by_choice=bool(selected))
    _progress(sweep)
    _failures(sweep)


def _facts(sweep: SweepRecord) -> None:
    config = sweep.config
    facts = (
        plain(config.data.name),
        counted(config.trials, "trial") if config.trials else f"trials for {tables.duration(config.time_budget or 0)}",
        f"up to {counted(config.epochs, 'epoch')}",
        f"sampler {config.sampler}",
        f"pruner {config.pruner}",
        counted(sweep.timing.groups, "worker group"),
    )
    st.caption(" · ".join(facts))
    if sweep.is_live and config.trials:
        ended = len(sweep.trials) - sweep.counts["RUNNING"] - sweep.counts["WAITING"]
        st.progress(min(1.0, ended / config.trials), text=f"{ended} of {config.trials} trials have ended")


def _headline(sweep: SweepRecord) -> None:
    best, timing = sweep.best, sweep.timing
    spent = (
        f"Until the first trial began {tables.duration(timing.startup_seconds)}, between two trials "
        f"{timing.overhead_seconds:.2f} s (median), training {tables.duration(timing.train_seconds)} over all groups."
    )
    accuracy = "On the validation split, of the best trial that ran to its end. The search does not see the test split."
    with st.container(horizontal=True):
        st.metric("Best validation accuracy", f"{best.value:.4f}" if best else "–", help=accuracy, border=True)
        st.metric("Best trial", best.number if best else "–", border=True)
        for state, count in sweep.counts.items():
            if count or state in ("COMPLETE", "PRUNED", "FAIL"):
                st.metric(state.capitalize(), count, border=True)
        st.metric("Wall time", tables.duration(timing.wall_seconds), help=spent, border=True)


def _ranked_trials(sweep: SweepRecord) -> list[TrialRecord]:
    """The table of the trials; returns those whose rows are selected."""
    st.subheader("Trials, best first")
    table = ranking_table(sweep)
    with st.container(horizontal=True, vertical_alignment="center"):
        everything = st.toggle("All hyperparameters", help="Also those that are the same in all trials")
        st.download_button(
            "Download CSV",
            partial(tables.export, sweep.trials),
            file_name=f"{sweep.name}-trials.csv",
            mime="text/csv",
            icon="⬇️",
            on_click="ignore",
        )
    numbers = [t.number for t in sweep.trials]
    key = f"ranking of {sweep.name}"
    _keep_selection(key, numbers)
    state = st.dataframe(
        table[list(table.columns) if everything else tables.varied(table)],
        column_config=_column_config(table, tables.hyperparameter_columns(sweep.trials)),
        hide_index=True,
        placeholder="",
        key=key,
        on_select="rerun",
        selection_mode="multi-row",
        alt=f"The trials of sweep {sweep.name}, best first",
    )
    return [sweep.trials[row] for row in state["selection"]["rows"]]


def _keep_selection(key: str, numbers: Sequence[int]) -> None:
    """Let the selection stay with the trials when the ranking changes: Streamlit keeps it with the rows' positions."""
    shown = st.session_state.get(f"{key}, as shown")
    if shown is not None and shown != numbers and key in st.session_state:
        selected = {shown[row] for row in st.session_state[key]["selection"]["rows"]}
        rows = [row for row, number in enumerate(numbers) if number in selected]
        st.session_state[key] = {"selection": {"rows": rows}}
    st.session_state[f"{key}, as shown"] = numbers


def _column_config(table: pd.DataFrame, hyperparameters: Sequence[Column]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for column in (*tables.OUTCOME, *hyperparameters):
        if column.name not in table:
            continue
        pinned = column.name in ("rank", "trial")
        if column.name == "curve":
            config = st.column_config.LineChartColumn(
                column.label, help=column.help, y_min=0.0, y_max=1.0, color="blue", width="small"
            )
        elif column.dtype == "boolean":
            config = st.column_config.CheckboxColumn(column.label, help=column.help)
        elif column.dtype in ("Int64", "Float64"):
            config = st.column_config.NumberColumn(column.label, help=column.help, format=column.format, pinned=pinned)
        else:
            config = st.column_config.Column(column.label, help=column.help)
        found[column.name] = config
    return found


def _best(sweep: SweepRecord) -> list[TrialRecord]:
    return [t for t in sweep.trials if t.epochs_done][:SHOWN_BY_DEFAULT]


def _learning_curves(trials: Sequence[TrialRecord], by_choice: bool) -> None:
    st.subheader("Learning curves")
    whose = "the selected trials" if by_choice else "the best trials; select rows of the table to see others"
    st.caption(f"Of {whose}. Losses: validation solid with dots, training dashed with triangles.")
    curves = tables.learning_curves(trials)
    if curves.empty:
        st.info("No epoch of these trials has ended.")
        return
    left, right = st.columns(2)
    left.altair_chart(charts.accuracy_by_epoch(curves), alt="Validation accuracy after each epoch")
    right.altair_chart(charts.losses_by_epoch(curves), alt="Training and validation loss of each epoch")


def _progress(sweep: SweepRecord) -> None:
    progress = tables.best_so_far(sweep.trials)
    if len(progress) > 1:
        st.subheader("Progress of the search")
        st.caption("Each trial's validation accuracy; the line is the best of the complete trials so far.")
        st.altair_chart(charts.best_by_trial(progress), alt="Validation accuracy of each trial and the best so far")


def _failures(sweep: SweepRecord) -> None:
    failures = tables.failures(sweep.trials)
    if failures:
        st.subheader("Failed trials")
    for reason, trials in failures.items():
        which = ", ".join(str(t.number) for t in trials)
        title = f"Trial{'s' if len(trials) > 1 else ''} {which}: {plain(reason)}"
        with st.expander(title, expanded=len(failures) == 1):
            st.code(trials[0].error or reason, language=None, wrap_lines=True)
