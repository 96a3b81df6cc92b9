"""One trial's tables as charts. Pure functions; fonts and axes are Streamlit's theme."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import altair as alt
import pandas as pd

BLUE, ORANGE, GRAY = "#3b82f6", "#f97316", "#94a3b8"
_EPOCH_AXIS = alt.Axis(title="epoch", tickMinStep=1, format="d", grid=False)
_MOST_NAMES = 40
_MOST_TEXTS = 16


def curves(epochs: pd.DataFrame, metrics: Mapping[str, str], title: str, height: int) -> alt.LayerChart:
    """Lines by epoch of the `metrics` (fields of `EpochMetrics` and their names); a legend when there are several."""
    rows = epochs[epochs["metric"].isin(list(metrics))].assign(name=lambda rows: rows["metric"].map(metrics))
    names = list(metrics.values())
    legend = alt.Legend(title=None, orient="top", offset=4, symbolSize=50) if len(names) > 1 else None
    base = alt.Chart(rows).encode(
        x=alt.X("epoch:Q", axis=_EPOCH_AXIS),
        y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(format=",.4~r", tickCount=4)),
        color=alt.Color("name:N", scale=alt.Scale(domain=names, range=[BLUE, ORANGE][: len(names)]), legend=legend),
        tooltip=[
            alt.Tooltip("epoch:Q", format="d"),
            alt.Tooltip("name:N", title="metric"),
            alt.Tooltip("value:Q", format=",.4~r"),
        ],
    )
    chart: alt.LayerChart = (base.mark_line(strokeWidth=2.2) + base.mark_circle(size=42, opacity=1)).properties(
        height=height
    )
    return chart


def gradients(rows: pd.DataFrame, height: int) -> alt.LayerChart:
    """A line by epoch of the norm of each layer's gradient, from the first layer (dark) to the last, on a logarithmic scale."""
    layers = list(dict.fromkeys(rows["layer"]))
    base = alt.Chart(rows).encode(
        x=alt.X("epoch:Q", axis=_EPOCH_AXIS),
        y=alt.Y("norm:Q", title="gradient norm", scale=alt.Scale(type="log"), axis=alt.Axis(format=".0e", tickCount=4)),
        color=alt.Color(
            "layer:N",
            sort=layers,
            scale=alt.Scale(domain=layers, scheme="viridis"),
            legend=alt.Legend(title=None, symbolSize=50, labelLimit=220, symbolLimit=12),
        ),
        tooltip=[
            alt.Tooltip("epoch:Q", format="d"),
            alt.Tooltip("layer:N"),
            alt.Tooltip("norm:Q", title="norm of its gradient", format=".3~g"),
        ],
    )
    chart: alt.LayerChart = (base.mark_line(strokeWidth=1.8) + base.mark_circle(size=30, opacity=1)).properties(
        height=height
    )
    return chart


def fold_curves(epochs: pd.DataFrame, metrics: Mapping[str, str], title: str, height: int) -> alt.LayerChart:
    """`curves` of a cross-validated trial: a colour for each fold; the first metric of several is dashed."""
    rows = epochs[epochs["metric"].isin(list(metrics))].assign(name=lambda rows: rows["metric"].map(metrics))
    names = list(metrics.values())
    dashes = alt.Scale(domain=names, range=[[4, 3], [1, 0]][-len(names) :])
    base = alt.Chart(rows).encode(
        x=alt.X("epoch:Q", axis=_EPOCH_AXIS),
        y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(format=",.4~r", tickCount=4)),
        color=alt.Color("fold:N", legend=alt.Legend(title="fold", orient="top", offset=4, symbolSize=50)),
        detail="name:N",
        tooltip=[
            alt.Tooltip("fold:N"),
            alt.Tooltip("epoch:Q", format="d"),
            alt.Tooltip("name:N", title="metric"),
            alt.Tooltip("value:Q", format=",.4~r"),
        ],
    )
    lines = base.mark_line(strokeWidth=1.8).encode(strokeDash=alt.StrokeDash("name:N", scale=dashes, legend=None))
    chart: alt.LayerChart = (lines + base.mark_circle(size=30, opacity=1)).properties(height=height)
    return chart


