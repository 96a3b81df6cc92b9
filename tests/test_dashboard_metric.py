"""The pages on a sweep that looks for a low loss. `python -m pytest tests/test_dashboard_metric.py -q`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.ipc
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from cluster.experiments import Experiments
from cluster.record import SweepRecord, TrialRecord, rank
from cluster.studies import Studies
from cluster.study import SweepStudy
from dashboard import comparison, filters, gains, pareto, search_tables, tables, trial_tables
from dashboard.optuna_charts import PLOTS
from tests.dashboard_studies import config, dashboard_on, run, run_trial, texts
from trainer.measuring import ACCURACY, METRICS
from trainer.metrics import EpochMetrics

LOSS, MACRO_F1 = METRICS["loss"], METRICS["macro_f1"]


def run_losses(study: SweepStudy, *losses: float, end: str = "complete") -> None:
    """A trial with these losses, whose accuracy is the higher the worse it is."""
    trial = study.ask()
    trial.begin(parameters=1000 * (trial.number + 1), group="group", group_began=10.0 * trial.number)
    for number, loss in enumerate(losses, 1):
        trial.report(EpochMetrics(number, 0.5, loss, loss / 2, 0.001, 1000.0, 0.1, 0.02, 0.4, 0.3), 0.1 * number)
    if end:
        getattr(trial, end)()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiments folder with a sweep by the loss: the best are trials 1, 0 (the preset) and 2, and 3 was pruned. One by accuracy."""
    folder = tmp_path_factory.mktemp("experiments")
    wanted = config("low", metric="loss")
    study = Studies(Experiments(folder), create=True).create(wanted, ["zero", "one"], (1, 8, 8))
    study.begin_run(wanted, groups=1)
    run_losses(study, 0.9, 0.4)
    run_losses(study, 0.3, 0.1)
    run_losses(study, 0.8, 0.7)
    run_losses(study, 0.95, end="prune")
    study.end_run("FINISHED")
    other = config("usual")
    study = Studies(Experiments(folder)).create(other, ["zero", "one"], (1, 8, 8))
    study.begin_run(other, groups=1)
    run_trial(study, other, 0.7, 0.8)
    study.end_run("FINISHED")
    return folder


@pytest.fixture
def page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], AppTest]]:
    yield lambda path: dashboard_on(folder, path, monkeypatch)
    st.cache_resource.clear()


def columns(page: AppTest) -> dict[str, list[Any]]:
    with pyarrow.ipc.open_stream(page.dataframe[0].proto.arrow_data.data) as stream:
        found: dict[str, list[Any]] = stream.read_all().to_pydict()
    return found


def drawn(page: AppTest) -> str:
    """The specifications of all charts."""
    return "\n".join(c.proto.spec for kind in ("vega_lite_chart", "plotly_chart") for c in page.get(kind))


def test_the_ranking_begins_with_the_lowest_loss(page: Callable[[str], AppTest]) -> None:
    found = run(page(""), sweep="low")
    table = columns(found)
    assert table["trial"] == [1, 0, 2, 3]
    assert table["value"] == [0.1, 0.4, 0.7, 0.95]
    assert [round(gain, 9) for gain in table["gain"]] == [0.3, 0.0, -0.3, -0.55]
    assert {m.label: m.value for m in found.metric}["Best loss"] == "0.1000"
    assert {m.label: m.value for m in found.metric}["Gain over the preset"] == "+0.3000"
    assert [m.delta for m in found.metric][:2] == ["trial 1", "loss 0.4000 → 0.1000"]
    assert "Loss against cost" in texts(found)
    assert "best by loss" in texts(found)
    assert "validation loss" in drawn(found)
    assert "accuracy" not in (texts(found) + drawn(found)).lower()
    configured = json.loads(found.dataframe[0].proto.columns)
    assert configured["value"]["label"] == "loss"
    assert "y_max" not in {k for k, v in configured["curve"]["type_config"].items() if v is not None}


@pytest.mark.parametrize("tab", ["Progress", "Epochs", "Groups", *(plot.title for plot in PLOTS), "Distribution"])
def test_the_page_of_the_search_draws_the_loss(page: Callable[[str], AppTest], tab: str) -> None:
    found = run(page("search"), sweep="low", search=tab)
    assert "accuracy" not in (texts(found) + drawn(found)).lower()
    assert "loss" in (texts(found) + drawn(found)).lower()


def test_the_page_of_a_trial_says_its_loss(page: Callable[[str], AppTest]) -> None:
    found = run(page("trial"), sweep="low", trial="3")
    assert {m.label: m.value for m in found.metric}["Loss"] == "0.9500"
    assert {m.label: m.value for m in found.metric}["Gain"] == "-0.5500"
    assert any("its loss was not among the best" in info.value for info in found.info)


