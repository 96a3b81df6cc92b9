"""Tables as charts. Pure functions; the colours and fonts are Streamlit's theme."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

HEIGHT = 380
_STATE_COLOURS = {"COMPLETE": "#1f77b4", "PRUNED": "#ff9f40", "FAIL": "#d62728", "RUNNING": "#7f7f7f"}
_EPOCH_AXIS = alt.Axis(title="epoch", tickMinStep=1, format="d", grid=False)


def accuracy_by_epoch(curves: pd.DataFrame) -> alt.LayerChart:
    """The validation accuracy of each trial in the learning curves."""
    return _by_epoch(curves, ["validation accuracy"], "validation accuracy")


def losses_by_epoch(curves: pd.DataFrame) -> alt.LayerChart:
    """The losses of each trial in the learning curves: validation solid with dots, training dashed with triangles."""
    return _by_epoch(curves, ["validation loss", "training loss"], "loss per image")


def best_by_trial(progress: pd.DataFrame) -> alt.LayerChart:
    """Each trial's accuracy as a point, and the best of the complete ones so far as a line."""
    x = alt.X("trial:Q", axis=alt.Axis(title="trial", tickMinStep=1, format="d", grid=False))
    states = [state for state in _STATE_COLOURS if state in set(progress["state"])]
    colours = alt.Scale(domain=states, range=[_STATE_COLOURS[state] for state in states])
    base = alt.Chart(progress).encode(x=x)
    line = base.mark_line(interpolate="step-after", strokeWidth=2).encode(y=_accuracy_axis("best"))
    points = base.mark_circle(size=55, opacity=0.8).encode(
        y=_accuracy_axis("value"),
        color=alt.Color("state:N", scale=colours, legend=alt.Legend(title=None, orient="bottom")),
        tooltip=[
            alt.Tooltip("name:N", title="trial"),
            alt.Tooltip("state:N"),
            alt.Tooltip("value:Q", title="validation accuracy", format=".4f"),
            alt.Tooltip("best:Q", title="best so far", format=".4f"),
        ],
    )
    chart: alt.LayerChart = (line + points).properties(height=HEIGHT)
    return chart


def _by_epoch(curves: pd.DataFrame, metrics: Sequence[str], title: str) -> alt.LayerChart:
    rows = curves[curves["metric"].isin(metrics)]
    order = list(dict.fromkeys(curves["name"]))  # as in the ranking: in both charts a trial has the same colour
    legend = alt.Legend(title=None, orient="bottom", columns=5, symbolLimit=50)
    base = alt.Chart(rows).encode(
        x=alt.X("epoch:Q", axis=_EPOCH_AXIS),
        y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
        color=alt.Color("name:N", sort=order, scale=alt.Scale(domain=order), legend=legend),
        tooltip=[
            alt.Tooltip("name:N", title="trial"),
            alt.Tooltip("state:N"),
            alt.Tooltip("epoch:Q", format="d"),
            alt.Tooltip("metric:N"),
            alt.Tooltip("value:Q", format=".4f"),
        ],
    )
    # Told apart in words: a legend of dashes would draw the points' symbols, dashed.
    dashes = alt.Scale(domain=metrics, range=[[1, 0], [4, 3]][: len(metrics)])
    shapes = alt.Scale(domain=metrics, range=["circle", "triangle-up"][: len(metrics)])
    lines = base.mark_line().encode(strokeDash=alt.StrokeDash("metric:N", scale=dashes, legend=None))
    points = base.mark_point(size=30, filled=True, opacity=1).encode(
        shape=alt.Shape("metric:N", scale=shapes, legend=None)  # a trial of one epoch has no line
    )
    chart: alt.LayerChart = (lines + points).properties(height=HEIGHT)
    return chart


def _accuracy_axis(field: str) -> alt.Y:
    return alt.Y(f"{field}:Q", title="validation accuracy", scale=alt.Scale(zero=False))
