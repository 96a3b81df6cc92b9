"""What a sweep may spend beside trials and what it has spent of it: a bar for each limit."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from cluster.budget import Amounts, Budget, Ending, Limit
from dashboard import tables
from dashboard.parts import plain

_LABELS = {"time_budget": "Wall time", "gpu_hours": "GPUs", "max_cost": "Money"}


def show(limits: Sequence[Limit], ending: Ending | None) -> None:
    """The bars, and why the sweep ended if it was before it had all its trials; nothing where there is nothing to say."""
    for limit in limits:
        st.progress(min(1.0, limit.spent / limit.allowed), text=plain(f"{_LABELS[limit.setting]}: {limit}"))
    if ending is not None:
        st.caption(plain(ending.reason))


def allowed(budget: Budget) -> str:
    """The limits in words, such as '2 h 00 min or 4 GPU-hours'; the one that is reached first counts."""
    words = {
        "time_budget": tables.duration,
        "gpu_hours": "{:g} GPU-hours".format,
        "max_cost": "a cost of {:g}".format,
    }
    return " or ".join(words[limit.setting](limit.allowed) for limit in budget.limits(Amounts()))
