"""The pages on a cross-validated sweep. `python -m pytest tests/test_dashboard_folds.py -q`."""

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
from cluster.record import SweepRecord
from cluster.studies import Studies
from cluster.study import SweepStudy
from dashboard import comparison, pareto, search_tables, sweep_tables, tables, trial_tables
from tests.dashboard_studies import config, dashboard_on, run, run_trial, texts
from trainer.metrics import EpochMetrics


def run_folds(study: SweepStudy, *folds: list[float], end: str = "complete") -> None:
    trial = study.ask()
    trial.begin(parameters=1000 * (trial.number + 1), group="group", group_began=10.0 * trial.number)
    number = 0
    for fold, accuracies in enumerate(folds, 1):
        for place, accuracy in enumerate(accuracies, 1):
            number += 1
            metrics = EpochMetrics(number, 0.5, 0.25, accuracy, 0.001, 1000.0, 0.1, 0.02, fold=fold)
            trial.report(metrics, 0.1 * number, ends_fold=place == len(accuracies) and bool(end or fold < len(folds)))
    if end:
        getattr(trial, end)()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three folds, of whose trials 1 is the best, 0 the preset's, 2 pruned after one fold and 3 in its second; one without."""
    folder = tmp_path_factory.mktemp("experiments")
    wanted = config("folded", folds=3)
    study = Studies(Experiments(folder), create=True).create(wanted, ["zero", "one"], (1, 8, 8))
    study.begin_run(wanted, groups=1)
    run_folds(study, [0.6, 0.7], [0.8, 0.7], [0.6, 0.6])
    run_folds(study, [0.8, 0.9], [0.9, 0.8], [0.8, 0.6])
    run_folds(study, [0.1, 0.2], end="prune")
    run_folds(study, [0.5, 0.6], [0.7], end="")
    other = config("plain")
    study = Studies(Experiments(folder)).create(other, ["zero", "one"], (1, 8, 8))
    study.begin_run(other, groups=1)
    run_trial(study, other, 0.7, 0.8)
    study.end_run("FINISHED")
    return folder


@pytest.fixture
def page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], AppTest]]:
    yield lambda path: dashboard_on(folder, path, monkeypatch)
    st.cache_resource.clear()


@pytest.fixture
def sweep(folder: Path) -> SweepRecord:
    return Studies(Experiments(folder)).read("folded")


def columns(page: AppTest) -> dict[str, list[Any]]:
    with pyarrow.ipc.open_stream(page.dataframe[0].proto.arrow_data.data) as stream:
        found: dict[str, list[Any]] = stream.read_all().to_pydict()
    return found


def charts_of(page: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in page.get("vega_lite_chart")]


def test_the_leaderboard_has_the_mean_of_the_folds_and_its_margin(page: Callable[[str], AppTest]) -> None:
    found = run(page(""), sweep="folded")
    table = columns(found)
    assert table["trial"] == [1, 0, 2, 3]
    assert table["value"] == pytest.approx([13 / 15, 0.7, 0.2, None], nan_ok=True)
    assert table["margin"][:2] == pytest.approx([0.14343, 0.24841], abs=1e-5)
    assert table["margin"][2] is None
    assert table["curve"][0] == pytest.approx([0.8333, 0.7667], abs=1e-4)
    assert "in each of 3 folds" in texts(found)
    assert next(m.value for m in found.metric) == "0.8667 ± 0.1434"


def test_the_chart_of_value_against_cost_has_bars_over_the_folds(page: Callable[[str], AppTest]) -> None:
    marks = [layer["mark"]["type"] for layer in charts_of(run(page(""), sweep="folded"))[0]["layer"]]
    assert marks == ["rule", "line", "point"]
    marks = [layer["mark"]["type"] for layer in charts_of(run(page(""), sweep="plain"))[0]["layer"]]
    assert marks == ["line", "point"]


def test_a_sweep_without_folds_has_no_column_for_them(page: Callable[[str], AppTest]) -> None:
    found = run(page(""), sweep="plain")
    assert "margin" not in columns(found)
    assert "fold" not in texts(found)


def test_points_have_their_intervals(sweep: SweepRecord) -> None:
    table = tables.ranking(sweep.trials)
    points = pareto.points(table, "parameters", ()).set_index("trial")
    assert points.loc[1, ["low", "high"]].tolist() == pytest.approx([0.7232, 1.0101], abs=1e-4)
    assert set(points.columns) == {"value", "cost", "preset", "front", "low", "high"}


def test_a_trials_curves_are_told_apart_by_fold(page: Callable[[str], AppTest], sweep: SweepRecord) -> None:
    found = run(page("trial"), sweep="folded", trial="1")
    loss = charts_of(found)[0]
    assert [layer["encoding"]["color"]["field"] for layer in loss["layer"]] == ["fold", "fold"]
    dashes = loss["layer"][0]["encoding"]["strokeDash"]["scale"]
    assert dict(zip(dashes["domain"], dashes["range"], strict=True)) == {"training": [4, 3], "validation": [1, 0]}
    assert "A colour for each fold" in texts(found)
    rows = trial_tables.epochs(sweep.trial(1))
    accuracies = rows[rows["metric"] == "val_accuracy"]
    assert accuracies[["fold", "epoch", "value"]].values.tolist() == [
        [1, 1, 0.8],
        [1, 2, 0.9],
        [2, 1, 0.9],
        [2, 2, 0.8],
        [3, 1, 0.8],
        [3, 2, 0.6],
    ]
    assert "fold" not in set(rows["metric"])


def test_a_trials_page_says_how_many_folds_it_has_and_why_it_was_pruned(
    page: Callable[[str], AppTest], sweep: SweepRecord
) -> None:
    value, *_, epochs = trial_tables.headline(sweep, sweep.trial(1))[:4]
    assert value.value == "0.8667"
    assert "3 of 3 folds (0.9000, 0.9000, 0.8000); 95 % interval 0.7232 to 1.0101" in value.help
    assert epochs.value == "6 of 6"
    assert "after fold 1 of 3: its mean accuracy" in texts(run(page("trial"), sweep="folded", trial="2"))
    running = trial_tables.headline(sweep, sweep.trial(3))
    assert (running[0].value, running[3].value) == ("0.6000", "3 of 6")


def test_charts_of_several_trials_show_the_mean_of_the_folds(sweep: SweepRecord) -> None:
    curves = tables.learning_curves([sweep.trial(3)])
    accuracies = curves[curves["metric"] == "validation accuracy"]
    assert accuracies["epoch"].tolist() == [1, 2]
    assert accuracies["value"].tolist() == pytest.approx([0.6, 0.6])
    assert search_tables.metric_curves([sweep.trial(3)])["value"].tolist() == pytest.approx([0.6, 0.6])


def test_trials_side_by_side_have_their_margins(sweep: SweepRecord) -> None:
    table = comparison.outcome(sweep, [sweep.trial(1), sweep.trial(2)]).set_index("outcome")
    assert table.loc["validation accuracy"].tolist() == ["0.8667 ± 0.1434", "0.2000"]


def test_a_group_is_at_an_epoch_of_all_folds(sweep: SweepRecord) -> None:
    (row,) = sweep_tables.groups(sweep).to_dict("records")
    assert (row["trial"], row["epoch"], row["progress"]) == (3, "3 of 6", 0.5)


@pytest.mark.parametrize("path", ["search", "compare", "export", "sweeps", "cluster"])
def test_the_other_pages_can_be_opened(page: Callable[[str], AppTest], path: str) -> None:
    run(page(path), sweep="folded")
