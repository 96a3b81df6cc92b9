"""A sweep as one HTML file. `python -m pytest tests/test_report.py -q`; with CONVSWEEP_PICTURES=FOLDER pictures of it are kept there."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from cluster import cli
from cluster.budget import Ending
from cluster.config import make_config
from cluster.confirmed import FinalScore
from cluster.experiments import Experiments
from cluster.record import SweepRecord, TrialRecord, rank
from cluster.studies import Studies
from dashboard import report, report_parts
from dashboard.optuna_charts import Importances
from dashboard.report import check_target, make_report, write_report
from dashboard.report_charts import in_script
from dashboard.report_tables import written
from tests.dashboard_studies import config, dashboard_on, run, run_trial
from tests.services import chromium
from trainer.hyperparameters import flatten, unflatten
from trainer.metrics import EpochMetrics, history

ROOT = Path(__file__).resolve().parent.parent
AT = datetime(2026, 11, 3, 14, 5, tzinfo=UTC)
HOSTILE = "</script></style><img src=x onerror=alert(1)><!--"
ADDRESSES = ("src", "srcset", "href", "xlink:href", "action", "formaction", "data", "poster", "background", "ping")


def trial(number: int, *accuracies: float, state: str = "COMPLETE", **more: Any) -> TrialRecord:
    epochs = [
        EpochMetrics(epoch, 0.9 / epoch, 0.8 / epoch, accuracy, 0.01, 1000.0, 0.5)
        for epoch, accuracy in enumerate(accuracies, 1)
    ]
    return TrialRecord(
        number=number,
        state=state,
        value=max(accuracies, default=None) if state in ("COMPLETE", "PRUNED") else None,
        config=flatten(unflatten({"optimizer.learning_rate": 0.001 * (number + 1), "training.epochs": 3})),
        history=history(epochs),
        train_seconds=2.0 * len(epochs),
        group="4711",
        group_began=1000.0 + 10 * number,
        parameters=5000 - 100 * number,
        ended=datetime.fromtimestamp(1010.0 + 10 * number, UTC),
        **more,
    )


def sweep_of(*trials: TrialRecord, state: str = "FINISHED", **more: Any) -> SweepRecord:
    given = {"classes": ("cat", "dog"), "image_shape": (1, 8, 8), **more}
    settings = given.pop("settings", {})
    wanted = make_config({"name": "s", "data": "digits", "trials": 9, "epochs": 3, **settings})
    runs = ({"begun": 990.0, "ended": 1100.0, "groups": 1, "startup_seconds": 3.0},) if trials else ()
    return SweepRecord("s", state, wanted, runs=runs, trials=rank(trials), **given)


def mixed(**more: Any) -> SweepRecord:
    """Trial 1 is the best, 0 the preset, 2 was pruned and 3 has failed."""
    failed = trial(3, state="FAIL", error=f"{HOSTILE} is not finite\n  File /home/ann/secret.py")
    return sweep_of(
        trial(0, 0.7, 0.8, preset="default"), trial(1, 0.8, 0.95), trial(2, 0.5, state="PRUNED"), failed, **more
    )


class Seen(HTMLParser):
    """What a page consists of: its elements with their attributes, its text, and the code of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text, self.styles = "", ""
        self.scripts: list[tuple[dict[str, str], str]] = []
        self._inside: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.elements.append((tag, found))
        self._inside.append(tag)
        if tag == "script":
            self.scripts.append((found, ""))

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:  # a void element has no end
            pass

    def handle_data(self, data: str) -> None:
        inside = self._inside[-1] if self._inside else ""
        if inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif inside == "style":
            self.styles += data
        else:
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


IMPORTANCES = Importances({"optimizer.learning_rate": 0.75, HOSTILE: 0.25}, 2)


@pytest.fixture(scope="module")
def text() -> str:
    """The report of a sweep in which everything that can be hostile is."""
    sweep = mixed(
        classes=("zero", HOSTILE),
        notes={None: f"On the whole: {HOSTILE}", 1: f"On trial 1: {HOSTILE}"},
        ending=Ending("time_budget", f"The sweep has ended: {HOSTILE}"),
    )
    return make_report(dataclasses.replace(sweep, name=HOSTILE), IMPORTANCES, AT)


