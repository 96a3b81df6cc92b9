"""The page of how a sweep's search went: the best so far, the epochs, the groups' time, and Optuna's pictures of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import streamlit as st

from cluster.experiments import Experiments
from cluster.record import SweepRecord
from dashboard import captions, optuna_charts, records, search_charts, search_tables
from dashboard.optuna_charts import PLOTS, Plot
from dashboard.parts import REFRESH_SECONDS, configured, counted, follow, heading, plain, read_or_stop
from dashboard.search_tables import OVER, Over
from dashboard.tables import Column

SLOW_REFRESH_SECONDS = 30.0
_OVER_LABELS = {"trials": "over the trials", "time": "over time"}


def show(experiments: Experiments, name: str) -> None:
    """The page; while the sweep runs, the open tab follows it, with Optuna's slow pictures every 30 s."""
    sweep = read_or_stop(experiments, name)
    heading(sweep.name, sweep.state)
    if not sweep.trials:
        follow(experiments, name, _wait)
        return
    contents: dict[str, tuple[Callable[[SweepRecord], None], float]] = {
        "Progress": (_progress, REFRESH_SECONDS),
        "Epochs": (_epochs, REFRESH_SECONDS),
        "Groups": (_groups, REFRESH_SECONDS),
        "Importances": (partial(_importances, experiments), SLOW_REFRESH_SECONDS),
        **{
            plot.title: (partial(_optuna_plot, experiments, number), SLOW_REFRESH_SECONDS)
            for number, plot in enumerate(PLOTS)
        },
        "Distribution": (_distribution, SLOW_REFRESH_SECONDS),
    }
    tabs = st.tabs(list(contents), key="search", bind="query-params")
    for tab, (content, every_seconds) in zip(tabs, contents.values(), strict=True):
        if tab.open:  # what is in the other tabs is not even computed
            with tab:
                follow(experiments, name, content, every_seconds)


def _wait(sweep: SweepRecord) -> None:
    if sweep.trials:
        st.rerun()  # the whole page, which now has something to show
    st.info("The sweep has no trials yet.")


def _progress(sweep: SweepRecord) -> None:
    over: Over = st.segmented_control(
        "Best so far",
        OVER,
        default=OVER[0],
        required=True,
        format_func=lambda over: _OVER_LABELS[over],
        key="over",
        bind="query-params",
        label_visibility="collapsed",
    )
    progress = search_tables.progress(sweep, over)
    if progress.empty:
        st.info("No trial has a value yet: it gets one when it is complete or pruned.")
        return
    shown = search_tables.thinned(progress)
    goal = sweep.config.goal
    st.caption(captions.best_so_far(goal, len(shown), len(progress)))
    st.altair_chart(
        search_charts.best_so_far(shown, over, goal),
        width="stretch",
        alt=f"Validation {goal.label} of each trial and the best so far, {_OVER_LABELS[over]}",
    )


def _epochs(sweep: SweepRecord) -> None:
    goal = sweep.config.goal
    curves = search_tables.metric_curves(sweep.trials, goal)
    fates = search_tables.fates(sweep.trials)
    if fates.empty:
        st.info("No epoch of any trial has ended.")
        return
    left, right = st.columns(2)
    with left:
        st.subheader(f"{goal.title} by epoch")
        st.caption(captions.curves(curves, sweep.trials, goal))
        st.altair_chart(
            search_charts.metric_curves(curves, goal),
            width="stretch",
            alt=f"Validation {goal.label} of each trial by epoch",
        )
    with right:
        st.subheader("What ended when")
        st.caption(captions.FATES)
        st.altair_chart(
            search_charts.fates(fates), width="stretch", alt="Trials that got to each epoch, by what became of them"
        )