def test_sweeps_by_different_metrics_are_told_apart(page: Callable[[str], AppTest]) -> None:
    found = run(page("sweeps"), sweep="low")
    assert columns(found)["metric"] == ["accuracy", "loss"]
    assert columns(found)["best"] == [0.8, 0.1]
    found = run(page("compare"), sweep="low", compare="Sweeps", sweeps=["low", "usual"])  # type: ignore[arg-type]
    assert columns(found)["metric"] == ["loss", "accuracy"]
    assert "best value so far" in drawn(found)
    found = run(page("compare"), sweep="low")
    assert columns(found)["outcome"][1:3] == ["validation loss", "gain over the preset"]
    assert columns(found)["trial 1"][1:3] == ["0.1000", "+0.3000"]


# ---- the tables ----


def trial(number: int, value: float, parameters: int = 1000, **history: list[float]) -> TrialRecord:
    return TrialRecord(number, "COMPLETE", value, {}, history, parameters=parameters)


def sweep_by(metric: str, *trials: TrialRecord) -> SweepRecord:
    wanted = config("s", metric=metric)
    return SweepRecord("s", "FINISHED", wanted, ("a", "b"), None, (), rank(trials, wanted.goal))


def test_the_front_of_a_loss_has_the_lowest_ones() -> None:
    trials = [trial(0, 0.5, 1000), trial(1, 0.1, 2000), trial(2, 0.6, 1500), trial(3, 0.2, 3000)]
    table = tables.ranking(rank(trials, LOSS), LOSS)
    assert pareto.front(table, "parameters", LOSS) == {0, 1}
    points = pareto.points(table, "parameters", {0, 1}, goal=LOSS)
    assert list(points.columns) == ["trial", "value", "cost", "preset", "front"]
    assert points["value"].tolist() == [0.5, 0.6, 0.1, 0.2]


def test_a_loss_that_is_far_too_high_is_not_drawn() -> None:
    trials = [*(trial(i, 0.1 + i / 1000, 1000 + i) for i in range(20)), trial(20, 9.0, 999), trial(21, 0.001, 5000)]
    table = tables.ranking(rank(trials, LOSS), LOSS)
    shown = set(pareto.points(table, "parameters", (), goal=LOSS)["trial"])
    assert 20 not in shown
    assert 21 in shown


def test_the_best_so_far_falls() -> None:
    trials = [trial(0, 0.5), trial(1, 0.6), trial(2, 0.3)]
    assert tables.best_so_far(trials, LOSS)["best"].tolist() == [0.5, 0.5, 0.3]
    progress = search_tables.progress(sweep_by("loss", *trials), "trials")
    assert progress["gain"].tolist() == [True, False, True]
    assert progress["best"].tolist() == [0.5, 0.5, 0.3]


def test_the_curves_are_those_of_the_metric() -> None:
    one = trial(0, 0.7, epoch=[1, 2], val_accuracy=[0.1, 0.2], macro_f1=[0.6, 0.7])
    assert search_tables.metric_curves([one], MACRO_F1)["value"].tolist() == [0.6, 0.7]
    assert tables.ranking([one], MACRO_F1)["curve"].tolist()[0] == pytest.approx([0.6, 0.7])
    old = trial(0, 0.7, epoch=[1, 2], val_accuracy=[0.1, 0.2])  # recorded before there was a macro-F1
    assert search_tables.metric_curves([old], MACRO_F1).empty


def test_a_loss_is_filtered_by_its_own_range() -> None:
    sweep = sweep_by("loss", trial(0, 3.2), trial(1, 0.04), trial(2, 0.4))
    labels = filters.labels(sweep.trials, sweep.config.goal)
    wanted = filters.make(sweep, "value", labels["value"])
    assert wanted.label == "loss"
    low, high = wanted.everything
    assert low <= 0.04 < 3.2 <= high


def test_gains_are_above_0_where_the_value_is_better() -> None:
    assert gains.gain(ACCURACY, 0.95, 0.8) == pytest.approx(15)
    assert gains.gain(LOSS, 0.1, 0.4) == pytest.approx(0.3)
    assert f"{gains.gain(LOSS, 0.4, 0.4):{gains.form(LOSS)}}" == "+0.0000"
    assert gains.from_to(ACCURACY, 0.8, 0.95) == "error 20.00 % → 5.00 %"
    assert gains.from_to(MACRO_F1, 0.8, 0.95) == "macro-F1 0.8000 → 0.9500"


def test_a_trial_that_runs_shows_its_best_epoch_by_the_metric() -> None:
    running = TrialRecord(0, "RUNNING", None, {}, {"epoch": [1, 2], "val_loss": [0.2, 0.3], "val_accuracy": [0.8, 0.9]})
    fact = trial_tables.headline(sweep_by("loss", running), running)[0]
    assert (fact.label, fact.value) == ("Loss", "0.2000")


def test_what_sweeps_measure_is_named_when_it_is_the_same() -> None:
    low, usual = sweep_by("loss"), sweep_by("accuracy")
    assert comparison.measured([low, low]) == "validation loss"
    assert comparison.measured([low, usual]) == "value"
