"""The dashboard, on studies that were written as a sweep writes them. `python -m pytest tests/test_dashboard.py -q`."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
import pyarrow.ipc
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from cluster.config import SweepConfig, make_config
from cluster.experiments import Experiments
from cluster.record import TrialRecord
from cluster.studies import Studies
from cluster.study import SweepStudy
from dashboard import charts, launch, records, settings, tables
from trainer.domains import Value
from trainer.hyperparameters import TrialConfig, flatten, parameters
from trainer.metrics import EpochMetrics, history

APP = Path(launch.__file__).with_name("app.py")
BEST_FIRST = [1, 4, 0, 5, 2, 3, 6]
OUT_OF_MEMORY = 'RuntimeError: out of *memory*\n\nTraceback (most recent call last):\n  File "loop.py", line 7'


def epoch(number: int, accuracy: float, loss: float = 0.5) -> EpochMetrics:
    return EpochMetrics(number, loss, loss / 2, accuracy, 0.001, 1000.0 * number, 0.1)


def record(
    number: int, state: str, *accuracies: float, error: str | None = None, but: dict[str, Value] | None = None
) -> TrialRecord:
    value = max(accuracies) if accuracies and state in ("COMPLETE", "PRUNED") else None
    epochs = history([epoch(i, accuracy) for i, accuracy in enumerate(accuracies, 1)])
    return TrialRecord(number, state, value, flatten(TrialConfig()) | (but or {}), epochs, error=error)


def config(name: str, **more: object) -> SweepConfig:
    return make_config({"name": name, "data": "digits", "trials": 7, "epochs": 2} | more)


def run_trial(
    study: SweepStudy, wanted: SweepConfig, *accuracies: float, end: str = "complete", error: str = ""
) -> None:
    trial = study.ask()
    trial.begin(parameters=1000 * (trial.number + 1), group="group", group_began=10.0 * trial.number)
    for number, accuracy in enumerate(accuracies, 1):
        trial.report(epoch(number, accuracy), train_seconds=0.1 * number)
    if end == "fail":
        trial.fail(error)
    elif end == "prune":
        trial.prune()
    elif end == "complete":
        trial.complete()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiments folder with the sweeps 'mixed', which is over, and then 'untried', which has not begun."""
    folder = tmp_path_factory.mktemp("experiments")
    studies = Studies(Experiments(folder), create=True)
    wanted = config("mixed")
    study = studies.create(wanted, ["zero", "one"])
    study.begin_run(wanted, groups=2)
    study.note_startup(3.0)
    run_trial(study, wanted, 0.7, 0.8)
    run_trial(study, wanted, 0.9, 0.95)
    run_trial(study, wanted, 0.6, end="prune")
    run_trial(study, wanted, end="fail", error=OUT_OF_MEMORY)
    run_trial(study, wanted, 0.85, 0.9)
    run_trial(study, wanted, 0.7, end="prune")
    run_trial(study, wanted, 0.1, end="fail", error="the loss is not finite")
    study.end_run("FINISHED")
    studies.create(config("untried", preset="none"), ["zero", "one"])
    return folder


@pytest.fixture
def experiments(made: Path, tmp_path: Path) -> Path:
    """A copy of them for one test."""
    return shutil.copytree(made, tmp_path / "experiments")


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    """The dashboard on `<tmp_path>/experiments`, to be run."""
    for name, value in settings.to_environment(Experiments(tmp_path / "experiments")).items():
        monkeypatch.setenv(name, value)
    yield AppTest.from_file(str(APP), default_timeout=30)
    st.cache_resource.clear()


def run(page: AppTest, sweep: str | None = None) -> AppTest:
    if sweep is not None:
        page.query_params["sweep"] = sweep
    st.cache_resource.clear()  # what was read a moment ago counts as fresh
    page.run()
    assert not page.exception, page.exception
    return page


def metrics(page: AppTest) -> dict[str, str]:
    return {m.label: m.value for m in page.metric}


def ranked(page: AppTest) -> dict[str, list[object]]:
    """The columns of the table of trials; `.value` cannot read a column of lists."""
    with pyarrow.ipc.open_stream(page.dataframe[0].proto.arrow_data.data) as stream:
        columns: dict[str, list[object]] = stream.read_all().to_pydict()
    return columns


def shown_trials(page: AppTest) -> list[int]:
    return [int(str(number)) for number in ranked(page)["trial"]]


def shown_curves(page: AppTest) -> list[str]:
    (curves,) = (c for c in page.get("vega_lite_chart") if "Validation accuracy after" in c.proto.alt)
    domain: list[str] = json.loads(curves.proto.spec)["layer"][0]["encoding"]["color"]["scale"]["domain"]
    return domain


