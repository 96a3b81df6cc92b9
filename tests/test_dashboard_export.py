"""The page that exports a trial and tries it. `python -m pytest tests/test_dashboard_export.py -q`."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamlit as st
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest

from cluster.experiments import Experiments
from cluster.record import SweepRecord
from cluster.studies import Studies
from dashboard import bundles
from dashboard.bundles import EXPORTER, Exporter
from tests.dashboard_studies import config, dashboard_on, move_weights, run, run_trial, texts
from trainer import named_data
from trainer.bundle import Bundle
from trainer.checkpoint import Checkpoint
from trainer.data import DataConfig, ImageData, needs_download
from trainer.hyperparameters import TrialConfig
from trainer.loop import create_model

CLASSES = [str(digit) for digit in range(10)]
WAIT_SECONDS = 300


def record(folder: Path, name: str = "d") -> SweepRecord:
    studies = Studies(Experiments(folder))
    sweep = studies.read(name)
    studies.close()
    return sweep


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, cache: Path, digits: ImageData) -> Path:
    """An experiments folder with the sweep 'd', of which trial 1 is the best and has its weights and a bundle; 'untried' is new."""
    folder = tmp_path_factory.mktemp("exported") / "experiments"
    where = Experiments(folder)
    studies = Studies(where, create=True)
    wanted = config("d", preset="none", cache=str(cache))
    study = studies.create(wanted, CLASSES, digits.image_shape)
    study.begin_run(wanted, groups=1)
    run_trial(study, wanted, 0.7, 0.8)
    run_trial(study, wanted, 0.9, 0.95)
    run_trial(study, wanted, end="fail", error="RuntimeError: out of memory")
    study.end_run("FINISHED")
    studies.create(config("untried", preset="none"), CLASSES)
    studies.close()
    trial = TrialConfig()
    weights = create_model(trial, digits, torch.device("cpu")).state_dict()
    where.checkpoints("d").save(1, Checkpoint(weights, trial, 2, 0.95))
    sweep = record(folder)
    EXPORTER.start(where, sweep, sweep.trial(1))
    assert wait(EXPORTER) is None
    return folder


@pytest.fixture
def experiments(exported: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return shutil.copytree(exported, tmp_path / "experiments")


@pytest.fixture
def page(experiments: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppTest]:
    yield dashboard_on(experiments, "export", monkeypatch)
    st.cache_resource.clear()


def wait(exporter: Exporter) -> str | None:
    """Wait for the export to be over, and return its error."""
    export = exporter.running or exporter._last
    assert export is not None
    assert export.over.wait(WAIT_SECONDS)
    return export.error


def bundle(experiments: Path) -> Path:
    return Experiments(experiments).bundle("d", 1)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def a_digit(digits: ImageData) -> bytes:
    assert digits.test is not None
    return encoded(Image.fromarray(digits.test.images[0][0]))


def charts(page: AppTest) -> list[Any]:
    return list(page.get("vega_lite_chart"))


def trial_box(page: AppTest) -> Any:
    return next(box for box in page.selectbox if box.label == "Trial")


def choose(page: AppTest, trial: int) -> None:
    trial_box(page).set_value(trial).run()
    assert not page.exception, page.exception


def export_button(page: AppTest) -> Any:
    return next(button for button in page.button if button.label.startswith("Export trial"))


# ---- what is missing ----


def test_a_sweep_without_trials_has_nothing_to_export(page: AppTest) -> None:
    run(page, sweep="untried")
    assert page.info[0].value == "The sweep has no trials yet: there is no model to export."
    assert not page.button


def test_the_best_trial_is_offered_first(page: AppTest) -> None:
    run(page, sweep="d")
    assert trial_box(page).value == 1
    assert export_button(page).label == "Export trial 1 again"
    assert not export_button(page).disabled


@pytest.mark.parametrize(("trial", "state"), [(0, "COMPLETE"), (2, "FAIL")])
def test_a_trial_whose_weights_were_not_kept_says_which_have_theirs(page: AppTest, trial: int, state: str) -> None:
    run(page, sweep="d")
    choose(page, trial)
    assert rf"The weights of trial {trial} \({state}\) were not kept" in page.warning[0].value
    assert r"that has its own\: 1\." in page.warning[0].value
    assert export_button(page).disabled


def test_where_all_weights_are_gone_the_bundle_is_still_there(page: AppTest, experiments: Path) -> None:
    shutil.rmtree(experiments / "d" / "checkpoints")
    run(page, sweep="d")
    assert r"No trial\'s weights are there" in page.warning[0].value
    assert export_button(page).disabled
    assert "Test accuracy" in [m.label for m in page.metric]


def test_images_that_are_not_here_are_not_downloaded(
    page: AppTest, experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONVSWEEP_DATA", raising=False)
    monkeypatch.setattr(named_data, "_construct", lambda *_, **__: pytest.fail("a download"))
    studies = Studies(Experiments(experiments))
    wanted = config("m", data="mnist", preset="none", cache=str(tmp_path / "cache"))
    study = studies.create(wanted, CLASSES, (1, 28, 28))
    study.begin_run(wanted, groups=1)
    run_trial(study, wanted, 0.9)
    study.end_run("FINISHED")
    studies.close()
    shutil.copytree(experiments / "d" / "checkpoints", experiments / "m" / "checkpoints")
    (experiments / "m" / "checkpoints" / "trial-00001.safetensors").rename(
        experiments / "m" / "checkpoints" / "trial-00000.safetensors"
    )
    run(page, sweep="m")
    assert "downloads nothing" in page.warning[0].value
    assert r"CONVSWEEP\_DATA" in page.warning[0].value
    assert export_button(page).disabled
    sweep = record(experiments, "m")
    EXPORTER.start(Experiments(experiments), sweep, sweep.trial(0))  # as when they vanish after a look at the page
    assert "downloads nothing" in str(wait(EXPORTER))


def test_a_named_data_set_needs_a_download_until_its_files_are_in_the_root_or_in_the_cache(tmp_path: Path) -> None:
    root, cache = tmp_path / "root", tmp_path / "cache"
    mnist = DataConfig(data="mnist", root=str(root), cache=str(cache))
    assert needs_download(mnist)
    assert not needs_download(DataConfig(data="digits", cache=str(cache)))
    assert not needs_download(DataConfig(data=str(tmp_path), cache=str(cache)))
    for place in (root, cache / "torchvision"):
        (place / "MNIST" / "raw").mkdir(parents=True)
        assert needs_download(mnist)
        (place / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"")
        assert needs_download(mnist) == (place != root)  # in the cache it is half a download
        (place / ".mnist-is-whole").touch()
        assert not needs_download(mnist)
        shutil.rmtree(place)


# ---- exporting ----


def test_the_button_exports_the_trial(page: AppTest, experiments: Path) -> None:
    shutil.rmtree(bundle(experiments))
    run(page, sweep="d")
    assert not page.metric
    export_button(page).click().run()
    assert wait(EXPORTER) is None
    assert {"Validation accuracy", "Test accuracy"} <= {m.label for m in run(page).metric}
    assert (bundle(experiments) / "model.pt2").is_file()
    assert EXPORTER._last is not None
    assert EXPORTER._last.steps[0] == "Loading PyTorch"
    assert EXPORTER._last.steps[-1] == "Writing the card"


def test_weights_are_found_where_the_sweep_has_put_them(page: AppTest, experiments: Path, tmp_path: Path) -> None:
    move_weights(Experiments(experiments), "d", tmp_path / "elsewhere")
    shutil.rmtree(bundle(experiments))
    run(page, sweep="d")
    export_button(page).click().run()
    assert wait(EXPORTER) is None
    assert Bundle(bundle(experiments)).classes == tuple(CLASSES)


def test_while_one_export_runs_its_steps_are_shown_and_no_other_begins(
    page: AppTest, experiments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slowly(export: bundles.Export, *_: object) -> None:
        export.begin("Reading the images")
        export.count("decoding", 3, 12)
        assert go_on.wait(WAIT_SECONDS)

    monkeypatch.setattr(bundles, "_export", slowly)
    try:
        run(page, sweep="d")
        export_button(page).click().run()
        assert page.status[0].label == "Exporting trial 1"
        assert [m.value for m in page.status[0].markdown] == ["Reading the images", "Decoding"]
        assert page.get("progress")[0].proto.text == "3 of 12"
        assert not [b for b in page.button if b.label.startswith("Export")]
        assert not page.metric  # the bundle is being replaced

        choose(page, 0)  # as another reader may
        assert r"Trial 1 of sweep d is being exported\; this one can be when it is done\." in page.info[0].value
        before = EXPORTER.running
        sweep = record(experiments)
        EXPORTER.start(Experiments(experiments), sweep, sweep.trial(0))
        assert EXPORTER.running is before
    finally:
        go_on.set()
    assert wait(EXPORTER) is None
    assert not run(page).status


def test_an_export_that_fails_is_one_sentence(page: AppTest, experiments: Path) -> None:
    shutil.rmtree(bundle(experiments))
    bundle(experiments).write_text("something else")
    run(page, sweep="d")
    export_button(page).click().run()
    assert "is a file: choose another folder" in str(wait(EXPORTER))
    assert "The export failed" in run(page).error[0].value
    assert bundle(experiments).read_text() == "something else"
    choose(page, 0)
    assert not page.error


def test_a_mistake_of_ours_is_one_sentence_and_logged(
    page: AppTest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("weights")

    monkeypatch.setattr(bundles, "_export", broken)
    run(page, sweep="d")
    export_button(page).click().run()
    assert "KeyError" in str(wait(EXPORTER))
    assert "The export failed" in run(page).error[0].value
    assert "The export of trial 1 of sweep d failed" in caplog.text


# ---- the bundle ----


def test_the_scores_and_the_card_are_shown(page: AppTest, experiments: Path) -> None:
    run(page, sweep="d")
    metrics = json.loads((bundle(experiments) / "metrics.json").read_text())
    shown = {m.label: m.value for m in page.metric}
    assert shown["Test accuracy"] == f"{metrics['test']['accuracy']:.4f}"
    assert "# A classifier for digits" in texts(page)


def test_the_zip_has_the_whole_bundle(experiments: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(bundles.zipped(bundle(experiments), "d-trial-1"))) as archive:
        archive.extractall(tmp_path / "unpacked")
    files = {f.relative_to(bundle(experiments)) for f in bundle(experiments).rglob("*") if f.is_file()}
    unpacked = tmp_path / "unpacked" / "d-trial-1"
    assert {f.relative_to(unpacked) for f in unpacked.rglob("*") if f.is_file()} == files
    assert Bundle(unpacked).classes == tuple(CLASSES)


def test_a_link_in_the_folder_is_not_followed_into_the_zip(experiments: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (bundle(experiments) / "link").symlink_to(tmp_path / "secret")
    with zipfile.ZipFile(io.BytesIO(bundles.zipped(bundle(experiments), "b"))) as archive:
        assert "b/link" not in archive.namelist()


def test_a_class_cannot_make_the_card_load_a_picture(page: AppTest, experiments: Path) -> None:
    card = bundle(experiments) / "README.md"
    card.write_text(card.read_text() + "\n![cat](http://example.org/spy.png) <img src=x>\n")
    run(page, sweep="d")
    (shown,) = [m for m in page.markdown if "A classifier for" in m.value]
    assert r"!\[cat]" in shown.value
    assert not shown.allow_html


@pytest.mark.parametrize("content", ["{", "[]", '{"test": {}, "latency_milliseconds": 3}'])
def test_a_damaged_bundle_is_one_sentence(page: AppTest, experiments: Path, content: str) -> None:
    (bundle(experiments) / "metrics.json").write_text(content)
    run(page, sweep="d")
    assert "cannot be read" in page.error[0].value
    assert export_button(page).label == "Export trial 1"


def test_a_damaged_model_is_one_sentence(page: AppTest, experiments: Path, digits: ImageData) -> None:
    (bundle(experiments) / "model.pt2").write_bytes(b"nothing")
    run(page, sweep="d")
    page.file_uploader[0].upload("digit.png", a_digit(digits), "image/png").run()
    assert not page.exception
    assert "is no whole bundle" in page.error[0].value


# ---- trying it ----


def test_an_uploaded_picture_is_classified_as_the_bundle_does_it(
    page: AppTest, experiments: Path, digits: ImageData
) -> None:
    before = sorted((experiments / "d").rglob("*"))
    run(page, sweep="d")
    page.file_uploader[0].upload("di*g_it.png", a_digit(digits), "image/png").run()
    assert not page.exception
    assert digits.test is not None
    probabilities = Bundle(bundle(experiments)).probabilities(digits.test.images[:1])[0]
    expected = f"**{CLASSES[probabilities.argmax()]}**, with probability {probabilities.max():.3f}"
    assert expected in [m.value for m in page.markdown]
    assert len(charts(page)) == 1
    assert sorted((experiments / "d").rglob("*")) == before  # nothing is kept


HOSTILE = {
    "text.png": b"not an image at all",
    "empty.png": b"",
    "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "truncated.png": encoded(Image.effect_noise((64, 64), 90))[:700],
    "bomb.png": encoded(Image.new("1", (8000, 8000))),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_what_is_no_image_is_one_sentence_and_the_others_are_shown(page: AppTest, digits: ImageData, name: str) -> None:
    run(page, sweep="d")
    files = [(name, HOSTILE[name], "image/png"), ("good.png", a_digit(digits), "image/png")]
    page.file_uploader[0].set_value(files).run()
    assert not page.exception
    assert [
        error.value.startswith(rf"\'{name.replace('.', chr(92) + '.')}\' cannot be read") for error in page.error
    ] == [True]
    assert len(charts(page)) == 1


def test_every_kind_of_picture_is_classified(page: AppTest) -> None:
    noise = Image.effect_noise((30, 20), 90)
    deep = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    turning = [noise.rotate(angle) for angle in (0, 90)]
    pictures = [
        ("tiny.png", encoded(Image.new("RGB", (1, 1)))),
        ("print.jpg", encoded(noise.convert("CMYK"), "JPEG")),
        ("deep.png", encoded(deep)),
        ("turning.gif", encoded(turning[0], "GIF", save_all=True, append_images=turning[1:])),
        ("clear.webp", encoded(noise.convert("RGBA"), "WEBP")),
        ("scan.tiff", encoded(noise, "TIFF")),
        ("old.bmp", encoded(noise, "BMP")),
    ]
    run(page, sweep="d")
    page.file_uploader[0].set_value([(name, content, "image/*") for name, content in pictures]).run()
    assert not page.exception
    assert not page.error
    assert len(charts(page)) == len(pictures)


def test_of_many_pictures_the_first_are_classified(page: AppTest, digits: ImageData) -> None:
    run(page, sweep="d")
    page.file_uploader[0].set_value([(f"{i}.png", a_digit(digits), "image/png") for i in range(14)]).run()
    assert len(charts(page)) == 12
    assert "Of 14 pictures the first 12 are classified." in texts(page)


def test_a_sample_of_the_bundle_is_classified_with_one_click(page: AppTest) -> None:
    run(page, sweep="d")
    pills = page.button_group[0]
    assert list(pills.options) == CLASSES
    pills.set_value(["3"]).run()
    assert not page.exception
    assert len(charts(page)) == 1


def test_samples_of_one_class_are_told_apart(tmp_path: Path) -> None:
    for number, name in enumerate(["cat", "a-dog", "cat"]):
        Image.new("L", (2, 2)).save(tmp_path / f"{number}-{name}.png")
    assert list(bundles._samples(tmp_path)) == ["cat", "a-dog", "cat (2)"]


def test_the_page_is_imported_without_torch() -> None:
    check = "import dashboard.views.export, sys; print([m for m in ('ray', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
