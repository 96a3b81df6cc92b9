"""The page that compares trials and sweeps and has the notes. `python -m pytest tests/test_dashboard_compare.py -q`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from playwright.sync_api import expect, sync_playwright
from streamlit.testing.v1 import AppTest

from cluster.config import SweepConfig
from cluster.experiments import Experiments
from cluster.studies import Studies
from cluster.study import SweepStudy
from tests.dashboard_studies import config, dashboard_on, run, run_trial, texts
from tests.services import chromium, dashboard
from trainer.analysis import Analysis, Pictures
from trainer.evaluation import CALIBRATION_BINS, Calibration, Scores
from trainer.metrics import EpochMetrics

TABS = ["Trials", "Sweeps", "Notes"]
CLASSES = ["zero", "one", "two"]
BEFORE = [[8, 1, 1], [0, 5, 5], [2, 0, 8]]
AFTER = [[10, 0, 0], [1, 4, 5], [2, 0, 8]]


def analysis(confusion: Sequence[Sequence[int]]) -> bytes:
    images = sum(map(sum, confusion))
    none = Pictures(
        np.zeros((0, 1, 2, 2), np.uint8), *(np.zeros(0, kind) for kind in (np.int64, np.int64, np.float32, np.int64))
    )
    bins = (np.zeros(CALIBRATION_BINS), np.zeros(CALIBRATION_BINS), np.zeros(CALIBRATION_BINS, np.int64))
    scores = Scores(images, 0.5, 0.5, 0.5, 0.1, [list(row) for row in confusion])
    return Analysis(tuple(CLASSES), scores, Calibration(*bins), none, none).to_bytes()


# ---- the page ----


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "experiments"


@pytest.fixture
def page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    return dashboard_on(folder, "compare", monkeypatch)


def make(folder: Path, name: str, **more: object) -> tuple[SweepStudy, SweepConfig]:
    wanted = config(name, **more)
    study = Studies(Experiments(folder), create=True).create(wanted, CLASSES, (1, 8, 8))
    study.begin_run(wanted, groups=2)
    return study, wanted


@pytest.fixture
def mixed(folder: Path) -> str:
    """A sweep that is over, whose first trial is the preset's."""
    study, wanted = make(folder, "mixed", epochs=3)
    run_trial(study, wanted, 0.5, 0.6, 0.7)
    run_trial(study, wanted, 0.5, 0.8, 0.9)
    run_trial(study, wanted, 0.2, end="prune")
    run_trial(study, wanted, end="fail", error="out of memory")
    study.end_run("FINISHED")
    return "mixed"


def store_analysis(folder: Path, trial: int, content: bytes) -> None:
    checkpoints = folder / "mixed" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / f"trial-{trial:05d}.analysis.npz").write_bytes(content)


def infos(page: AppTest) -> list[str]:
    return [info.value.replace("\\", "") for info in page.info]


def charts(page: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in page.get("vega_lite_chart")]


@pytest.mark.parametrize("tab", TABS)
def test_a_sweep_without_trials_is_a_sentence(page: AppTest, folder: Path, tab: str) -> None:
    make(folder, "untried", preset="none")[0].end_run("INTERRUPTED")
    run(page, sweep="untried", compare=tab)
    assert infos(page) == [
        "There is one sweep: two can be compared." if tab == "Sweeps" else "The sweep has no trials yet."
    ]


@pytest.mark.parametrize("tab", TABS)
def test_one_trial_cannot_be_compared_but_noted(page: AppTest, folder: Path, tab: str) -> None:
    study, wanted = make(folder, "single")
    run_trial(study, wanted, 0.5, 0.6)
    study.end_run("FINISHED")
    run(page, sweep="single", compare=tab)
    expected = {
        "Trials": ["The sweep has one trial: two can be compared."],
        "Sweeps": ["There is one sweep: two can be compared."],
        "Notes": [],
    }
    assert infos(page) == expected[tab]


