"""By how much one value of a sweep's metric is better than another, as a number and in words. Pure functions: no Streamlit."""

from __future__ import annotations

from typing import Any, TypeVar

import pandas as pd

from trainer.measuring import ACCURACY, Metric

Values = TypeVar("Values", float, "pd.Series[Any]")


def gain(goal: Metric, value: Values, baseline: float) -> Values:
    """How much better a value, or each of them, is than the baseline's: below 0 where it is worse; of shares in percentage points."""
    better = value - baseline if goal.higher_is_better else baseline - value
    return 100 * better if goal.is_share else better


def form(goal: Metric) -> str:
    """How a gain is written, as a format specification."""
    return "+.2f" if goal.is_share else "+.4f"


def meaning(goal: Metric) -> str:
    """What a gain over the preset is, for people."""
    if goal.is_share:
        return f"{goal.title} minus that of the preset's trial, percentage points"
    return f"By how much the {goal.label} is better than that of the preset's trial"


def from_to(goal: Metric, baseline: float, best: float) -> str:
    """Both values, such as 'loss 0.0811 → 0.0432'; of an accuracy the shares of wrongly classified images."""
    if goal == ACCURACY:
        return f"error {100 * (1 - baseline):.2f} % → {100 * (1 - best):.2f} %"
    return f"{goal.label} {baseline:.4f} → {best:.4f}"