@pytest.fixture(scope="module")
def seen(text: str) -> Seen:
    return Seen(text)


# ---- what is in it ----


def test_a_report_says_what_the_sweep_was_and_what_won(seen: Seen) -> None:
    for words in (
        "This report is of 3 November 2026, 14:05 UTC",
        "8×8, gray",
        "digits · 9 trials · up to 3 epochs",
        "Trial 1: kernels 3-3-3",
        "+15.00",  # percentage points over the preset
        "The baseline, default, is trial 0: accuracy 0.8000, rank 2.",
        "convsweep train --data digits --set optimizer.learning_rate=0.002",
        "peak learning rate",  # what a hyperparameter means
        "Trial 3",
        "Only a hint: fewer than 50 complete trials.",
    ):
        assert words in seen.text, words
    headings = [place for place, (tag, _) in enumerate(seen.elements) if tag == "h2"]
    assert len(headings) == len([a for a in seen.attributes("href") if a.startswith("#section")])


def test_every_chart_has_a_picture_its_data_and_words(seen: Seen) -> None:
    names = seen.attributes("data-chart")
    assert {"importances", "timeline", "progress-trials", "progress-time", "fates", "cost-parameters"} <= set(names)
    specifications = {a["id"]: json.loads(code) for a, code in seen.scripts if a.get("type") == "application/json"}
    assert list(specifications) == names
    plots = [attributes for tag, attributes in seen.elements if "data-chart" in attributes]
    assert all(a["role"] == "img" and a["aria-label"] for a in plots)
    assert [tag for tag, _ in seen.elements].count("svg") == len(names) + 2  # and the network, for light and dark
    values = [row for rows in specifications["progress-trials"]["datasets"].values() for row in rows]
    assert {(row["trial"], row["value"]) for row in values} == {(0, 0.8), (1, 0.95), (2, 0.5)}


def test_a_table_has_headings_and_a_caption(seen: Seen) -> None:
    tags = [tag for tag, _ in seen.elements]
    assert tags.count("table") == tags.count("caption") >= 3
    assert all(attributes.get("scope") == "col" for tag, attributes in seen.elements if tag == "th")


def test_the_ranking_shows_failures_by_their_first_line(text: str, seen: Seen) -> None:
    assert seen.text.count(f"{HOSTILE} is not finite") == 2  # in its row, and among the failures
    assert "secret.py" not in text


def test_the_ranking_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_parts, "MOST_TRIALS", 2)
    sweep = mixed()
    page = Seen(str(report_parts.ranking(sweep, report.tables.ranking(sweep.trials))))
    assert "The first 2 of 4 trials" in page.text
    assert "convsweep rank s --top 4" in page.text
    assert [tag for tag, _ in page.elements].count("tr") == 1 + 2 + 2  # also the failures and their heading


