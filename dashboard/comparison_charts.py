"""Comparisons as charts. Pure functions; fonts and the other colours are Streamlit's theme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import altair as alt
import pandas as pd

from dashboard.charts import HEIGHT
from dashboard.search_charts import axis_over
from dashboard.search_tables import Over

BETTER, WORSE = "#1f77b4", "#ff7f0e"
_MOST_NAMES = 40
_MOST_TEXTS = 16


def sweeps_best_so_far(
    progress: pd.DataFrame, over: Over, names: Sequence[str], value: str = "validation accuracy"
) -> alt.LayerChart:
    """A line per sweep with the best of its complete trials so far, over its trials or its minutes."""
    base = alt.Chart(progress).encode(
        x=axis_over(over),
        y=alt.Y("best:Q", title=f"best {value} so far", scale=alt.Scale(zero=False)),
        color=alt.Color(
            "sweep:N",
            scale=alt.Scale(domain=list(names)),
            legend=alt.Legend(title=None, orient="bottom", columns=2, labelLimit=400),
        ),
        tooltip=[
            alt.Tooltip("sweep:N"),
            alt.Tooltip("name:N", title="trial"),
            alt.Tooltip("best:Q", title="best so far", format=".4f"),
            *([alt.Tooltip("x:Q", title="minutes", format=".1f")] if over == "time" else []),
        ],
    )
    lines = base.mark_line(interpolate="step-after", strokeWidth=2)
    return cast(alt.LayerChart, (lines + base.mark_circle(size=45, opacity=1)).properties(height=HEIGHT))


def confusion_change(cells: pd.DataFrame, classes: Sequence[str], first: str, second: str) -> alt.LayerChart:
    """By how many images each cell of the confusion matrix changed: blue is better, orange worse, the more the stronger."""
    names = list(classes)
    axis: dict[str, Any] = {"labels": len(names) <= _MOST_NAMES, "ticks": False, "domain": False, "grid": False}
    axis |= {"labelLimit": 90, "labelOverlap": False}
    upright = max(map(len, names)) * len(names) < 60
    base = alt.Chart(cells).encode(
        x=alt.X(
            "predicted:N",
            sort=names,
            scale=alt.Scale(domain=names),
            axis=alt.Axis(title="predicted class", labelAngle=0 if upright else -90, **axis),
        ),
        y=alt.Y("true:N", sort=names, scale=alt.Scale(domain=names), axis=alt.Axis(title="true class", **axis)),
        tooltip=[
            alt.Tooltip("true:N", title="true class"),
            alt.Tooltip("predicted:N", title="predicted class"),
            alt.Tooltip("first:Q", title=f"images, {first}", format=",d"),
            alt.Tooltip("second:Q", title=f"images, {second}", format=",d"),
            alt.Tooltip("change:Q", format="+,d"),
        ],
    )
    squares = base.mark_rect(stroke=None).encode(
        color=alt.condition("datum.better", alt.value(BETTER), alt.value(WORSE)),
        opacity=alt.Opacity("strength:Q", scale=None, legend=None),
    )
    layers = [squares]
    if len(names) <= _MOST_TEXTS:
        ink = alt.condition("datum.strength > 0.5", alt.value("white"), alt.value("#808895"))
        changed = base.transform_filter("datum.change != 0")
        layers.append(changed.mark_text(fontSize=11).encode(text=alt.Text("change:Q", format="+,d"), color=ink))
    return cast(alt.LayerChart, alt.layer(*layers).properties(height=HEIGHT + 40))