def confusion(cells: pd.DataFrame, classes: list[str], height: int, dark: bool = False) -> alt.LayerChart:
    """The confusion matrix: what is right in blue, mistakes in orange, the more of them the stronger."""
    labels = len(classes) <= _MOST_NAMES
    axis: dict[str, Any] = {
        "labels": labels,
        "ticks": False,
        "domain": False,
        "grid": False,
        "labelLimit": 84,
        "labelOverlap": False,
    }
    base = alt.Chart(cells).encode(
        x=alt.X(
            "predicted:N",
            sort=classes,
            scale=alt.Scale(domain=classes),
            axis=alt.Axis(title="predicted class", labelAngle=_angle(classes), **axis),
        ),
        y=alt.Y("true:N", sort=classes, scale=alt.Scale(domain=classes), axis=alt.Axis(title="true class", **axis)),
        tooltip=[
            alt.Tooltip("true:N", title="true class"),
            alt.Tooltip("predicted:N", title="predicted class"),
            alt.Tooltip("count:Q", title="images", format=",d"),
            alt.Tooltip("share:Q", title="share of the true class", format=".1%"),
        ],
    )
    colours = alt.Scale(domain=["right", "wrong", "none"], range=[BLUE, ORANGE, GRAY])
    squares = base.mark_rect(cornerRadius=2 if labels else 0, stroke=None).encode(
        color=alt.Color("kind:N", scale=colours, legend=None),
        opacity=alt.Opacity("strength:Q", scale=None, legend=None),
    )
    layers = [squares]
    if len(classes) <= _MOST_TEXTS:
        ink = alt.condition("datum.strength > 0.6", alt.value("white"), alt.value("#e5e7eb" if dark else "#374151"))
        layers.append(base.mark_text(fontSize=12 if len(classes) <= 12 else 10).encode(text="text:N", color=ink))
    return cast(alt.LayerChart, alt.layer(*layers).properties(height=height))


def _angle(classes: list[str]) -> int:
    return 0 if max(map(len, classes)) * len(classes) < 60 else -90


def calibration(bins: pd.DataFrame, height: int) -> alt.LayerChart:
    """How often the model is right (bars) by how sure it is; on the dashed line it would be as sure as it is right."""
    share = alt.Scale(domain=[0, 1], nice=False)
    bars = (
        alt.Chart(bins)
        .mark_bar(color=BLUE, opacity=0.75, binSpacing=1)
        .encode(
            x=alt.X("begin:Q", bin="binned", scale=share, axis=alt.Axis(title="confidence", format=".0%", grid=False)),
            x2="end:Q",
            y=alt.Y("accuracy:Q", scale=share, title="accuracy", axis=alt.Axis(format=".0%", minExtent=40)),
            tooltip=[
                alt.Tooltip("confidence:Q", title="mean confidence", format=".1%"),
                alt.Tooltip("accuracy:Q", format=".1%"),
                alt.Tooltip("images:Q", format=",d"),
            ],
        )
    )
    gaps = (
        alt.Chart(bins)
        .mark_rule(color=ORANGE, strokeWidth=3)
        .encode(x="confidence:Q", y="accuracy:Q", y2="confidence:Q")
    )
    ideal = alt.Chart(pd.DataFrame({"x": [0, 1]})).mark_line(color=GRAY, strokeDash=[4, 3]).encode(x="x:Q", y="x:Q")
    chart: alt.LayerChart = (bars + ideal + gaps).properties(height=height)
    return chart


def confidence(bins: pd.DataFrame, height: int) -> alt.Chart:
    """How many images there are by how sure the model is."""
    chart: alt.Chart = (
        alt.Chart(bins)
        .mark_bar(color=GRAY, opacity=0.75, binSpacing=1)
        .encode(
            x=alt.X(
                "begin:Q",
                bin="binned",
                scale=alt.Scale(domain=[0, 1], nice=False),
                axis=alt.Axis(title=None, labels=False, grid=False, ticks=False),
            ),
            x2="end:Q",
            y=alt.Y(
                "images:Q",
                title="images",
                scale=alt.Scale(type="sqrt"),
                axis=alt.Axis(tickCount=3, format="~s", minExtent=40),
            ),
            tooltip=[
                alt.Tooltip("begin:Q", title="confidence from", format=".0%"),
                alt.Tooltip("images:Q", format=",d"),
            ],
        )
        .properties(height=height)
    )
    return chart


def probabilities(table: pd.DataFrame, height: int) -> alt.LayerChart:
    """The likeliest classes of one image as bars; the true one is blue."""
    base = alt.Chart(table).encode(
        y=alt.Y(
            "class:N", sort=list(table["class"]), axis=alt.Axis(title=None, ticks=False, domain=False, labelLimit=110)
        )
    )
    colour = alt.condition("datum.true", alt.value(BLUE), alt.value(ORANGE))
    x = alt.X("probability:Q", scale=alt.Scale(domain=[0, 1.25]), axis=None)
    bars = base.mark_bar(cornerRadiusEnd=3).encode(
        x=x, color=colour, tooltip=[alt.Tooltip("class:N"), alt.Tooltip("probability:Q", format=".4f")]
    )
    texts = base.mark_text(align="left", dx=5, color=GRAY).encode(x=x, text=alt.Text("probability:Q", format=".3f"))
    chart: alt.LayerChart = (bars + texts).properties(height=height)
    return chart
