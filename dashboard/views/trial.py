"""The page of one trial: what it is, how it went, what its network looks like, what it gets wrong and where it looks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import streamlit as st

from cluster.experiments import Experiments
from cluster.record import SweepRecord, TrialRecord
from dashboard import analyses, analysis_parts, network_chart, notes, trial_charts, trial_tables
from dashboard.parts import choose_trial, follow, heading, plain
from trainer.gradients import troubles
from trainer.measuring import ACCURACY

TABS = ("Overview", "Configuration", "Network", "Classes", "Mistakes", "Attention", "Kernels")
CURVE_HEIGHT = 190


def show(experiments: Experiments, name: str) -> None:
    """The page; while the sweep runs, it follows it."""
    follow(experiments, name, partial(_content, experiments))


def _content(experiments: Experiments, sweep: SweepRecord) -> None:
    if not sweep.trials:
        heading(sweep.name, sweep.state)
        st.info("The sweep has no trials yet.")
        return
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    with right:
        trial = choose_trial(sweep)
    with left:
        heading(f"Trial {trial.number}", trial.state)
    st.caption(" · ".join(map(plain, trial_tables.summary(trial))))
    _headline(sweep, trial)
    parts = (
        _overview,
        _configuration,
        _network,
        analysis_parts.classes,
        analysis_parts.mistakes,
        analysis_parts.attention,
        analysis_parts.kernels,
    )
    experiments = experiments.of(sweep.storage_path)
    for tab, part in zip(st.tabs(TABS, key="part", bind="query-params"), parts, strict=True):
        if tab.open:
            with tab, _sentences():
                part(experiments, sweep, trial)


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """What cannot be shown is said."""
    try:
        yield
    except ValueError as error:
        st.info(plain(str(error)))


def _headline(sweep: SweepRecord, trial: TrialRecord) -> None:
    with st.container(horizontal=True, border=True):
        for fact in trial_tables.headline(sweep, trial):
            st.metric(fact.label, fact.value, help=fact.help)
    if trial.state == "RUNNING":
        planned = trial_tables.planned_epochs(sweep, trial)
        st.progress(min(1.0, trial.epochs_done / planned), text=f"{trial.epochs_done} of {planned} epochs")


def _overview(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> None:
    if trial.number in sweep.notes:
        with st.container(border=True):
            st.markdown(notes.without_pictures(sweep.notes[trial.number]))
    if trial.state == "FAIL":
        _error(trial)
    elif trial.state == "PRUNED":
        st.info(trial_tables.why_pruned(sweep, trial))
    if not trial.epochs_done:
        st.info("No epoch of this trial has ended, so there are no curves.")
        return
    for trouble in troubles(trial.gradients):
        st.warning(plain(trouble.text))
    epochs = trial_tables.epochs(trial)
    left, right = st.columns(2)
    # The loss has a chart of its own.
    goal = sweep.config.goal if sweep.config.goal.field != "val_loss" else ACCURACY
    value = f"validation {goal.label}"
    for place, title, metrics in (
        (left, "loss per image", {"train_loss": "training", "val_loss": "validation"}),
        (right, value, {goal.field: value}),
        (left, "learning rate", {"learning_rate": "learning rate"}),
        (right, "images per second", {"images_per_second": "images per second"}),
    ):
        draw = trial_charts.fold_curves if epochs["fold"].any() else trial_charts.curves
        place.altair_chart(draw(epochs, metrics, title, CURVE_HEIGHT), alt=f"{title[0].upper()}{title[1:]} by epoch")
    if epochs["fold"].any():
        st.caption("A colour for each fold, all of which begin with the same weights; the training loss is dashed.")
    gradients = trial_tables.gradients(trial)
    if not gradients.empty:
        st.altair_chart(trial_charts.gradients(gradients, CURVE_HEIGHT), alt="Norm of each layer's gradient by epoch")


def _error(trial: TrialRecord) -> None:
    st.error("The trial could not go on.")
    st.code(trial.error or "No cause was recorded.", language=None, wrap_lines=True, height=190)
    if trial.log:
        st.markdown("More may be in the log of the process that trained it (host:path):")
        st.code(trial.log, language=None, wrap_lines=True)


def _configuration(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> None:
    table = trial_tables.configuration(trial)
    if table.empty:
        st.info("The record of this trial has no configuration.")
        return
    only = st.toggle("Only what differs from the defaults", key="only what differs")
    rows = table[table["differs"]] if only else table
    st.dataframe(
        rows.drop(columns="differs"),
        hide_index=True,
        height=248 if len(rows) > 5 else "content",
        column_config={"meaning": st.column_config.TextColumn(width="large")},
        alt=f"The hyperparameters of trial {trial.number}",
    )
    st.markdown("The command that trains this configuration again:")
    with analysis_parts.loading_torch():
        command = analyses.training_command(sweep, trial)
    st.code(command, language="console", wrap_lines=True)


def _network(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> None:
    with analysis_parts.loading_torch():
        layers = analyses.layers(sweep, trial)
    drawing = network_chart.draw(layers, dark=st.context.theme.type == "dark")
    st.image(drawing, width="stretch", alt=f"The network of trial {trial.number}, from its input to its classes")
    table = trial_tables.layer_table(layers)
    st.dataframe(
        table,
        hide_index=True,
        column_config={
            "parameters": st.column_config.NumberColumn(format="localized"),
            "share": st.column_config.ProgressColumn(
                "share", format="%.1f %%", min_value=0, max_value=100, color="blue"
            ),
            "settings": st.column_config.TextColumn(width="medium"),
        },
        alt="The layers in the order of the forward pass",
    )
    st.download_button(
        "Download the drawing",
        drawing,
        file_name=f"{sweep.name}-trial-{trial.number}.svg",
        mime="image/svg+xml",
        icon="⬇️",
        on_click="ignore",
    )