def test_the_winner_of_a_confirmed_sweep_is_what_export_takes() -> None:
    same = {"balanced_accuracy": 0.5, "macro_f1": 0.5, "loss": 0.1, "images": 360, "scored_at": 1000.0}
    scores = [
        FinalScore(trial=number, seed=seed, accuracy=accuracy, **same)  # type: ignore[arg-type]
        for number, accuracies in {1: (0.90, 0.92), 0: (0.91, 0.93)}.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    page = Seen(make_report(mixed(confirmed=tuple(scores)), "No importances.", AT))
    assert "Trial 1: kernels" in page.text  # tied with trial 0, and it has fewer parameters
    assert "Test accuracy0.9100On the test split, the mean of 2 seeds; 95 % interval" in page.text
    assert "confirmed" in page.attributes("data-chart")
    assert "No importances." in page.text


def test_the_value_of_a_cross_validated_winner_has_its_interval() -> None:
    best = dataclasses.replace(trial(1, 0.8, 0.9), value=0.85, fold_values=(0.84, 0.86))
    folded = dataclasses.replace(best, history={**best.history, "fold": [1, 2]})
    page = Seen(make_report(sweep_of(folded, settings={"folds": 2}), "", AT))
    assert "0.8500 ± 0.1271" in page.text
    assert "A colour for each fold" in page.text


def test_a_sweep_with_goals_is_drawn_against_each_and_its_front_is_marked() -> None:
    cheap = dataclasses.replace(trial(0, 0.7), costs={"parameters": 10.0, "size_mb": 0.1}, parameters=10)
    good = dataclasses.replace(trial(1, 0.9), costs={"parameters": 90.0, "size_mb": 0.9}, parameters=90)
    page = Seen(make_report(sweep_of(cheap, good, settings={"goals": ["size_mb", "parameters"]}), "", AT))
    assert {"cost-size_mb", "cost-parameters"} <= set(page.attributes("data-chart"))
    assert page.text.count("front") >= 2


def test_a_sweep_without_trials_has_a_report_that_says_so() -> None:
    page = Seen(make_report(sweep_of(state="NEW"), "", AT))
    assert "The sweep has no trials yet." in page.text
    assert page.attributes("data-chart") == []


def test_a_sweep_of_failures_has_no_winner_and_says_why_they_failed() -> None:
    failed = [trial(number, state="FAIL", error="out of memory") for number in range(3)]
    page = Seen(make_report(sweep_of(*failed, state="FAILED"), "", AT))
    assert "There is none: no trial of the sweep has run to its end." in page.text
    assert "Trials 0, 1, 2" in page.text
    assert page.text.count("out of memory") == 4


def test_the_report_of_a_running_sweep_is_of_a_moment() -> None:
    running = dataclasses.replace(trial(1, 0.5, state="RUNNING"), ended=None)
    page = Seen(make_report(sweep_of(trial(0, 0.8), running, state="RUNNING"), "", AT))
    assert "The sweep was running then, and 1 trial had ended: all of this is of that moment." in page.text


def test_what_is_not_a_number_spoils_no_chart() -> None:
    wild = trial(0, float("nan"), 0.8)
    wild = dataclasses.replace(wild, value=0.8, history={**wild.history, "train_loss": [float("inf"), 0.1]})
    page = Seen(make_report(sweep_of(wild), "", AT))
    for attributes, code in page.scripts:
        if attributes.get("type") == "application/json":
            json.loads(code, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        (12345, "%,d", "12,345"),
        (12345.0, None, "12345"),
        (0.98765, "%.4f", "0.9877"),
        (-0.5, "%+.2f", "-0.50"),
        (0.000123, "%.2e", "1.23e-04"),
        (1234.5, "%,.0f", "1,234"),
        (4.25, "%.1f s", "4.2 s"),
        (99.6, "%.0f %%", "100 %"),
    ],
)
def test_a_number_is_written_as_the_pages_write_it(value: float, form: str | None, expected: str) -> None:
    assert written(value, form) == expected


# ---- what cannot get into it, nor out of it ----


def test_what_people_wrote_is_text(seen: Seen) -> None:
    assert seen.text.count(HOSTILE) >= 7  # name, class, two notes, the ending, two errors, an importance in a picture
    tags = {tag for tag, _ in seen.elements}
    assert not tags & {"img", "iframe", "object", "embed", "form", "base", "image", "foreignobject"}
    assert [name for _, attributes in seen.elements for name in attributes if name.startswith("on")] == []


def test_nothing_is_loaded_from_elsewhere(seen: Seen) -> None:
    addresses = [value for name in ADDRESSES for value in seen.attributes(name)]
    assert addresses
    assert [value for value in addresses if not value.startswith(("#", "data:"))] == []
    assert "@import" not in seen.styles
    assert "url(" not in seen.styles + "".join(seen.attributes("style"))
    assert set(seen.attributes("http-equiv")) == {"Content-Security-Policy"}