@pytest.mark.parametrize("tab", TABS)
def test_where_all_trials_failed_there_is_no_traceback(page: AppTest, folder: Path, tab: str) -> None:
    study, wanted = make(folder, "failed")
    for _ in range(3):
        run_trial(study, wanted, end="fail", error="out of memory")
    study.end_run("FAILED")
    run(page, sweep="failed", compare=tab)
    if tab == "Trials":
        assert list(page.dataframe[0].value["trial 0"])[:2] == ["FAIL", "–"]
        assert "No epoch of these trials has ended." in infos(page)
    if tab == "Sweeps":
        assert "Without a trial that ran to its end: failed." in texts(page)


@pytest.mark.parametrize("tab", TABS)
def test_trials_of_another_program_without_a_configuration_are_compared(page: AppTest, folder: Path, tab: str) -> None:
    study, _ = make(folder, "foreign", preset="none")
    loaded = optuna.load_study(study_name="foreign", storage=Experiments(folder).database)
    loaded.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    study.end_run("FINISHED")
    run(page, sweep="foreign", compare=tab)
    if tab == "Trials":
        assert "The trials have no configuration in the record: another program made them." in infos(page)


def test_the_best_trial_is_compared_with_the_presets(page: AppTest, mixed: str) -> None:
    run(page, sweep=mixed)
    assert page.multiselect[0].value == [1, 0]
    outcome = page.dataframe[0].value.set_index("outcome")
    assert list(outcome.columns) == ["trial 1", "trial 0"]
    assert list(outcome.loc["validation accuracy"]) == ["0.9000", "0.7000"]
    assert list(outcome.loc["gain over the preset"]) == ["+20.00 points", "+0.00 points"]
    assert list(outcome.loc["preset"]) == ["–", "default"]


def test_the_trials_in_the_address_are_compared_and_unknown_ones_left_out(page: AppTest, mixed: str) -> None:
    page.query_params["trials"] = ["3", "77", "2"]
    run(page, sweep=mixed)
    assert list(page.dataframe[0].value.columns) == ["outcome", "trial 3", "trial 2"]


def test_too_few_trials_are_asked_for(page: AppTest, mixed: str) -> None:
    run(page, sweep=mixed)
    page.multiselect[0].set_value([2]).run()
    assert infos(page) == ["Choose two trials or more."]


def test_only_hyperparameters_that_differ_are_shown_unless_asked_for(page: AppTest, mixed: str) -> None:
    run(page, sweep=mixed)
    differing = page.dataframe[1].value
    assert "optimizer.learning_rate" in set(differing["hyperparameter"])
    assert "training.epochs" not in set(differing["hyperparameter"])
    page.toggle[0].set_value(True).run()
    everything = page.dataframe[1].value.set_index("hyperparameter")
    assert list(everything.loc["training.epochs"]) == ["3", "3", "passes over the training split"]


def test_a_trial_that_ends_meanwhile_stays_chosen(page: AppTest, folder: Path) -> None:
    study, wanted = make(folder, "running", preset="none")
    run_trial(study, wanted, 0.5, 0.6)
    trial = study.ask()
    run(page, sweep="running")
    assert page.multiselect[0].value == [0, 1]
    trial.report(EpochMetrics(1, 0.5, 0.5, 0.9, 0.001, 1000.0, 0.1), 0.1)
    trial.complete()
    run(page)
    assert page.multiselect[0].value == [0, 1]
    assert list(page.dataframe[0].value["trial 1"])[:2] == ["COMPLETE", "0.9000"]


def test_without_analyses_the_page_says_where_they_are_made(page: AppTest, folder: Path, mixed: str) -> None:
    run(page, sweep=mixed)
    assert "Trials 1, 0 have no analysis: the button “Analyse” on the page Trial makes one" in texts(page)
    store_analysis(folder, 1, analysis(AFTER))
    run(page)
    assert "Trial 0 has no analysis" in texts(page)
    assert infos(page) == ["What two trials confuse can be compared when both have an analysis."]


