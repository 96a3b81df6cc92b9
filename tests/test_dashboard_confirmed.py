"""What the pages show of confirmed configurations. `python -m pytest tests/test_dashboard_confirmed.py -q`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.ipc
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from cluster.confirmed import FinalScore, compare
from cluster.experiments import Experiments
from cluster.studies import Studies
from dashboard import confirmed_table
from tests.dashboard_studies import config, dashboard_on, run, run_trial, texts


def scores(trial: int, *accuracies: float) -> list[FinalScore]:
    same = {"balanced_accuracy": 0.5, "macro_f1": 0.5, "loss": 0.1, "images": 360, "scored_at": 1000.0}
    return [
        FinalScore(trial=trial, seed=seed, accuracy=accuracy, **same)  # type: ignore[arg-type]
        for seed, accuracy in enumerate(accuracies)
    ]


CONFIRMED = [*scores(1, 0.90, 0.92, 0.94), *scores(0, 0.91, 0.92, 0.92), *scores(2, 0.5, 0.51, 0.52), *scores(3, 0.99)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An experiments folder with the sweep 'c', of which four configurations were confirmed, and 'plain', which was not."""
    where = Experiments(tmp_path / "experiments")
    for name in ("plain", "c"):
        wanted = config(name, preset="none")
        study = Studies(where, create=True).create(wanted, ["zero", "one"])
        study.begin_run(wanted, groups=1)
        for accuracy in (0.8, 0.95, 0.7, 0.6):
            run_trial(study, wanted, accuracy / 2, accuracy)
        study.end_run("FINISHED")
    study.save_confirmed(CONFIRMED)
    return where.folder


def page_at(path: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    return dashboard_on(folder, path, monkeypatch)


@pytest.fixture(autouse=True)
def _nothing_stays_cached() -> Iterator[None]:
    yield
    st.cache_resource.clear()


def rows(page: AppTest) -> dict[str, list[Any]]:
    with pyarrow.ipc.open_stream(page.dataframe[1].proto.arrow_data.data) as stream:
        found: dict[str, list[Any]] = stream.read_all().to_pydict()
    return found


def test_the_ranking_shows_what_was_confirmed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = run(page_at("", folder, monkeypatch), sweep="c")
    found = rows(page)
    assert found["trial"] == [1, 0, 2, 3]
    assert found["n"] == [3, 3, 3, 1]
    assert found["tied"] == ["yes", "yes", "no", "?"]
    assert found["export"] == [False, True, False, False]  # trial 0 has 1000 parameters, trial 1 has 2000
    assert found["mean"][:2] == pytest.approx([0.92, 0.91667], abs=1e-4)
    assert found["interval"][3] == "one seed"
    assert "Confirmed on the test split" in texts(page)
    assert "touched once for each of 10 models" in texts(page)


def test_a_sweep_that_was_not_confirmed_shows_nothing_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = run(page_at("", folder, monkeypatch), sweep="plain")
    assert len(page.dataframe) == 1
    assert "Confirmed" not in texts(page)


def test_the_page_of_exports_says_what_the_command_takes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = run(page_at("export", folder, monkeypatch), sweep="c")
    said = page.info[0].value.replace("\\", "")
    assert "trial 0 has the fewest parameters of the 2 that are tied with the best of 4" in said
    assert "`convsweep export c`" in said
    assert "`convsweep export" not in texts(run(page_at("export", folder, monkeypatch), sweep="plain"))


def test_the_chart_has_a_mean_an_interval_and_every_seed() -> None:
    comparison = compare(CONFIRMED, {0: 10, 1: 20}, "accuracy")
    spec = json.loads(confirmed_table.intervals(comparison).to_json())
    drawn = [rows for rows in spec["datasets"].values() if rows]
    seeds = next(rows for rows in drawn if "seed" in rows[0])
    means = {row["name"]: row for rows in drawn for row in rows if "mean" in row}
    assert sorted(row["value"] for row in seeds) == sorted(score.accuracy for score in CONFIRMED)
    half = 4.302653 * 0.02 / math.sqrt(3)
    assert (means["trial 1"]["low"], means["trial 1"]["high"]) == pytest.approx((0.92 - half, 0.92 + half), abs=1e-5)
    assert means["trial 3"]["low"] == means["trial 3"]["high"] == 0.99
    assert spec["layer"][1]["encoding"]["y"]["sort"] == ["trial 1", "trial 0", "trial 2", "trial 3"]