def test_the_policy_lets_the_pages_own_scripts_run_and_nothing_else(seen: Seen) -> None:
    [policy] = [a["content"] for tag, a in seen.elements if a.get("http-equiv") == "Content-Security-Policy"]
    rules = {name: sources for name, *sources in (rule.split() for rule in policy.split(";"))}
    own = [code for attributes, code in seen.scripts if "type" not in attributes]
    hashes = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in own]
    assert len(own) == 2
    assert rules["default-src"] == ["'none'"]
    assert rules["script-src"] == [f"'sha256-{value}'" for value in hashes]
    assert rules["img-src"] == ["data:"]
    assert "connect-src" not in rules


def test_json_in_a_script_can_neither_end_it_nor_begin_a_comment() -> None:
    content = {"a": f"{HOSTILE}<script>&amp;\u2028"}
    assert json.loads(in_script(content)) == content
    assert not set("<>&\u2028") & set(in_script(content))


def test_a_report_is_small_enough_for_a_mail(text: str) -> None:
    assert len(text.encode()) < 2_000_000


# ---- the file ----


def test_a_report_replaces_a_report_and_nothing_else(text: str, tmp_path: Path) -> None:
    file = tmp_path / "new" / "s.html"
    write_report(text, file)
    write_report(f"{text}\n", file)
    assert file.read_text() == f"{text}\n"
    assert [path.name for path in file.parent.iterdir()] == ["s.html"]
    other = tmp_path / "thesis.html"
    other.write_text("<!doctype html><title>Years of work</title>")
    with pytest.raises(ValueError, match="exists and is no report of convsweep: choose another file with --to"):
        write_report(text, other)
    assert "Years of work" in other.read_text()
    with pytest.raises(ValueError, match="is a folder: name a file with --to"):
        check_target(tmp_path)


def test_a_report_that_cannot_be_written_leaves_the_one_before(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "s.html"
    write_report(text, file)

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_report("half", file)
    assert file.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["s.html"]


# ---- the command ----


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiments folder with the sweep 's': trials 1 and 0 are complete, 2 is pruned."""
    folder = tmp_path_factory.mktemp("report") / "experiments"
    wanted = config("s")
    study = Studies(Experiments(folder), create=True).create(wanted, ["zero", "one"], (1, 8, 8))
    study.begin_run(wanted, groups=1)
    run_trial(study, wanted, 0.7, 0.8)
    run_trial(study, wanted, 0.9, 0.95)
    run_trial(study, wanted, 0.6, end="prune")
    study.end_run("FINISHED")
    return folder


def convsweep(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_writes_the_file_and_says_where(studies: Path, tmp_path: Path) -> None:
    done = convsweep("report", "s", "--experiments", studies, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("s.html: sweep s, FINISHED, 2 complete, 1 pruned; ")
    assert "Trial 1: kernels" in Seen((tmp_path / "s.html").read_text()).text


def test_as_json_it_says_what_was_written(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVSWEEP_EXPERIMENTS", str(studies))
    file = tmp_path / "there.html"
    report.main([f"--to={file}", "--json", "--", "s"])
    out, err = capsys.readouterr()
    facts = {"sweep": "s", "state": "FINISHED", "trials": 3, "report": str(file), "bytes": file.stat().st_size}
    assert (json.loads(out), err) == (facts, "")


def test_a_mistake_is_one_sentence_and_writes_nothing(studies: Path, tmp_path: Path) -> None:
    done = convsweep("report", "x", "--experiments", studies, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("convsweep: There is no sweep 'x' in ")
    assert done.stderr.count("\n") == 1
    (tmp_path / "s.html").write_text("mine")
    done = convsweep("report", "s", "--experiments", studies, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "convsweep: 's.html' exists and is no report of convsweep: choose another file with --to.\n"
    assert (tmp_path / "s.html").read_text() == "mine"


def test_the_databases_url_is_no_argument_that_others_can_see(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[list[str], Mapping[str, str]]] = []

    def execute(program: str, words: list[str]) -> None:
        begun.append((words, dict(os.environ)))
        raise SystemExit

    monkeypatch.setenv("CONVSWEEP_EXPERIMENTS", "before")
    monkeypatch.setenv("CONVSWEEP_STUDY_STORAGE", "before")
    monkeypatch.setattr(os, "execv", execute)
    url = "postgresql://ann:secret@host/db"
    monkeypatch.setattr(sys, "argv", ["convsweep", "report", "s", "--study-storage", url, "--experiments", "there"])
    with pytest.raises(SystemExit):
        cli.main()
    [(words, environment)] = begun
    assert words == [sys.executable, "-m", "dashboard.report", "--", "s"]
    assert (environment["CONVSWEEP_STUDY_STORAGE"], environment["CONVSWEEP_EXPERIMENTS"]) == (url, "there")


def test_the_dashboards_ranking_offers_the_same_file(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Callable[[], str]] = {}
    monkeypatch.setattr(st, "download_button", lambda label, data, **more: given.update({label: data}))
    run(dashboard_on(studies, "", monkeypatch), sweep="s")
    assert "Trial 1: kernels" in Seen(given["Report (HTML)"]()).text
    st.cache_resource.clear()


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


Opened = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, text: str, tmp_path: Path) -> Iterator[Opened]:
    """A function that opens the report in a browser without a network; in the end nobody was asked and nothing was complained of."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []
    file = tmp_path / "s.html"
    write_report(text, file)

    def open_page(**settings: Any) -> Page:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings}))
        contexts[-1].set_offline(True)
        page = contexts[-1].new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: complaints.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def keep_picture(page: Page, name: str) -> None:
    if pictures := os.environ.get("CONVSWEEP_PICTURES"):
        page.screenshot(path=f"{pictures}/report-{name}.png", full_page=True)


