"""The page of a trial, in every state that a trial can have. `python -m pytest tests/test_dashboard_trial.py -q`."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import streamlit as st
import torch
from streamlit.testing.v1 import AppTest

from cluster.config import SweepConfig
from cluster.experiments import Experiments
from cluster.record import SweepRecord
from cluster.studies import Studies
from dashboard import analyses
from dashboard.views.trial import TABS
from tests.dashboard_studies import config, dashboard_on, move_weights, run, run_trial, texts
from trainer.checkpoint import Checkpoint
from trainer.data import ImageData
from trainer.hyperparameters import unflatten
from trainer.loop import create_model
from trainer.metrics import EpochMetrics

LOG = "node-3:/tmp/ray/session_1/logs/worker-7.err"
ERROR = 'RuntimeError: out of *memory*\n\nTraceback (most recent call last):\n  File "loop.py", line 7'
SPACE = {
    "model.blocks": [1, 2],
    "model.filters": 4,
    "model.kernel_size": 3,
    "model.dense_units": 0,
    "optimizer.learning_rate": {"low": 0.001, "high": 0.01, "log": True},
}
WHOLE, GONE, PRUNED, FAILED, RUNNING, WAITING, FOREIGN = range(7)


def wanted(name: str, cache: Path, **more: Any) -> SweepConfig:
    return config(name, **{"preset": "none", "space": SPACE, "cache": str(cache)} | more)


def save_weights(experiments: Experiments, sweep: SweepRecord, number: int, digits: ImageData, epoch: int = 2) -> None:
    torch.manual_seed(0)
    trial = unflatten(sweep.trial(number).config)
    weights = create_model(trial, digits, torch.device("cpu")).state_dict()
    experiments.checkpoints(sweep.name).save(number, Checkpoint(weights, trial, epoch, 0.9))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, digits: ImageData, cache: Path) -> Path:
    """A folder with the sweeps 'kinds', which runs and has a trial in each state, 'empty', and 'old', without a shape."""
    experiments = Experiments(tmp_path_factory.mktemp("made") / "experiments")
    studies = Studies(experiments, create=True)
    kinds = wanted("kinds", cache)
    study = studies.create(kinds, digits.classes, digits.image_shape)
    study.begin_run(kinds, groups=1)
    run_trial(study, kinds, 0.7, 0.9)
    run_trial(study, kinds, 0.8, 0.85)
    run_trial(study, kinds, 0.2, end="prune")
    failed = study.ask()
    failed.begin(parameters=1000, group="group", group_began=1.0)
    failed.report(EpochMetrics(1, 0.5, float("nan"), 0.1, 0.001, 900.0, 0.1), train_seconds=0.1)
    failed.fail(ERROR, LOG)
    run_trial(study, kinds, 0.5, end="")
    study.ask().wait()
    foreign = optuna.load_study(study_name="kinds", storage=experiments.database)
    foreign.add_trial(optuna.trial.create_trial(value=0.3))
    study.write_note("A *good* one ![](https://elsewhere.example/seen.png)", WHOLE)
    save_weights(experiments, study.read(), WHOLE, digits)
    studies.create(wanted("empty", cache), digits.classes, digits.image_shape)
    old = studies.create(wanted("old", cache), digits.classes)
    old.begin_run(kinds, groups=1)
    run_trial(old, kinds, 0.7)
    old.end_run("FINISHED")
    studies.close()
    return experiments.folder


@pytest.fixture
def experiments(made: Path, tmp_path: Path) -> Experiments:
    return Experiments(shutil.copytree(made, tmp_path / "experiments"))


@pytest.fixture
def page(experiments: Experiments, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    monkeypatch.delenv("CONVSWEEP_DATA", raising=False)
    yield dashboard_on(experiments.folder, "trial", monkeypatch)
    st.cache_resource.clear()


def show(page: AppTest, trial: int, part: str = "Overview", sweep: str = "kinds") -> AppTest:
    return run(page, sweep=sweep, trial=str(trial), part=part)


def facts(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


def captions(page: AppTest) -> list[str]:
    """Those of the pictures."""
    return [picture.caption for picture in images(page)]


def images(page: AppTest) -> list[Any]:
    return [picture for element in page.get("image") for picture in element.proto.imgs]


def chart(page: AppTest, i: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.get("vega_lite_chart")[i].proto.spec)
    return found


def analysed(page: AppTest, trial: int, part: str) -> AppTest:
    """The part of the page, once the button is pressed."""
    page = show(page, trial, part)
    page.button(key="analyse").click().run()
    assert not page.exception, page.exception
    return page


# ---- every state ----


def test_a_trial_says_what_it_is_and_how_it_went(page: AppTest) -> None:
    show(page, WHOLE)
    assert page.title[0].value == "Trial 0"
    assert facts(page) == {
        "Accuracy": "0.9000",
        "Gain": "–",
        "Parameters": "1,000",
        "Epochs": "2 of 2",
        "Train time": "0.2 s",
        "Images/s": "1,500",
    }
    assert "worker group" in page.caption[0].value
    assert [element.proto.alt for element in page.get("vega_lite_chart")] == [
        "Loss per image by epoch",
        "Learning rate by epoch",
        "Validation accuracy by epoch",
        "Images per second by epoch",
    ]


def test_a_note_on_the_trial_loads_nothing_from_elsewhere(page: AppTest) -> None:
    notes = [m.value for m in show(page, WHOLE).markdown if "good" in m.value]
    assert len(notes) == 1
    assert "![" not in notes[0]
    assert "good" not in texts(show(page, GONE))


@pytest.mark.parametrize("part", TABS)
@pytest.mark.parametrize("trial", [WHOLE, GONE, PRUNED, FAILED, RUNNING, WAITING, FOREIGN])
def test_every_part_of_every_trial_is_shown_or_said(page: AppTest, trial: int, part: str) -> None:
    show(page, trial, part)
    assert [tab.label for tab in page.tabs] == list(TABS)
    empty = [tab.label for tab in page.tabs if not len(tab.children)]
    assert empty == [label for label in TABS if label != part]  # the others are not computed
    assert not page.error or trial == FAILED


def test_a_pruned_trial_says_when_it_was_stopped(page: AppTest) -> None:
    assert "stopped this trial after epoch 1 of 2" in show(page, PRUNED).info[0].value
    assert "The search stopped this trial" in show(page, PRUNED, "Kernels").info[0].value


def test_a_failed_trial_shows_its_error_in_full_and_the_file_of_its_log(page: AppTest) -> None:
    assert [code.value for code in show(page, FAILED).code] == [ERROR, LOG]
    assert len(page.get("vega_lite_chart")) == 4


def test_a_running_trial_shows_how_far_it_is(page: AppTest) -> None:
    show(page, RUNNING)
    assert page.get("progress")[0].proto.text == "1 of 2 epochs"
    assert facts(page)["Accuracy"] == "0.5000"


def test_a_waiting_trial_has_no_curves_yet(page: AppTest) -> None:
    show(page, WAITING)
    assert "No epoch of this trial has ended" in page.info[0].value
    assert facts(page)["Accuracy"] == "–"
    assert "has not begun" in show(page, WAITING, "Mistakes").info[0].value


def test_a_trial_of_another_program_has_no_configuration_and_no_network(page: AppTest) -> None:
    assert "no configuration" in show(page, FOREIGN, "Configuration").info[0].value
    assert "no configuration" in show(page, FOREIGN, "Network").info[0].value


def test_weights_that_are_gone_are_said_to_be(page: AppTest) -> None:
    for part in ("Classes", "Mistakes", "Attention", "Kernels"):
        assert "were not kept, or they are gone" in show(page, GONE, part).info[0].value
        assert not page.button


def test_a_sweep_without_trials_says_so(page: AppTest) -> None:
    assert run(page, sweep="empty").info[0].value == "The sweep has no trials yet."


# ---- the choice of the trial ----


def test_the_trial_in_the_address_is_shown_and_another_choice_changes_it(page: AppTest) -> None:
    show(page, PRUNED)
    assert page.title[0].value == "Trial 2"
    page.selectbox(key="trial: box").select(WHOLE).run()
    assert page.title[0].value == "Trial 0"
    assert page.query_params["trial"] == "0"


def test_the_best_trial_is_shown_when_the_address_has_none_or_one_that_is_not_there(page: AppTest) -> None:
    assert run(page, sweep="kinds").title[0].value == "Trial 0"
    assert show(page, 99).title[0].value == "Trial 0"
    assert run(page, trial="none").title[0].value == "Trial 0"


def test_a_trial_stays_chosen_when_its_state_changes(page: AppTest, experiments: Experiments) -> None:
    show(page, RUNNING)
    study = optuna.load_study(study_name="kinds", storage=experiments.database)
    study.tell(RUNNING, 0.99)
    run(page)
    assert page.title[0].value == "Trial 4"
    assert page.selectbox(key="trial: box").options[0] == "trial 4 · 0.9900 · COMPLETE"
    assert page.query_params["trial"] == "4"


def test_another_page_chooses_the_trial_in_the_session(page: AppTest) -> None:
    show(page, WHOLE)
    page.session_state["trial"] = GONE
    page.run()
    assert page.title[0].value == "Trial 1"
    assert page.query_params["trial"] == "1"


# ---- configuration and network ----


def test_the_configuration_says_what_each_value_means_and_what_differs(page: AppTest) -> None:
    show(page, WHOLE, "Configuration")
    rows = page.dataframe[0].value.set_index("hyperparameter")
    assert rows.loc["kernel size", "meaning"] == "width and height of the kernels, pixels"
    assert rows.loc["filters", "value"] in ("4", "4-4")
    assert rows.loc["filters", "default"] in ("32", "32-64")
    assert page.code[0].value.startswith("convsweep train --data digits --set ")
    assert "--set model.filters.1=4" in page.code[0].value
    page.toggle[0].set_value(True).run()
    fewer = page.dataframe[0].value.set_index("hyperparameter")
    assert "filters" in fewer.index
    assert "padding" in rows.index
    assert "padding" not in fewer.index


def test_the_network_is_drawn_and_listed_without_weights(page: AppTest) -> None:
    show(page, GONE, "Network")
    table = page.dataframe[0].value
    assert table["layer"].iloc[0] == "input"
    assert table["layer"].iloc[-1] == "classifier"
    assert table["output"].iloc[0] == "1×8×8"
    assert table["parameters"].sum() > 0
    assert images(page)[0].url.startswith("data:image/svg+xml")
    assert page.get("download_button")


def test_an_old_record_without_the_images_shape_says_that_the_network_cannot_be_drawn(page: AppTest) -> None:
    assert "does not say how large its images are" in show(page, 0, "Network", sweep="old").info[0].value


# ---- the analysis ----


def test_an_analysis_is_computed_on_demand_and_kept_with_the_trial(page: AppTest, experiments: Experiments) -> None:
    store = experiments.checkpoints("kinds")
    assert store.load_analysis(WHOLE) is None
    analysed(page, WHOLE, "Classes")
    assert store.load_analysis(WHOLE) is not None
    assert "144 images of the validation split" in page.caption[1].value
    assert not page.button
    show(page, WHOLE, "Classes")
    assert not page.button
    assert len(page.dataframe[0].value) == 10
    assert {"precision", "recall", "F1"} < set(page.dataframe[0].value.columns)
    assert chart(page, 0)["layer"][0]["encoding"]["x"]["scale"]["domain"] == list("0123456789")


def test_mistakes_are_pictures_with_what_they_were_taken_for(page: AppTest) -> None:
    analysed(page, WHOLE, "Mistakes")
    found = captions(page)
    assert len(found) == 24
    assert all(" taken for " in caption for caption in found)


def test_heat_maps_are_made_of_the_picture_that_is_chosen(page: AppTest) -> None:
    analysed(page, WHOLE, "Attention")
    assert len(captions(page)) == 3
    first = captions(page)
    page.session_state["pictures: mistakes"] = {"selection": {"rows": [5]}}
    page.run()
    assert len(captions(page)) == 3
    assert captions(page) != first
    page.segmented_control(key="pictures").set_value("samples").run()
    assert captions(page)[0] == "it is 0"


def test_of_a_network_without_convolutions_the_page_says_that_it_has_none(
    page: AppTest, experiments: Experiments, digits: ImageData
) -> None:
    trial = unflatten({"model.family": "rnn", "model.units": 4})
    weights = create_model(trial, digits, torch.device("cpu")).state_dict()
    experiments.checkpoints("kinds").save(WHOLE, Checkpoint(weights, trial, 2, 0.9))
    analysed(page, WHOLE, "Attention")
    assert "this network has no convolutions" in page.info[0].value
    assert len(captions(page)) == 1
    assert len(page.get("vega_lite_chart")) == 1
    show(page, WHOLE, "Kernels")
    assert "there are no kernels to show" in page.info[0].value


def test_kernels_are_shown_without_an_analysis_and_their_answers_with_one(page: AppTest) -> None:
    show(page, WHOLE, "Kernels")
    assert "**4 kernels of 3×3**" in texts(page)
    assert len(images(page)) == 1
    page.button(key="analyse").click().run()
    assert len(images(page)) == 3
    before = images(page)[2].url
    box = page.selectbox(key="kernels: picture")
    box.select(box.options[-1]).run()
    assert images(page)[2].url != before


def test_weights_are_found_where_the_sweep_has_put_them(
    page: AppTest, experiments: Experiments, tmp_path: Path
) -> None:
    move_weights(experiments, "kinds", tmp_path / "elsewhere")
    show(page, WHOLE, "Kernels")
    assert "**4 kernels of 3×3**" in texts(page)
    page.button(key="analyse").click().run()
    assert len(images(page)) == 3
    assert [file.suffix for file in (tmp_path / "elsewhere").rglob("trial-*")].count(".npz") == 1


@pytest.mark.parametrize(("data", "part"), [("mnist", "Classes"), ("pictures", "Mistakes")])
def test_where_the_images_are_missing_nothing_is_downloaded_but_said_what_to_do(
    page: AppTest, experiments: Experiments, digits: ImageData, tmp_path: Path, data: str, part: str
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    missing = wanted(data, tmp_path / "nothing", data=data if data == "mnist" else str(folder))
    studies = Studies(experiments)
    study = studies.create(missing, digits.classes, digits.image_shape)
    study.begin_run(missing, groups=1)
    run_trial(study, missing, 0.5)
    study.end_run("FINISHED")
    save_weights(experiments, study.read(), 0, digits)
    studies.close()
    folder.rmdir()
    said = show(page, 0, part, sweep=data).info[0].value
    assert "not on this machine" in said
    assert "MNIST" in said or "pictures" in said
    assert ("CONVSWEEP" in said) == (data == "mnist")
    assert not page.button
    assert not (tmp_path / "nothing").exists()


def test_images_that_were_moved_are_found_where_the_environment_says(
    experiments: Experiments, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_record(experiments)
    moved = SweepRecord(
        **vars(sweep) | {"config": wanted("moved", tmp_path, data="mnist", data_root=str(tmp_path / "was"))}
    )
    monkeypatch.delenv("CONVSWEEP_DATA", raising=False)
    assert "MNIST/raw" in str(analyses.missing_data(moved))
    (tmp_path / "is" / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "is" / "MNIST" / "raw" / "train-images-idx3-ubyte").touch()
    monkeypatch.setenv("CONVSWEEP_DATA", str(tmp_path / "is"))
    assert analyses.missing_data(moved) is None
    assert analyses.data_config(moved).root == str(tmp_path / "is")


def test_one_trial_is_analysed_at_a_time(
    page: AppTest, experiments: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()

    def slowly(*_: Any) -> None:
        began.set()
        assert go_on.wait(60)

    monkeypatch.setattr(analyses, "_analyse", slowly)
    sweep = sweep_record(experiments)
    first = threading.Thread(target=analyses.analyse_trial, args=(experiments, sweep, sweep.trial(WHOLE), print))
    first.start()
    try:
        assert began.wait(60)
        assert "Another trial is being analysed" in analysed(page, WHOLE, "Classes").info[-1].value
    finally:
        go_on.set()
        first.join()


def test_weights_that_a_running_trial_replaced_meanwhile_keep_no_analysis(
    experiments: Experiments, digits: ImageData
) -> None:
    sweep = sweep_record(experiments)

    def replace(what: str, share: float) -> None:
        if share == 1.0 and what.startswith("Classifying"):
            save_weights(experiments, sweep, WHOLE, digits, epoch=3)

    with pytest.raises(ValueError, match="other weights meanwhile"):
        analyses.analyse_trial(experiments, sweep, sweep.trial(WHOLE), replace)
    assert experiments.checkpoints("kinds").load_analysis(WHOLE) is None


def test_a_damaged_analysis_is_said_and_computed_again(page: AppTest, experiments: Experiments) -> None:
    experiments.checkpoints("kinds").save_analysis(WHOLE, b"no analysis")
    assert "compute it again" in show(page, WHOLE, "Classes").warning[0].value
    page.button(key="analyse").click().run()
    assert "144 images of the validation split" in page.caption[1].value


@pytest.mark.parametrize("part", ["Kernels", "Classes", "Attention"])
def test_damaged_weights_are_one_sentence(page: AppTest, experiments: Experiments, part: str) -> None:
    if part == "Attention":
        analysed(page, WHOLE, "Mistakes")
    file = experiments.folder / "kinds" / "checkpoints" / "trial-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    show(page, WHOLE, part)
    if part == "Classes":
        page.button(key="analyse").click().run()
        assert not page.exception
    assert "damaged" in page.info[-1].value


def sweep_record(experiments: Experiments) -> SweepRecord:
    studies = Studies(experiments)
    try:
        return studies.read("kinds")
    finally:
        studies.close()
