"""What the pages show of a sweep's budget: `python -m pytest tests/test_dashboard_budget.py -q`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from cluster.budget import Amounts, Budget, Ending
from cluster.experiments import Experiments
from cluster.studies import Studies
from dashboard import budget_bars
from tests.dashboard_studies import config, dashboard_on, run, run_trial, texts

BUDGET = {"trials": None, "gpu_hours": 4, "max_cost": 20, "price_per_node_hour": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The sweep 'live', which runs and has spent some of its budget, and 'over', which has ended for it."""
    studies = Studies(Experiments(tmp_path / "experiments"), create=True)
    for name in ("over", "live"):
        wanted = config(name, preset="none", **BUDGET)
        study = studies.create(wanted, ["zero", "one"])
        study.begin_run(wanted, groups=2)
        run_trial(study, wanted, 0.7, 0.8)
        study.note_spent(Amounts(0.0, 1.0, 2.5 if name == "live" else 12.0))
        if name == "over":
            study.note_ending(Ending("max_cost", "The sweep has ended: 24.00 of 20 for nodes spent."))
            study.end_run("FINISHED")
    studies.close()
    yield tmp_path / "experiments"
    st.cache_resource.clear()


def bars(page: AppTest) -> dict[str, int]:
    """What stands above each bar, and how full it is in percent."""
    return {bar.proto.text.replace("\\", ""): bar.proto.value for bar in page.get("progress")}


def test_the_page_of_sweeps_shows_what_the_current_one_has_spent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = run(dashboard_on(folder, "sweeps", monkeypatch), sweep="live")
    assert bars(page) == {"GPUs: 1.00 of 4 GPU-hours": 25, "Money: 5.00 of 20 for nodes": 25}
    page = run(dashboard_on(folder, "sweeps", monkeypatch), sweep="over")
    assert bars(page) == {"GPUs: 1.00 of 4 GPU-hours": 25, "Money: 24.00 of 20 for nodes": 100}
    assert "The sweep has ended: 24.00 of 20" in texts(page).replace("\\", "")


def test_the_ranking_of_a_live_sweep_shows_it_and_that_of_one_that_is_over_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = run(dashboard_on(folder, "ranking", monkeypatch), sweep="live")
    assert set(bars(page)) == {"GPUs: 1.00 of 4 GPU-hours", "Money: 5.00 of 20 for nodes"}
    assert "trials for 4 GPU-hours or a cost of 20 · up to 2 epochs" in texts(page)
    page = run(dashboard_on(folder, "ranking", monkeypatch), sweep="over")
    assert bars(page) == {}
    assert "The sweep has ended: 24.00 of 20" in texts(page).replace("\\", "")


def test_limits_are_told_in_words() -> None:
    assert budget_bars.allowed(Budget(time_budget=7200, gpu_hours=1.5)) == "2 h 00 min or 1.5 GPU-hours"
