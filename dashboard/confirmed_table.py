"""The configurations that `convsweep confirm` trained again with several seeds: their table, and a chart of their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import altair as alt
import pandas as pd
import streamlit as st

from cluster.confirmed import Comparison, Confirmed, compare_confirmed
from cluster.record import SweepRecord
from dashboard.parts import configured, plain
from dashboard.tables import Column, trial_name

ROW_HEIGHT = 44
MEAN, SEED = "#1f77b4", "#c3cad3"
_TIED = {True: "yes", False: "no", None: "?"}
_LABELS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1", "loss": "loss"}


def alt_text(comparison: Comparison) -> str:
    """What `intervals` shows, for those who cannot see it."""
    return f"Mean test {_LABELS[comparison.metric]} of each confirmed configuration with its 95 % interval, and the score of each seed"


def show(sweep: SweepRecord) -> None:
    """What was confirmed; nothing for a sweep that was not."""
    comparison = compare_confirmed(sweep)
    if comparison.recommended is None:
        return
    st.subheader("Confirmed on the test split")
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.dataframe(
            table(comparison),
            column_config={column.name: configured(column) for column in columns(comparison)},
            hide_index=True,
            placeholder="",
            key=f"confirmed of {sweep.name}",
            alt=f"The confirmed configurations of sweep {sweep.name}, best mean first",
        )
    with right:
        st.altair_chart(
            intervals(comparison),
            key=f"intervals of {sweep.name}",
            alt=alt_text(comparison),
        )
    st.caption(plain(comparison.in_words()))


def columns(comparison: Comparison) -> tuple[Column, ...]:
    """What the columns of the table are."""
    label = _LABELS[comparison.metric]
    tied = "Whether chance may be all that lies between it and the best: Welch's t-test, 5 %"
    return (
        Column("trial", "trial", "Whose configuration it is", "Int64"),
        Column("export", "export", "What `convsweep export` takes", "boolean"),
        Column("tied", "tied", tied),
        Column("n", "n", "Seeds it was trained with, on all but the test split", "Int64"),
        Column("mean", f"mean {label}", f"The mean of the test split's {label} over the seeds", "Float64", "%.4f"),
        Column("interval", "95 % interval", "Of the mean, by Student's t"),
        Column("deviation", "deviation", "The sample's standard deviation over the seeds", "Float64", "%.4f"),
        Column("parameters", "parameters", "Trainable parameters of the network", "Int64", "%,d"),
    )


def table(comparison: Comparison) -> pd.DataFrame:
    """A row per configuration, best mean first: trial, export, tied, n, mean, interval, deviation, parameters."""

    def column(values: Sequence[Any], dtype: str) -> pd.Series[Any]:
        return pd.Series(values, dtype=dtype)

    configurations = comparison.configurations
    return pd.DataFrame(
        {
            "trial": column([c.trial for c in configurations], "Int64"),
            "export": column([c is comparison.recommended for c in configurations], "bool"),
            "tied": column([_TIED[c.tied] for c in configurations], "object"),
            "n": column([c.n for c in configurations], "Int64"),
            "mean": column([c.mean for c in configurations], "float64"),
            "interval": column([_interval(c) for c in configurations], "object"),
            "deviation": column([c.deviation for c in configurations], "float64"),
            "parameters": column([c.parameters for c in configurations], "Int64"),
        }
    )


def intervals(comparison: Comparison) -> alt.LayerChart:
    """Each configuration's mean with its 95 % interval, and a small circle for each seed."""
    order = [trial_name(c.trial) for c in comparison.configurations]
    means = pd.DataFrame([_mean_row(c) for c in comparison.configurations])
    seeds = pd.DataFrame(
        [
            {"name": trial_name(c.trial), "seed": score.seed, "value": value}
            for c in comparison.configurations
            for score, value in zip(c.scores, c.values, strict=True)
        ]
    )
    title = f"test {_LABELS[comparison.metric]}"
    y = alt.Y("name:N", sort=order, title=None, scale=alt.Scale(domain=order))

    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(labelOverlap=True))

    tooltip = [alt.Tooltip("name:N", title="trial"), alt.Tooltip("mean:Q", format=".4f"), alt.Tooltip("interval:N")]
    spread = alt.Chart(means).mark_rule(color=MEAN, strokeWidth=2).encode(x=x("low"), x2="high:Q", y=y, tooltip=tooltip)
    middle = alt.Chart(means).mark_point(color=MEAN, filled=True, size=90, opacity=1)
    each = alt.Chart(seeds).mark_point(color=SEED, size=40, opacity=1)
    layers = (
        each.encode(
            x=x("value"),
            y=y,
            tooltip=[
                alt.Tooltip("name:N", title="trial"),
                alt.Tooltip("seed:Q"),
                alt.Tooltip("value:Q", title=title, format=".4f"),
            ],
        ),
        spread,
        middle.encode(x=x("mean"), y=y, tooltip=tooltip),
    )
    return cast(alt.LayerChart, alt.layer(*layers).properties(height=60 + ROW_HEIGHT * len(order)))


def _mean_row(c: Confirmed) -> dict[str, object]:
    low, high = c.interval or (c.mean, c.mean)
    return {"name": trial_name(c.trial), "mean": c.mean, "low": low, "high": high, "interval": _interval(c)}


def _interval(c: Confirmed) -> str:
    return "{:.4f} to {:.4f}".format(*c.interval) if c.interval else "one seed"
