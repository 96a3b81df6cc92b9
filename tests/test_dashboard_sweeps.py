"""The page of all sweeps. `python -m pytest tests/test_dashboard_sweeps.py -q`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
import streamlit as st
from playwright.sync_api import expect, sync_playwright
from streamlit.testing.v1 import AppTest

from cluster.experiments import Experiments
from cluster.record import STATES, SweepSummary
from cluster.studies import Studies
from dashboard import sweep_tables
from dashboard.views import sweeps
from tests.dashboard_studies import config, dashboard_on, run, run_trial, texts
from tests.services import chromium, dashboard

BEGUN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def summary(name: str = "s", **more: Any) -> SweepSummary:
    counts = dict.fromkeys(STATES, 0) | more.pop("counts", {})
    values = {"state": "FINISHED", "data": "mnist", "trials": 20, "best_value": 0.5, "begun": BEGUN}
    return SweepSummary(name=name, counts=counts, **values | {"wall_seconds": 90.0, "groups": 2} | more)


@pytest.fixture
def experiments(tmp_path: Path) -> Experiments:
    """The sweeps 'first', which is over and has a note, 'live', which runs, and 'untried', which has not begun."""
    where = Experiments(tmp_path / "experiments")
    studies = Studies(where, create=True)
    for name in ("first", "live"):
        wanted = config(name, preset="none")
        study = studies.create(wanted, ["zero", "one"])
        study.begin_run(wanted, groups=2)
        run_trial(study, wanted, 0.7, 0.8)
        run_trial(study, wanted, 0.6, end="prune")
        if name == "first":
            run_trial(study, wanted, end="fail", error="the loss is not finite")
            study.end_run("FINISHED")
            study.write_note("\nA *good* one\nwith more below")
        else:
            run_trial(study, wanted, 0.5, end="")
    studies.create(config("untried", preset="none"), ["zero", "one"])
    studies.close()
    return where


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    yield dashboard_on(tmp_path / "experiments", "sweeps", monkeypatch)
    st.cache_resource.clear()


# ---- the page ----


@pytest.mark.usefixtures("experiments")
def test_every_sweep_has_a_row_the_newest_first(page: AppTest) -> None:
    table = run(page).dataframe[0].value.set_index("sweep")
    assert list(table.index) == ["untried", "live", "first"]
    assert list(table["state"]) == ["NEW", "RUNNING", "FINISHED"]
    assert list(table["progress"]) == pytest.approx([0, 2 / 7, 3 / 7])
    assert table["best"].fillna(-1).tolist() == [-1, 0.8, 0.8]
    assert table["trials"]["first"] == "3 of 7: 1 complete, 1 pruned, 1 failed"
    assert table["trials"]["untried"] == "0 of 7"
    assert table["begun"].isna().tolist() == [True, False, False]
    assert table["groups"].fillna(0).tolist() == [0, 2, 2]


@pytest.mark.usefixtures("experiments")
def test_the_first_line_of_a_note_stands_beside_its_sweep(page: AppTest) -> None:
    table = run(page).dataframe[0].value.set_index("sweep")
    assert table["note"]["first"] == "A *good* one"
    assert table["note"].isna().sum() == 2


@pytest.mark.usefixtures("experiments")
def test_the_current_sweep_is_the_one_that_is_marked(page: AppTest) -> None:
    run(page, sweep="first")
    assert page.session_state["the sweeps"]["selection"]["rows"] == [2]
    assert "The current sweep is **first**" in texts(page)
    page.selectbox[0].select("live").run()
    assert page.session_state["the sweeps"]["selection"]["rows"] == [1]
    assert r"**live**, 2 of 7 trials ended\: 1 complete\, 1 pruned\, 1 running" in texts(page)


def test_a_row_that_is_picked_becomes_the_current_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    state: dict[str, Any] = {"sweep": "b", "the sweeps, as shown": ["b", "a"]}
    monkeypatch.setattr(st, "session_state", state)
    state["the sweeps"] = {"selection": {"rows": []}}
    sweeps._pick()
    assert state["sweep"] == "b"
    state["the sweeps"] = {"selection": {"rows": [1]}}
    sweeps._pick()
    assert state["sweep"] == "a"


def test_studies_of_other_programs_are_counted_and_not_shown(page: AppTest, experiments: Experiments) -> None:
    assert "other programs" not in texts(run(page))
    for name in ("foreign", "strange"):
        optuna.create_study(study_name=name, storage=experiments.database)
    assert "2 studies of other programs are in the same database" in texts(run(page))
    assert len(page.dataframe[0].value) == 3


def test_a_database_with_studies_of_others_alone_says_so(page: AppTest, tmp_path: Path) -> None:
    where = Experiments(tmp_path / "experiments")
    where.folder.mkdir()
    optuna.create_study(study_name="foreign", storage=where.database)
    run(page)
    assert "no sweeps yet" in page.info[0].value
    assert page.caption[0].value.startswith("1 study of another program is in the same database")
    assert "optuna-dashboard" in page.caption[0].value


def test_the_page_follows_while_a_sweep_runs(page: AppTest, experiments: Experiments) -> None:
    assert list(run(page).dataframe[0].value["state"]) == ["NEW", "RUNNING", "FINISHED"]
    studies = Studies(experiments)
    studies.open("live").end_run("INTERRUPTED")
    studies.close()
    assert list(run(page).dataframe[0].value["state"]) == ["NEW", "INTERRUPTED", "FINISHED"]


@pytest.mark.browser
@pytest.mark.usefixtures("experiments")
def test_picking_a_row_in_a_browser_changes_the_sweep_of_every_page(tmp_path: Path) -> None:
    path = chromium()
    with dashboard(tmp_path / "experiments", tmp_path / "log") as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        visitor = browser.new_page(viewport={"width": 1280, "height": 800})
        visitor.goto(f"{address}/sweeps")
        expect(visitor.get_by_text("The current sweep is untried")).to_be_visible(timeout=60_000)
        table = visitor.locator('[data-testid="stDataFrame"]')
        expect(table.locator("canvas").first).to_be_visible(timeout=60_000)
        box = table.bounding_box()
        assert box is not None
        header, row = 36, 35  # pixels
        visitor.mouse.click(box["x"] + 16, box["y"] + header + 2.5 * row)
        expect(visitor.get_by_text("The current sweep is first")).to_be_visible(timeout=60_000)
        expect(visitor).to_have_url(re.compile("sweep=first"))
        visitor.locator('[data-testid="stSidebarNav"]').get_by_text("Ranking").click()
        expect(visitor.locator("h1", has_text="first")).to_be_visible(timeout=60_000)
        browser.close()


# ---- the table ----


def test_a_sweep_that_only_its_time_limits_has_no_progress() -> None:
    table = sweep_tables.sweeps([summary(trials=None, counts={"COMPLETE": 3})], {})
    assert table["progress"].isna().all()
    assert table["trials"][0] == "3: 3 complete"


def test_more_trials_than_wanted_are_no_more_than_all() -> None:
    table = sweep_tables.sweeps([summary(trials=2, counts={"COMPLETE": 3, "WAITING": 1})], {})
    assert table["progress"][0] == 1.0
    assert table["trials"][0] == "3 of 2: 3 complete, 1 waiting"


def test_a_folder_of_images_is_named_without_its_path() -> None:
    assert sweep_tables.sweeps([summary(data="/very/long/path/pets")], {})["data"][0] == "pets"


def test_times_are_those_of_the_record() -> None:
    table = sweep_tables.sweeps([summary()], {"s": "\n\n"})
    assert table["begun"][0] == BEGUN
    assert table["minutes"][0] == 1.5
    assert table["note"].isna().all()


def test_a_list_without_sweeps_has_its_columns() -> None:
    assert list(sweep_tables.sweeps([], {}).columns) == [c.name for c in sweep_tables.SWEEPS]