def test_two_analyses_show_which_classes_gained_and_lost(page: AppTest, folder: Path, mixed: str) -> None:
    store_analysis(folder, 0, analysis(BEFORE))
    store_analysis(folder, 1, analysis(AFTER))
    run(page, sweep=mixed)
    page.selectbox(key="first trial").select(0).run()
    assert not page.exception
    changed = page.dataframe[2].value
    assert list(changed["class"]) == ["zero", "one"]
    assert list(changed["change"]) == pytest.approx([0.2, -0.1])
    assert charts(page)[-1]["layer"][0]["encoding"]["x"]["scale"]["domain"] == CLASSES


def test_a_damaged_analysis_and_one_of_other_images_are_sentences(page: AppTest, folder: Path, mixed: str) -> None:
    store_analysis(folder, 0, analysis(BEFORE))
    store_analysis(folder, 1, b"nothing")
    run(page, sweep=mixed)
    assert "Trial 1: This is no analysis that this version of convsweep can read" in page.warning[0].value.replace(
        "\\", ""
    )
    store_analysis(folder, 1, analysis([[3, 0, 0], [0, 3, 0], [0, 0, 3]]))
    run(page)
    assert infos(page) == ["The two analyses are not of the same images: make both anew to compare them."]


def test_sweeps_on_the_same_data_are_over_each_other(page: AppTest, folder: Path, mixed: str) -> None:
    for name, data in (("other", "digits"), ("mnist", "mnist")):
        study, wanted = make(folder, name, data=data, preset="none")
        run_trial(study, wanted, 0.3, 0.4)
        study.end_run("FINISHED")
    run(page, sweep=mixed, compare="Sweeps")
    assert page.multiselect[0].value == ["mixed", "other"]
    facts = page.dataframe[0].value
    assert list(facts["best"]) == [0.9, 0.4]
    assert facts["preset"].isna().tolist() == [False, True]
    assert charts(page)[0]["layer"][0]["encoding"]["color"]["scale"]["domain"] == ["mixed", "other"]
    page.session_state["sweeps-over"] = "distribution"
    page.run()
    assert not page.exception
    (figure,) = (json.loads(chart.proto.spec) for chart in page.get("plotly_chart"))
    assert [line["name"] for line in figure["data"]] == ["mixed", "other"]


# ---- notes ----


def areas(page: AppTest) -> dict[str, str]:
    return {area.key: str(area.value) for area in page.text_area}


def notes(folder: Path) -> dict[int | None, str]:
    return dict(Studies(Experiments(folder)).read("mixed").notes)


def choose_trial(page: AppTest, number: int) -> AppTest:
    (box,) = (box for box in page.selectbox if box.label == "Trial")
    return box.select(number).run()


def write(page: AppTest, key: str, text: str) -> AppTest:
    page.text_area(key=key).set_value(text)
    page.button(key=f"FormSubmitter:{key}, form-Save").click().run()
    assert not page.exception
    return page


def test_notes_are_written_to_the_sweep_and_to_the_chosen_trial(page: AppTest, folder: Path, mixed: str) -> None:
    run(page, sweep=mixed, compare="Notes")
    assert areas(page) == {"note on mixed": "", "note on trial 1 of mixed": ""}
    write(page, "note on mixed", "**A** sweep")
    write(page, "note on trial 1 of mixed", "The best")
    assert notes(folder) == {None: "**A** sweep", 1: "The best"}
    assert {"**A** sweep", "The best"} <= {markdown.value for markdown in page.markdown}
    write(page, "note on mixed", "")
    assert notes(folder) == {1: "The best"}