def _groups(sweep: SweepRecord) -> None:
    bars = search_tables.timeline(sweep.trials)
    if bars.empty:
        st.info("No worker group has begun a trial yet.")
        return
    st.caption(captions.timeline(bars, sweep.trials))
    st.altair_chart(
        search_charts.timeline(bars, sweep.config.goal),
        width="stretch",
        alt="When each worker group trained which trial",
    )
    st.dataframe(
        search_tables.group_work(sweep.trials),
        hide_index=True,
        width="content",
        alt="How busy each worker group was",
        column_config={column.name: _configured(column) for column in search_tables.GROUP_WORK},
    )


def _configured(column: Column) -> Any:
    if column.name == "busy":
        return st.column_config.ProgressColumn(
            column.label, help=column.help, format=column.format, min_value=0.0, max_value=100.0
        )
    return configured(column)


def _importances(experiments: Experiments, sweep: SweepRecord) -> None:
    try:
        found = records.importances(experiments, sweep)
    except ValueError as error:
        st.info(plain(str(error)))
        return
    said = captions.importances(found, sweep, shown=plain)
    st.caption("  \n".join(said))
    st.altair_chart(
        search_charts.importances(found.values), width="stretch", alt="The importance of each hyperparameter"
    )


def _optuna_plot(experiments: Experiments, number: int, sweep: SweepRecord) -> None:
    plot = PLOTS[number]
    complete = optuna_charts.complete_trials(sweep)
    if len(complete) < 2:
        st.info(f"This needs at least 2 trials that ran to their end, but there are {len(complete)}.")
        return
    try:
        parameters = _choose_parameters(experiments, number, sweep)
        if parameters is None:
            return
        figure = records.optuna_figure(experiments, sweep, number, parameters)
    except ValueError as error:
        st.info(plain(str(error)))
        return
    st.plotly_chart(
        figure, width="stretch", theme="streamlit", key=plot.title, alt=f"{plot.title} of the complete trials"
    )
    st.caption(f"{plot.about} {_which(plot, len(complete))}")


def _choose_parameters(experiments: Experiments, number: int, sweep: SweepRecord) -> tuple[str, ...] | None:
    """The hyperparameters for the plot, the most important ones at first; None when there are too few."""
    plot = PLOTS[number]
    names = _by_importance(experiments, sweep, records.telling_parameters(experiments, sweep, number))
    if len(names) < plot.fewest:
        st.info(f"This needs {counted(plot.fewest, 'hyperparameter')} that differ among the complete trials.")
        return None
    chosen = st.multiselect(
        "Hyperparameters, the most important first",
        names,
        default=names[: plot.preset],
        max_selections=plot.most,
        key=f"{plot.title} of {sweep.name}",
        select_all=False,
    )
    if len(chosen) < plot.fewest:
        st.info(f"Choose {plot.fewest if plot.fewest == plot.most else f'{plot.fewest} to {plot.most}'} of them.")
        return None
    return tuple(chosen)


def _by_importance(experiments: Experiments, sweep: SweepRecord, names: list[str]) -> list[str]:
    try:
        values = records.importances(experiments, sweep).values
    except ValueError:  # too few trials for that
        return names
    return sorted(names, key=lambda name: -values.get(name, 0.0))


def _which(plot: Plot, complete: int) -> str:
    if complete <= plot.trials:
        return f"All {complete:,} complete trials are shown."
    return (
        f"Shown are {plot.trials:,} of {complete:,} complete trials: the best {plot.trials // 2:,} "
        "and a sample of the others, always the same one."
    )


def _distribution(sweep: SweepRecord) -> None:
    if not optuna_charts.complete_trials(sweep):
        st.info("No trial has run to its end.")
        return
    figure = records.optuna_distribution((sweep,))
    st.plotly_chart(
        figure,
        width="stretch",
        theme="streamlit",
        key="Distribution",
        alt=f"Distribution of the complete trials' {sweep.config.goal.label}",
    )
    st.caption(f"For each {sweep.config.goal.label}, which share of the complete trials has at most that.")
