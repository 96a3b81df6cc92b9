"""The page of a sweep's ranking: headline numbers, the ranked trials, their learning curves, and what failed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import pandas as pd
import streamlit as st

from cluster.experiments import Experiments
from cluster.study import TrialRecord
from dashboard import charts, tables
from dashboard.records import Sweep, read_sweep
from dashboard.tables import Column

REFRESH_SECONDS = 2.0
SHOWN_BY_DEFAULT = 5
_BADGES: dict[str, Literal["green", "blue", "orange", "red", "gray"]] = {
    "FINISHED": "green",
    "RUNNING": "blue",
    "INTERRUPTED": "orange",
    "FAILED": "red",
    "NEW": "gray",
}


def show(experiments: Experiments, name: str) -> None:
    """The page; while the sweep runs, it follows it."""
    live = _read(experiments, name).is_live
    st.fragment(_content, run_every=REFRESH_SECONDS if live else None)(experiments, name, live)


def _content(experiments: Experiments, name: str, live: bool) -> None:
    sweep = _read(experiments, name)
    if live and not sweep.is_live:
        st.rerun()  # the whole page, which then no longer follows
    _heading(sweep)
    _headline(sweep)
    if not sweep.trials:
        st.info("The sweep has no trials yet.")
        return
    selected = _ranked_trials(sweep)
    _learning_curves(selected or _best(sweep), by_choice=bool(selected))
    _progress(sweep)
    _failures(sweep)


def _read(experiments: Experiments, name: str) -> Sweep:
    try:
        return read_sweep(experiments, name)
    except ValueError as error:
        st.error(str(error))
        st.stop()


def _heading(sweep: Sweep) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.title(_plain(sweep.name), width="content")
        st.badge(sweep.state, color=_BADGES.get(sweep.state, "gray"))
    config = sweep.config
    facts = (
        _plain(config.data.name),
        _counted(config.trials, "trial") if config.trials else f"trials for {tables.duration(config.time_budget or 0)}",
        f"up to {_counted(config.epochs, 'epoch')}",
        f"sampler {config.sampler}",
        f"pruner {config.pruner}",
        _counted(sweep.timing.groups, "worker group"),
    )
    st.caption(" · ".join(facts))
    if sweep.is_live and config.trials:
        ended = len(sweep.trials) - sweep.counts["RUNNING"] - sweep.counts["WAITING"]
        st.progress(min(1.0, ended / config.trials), text=f"{ended} of {config.trials} trials have ended")


def _headline(sweep: Sweep) -> None:
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


def _ranked_trials(sweep: Sweep) -> list[TrialRecord]:
    """The table of the trials; returns those whose rows are selected."""
    st.subheader("Trials, best first")
    table = tables.ranking(sweep.trials)
    with st.container(horizontal=True, vertical_alignment="center"):
        everything = st.toggle("All hyperparameters", help="Also those that are the same in all trials")
        st.download_button(
            "Download CSV",
            partial(tables.export, sweep.trials),
            file_name=f"{sweep.name}-trials.csv",
            mime="text/csv",
            icon=":material/download:",
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


def _best(sweep: Sweep) -> list[TrialRecord]:
    return [t for t in sweep.trials if t.epochs][:SHOWN_BY_DEFAULT]


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


def _progress(sweep: Sweep) -> None:
    progress = tables.best_so_far(sweep.trials)
    if len(progress) > 1:
        st.subheader("Progress of the search")
        st.caption("Each trial's validation accuracy; the line is the best of the complete trials so far.")
        st.altair_chart(charts.best_by_trial(progress), alt="Validation accuracy of each trial and the best so far")


def _failures(sweep: Sweep) -> None:
    failures = tables.failures(sweep.trials)
    if failures:
        st.subheader("Failed trials")
    for reason, trials in failures.items():
        which = ", ".join(str(t.number) for t in trials)
        title = f"Trial{'s' if len(trials) > 1 else ''} {which}: {_plain(reason)}"
        with st.expander(title, expanded=len(failures) == 1):
            st.code(trials[0].error or reason, language=None, wrap_lines=True)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _plain(text: str) -> str:
    """`text` for Streamlit's Markdown to show as it is."""
    return re.sub(r"([^\w\s]|_)", r"\\\1", text)