def whole(page: Page, text: str) -> None:
    """Wait until every chart is drawn."""
    charts = len(Seen(text).attributes("data-chart"))
    expect(page.locator("[data-chart] .drawn svg.marks")).to_have_count(charts, timeout=60_000)
    expect(page.locator("[data-chart] .picture")).to_have_count(0)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_without_a_network_draws_every_chart(opened: Opened, text: str, scheme: str) -> None:
    page = opened(color_scheme=scheme)
    whole(page, text)
    keep_picture(page, scheme)
    ink = page.locator("[data-chart] .drawn text").first.evaluate("text => getComputedStyle(text).fill")
    assert ink == {"light": "rgb(31, 41, 55)", "dark": "rgb(236, 239, 244)"}[scheme]
    bar = page.locator('[data-chart="importances"] .mark-rect path').first
    bar.hover()
    expect(page.locator("#vg-tooltip-element")).to_contain_text("75.0%")


@pytest.mark.browser
def test_a_click_on_a_heading_sorts_the_ranking(opened: Opened, text: str) -> None:
    page = opened()
    table = page.locator("table.sortable")

    def trials() -> list[str]:
        return table.locator("tbody td:nth-child(2)").all_inner_texts()

    assert trials() == ["1", "0", "2", "3"]
    button = table.get_by_role("button", name="learning rate")
    button.click()
    assert trials() == ["0", "1", "2", "3"]
    expect(table.locator('th[aria-sort="ascending"]')).to_have_text("learning rate")
    button.click()
    assert trials() == ["3", "2", "1", "0"]
    table.get_by_role("button", name="accuracy").click()
    assert trials() == ["2", "0", "1", "3"]  # what is missing is last
    whole(page, text)


@pytest.mark.browser
def test_where_no_script_runs_there_are_pictures(opened: Opened, text: str) -> None:
    page = opened(java_script_enabled=False)
    pictures = page.locator("[data-chart] .picture svg")
    expect(pictures).to_have_count(len(Seen(text).attributes("data-chart")))
    expect(pictures.first).to_be_visible()
    keep_picture(page, "without-script")


@pytest.mark.browser
def test_a_phone_scrolls_tables_and_not_the_page(opened: Opened, text: str) -> None:
    page = opened(viewport={"width": 390, "height": 800})
    whole(page, text)
    keep_picture(page, "phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
