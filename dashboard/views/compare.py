"""The page that shows trials side by side and sweeps over each other, and where notes are written."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import streamlit as st

from cluster.experiments import Experiments
from cluster.notes import MAX_LENGTH
from cluster.record import SweepRecord, TrialRecord
from dashboard import analyses, charts, comparison, comparison_charts, note_editor, records, tables
from dashboard.analysis_tables import MOST_CLASSES
from dashboard.parts import choose_trial, counted, follow, heading, plain, read_or_stop
from dashboard.search_tables import Over
from trainer.analysis import Analysis
from trainer.measuring import Metric

MOST_TRIALS = 6
MOST_SWEEPS = 4
NAME_WIDTH, VALUE_WIDTH = 190, 145
"""Pixels: the longest of the declared names and of the declared values fit."""

SweepsOver = Literal["trials", "time", "distribution"]
_OVER_LABELS: dict[SweepsOver, str] = {
    "trials": "best over the trials",
    "time": "best over time",
    "distribution": "distribution",
}


def show(experiments: Experiments, name: str) -> None:
    """The page; while the sweep runs, the comparisons follow it."""
    sweep = read_or_stop(experiments, name)
    heading(sweep.name, sweep.state)
    trials, sweeps, written = st.tabs(["Trials", "Sweeps", "Notes"], key="compare", bind="query-params")
    if trials.open:
        with trials:
            follow(experiments, name, partial(_trials, experiments))
    if sweeps.open:
        with sweeps:
            follow(experiments, name, partial(_sweeps, experiments))
    if written.open:
        with written:
            _notes(experiments, sweep)


# ---- trials ----


def _trials(experiments: Experiments, sweep: SweepRecord) -> None:
    if not sweep.trials:
        st.info("The sweep has no trials yet.")
        return
    numbers = st.multiselect(
        f"Trials, two to {MOST_TRIALS}; the list is best first",
        [t.number for t in sweep.trials],
        default=comparison.suggested_trials(sweep),
        max_selections=MOST_TRIALS,
        key="trials",
        bind="query-params",
        select_all=False,
    )
    trials = [sweep.trial(number) for number in numbers]
    if len(trials) < 2:
        few = "Choose two trials or more." if len(sweep.trials) > 1 else "The sweep has one trial: two can be compared."
        st.info(few)
        return
    _outcome(sweep, trials)
    _configuration(trials)
    _curves(trials, sweep.config.goal)
    _confusion(experiments, sweep, trials)


def _outcome(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> None:
    st.subheader("What became of them")
    st.dataframe(
        comparison.outcome(sweep, trials),
        hide_index=True,
        width="stretch",
        height="content",
        column_config={"outcome": st.column_config.TextColumn("", pinned=True)},
        alt="What became of the chosen trials",
    )


def _configuration(trials: Sequence[TrialRecord]) -> None:
    st.subheader("Configuration")
    everything = st.toggle(
        "All hyperparameters", key="all hyperparameters", help="Also those in which they are the same"
    )
    table = comparison.configuration(trials)
    shown = table if everything else comparison.differing(table)
    if table.empty:
        st.info("The trials have no configuration in the record: another program made them.")
    elif shown.empty:
        st.info("The trials have the same configuration.")
    else:
        st.dataframe(
            shown,
            hide_index=True,
            width="stretch",
            height="content",
            column_config={
                "hyperparameter": st.column_config.TextColumn("hyperparameter", pinned=True, width=NAME_WIDTH),
                **{tables.trial_name(t.number): st.column_config.TextColumn(width=VALUE_WIDTH) for t in trials},
            },
            alt="The hyperparameters of the chosen trials",
        )


def _curves(trials: Sequence[TrialRecord], goal: Metric) -> None:
    st.subheader("Curves")
    curves = tables.learning_curves(trials, goal)
    if curves.empty:
        st.info("No epoch of these trials has ended.")
        return
    st.caption("Losses: validation solid with dots, training dashed with triangles.")
    left, right = st.columns(2)
    left.altair_chart(
        charts.metric_by_epoch(curves, goal), width="stretch", alt=f"Validation {goal.label} after each epoch"
    )
    right.altair_chart(
        charts.losses_by_epoch(curves), width="stretch", alt="Training and validation loss of each epoch"
    )


def _confusion(experiments: Experiments, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> None:
    st.subheader("Confusion")
    found: dict[int, Analysis] = {}
    experiments = experiments.of(sweep.storage_path)
    for trial in trials:
        try:
            analysis = analyses.stored(experiments, sweep.name, trial)
        except ValueError as error:
            st.warning(f"{tables.trial_name(trial.number).capitalize()}: {plain(str(error))}")
            continue
        if analysis is not None:
            found[trial.number] = analysis
    missing = [str(t.number) for t in trials if t.number not in found]
    if missing:
        which = f"Trial {missing[0]} has" if len(missing) == 1 else f"Trials {', '.join(missing)} have"
        st.caption(f"{which} no analysis: the button “Analyse” on the page Trial makes one while the weights are kept.")
    if len(found) < 2:
        st.info("What two trials confuse can be compared when both have an analysis.")
        return
    left, right = st.columns(2)
    names = list(found)
    first = left.selectbox("First trial", names, key="first trial", format_func=tables.trial_name)
    second = right.selectbox(
        "Second trial", [n for n in names if n != first], key="second trial", format_func=tables.trial_name
    )
    _confusion_change(first, found[first], second, found[second])


def _confusion_change(first: int, before: Analysis, second: int, after: Analysis) -> None:
    names = tables.trial_name(first), tables.trial_name(second)
    try:
        change = comparison.confusion_change(before.confusion, after.confusion, after.classes)
    except ValueError as error:
        st.info(plain(str(error)))
        return
    left, right = st.columns([3, 2])
    with left:
        if len(after.classes) <= MOST_CLASSES:
            st.caption(f"By how many images {names[1]} differs from {names[0]}. Blue: better. Orange: worse.")
            st.altair_chart(
                comparison_charts.confusion_change(change.cells, after.classes, *names),
                width="stretch",
                alt=f"How the confusion matrix of {names[1]} differs from that of {names[0]}",
            )
        else:
            st.caption(f"A matrix of {len(after.classes):,} classes does not fit on a page.")
    with right:
        changed = comparison.most_changed(change.classes)
        if changed.empty:
            st.info("Each class has as many right as before.")
            return
        st.caption("The classes that gained and lost most: the share of a class's images that is right.")
        st.dataframe(
            changed,
            hide_index=True,
            width="stretch",
            column_config={
                "class": st.column_config.TextColumn("class"),
                "images": st.column_config.NumberColumn("images", format="%,d"),
                "first": st.column_config.NumberColumn(names[0], format="percent"),
                "second": st.column_config.NumberColumn(names[1], format="percent"),
                "change": st.column_config.NumberColumn("change", format="percent"),
            },
            alt="The classes that gained and lost most",
        )


# ---- sweeps ----


def _sweeps(experiments: Experiments, sweep: SweepRecord) -> None:
    try:
        known = records.summaries(experiments)
    except ValueError as error:
        st.error(plain(str(error)))
        return
    names = [summary.name for summary in known]
    chosen = st.multiselect(
        f"Sweeps, two to {MOST_SWEEPS}",
        names,
        default=comparison.suggested_sweeps(names, [summary.data for summary in known], sweep.name),
        max_selections=MOST_SWEEPS,
        key="sweeps",
        bind="query-params",
        select_all=False,
    )
    found = _read_sweeps(experiments, chosen)
    if len(names) < 2:
        st.info("There is one sweep: two can be compared.")
    elif len(chosen) < 2:
        st.info("Choose two sweeps or more.")
    if found:
        _sweep_facts(found)
        _sweeps_chart(found)


def _read_sweeps(experiments: Experiments, names: Sequence[str]) -> list[SweepRecord]:
    found = []
    for name in names:
        try:
            found.append(records.read_sweep(experiments, name))
        except ValueError as error:
            st.warning(f"{plain(name)}: {plain(str(error))}")
    return found


def _sweep_facts(sweeps: Sequence[SweepRecord]) -> None:
    best = "The value of the best trial that ran to its end, by the sweep's metric"
    st.dataframe(
        comparison.sweep_facts(sweeps),
        hide_index=True,
        width="stretch",
        column_config={
            "sweep": st.column_config.TextColumn("sweep", pinned=True),
            "metric": st.column_config.TextColumn("metric", help="What the search optimises"),
            "best": st.column_config.NumberColumn("best", format="%.4f", help=best),
            "preset": st.column_config.NumberColumn("preset", format="%.4f", help="The value of the preset's trial"),
            "trials": st.column_config.NumberColumn("trials", format="%,d"),
            "epochs": st.column_config.NumberColumn("epochs", help="Of a trial that is not pruned"),
            "minutes": st.column_config.NumberColumn("took", format="%.1f min", help="All its runs together"),
            "groups": st.column_config.NumberColumn("groups", help="Worker groups of its last run"),
        },
        alt="The sweeps' headline facts",
    )


def _sweeps_chart(sweeps: Sequence[SweepRecord]) -> None:
    over: SweepsOver = st.segmented_control(
        "What to show",
        list(_OVER_LABELS),
        default="trials",
        required=True,
        format_func=lambda over: _OVER_LABELS[over],
        key="sweeps-over",
        bind="query-params",
        label_visibility="collapsed",
    )
    drawn = tuple(s for s in sweeps if s.best)
    without = [plain(s.name) for s in sweeps if not s.best]
    if without:
        st.caption(f"Without a trial that ran to its end: {', '.join(without)}.")
    if not drawn:
        return
    if over == "distribution":
        st.plotly_chart(
            records.optuna_distribution(drawn),
            width="stretch",
            theme="streamlit",
            key="distributions",
            alt=f"Distribution of the complete trials' {comparison.measured(drawn)} in each sweep",
        )
        st.caption("For each value, which share of a sweep's complete trials has at most that.")
        return
    _best_so_far(drawn, over)


def _best_so_far(sweeps: Sequence[SweepRecord], over: Over) -> None:
    value, progress = comparison.measured(sweeps), comparison.progress_of(sweeps, over)
    st.altair_chart(
        comparison_charts.sweeps_best_so_far(progress, over, [s.name for s in sweeps], value),
        width="stretch",
        alt=f"The best {value} so far in each sweep",
    )
    st.caption(
        "The best of the complete trials so far. Values on different data, or of different metrics, say nothing about each other."
    )


# ---- notes ----


def _notes(experiments: Experiments, sweep: SweepRecord) -> None:
    st.caption(
        f"In Markdown, up to {counted(MAX_LENGTH, 'character')}, kept in the study where optuna-dashboard keeps them too. "
        "Pictures are shown as links: loading one would tell its host who looks."
    )
    left, right = st.columns(2)
    with left:
        st.subheader("On the sweep")
        note_editor.edit_note(experiments, sweep, None)
    with right:
        st.subheader("On a trial")
        if sweep.trials:
            note_editor.edit_note(experiments, sweep, choose_trial(sweep).number)
        else:
            st.info("The sweep has no trials yet.")