def test_each_trial_has_its_own_note(page: AppTest, folder: Path, mixed: str) -> None:
    run(page, sweep=mixed, compare="Notes")
    write(page, "note on trial 1 of mixed", "The best")
    choose_trial(page, 0)
    assert areas(page) == {"note on mixed": "", "note on trial 0 of mixed": ""}
    choose_trial(page, 1)
    assert areas(page)["note on trial 1 of mixed"] == "The best"


def test_a_note_shows_no_markup_and_no_pictures_of_others(page: AppTest, folder: Path, mixed: str) -> None:
    Studies(Experiments(folder)).open(mixed).write_note("![x](https://example.org/x.png) <img src='y'>")
    run(page, sweep=mixed, compare="Notes")
    (shown,) = (m for m in page.markdown if "example.org" in m.value)
    assert "![" not in shown.value
    assert not shown.proto.allow_html
    assert areas(page)["note on mixed"].startswith("![x]")


@pytest.mark.browser
def test_a_note_loads_nothing_from_elsewhere_in_a_browser(folder: Path, mixed: str, tmp_path: Path) -> None:
    lines = [
        "# Seen",
        "![](https://elsewhere.example/a.png) \\![](https://elsewhere.example/b.png) <img src='https://elsewhere.example/c.png'>",
        "$\\includegraphics{https://elsewhere.example/d.png}$",
        '```mermaid\nflowchart TD\n  A@{ img: "https://elsewhere.example/e.png", label: "x" }\n```',
        '~~~&#109;ermaid\nflowchart TD\n  A@{ img: "https://elsewhere.example/f.png", label: "x" }\n~~~',
    ]
    Studies(Experiments(folder)).open(mixed).write_note("\n\n".join(lines))
    asked: set[str] = set()
    path = chromium()
    with dashboard(folder, tmp_path / "log") as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        visitor = browser.new_page(viewport={"width": 1280, "height": 800})
        visitor.on("request", lambda request: asked.add(request.url))
        visitor.goto(f"{address}/compare?sweep={mixed}&compare=Notes")
        expect(visitor.get_by_role("heading", name="Seen")).to_be_visible(timeout=60_000)
        expect(visitor.locator("code", has_text="f.png").last).to_be_visible(timeout=60_000)
        visitor.wait_for_load_state("networkidle")
        browser.close()
    assert any(url.startswith(address) for url in asked)
    assert not [url for url in asked if "elsewhere" in url]


def test_a_note_that_somebody_else_writes_is_shown_and_not_overwritten(page: AppTest, folder: Path, mixed: str) -> None:
    study = Studies(Experiments(folder)).open(mixed)
    run(page, sweep=mixed, compare="Notes")
    study.write_note("theirs")
    run(page)
    assert areas(page)["note on mixed"] == "theirs"
    study.write_note("theirs, changed")
    write(page, "note on mixed", "mine")
    assert "Somebody has changed the note" in page.warning[0].value
    assert notes(folder) == {None: "theirs, changed"}
    assert areas(page)["note on mixed"] == "mine"
    write(page, "note on mixed", "mine")
    assert notes(folder) == {None: "mine"}


def test_a_note_that_cannot_be_written_is_a_sentence_and_stays_in_the_box(
    page: AppTest, folder: Path, mixed: str
) -> None:
    run(page, sweep=mixed, compare="Notes")
    with sqlite3.connect(folder / "studies.db") as database:
        database.execute(
            "CREATE TRIGGER broken BEFORE INSERT ON study_system_attributes BEGIN INSERT INTO gone VALUES (1); END"
        )
    database.close()
    write(page, "note on mixed", "mine")
    said = page.error[0].value.replace("\\", "")
    assert said.startswith("The note was not written. The study database cannot be written: ")
    assert "no such table" in said
    assert areas(page)["note on mixed"] == "mine"


def test_no_more_can_be_typed_than_a_note_may_have(page: AppTest, mixed: str) -> None:
    run(page, sweep=mixed, compare="Notes")
    assert {area.max_chars for area in page.text_area} == {20_000}
