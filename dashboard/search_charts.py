"""The tables of a search as charts. Pure functions; fonts and the other colours are Streamlit's theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd

from dashboard.charts import HEIGHT, STATE_COLOURS, value_axis, value_tooltip
from dashboard.search_tables import FATES, Over
from trainer.measuring import ACCURACY, Metric

ROW_HEIGHT = 34
_COLOURS = {**STATE_COLOURS, "WAITING": "#c7c7c7"}
_FATE_COLOURS = {**{FATES[state]: colour for state, colour in _COLOURS.items()}, FATES["went on"]: "#aec7e8"}


def best_so_far(progress: pd.DataFrame, over: Over, goal: Metric = ACCURACY) -> alt.LayerChart:
    """Each trial's value as a point, and the best of the complete ones so far as a line, over trials or minutes."""
    base = alt.Chart(progress).encode(x=axis_over(over))
    line = base.mark_line(interpolate="step-after", strokeWidth=2).encode(y=value_axis("best", goal))
    points = base.mark_circle(size=45, opacity=0.75).encode(
        y=value_axis("value", goal),
        color=_by_state(progress["state"]),
        tooltip=[
            alt.Tooltip("name:N", title="trial"),
            alt.Tooltip("state:N"),
            value_tooltip(goal),
            alt.Tooltip("best:Q", title="best so far", format=".4f"),
            *([alt.Tooltip("x:Q", title="minutes", format=".1f")] if over == "time" else []),
        ],
    )
    chart: alt.LayerChart = (line + points).properties(height=HEIGHT + 40)
    return chart


def axis_over(over: Over) -> alt.X:
    """The horizontal axis of a progress."""
    if over == "trials":
        return alt.X("x:Q", axis=alt.Axis(title="trial", tickMinStep=1, format="d", grid=False))
    return alt.X("x:Q", axis=alt.Axis(title="minutes since the sweep began", grid=False))


def metric_curves(curves: pd.DataFrame, goal: Metric = ACCURACY) -> alt.LayerChart:
    """The sweep's metric of each trial by epoch, coloured by the trial's state."""
    base = alt.Chart(curves).encode(
        x=_epochs(),
        y=value_axis("value", goal),
        color=_by_state(curves["state"]),
        tooltip=[
            alt.Tooltip("name:N", title="trial"),
            alt.Tooltip("state:N"),
            alt.Tooltip("epoch:Q", format="d"),
            value_tooltip(goal),
        ],
    )
    lines = base.mark_line(strokeWidth=1.2, opacity=0.45).encode(detail="trial:N")
    points = base.mark_circle(size=14, opacity=0.6)  # a trial of one epoch has no line
    chart: alt.LayerChart = (lines + points).properties(height=HEIGHT)
    return chart


def fates(table: pd.DataFrame) -> alt.Chart:
    """How many trials got to each epoch, as bars, by what became of them after it."""
    shown = table.assign(
        fate=table["fate"].map(FATES), order=table["fate"].map({fate: i for i, fate in enumerate(FATES)})
    )
    present = [words for fate, words in FATES.items() if fate in set(table["fate"])]
    colours = alt.Scale(domain=present, range=[_FATE_COLOURS[words] for words in present])
    chart: alt.Chart = (
        alt.Chart(shown)
        .mark_bar()
        .encode(
            x=alt.X("epoch:O", axis=alt.Axis(title="epoch", labelAngle=0, labelOverlap=True)),
            y=alt.Y("trials:Q", title="trials that got there", axis=alt.Axis(tickMinStep=1, format=",d")),
            color=alt.Color("fate:N", scale=colours, legend=alt.Legend(title=None, orient="bottom")),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("epoch:O"),
                alt.Tooltip("fate:N", title="after it"),
                alt.Tooltip("trials:Q", format=",d"),
                alt.Tooltip("share:Q", title="of those that got there", format=".0%"),
            ],
        )
        .properties(height=HEIGHT)
    )
    return chart


def timeline(bars: pd.DataFrame, goal: Metric = ACCURACY) -> alt.Chart:
    """A row per worker group with a bar for each of its trials, coloured by the trial's state."""
    groups = sorted(set(bars["group"]), key=lambda name: int(name.rpartition(" ")[2]))
    chart: alt.Chart = (
        alt.Chart(bars)
        .mark_bar(stroke="white", strokeWidth=0.4, height=alt.RelativeBandSize(0.8))
        .encode(
            x=alt.X(
                "begin:Q",
                scale=alt.Scale(zero=False, nice=False),
                axis=alt.Axis(title="minutes since the first trial began", grid=False),
            ),
            x2="end:Q",
            y=alt.Y("group:N", sort=groups, axis=alt.Axis(title=None, labelLimit=200, domain=False, ticks=False)),
            color=_by_state(bars["state"]),
            tooltip=[
                alt.Tooltip("name:N", title="trial"),
                alt.Tooltip("group:N"),
                alt.Tooltip("state:N"),
                value_tooltip(goal),
                alt.Tooltip("epochs:Q", title="epochs done", format="d"),
                alt.Tooltip("begin:Q", title="began after, minutes", format=".2f"),
                alt.Tooltip("seconds:Q", title="trained, seconds", format=".1f"),
            ],
        )
        .properties(height=150 + ROW_HEIGHT * len(groups))
    )
    return chart


def importances(values: Mapping[str, float]) -> alt.LayerChart:
    """Each hyperparameter's importance as a bar, the most important first."""
    table = pd.DataFrame({"name": list(values), "importance": list(values.values())})
    base = alt.Chart(table).encode(
        x=alt.X("importance:Q", axis=alt.Axis(title="importance", format=".0%", grid=False)),
        y=alt.Y("name:N", sort=list(values), axis=alt.Axis(title=None, labelLimit=400)),
        tooltip=[alt.Tooltip("name:N"), alt.Tooltip("importance:Q", format=".1%")],
    )
    numbers = base.mark_text(align="left", dx=4, color="#808895").encode(text=alt.Text("importance:Q", format=".1%"))
    chart: alt.LayerChart = (base.mark_bar() + numbers).properties(height=40 + 22 * len(values))
    return chart


def _by_state(states: Sequence[str] | pd.Series) -> alt.Color:
    present = [state for state in _COLOURS if state in set(states)]
    scale = alt.Scale(domain=present, range=[_COLOURS[state] for state in present])
    return alt.Color("state:N", scale=scale, legend=alt.Legend(title=None, orient="bottom"))


def _epochs() -> alt.X:
    return alt.X("epoch:Q", axis=alt.Axis(title="epoch", tickMinStep=1, format="d", grid=False))
