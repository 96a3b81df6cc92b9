"""A sweep's metric against what it costs: which trials no other one beats in both, and which of them a chart draws. Pure functions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cluster.pareto import on_front
from cluster.record import SweepRecord
from trainer.measuring import ACCURACY, Metric

AT_MOST_POINTS = 1000
FAR = 3.0
"""So many times the distance of the quartiles worse than the worse one is far off: Tukey's outer fence."""


@dataclass(frozen=True)
class Cost:
    """Something that a good trial has little of. `format` is that of d3, for a chart's axis and tooltips."""

    label: str
    axis: str
    help: str
    format: str


COSTS = {
    "parameters": Cost("parameters", "trainable parameters", "Trainable parameters of the network", ",.3~s"),
    "train_seconds": Cost("train time", "train time, seconds", "Time of training and validation, seconds", ",.4~g"),
    "latency": Cost("latency", "latency per image, milliseconds", "Milliseconds to classify an image", ",.3~g"),
    "size_mb": Cost("size", "size of the weights, MB", "Size of the weights as they are stored", ",.3~g"),
    "latency_ms": Cost("latency", "latency, milliseconds", "Milliseconds of a forward pass", ",.3~g"),
}
"""What the metric can be weighed against, by name."""
_ALWAYS = ("parameters", "train_seconds")


def offered(table: pd.DataFrame) -> list[str]:
    """What the metric of a ranking's trials can be weighed against: the latter columns are there when any trial has them."""
    return [name for name in COSTS if name in _ALWAYS or name in table]


def front(table: pd.DataFrame, cost: str, goal: Metric = ACCURACY) -> frozenset[int]:
    """The numbers of the complete trials that no other complete trial of the ranking beats in value and cost at once.

    Of equal ones all are in it. Trials without the cost, and those beyond a constraint, are left out.
    """
    trials = _complete(table, cost, goal)
    trials = trials[~trials["infeasible"]]
    found = on_front(np.column_stack([-trials["merit"].to_numpy(), trials["cost"].to_numpy()]))
    return frozenset(trials["trial"].to_numpy()[found].tolist())


def points(
    table: pd.DataFrame,
    cost: str,
    front: Collection[int],
    keep: Collection[int] = (),
    at_most: int = AT_MOST_POINTS,
    goal: Metric = ACCURACY,
) -> pd.DataFrame:
    """A row per complete trial that has the cost: trial, value, cost, preset, front. By cost, of equal cost the best last. Where trials
    were cross-validated also low, high: the 95 % interval of the folds' mean.

    Those in the front, the preset's and `keep` are there. Of the others those that are far worse than all others are left out,
    which would press the rest together, and beyond `at_most` rows more of them, evenly along the ranking.
    """
    trials = _complete(table, cost, goal)
    trials["front"] = trials["trial"].isin(list(front))
    stays = trials["front"] | trials["preset"].notna() | trials["trial"].isin(list(keep))
    low, high = trials["merit"].quantile([0.25, 0.75])
    others = trials[~stays & (trials["merit"] >= low - FAR * (high - low))]
    room = max(0, at_most - int(stays.sum()))
    if len(others) > room:
        others = others.iloc[np.linspace(0, len(others) - 1, room).astype(int)]
    chosen = pd.concat([trials[stays], others]).sort_values(["cost", "merit"], ignore_index=True)
    if "margin" in chosen:
        chosen = chosen.assign(low=chosen["value"] - chosen["margin"], high=chosen["value"] + chosen["margin"])
    return chosen.drop(columns=["merit", "infeasible", "margin"], errors="ignore")


def bounds(sweep: SweepRecord, cost: str) -> dict[str, float]:
    """The bounds of the sweep's constraints on the "cost" and on the "value", as far as there are any."""
    shown = {cost: "cost", sweep.config.metric: "value"}
    return {shown[limit.name]: limit.bound for limit in sweep.config.objectives.limits if limit.name in shown}


def complete_count(table: pd.DataFrame, cost: str) -> int:
    """How many trials of the ranking ran to their end and have the cost."""
    return len(_complete(table, cost, ACCURACY))


def _complete(table: pd.DataFrame, cost: str, goal: Metric) -> pd.DataFrame:
    """The complete trials that have the cost, in the ranking's order: trial, value, cost, preset, infeasible, merit, and margin if any
    has one.
    """
    found = pd.DataFrame({"trial": table["trial"], "value": table["value"], "cost": table[cost]})
    found["preset"] = table["preset"] if "preset" in table else pd.Series(dtype="string")
    found["infeasible"] = table["infeasible"].notna() if "infeasible" in table else False
    if "margin" in table:
        found["margin"] = table["margin"].astype("float64")
    usable = (table["state"] == "COMPLETE") & found["value"].notna() & (found["cost"] > 0)
    found = found[
        usable.fillna(False).to_numpy(dtype=bool) & np.isfinite(found["cost"].to_numpy(float, na_value=np.nan))
    ]
    typed: pd.DataFrame = found.astype({"trial": "int64", "value": "float64", "cost": "float64"})
    return typed.assign(merit=typed["value"] if goal.higher_is_better else -typed["value"])
