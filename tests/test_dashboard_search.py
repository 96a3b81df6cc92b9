"""The page of a sweep's search, on studies that were written as a sweep writes them.

python -m pytest tests/test_dashboard_search.py -q
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from streamlit.testing.v1 import AppTest

from cluster.config import SweepConfig
from cluster.experiments import Experiments
from cluster.studies import Studies
from cluster.study import SweepStudy
from dashboard import optuna_charts
from dashboard.optuna_charts import PLOTS
from tests.dashboard_studies import config, dashboard_on, run, run_trial, texts

TABS = ["Progress", "Epochs", "Groups", "Importances", *(plot.title for plot in PLOTS), "Distribution"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "experiments"


@pytest.fixture
def page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    return dashboard_on(folder, "search", monkeypatch)


def make(folder: Path, name: str, **more: object) -> tuple[SweepStudy, SweepConfig]:
    wanted = config(name, preset="none", **more)
    study = Studies(Experiments(folder), create=True).create(wanted, ["zero", "one"], (1, 8, 8))
    study.begin_run(wanted, groups=2)
    return study, wanted


@pytest.fixture
def mixed(folder: Path) -> str:
    """A sweep that is over, with trials of all kinds in two groups."""
    study, wanted = make(folder, "mixed", epochs=3)
    for i in range(8):
        run_trial(study, wanted, 0.2, 0.3, 0.5 + 0.05 * i, group=f"group-{i % 2}")
    run_trial(study, wanted, 0.1, end="prune", group="group-0")
    run_trial(study, wanted, 0.1, 0.2, end="prune", group="group-1")
    run_trial(study, wanted, end="fail", error="out of memory", group="group-1")
    study.end_run("FINISHED")
    return "mixed"


def infos(page: AppTest) -> list[str]:
    return [info.value.replace("\\", "") for info in page.info]


def charts(page: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in page.get("vega_lite_chart")]


def pictures(page: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in page.get("plotly_chart")]


@pytest.mark.parametrize("tab", ["Progress", "Slices"])
def test_a_sweep_without_trials_says_so(page: AppTest, folder: Path, tab: str) -> None:
    Studies(Experiments(folder), create=True).create(config("untried", preset="none"), ["zero", "one"])
    run(page, sweep="untried", search=tab)
    assert page.title[0].value == "untried"
    assert infos(page) == ["The sweep has no trials yet."]


@pytest.mark.parametrize("tab", TABS)
def test_each_tab_shows_something_of_a_finished_sweep(page: AppTest, mixed: str, tab: str) -> None:
    run(page, sweep=mixed, search=tab)
    assert not page.info
    assert not page.error
    drawn = len(charts(page)) + len(pictures(page))
    assert drawn == (2 if tab == "Epochs" else 1)


@pytest.mark.parametrize("tab", TABS)
def test_one_trial_is_enough_for_no_traceback(page: AppTest, folder: Path, tab: str) -> None:
    study, wanted = make(folder, "single")
    run_trial(study, wanted, 0.5, 0.6)
    study.end_run("FINISHED")
    run(page, sweep="single", search=tab)
    told = tab in ("Importances", *(plot.title for plot in PLOTS))
    assert len(page.info) == told
    if told:
        assert "at least 2 trials that ran to their end, but there are 1" in infos(page)[0]


@pytest.mark.parametrize("tab", TABS)
def test_where_all_trials_failed_each_tab_is_a_sentence(page: AppTest, folder: Path, tab: str) -> None:
    study, wanted = make(folder, "failed")
    for _ in range(3):
        run_trial(study, wanted, end="fail", error="out of memory")
    study.end_run("FAILED")
    run(page, sweep="failed", search=tab)
    assert len(page.info) == (tab != "Groups")  # each group took its trials
    assert ":red-badge[FAILED]" in texts(page)


@pytest.mark.parametrize("tab", TABS)
def test_trials_of_another_program_without_a_configuration_are_shown(page: AppTest, folder: Path, tab: str) -> None:
    study, _ = make(folder, "foreign")
    loaded = optuna.load_study(study_name="foreign", storage=Experiments(folder).database)
    loaded.optimize(lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_int("y", 0, 3), n_trials=6)
    study.end_run("FINISHED")
    run(page, sweep="foreign", search=tab)
    assert len(page.info) == (tab in ("Epochs", "Groups"))
    if tab == "Slices":
        assert {"x", "y"} == {axis["title"]["text"] for axis in axes(pictures(page)[0], "x")}


def axes(figure: dict[str, Any], which: str) -> list[dict[str, Any]]:
    return [value for key, value in figure["layout"].items() if key.startswith(f"{which}axis")]


def test_only_the_open_tab_is_drawn(page: AppTest, mixed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("Optuna was asked")

    monkeypatch.setattr(optuna_charts, "draw", refuse)
    monkeypatch.setattr(optuna_charts, "compute_importances", refuse)
    run(page, sweep=mixed, search="Groups")
    assert len(charts(page)) == 1


def test_the_best_so_far_is_over_trials_or_over_time(page: AppTest, mixed: str) -> None:
    def title() -> str:
        return str(charts(page)[0]["layer"][0]["encoding"]["x"]["axis"]["title"])

    run(page, sweep=mixed)
    assert title() == "trial"
    page.session_state["over"] = "time"
    run(page)
    assert title() == "minutes since the sweep began"


def test_a_running_sweep_is_followed_and_a_waiting_one_begins(page: AppTest, folder: Path) -> None:
    study, wanted = make(folder, "running")
    run(page, sweep="running")
    assert infos(page)[0] == "The sweep has no trials yet."
    run_trial(study, wanted, 0.4, end="")
    run(page)
    assert "No trial has a value yet" in infos(page)[0]
    run_trial(study, wanted, 0.5, 0.6)
    run(page)
    assert len(charts(page)) == 1


def test_the_importances_say_what_they_leave_out(page: AppTest, mixed: str) -> None:
    run(page, sweep=mixed, search="Importances")
    said = texts(page)
    assert "from 8 complete trials" in said
    assert "fewer than 50 complete trials" in said
    assert "Not searched, so left out: " in said
    assert r"model\.padding" in said
    assert r"training\.seed" in said


def test_the_chosen_hyperparameters_are_drawn_in_full(page: AppTest, mixed: str) -> None:
    run(page, sweep=mixed, search="Parallel coordinates")
    chosen = page.multiselect[0]
    assert len(chosen.value) == 6
    chosen.set_value(["optimizer.learning_rate", "augmentation.shift"]).run()
    assert not page.exception
    names = pictures(page)[0]["layout"]["xaxis"]["ticktext"]
    assert names == ["validation<br>accuracy", "augmentation.<br>shift", "optimizer.<br>learning_rate"]


def test_too_few_chosen_hyperparameters_are_asked_for(page: AppTest, mixed: str) -> None:
    run(page, sweep=mixed, search="Contour")
    page.multiselect[0].set_value(["optimizer.learning_rate"]).run()
    assert infos(page)[0] == "Choose 2 of them."
    run(page, search="Ranks")
    page.multiselect[0].set_value([]).run()
    assert infos(page)[0] == "Choose 2 to 4 of them."