def select(page: AppTest, sweep: str, *numbers: int) -> AppTest:
    """Select rows of the table, as a click does."""
    rows = [shown_trials(page).index(number) for number in numbers]
    page.session_state[f"ranking of {sweep}"] = {"selection": {"rows": rows}}
    page.session_state[f"ranking of {sweep}, selected"] = list(numbers)
    return page.run()


# ---- the choice of the sweep ----


def test_without_a_database_the_page_says_which_command_makes_one(page: AppTest, tmp_path: Path) -> None:
    run(page)
    assert f"convsweep sweep --data digits --experiments {tmp_path / 'experiments'}" in page.info[0].value
    assert not page.selectbox
    assert not (tmp_path / "experiments").exists()  # looking makes nothing


def test_a_database_without_sweeps_says_which_command_makes_one(page: AppTest, tmp_path: Path) -> None:
    Studies(Experiments(tmp_path / "experiments"), create=True)
    assert "no sweeps yet" in run(page).info[0].value
    assert "convsweep sweep --data digits" in page.info[0].value


def test_the_password_of_a_database_is_not_shown(
    page: AppTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(settings.STUDY_STORAGE, f"sqlite:///{tmp_path}/secret.db")
    assert "convsweep sweep --data digits --study-storage URL" in run(page).info[0].value
    assert "secret" not in page.info[0].value


def test_a_broken_database_is_one_sentence(page: AppTest, tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "studies.db").write_bytes(b"no database " * 1000)
    run(page)
    assert r"studies\.db" in page.error[0].value
    assert "not a database" in page.error[0].value


@pytest.mark.usefixtures("experiments")
def test_the_newest_sweep_is_shown_first(page: AppTest) -> None:
    run(page)
    assert page.selectbox[0].options == ["untried", "mixed"]
    assert page.title[0].value == "untried"
    assert page.info[0].value == "The sweep has no trials yet."


@pytest.mark.usefixtures("experiments")
def test_the_sweep_in_the_address_is_shown(page: AppTest) -> None:
    run(page, "mixed")
    assert page.title[0].value == "mixed"
    assert page.selectbox[0].value == "mixed"


@pytest.mark.usefixtures("experiments")
def test_the_choice_in_the_sidebar_changes_the_page(page: AppTest) -> None:
    run(page, "mixed")
    page.selectbox[0].select("untried").run()
    assert page.title[0].value == "untried"


@pytest.mark.usefixtures("experiments")
def test_an_unknown_sweep_in_the_address_shows_no_other_one(page: AppTest) -> None:
    run(page, "mixt")
    assert "no sweep mixt. Did you mean 'mixed'?" in page.info[0].value
    assert not page.title
    assert [link.proto.url for link in page.get("link_button")] == ["?sweep=untried", "?sweep=mixed"]


# ---- the ranking ----


@pytest.mark.usefixtures("experiments")
def test_the_trials_are_ranked_with_their_states(page: AppTest) -> None:
    table = ranked(run(page, "mixed"))
    assert table["trial"] == BEST_FIRST
    assert table["state"] == ["COMPLETE"] * 3 + ["PRUNED"] * 2 + ["FAIL"] * 2
    assert table["value"] == [0.95, 0.9, 0.8, 0.7, 0.6, None, None]
    assert table["marks"][2] == ["preset", "front"]


@pytest.mark.usefixtures("experiments")
def test_the_headline_counts_the_trials_and_names_the_best(page: AppTest) -> None:
    found = metrics(run(page, "mixed"))
    assert found.pop("Wall time").endswith(" s")
    assert found == {"Best accuracy": "0.9500", "Gain over the preset": "+15.00", "Trials": "7"}
    assert [m.delta for m in page.metric][:2] == ["trial 1", "error 20.00 % → 5.00 %"]


@pytest.mark.usefixtures("experiments")
def test_failed_trials_show_their_errors(page: AppTest) -> None:
    run(page, "mixed")
    assert [code.value for code in page.code] == [OUT_OF_MEMORY, "the loss is not finite"]
    assert page.expander[0].label == r"Trial 3: RuntimeError\: out of \*memory\*"
    assert "the loss is not finite" in ranked(page)["error"]


@pytest.mark.usefixtures("experiments")
def test_hyperparameters_that_are_the_same_in_all_trials_are_shown_when_asked_for(page: AppTest) -> None:
    run(page, "mixed")
    assert "training.epochs" not in ranked(page)
    assert "optimizer.learning_rate" in ranked(page)
    page.session_state["columns"] = "all"
    assert set(ranked(page.run())["training.epochs"]) == {2}


@pytest.mark.usefixtures("experiments")
def test_the_learning_curves_are_those_of_the_best_or_of_the_selected_trials(page: AppTest) -> None:
    run(page, "mixed")
    assert shown_curves(page) == [f"trial {number}" for number in BEST_FIRST[:5]]
    assert shown_curves(select(page, "mixed", 1, 5, 6)) == ["trial 1", "trial 5", "trial 6"]


def test_a_running_sweep_is_followed_and_the_selection_stays_with_its_trial(page: AppTest, experiments: Path) -> None:
    wanted = config("running", preset="none")
    study = Studies(Experiments(experiments), create=True).create(wanted, ["zero", "one"])
    study.begin_run(wanted, groups=1)
    run_trial(study, wanted, 0.5, 0.6)
    run_trial(study, wanted, 0.5, end="")
    run(page, "running")
    assert page.get("progress")[0].proto.text == "1 of 7 trials have ended"
    assert shown_trials(page) == [0, 1]
    select(page, "running", 0)

    run_trial(study, wanted, 0.8, 0.9)
    run(page)
    assert shown_trials(page) == [2, 0, 1]
    assert page.session_state["ranking of running"]["selection"]["rows"] == [1]
    assert page.metric[0].delta == "trial 2"

    study.end_run("INTERRUPTED")
    run(page)
    assert not page.get("progress")
    assert "WAITING" in ranked(page)["state"]


def test_a_sweep_is_shown_where_its_folder_of_images_is_missing(page: AppTest, tmp_path: Path) -> None:
    images = tmp_path / "pictures"
    (images / "cats").mkdir(parents=True)
    wanted = config("pets", data=str(images))
    study = Studies(Experiments(tmp_path / "experiments"), create=True).create(wanted, ["cats"])
    study.begin_run(wanted, groups=1)
    run_trial(study, wanted, 0.5)
    study.end_run("FINISHED")
    shutil.rmtree(images)
    assert shown_trials(run(page, "pets")) == [0]


def test_another_tools_study_in_the_same_database_is_not_offered(page: AppTest, experiments: Path) -> None:
    study = optuna.create_study(study_name="foreign", storage=Experiments(experiments).database)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    run(page, "mixed")
    assert "foreign" not in page.selectbox[0].options
    assert shown_trials(page) == BEST_FIRST


def test_a_folder_that_was_made_anew_is_read_anew(page: AppTest, experiments: Path) -> None:
    assert shown_trials(run(page, "mixed")) == BEST_FIRST
    shutil.rmtree(experiments)
    Studies(Experiments(experiments), create=True).create(config("second"), ["zero"])
    page.run()  # with the caches as they are
    assert "There is no sweep mixed." in page.info[0].value
    assert [link.proto.url for link in page.get("link_button")] == ["?sweep=second"]


# ---- tables ----


def test_a_value_per_block_is_one_column() -> None:
    table = tables.ranking([record(0, "COMPLETE", 0.5)])
    assert table["model.kernel_size"][0] == "3-3-3"
    assert "model.kernel_size.1" not in table


def test_what_a_trial_does_not_have_is_missing() -> None:
    with_momentum = record(0, "COMPLETE", 0.5, but={"optimizer.name": "sgd", "optimizer.momentum": 0.9})
    table = tables.ranking([with_momentum, record(1, "RUNNING")])
    assert table["optimizer.momentum"].isna().tolist() == [False, True]
    assert table["rank"].isna().tolist() == [False, True]
    assert table["images_per_second"].isna().tolist() == [False, True]
    assert "error" not in table
    assert "preset" not in table


def test_only_columns_that_differ_tell_trials_apart() -> None:
    table = tables.ranking([record(0, "COMPLETE", 0.5), record(1, "COMPLETE", 0.5, but={"model.dropout": 0.3})])
    hyperparameters = [name for name in tables.varied(table) if "." in name]
    assert hyperparameters == ["model.dropout"]
    assert tables.varied(table[:1]) == list(table.columns)


def test_every_hyperparameter_has_a_column_with_its_own_label_and_its_meaning() -> None:
    every = {p.name: p.default for p in parameters() if not p.per_block}
    every |= {f"{p.name}.1": p.default[0] for p in parameters() if p.per_block}
    everything = record(0, "COMPLETE", 0.5, but=every)
    columns = tables.hyperparameter_columns([everything])
    assert [c.name for c in columns] == [p.name for p in parameters()]
    labels = [c.label for c in (*tables.OUTCOME, *columns)]
    assert len(set(labels)) == len(labels)
    assert all(p.doc in c.help for c, p in zip(columns, parameters(), strict=True))


def test_learning_curves_have_a_row_for_each_trial_epoch_and_metric() -> None:
    curves = tables.learning_curves([record(7, "COMPLETE", 0.5, 0.6), record(3, "FAIL", 0.1)])
    assert len(curves) == 9
    assert list(dict.fromkeys(curves["name"])) == ["trial 7", "trial 3"]
    accuracy = curves[(curves["trial"] == 7) & (curves["metric"] == "validation accuracy")]
    assert accuracy[["epoch", "value"]].to_numpy().tolist() == [[1, 0.5], [2, 0.6]]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_missing_in_the_curves(loss: float) -> None:
    trial = TrialRecord(0, "FAIL", None, {}, history([epoch(1, 0.1, loss)]))
    curves = tables.learning_curves([trial]).set_index("metric")
    assert curves["value"].isna().to_dict() == {
        "validation accuracy": False,
        "validation loss": True,
        "training loss": True,
    }


def test_the_best_so_far_counts_complete_trials_alone() -> None:
    trials = [
        record(3, "COMPLETE", 0.7),
        record(0, "PRUNED", 0.9),
        record(1, "COMPLETE", 0.5),
        record(2, "FAIL", 0.99),
        record(4, "COMPLETE", 0.6),
    ]
    progress = tables.best_so_far(trials)
    assert progress["trial"].tolist() == [0, 1, 3, 4]
    assert progress["best"].fillna(-1).tolist() == [-1, 0.5, 0.7, 0.7]


def test_failures_of_one_kind_are_together() -> None:
    trials = [
        record(5, "FAIL", error="\nout of memory\nhere"),
        record(2, "FAIL", error="out of memory\nthere"),
        record(3, "FAIL"),
        record(1, "COMPLETE", 0.5),
    ]
    found = {reason: [t.number for t in failed] for reason, failed in tables.failures(trials).items()}
    assert found == {"out of memory": [2, 5], "no cause was recorded": [3]}


def test_the_export_has_every_hyperparameter_under_its_full_name() -> None:
    trials = [record(1, "COMPLETE", 0.5, 0.25), record(0, "FAIL", error='a, "b"\nc')]
    read = pd.read_csv(io.StringIO(tables.export(trials)))
    assert read["number"].tolist() == [1, 0]
    assert read["epochs"].tolist() == [2, 0]
    assert read["error"][1] == 'a, "b"\nc'
    assert set(flatten(TrialConfig())) <= set(read.columns)
    assert read["model.filters.2"].tolist() == [64, 64]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (4.24, "4.2 s"), (59.99, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


# ---- charts ----


def test_the_curves_of_a_trial_have_the_same_colour_in_both_charts() -> None:
    curves = tables.learning_curves([record(7, "COMPLETE", 0.5, 0.6), record(3, "PRUNED", 0.1)])
    accuracy, losses = charts.metric_by_epoch(curves).to_dict(), charts.losses_by_epoch(curves).to_dict()
    colours = [layer["encoding"]["color"] for layer in accuracy["layer"] + losses["layer"]]
    assert colours[0]["scale"]["domain"] == ["trial 7", "trial 3"]
    assert colours[1:] == colours[:-1]
    (rows,) = losses["datasets"].values()
    assert {row["metric"] for row in rows} == {"training loss", "validation loss"}


def test_the_progress_chart_has_points_and_the_line_of_the_best() -> None:
    progress = tables.best_so_far([record(0, "COMPLETE", 0.5), record(1, "PRUNED", 0.7)])
    line, points = charts.best_by_trial(progress).to_dict()["layer"]
    assert line["encoding"]["y"]["field"] == "best"
    assert points["encoding"]["color"]["scale"]["domain"] == ["COMPLETE", "PRUNED"]


def test_warming_up_reads_the_newest_sweep_and_leaves_errors_to_the_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(records, "ranking_table", lambda sweep: read.append(sweep.name))
    experiments = Experiments(tmp_path / "experiments")
    records.warm_up(experiments)
    for name in ("older", "newer"):
        config = make_config({"name": name, "data": "digits", "trials": 1})
        Studies(experiments, create=True).create(config, ["a", "b"])
    records.warm_up(experiments)
    assert read == ["newer"]
    broken = Experiments(tmp_path / "broken")
    broken.folder.mkdir()
    (broken.folder / "studies.db").write_bytes(b"not a database" * 100)
    records.warm_up(broken)
    assert read == ["newer"]
