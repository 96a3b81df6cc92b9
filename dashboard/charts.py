"""Tables as charts. Pure functions; the colours and fonts are Streamlit's theme."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import altair as alt
import pandas as pd

from dashboard.pareto import Cost
from dashboard.tables import trial_name
from trainer.measuring import ACCURACY, Metric

HEIGHT = 380
CLICKED = "clicked"
"""The name of the selection of points in charts that have one."""
STATE_COLOURS = {"COMPLETE": "#1f77b4", "PRUNED": "#ff9f40", "FAIL": "#d62728", "RUNNING": "#7f7f7f"}


@dataclass(frozen=True)
class _Kind:
    colour: str
    shape: str
    size: int


_KINDS = {
    "others": _Kind("#c3cad3", "circle", 20),
    "front": _Kind("#2ca02c", "circle", 60),
    "preset": _Kind("#ff7f0e", "diamond", 200),
    "selected": _Kind("#d62728", "circle", 110),
}
_BOUND_COLOUR = "#9467bd"
_EPOCH_AXIS = alt.Axis(title="epoch", tickMinStep=1, format="d", grid=False)


def metric_by_epoch(curves: pd.DataFrame, goal: Metric = ACCURACY, legend_columns: int = 5) -> alt.LayerChart:
    """The sweep's metric of each trial in the learning curves."""
    what = f"validation {goal.label}"
    return _by_epoch(curves, [what], what, legend_columns)


def losses_by_epoch(curves: pd.DataFrame, legend_columns: int = 5) -> alt.LayerChart:
    """The losses of each trial in the learning curves: validation solid with dots, training dashed with triangles."""
    return _by_epoch(curves, ["validation loss", "training loss"], "loss per image", legend_columns)


def best_by_trial(progress: pd.DataFrame, goal: Metric = ACCURACY) -> alt.LayerChart:
    """Each trial's value as a point, and the best of the complete ones so far as a line."""
    x = alt.X("trial:Q", axis=alt.Axis(title="trial", tickMinStep=1, format="d", grid=False))
    states = [state for state in STATE_COLOURS if state in set(progress["state"])]
    colours = alt.Scale(domain=states, range=[STATE_COLOURS[state] for state in states])
    base = alt.Chart(progress).encode(x=x)
    line = base.mark_line(interpolate="step-after", strokeWidth=2).encode(y=value_axis("best", goal))
    points = base.mark_circle(size=55, opacity=0.8).encode(
        y=value_axis("value", goal),
        color=alt.Color("state:N", scale=colours, legend=alt.Legend(title=None, orient="bottom")),
        tooltip=[
            alt.Tooltip("name:N", title="trial"),
            alt.Tooltip("state:N"),
            value_tooltip(goal),
            alt.Tooltip("best:Q", title="best so far", format=".4f"),
        ],
    )
    chart: alt.LayerChart = (line + points).properties(height=HEIGHT)
    return chart


def value_against_cost(
    points: pd.DataFrame,
    cost: Cost,
    selected: Collection[int] = (),
    goal: Metric = ACCURACY,
    limits: Mapping[str, float] | None = None,
) -> alt.LayerChart:
    """The trials of `pareto.points`, those of several folds with their intervals; a line joins those in the front, and the preset's and
    the selected ones stand out.

    Where `limits` has a bound of the "cost" or of the "value", a dashed line shows it.
    """
    shown = points.assign(kind=_kinds(points, selected), name=points["trial"].map(trial_name))
    shown["size"] = shown["kind"].map({kind: look.size for kind, look in _KINDS.items()})
    kinds = [kind for kind in _KINDS if (shown["kind"] == kind).any()]
    shown = shown.sort_values("kind", key=lambda kind: kind.map(list(_KINDS).index))  # what matters is drawn last
    limits = limits or {}
    spread = max(points["cost"].max(), limits.get("cost", 0)) > 10 * points["cost"].min()
    linear = alt.Scale(type="linear", zero=False, nice=True, padding=15)
    scale = alt.Scale(type="log", nice=False, padding=15) if spread else linear  # which has no zero to speak of
    axis = alt.Axis(title=cost.axis, format=cost.format, tickCount=5, labelOverlap=True)
    x, y = alt.X("cost:Q", scale=scale, axis=axis), value_axis("value", goal)
    base = alt.Chart(shown).encode(x=x, y=y)
    line = base.transform_filter("datum.front").mark_line(interpolate="step-after", color=_KINDS["front"].colour)

    def by_kind(attribute: str) -> alt.Scale:
        return alt.Scale(domain=kinds, range=[getattr(_KINDS[kind], attribute) for kind in kinds])

    dots = base.mark_point(filled=True, opacity=1).encode(
        color=alt.Color("kind:N", scale=by_kind("colour"), legend=alt.Legend(title=None, orient="bottom")),
        shape=alt.Shape("kind:N", scale=by_kind("shape")),
        size=alt.Size("size:Q", scale=None),  # a scale of one kind would give the legend a path without numbers
        tooltip=[
            alt.Tooltip("name:N", title="trial"),
            value_tooltip(goal),
            alt.Tooltip("cost:Q", title=cost.axis, format=cost.format),
            alt.Tooltip("preset:N"),
        ],
    )
    clickable = dots.add_params(alt.selection_point(CLICKED, fields=["trial"]))
    bounds = [_bound(field, bound, x if field == "cost" else y) for field, bound in limits.items()]
    intervals = [_intervals(base, goal)] if "low" in shown else []
    chart: Any = alt.layer(*intervals, line, clickable, *bounds)  # of a type that would allow for facets
    return cast(alt.LayerChart, chart.properties(height=HEIGHT))


def _bound(field: str, bound: float, channel: alt.X | alt.Y) -> alt.Chart:
    """A dashed line at the bound of a constraint, across the axis of the channel."""
    line = alt.Chart(pd.DataFrame({field: [bound]})).mark_rule(strokeDash=[6, 4], color=_BOUND_COLOUR, strokeWidth=1.5)
    chart: alt.Chart = line.encode(channel, alt.Tooltip(f"{field}:Q", title="constraint", format=",.4~g"))
    return chart


def _intervals(base: alt.Chart, goal: Metric) -> alt.Chart:
    """Each point's 95 % interval over the folds, where it has one."""
    bars: alt.Chart = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(color=_KINDS["others"].colour, strokeWidth=1.5)
        .encode(y=value_axis("low", goal), y2="high:Q")
    )
    return bars


def _kinds(points: pd.DataFrame, selected: Collection[int]) -> list[str]:
    rows = zip(points["trial"], points["preset"].notna(), points["front"], strict=True)
    return [
        "selected" if trial in selected else "preset" if preset else "front" if front else "others"
        for trial, preset, front in rows
    ]


def _by_epoch(curves: pd.DataFrame, metrics: Sequence[str], title: str, legend_columns: int) -> alt.LayerChart:
    rows = curves[curves["metric"].isin(metrics)]
    order = list(dict.fromkeys(curves["name"]))  # as in the ranking: in both charts a trial has the same colour
    legend = alt.Legend(title=None, orient="bottom", columns=legend_columns, symbolLimit=50)
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


def value_axis(field: str, goal: Metric) -> alt.Y:
    """The vertical axis for values of the metric."""
    return alt.Y(f"{field}:Q", title=f"validation {goal.label}", scale=alt.Scale(zero=False))


def value_tooltip(goal: Metric) -> alt.Tooltip:
    """A trial's value, where the pointer is."""
    return alt.Tooltip("value:Q", title=f"validation {goal.label}", format=".4f")
