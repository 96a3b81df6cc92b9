"""A bundle as it is written and read: `python -m pytest tests/test_bundle.py`."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.written_bundles import CPU, write
from trainer import bundle_writing, graphs
from trainer.bundle import FILES, SAMPLES, Bundle
from trainer.bundle_writing import VERIFIED_IMAGES, Written
from trainer.data import ImageData
from trainer.hyperparameters import unflatten
from trainer.images import to_image
from trainer.loop import create_model
from trainer.model import Classifier
from trainer.predicting import predict

Whole = tuple[Path, Classifier, Written]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Whole:
    folder = tmp_path_factory.mktemp("bundles") / "digits"
    return folder, *write(folder, digits, samples=12)


# ---- what is written ----


def test_a_bundle_has_all_its_files_and_they_agree(whole: Whole, digits: ImageData) -> None:
    folder, _, written = whole
    assert {p.name for p in folder.iterdir()} == {*FILES, SAMPLES}
    assert tuple(json.loads((folder / "classes.json").read_text())) == digits.classes
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["max_difference"] == written.max_difference <= 1e-4
    assert digits.test is not None
    assert np.sum(metrics["test"]["confusion"]) == len(digits.test)
    settings = json.loads((folder / "config.json").read_text())
    assert settings["image"] == {"channels": 1, "height": 8, "width": 8}
    assert unflatten(settings["hyperparameters"]) == unflatten({})


def test_what_was_written_is_verified_and_measured_file_by_file(whole: Whole) -> None:
    folder, _, _ = whole
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["verification"]) == {"model.onnx", "model.pt2", "weights.safetensors"}
    for found in metrics["verification"].values():
        assert found["images"] == VERIFIED_IMAGES
        assert found["label_agreement"] == 1
        assert found["max_difference"] <= 1e-4
    assert set(metrics["latency_milliseconds"]) == {"model.onnx", "model.pt2"}
    for of_batch in metrics["latency_milliseconds"].values():
        assert all(0 < of_batch[n]["median"] <= of_batch[n]["p95"] for n in ("1", "64"))
    assert metrics["bytes"] == {name: (folder / name).stat().st_size for name in metrics["verification"]}


def test_the_checksums_are_those_that_sha256sum_checks(whole: Whole) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed: GNU coreutils has it.")
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=whole[0], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    checked = {line.partition(":")[0] for line in done.stdout.splitlines()}
    assert checked == {*FILES} - {"README.md", "SHA256SUMS"}


def test_no_file_says_where_it_was_written(whole: Whole) -> None:
    here = str(Path(__file__).parents[1]).encode()
    for path in whole[0].iterdir():
        if path.suffix == ".pt2":
            shutil.unpack_archive(path, whole[0].parent / "unpacked", "zip")
            assert not any(here in p.read_bytes() for p in (whole[0].parent / "unpacked").rglob("*") if p.is_file())
        elif path.is_file():
            assert here not in path.read_bytes(), path.name


def test_the_verified_images_are_of_every_class_and_of_another_split_where_the_first_has_too_few(
    digits: ImageData,
) -> None:
    assert digits.test is not None
    by_class = np.argsort(digits.test.labels, kind="stable")
    sorted_split = dataclasses.replace(digits.test, rows=by_class)
    spread = bundle_writing._some_images([sorted_split], 20)
    labels = [digits.test.labels[(digits.test.images == image).all((1, 2, 3))][0] for image in spread]
    assert set(labels) == set(range(10))
    few = dataclasses.replace(digits.test, rows=digits.test.rows[:5])
    assert len(bundle_writing._some_images([few, digits.validation], 30)) == 30
    assert len(bundle_writing._some_images([few], 30)) == 5


def test_samples_are_one_of_each_class_in_turn_named_by_their_label(whole: Whole) -> None:
    pictures = sorted((whole[0] / "samples").iterdir(), key=lambda p: int(p.stem.split("-")[0]))
    assert [path.stem.split("-")[1] for path in pictures] == [*map(str, range(10)), "0", "1"]


def test_a_graph_that_disagrees_is_refused_and_leaves_what_was_there(
    tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    write(folder, digits)
    before = (folder / "metrics.json").read_text()
    write_graphs = graphs.write_graphs

    def write_others(live: graphs.Probabilities, *where: Any) -> None:
        other = create_model(unflatten({"training.seed": 9}), digits, CPU).eval()
        write_graphs(graphs.Probabilities(other.to(memory_format=torch.contiguous_format)), *where)

    monkeypatch.setattr(graphs, "write_graphs", write_others)
    with pytest.raises(RuntimeError, match=r"model\.onnx disagrees with the model on 256 images"):
        write(folder, digits)
    assert (folder / "metrics.json").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_file_that_cannot_be_run_is_told_of(
    tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_graphs = graphs.write_graphs

    def break_it(live: graphs.Probabilities, shape: tuple[int, int, int], torch_path: Path, onnx_path: Path) -> None:
        write_graphs(live, shape, torch_path, onnx_path)
        onnx_path.write_bytes(b"nothing")

    monkeypatch.setattr(graphs, "write_graphs", break_it)
    with pytest.raises(
        RuntimeError, match=r"process that verifies it ended with status 1 at model\.onnx: .*onnxruntime"
    ):
        write(tmp_path / "bundle", digits)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_no_bundle_is_not_overwritten(tmp_path: Path, digits: ImageData) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="exists and is no bundle"):
        write(tmp_path, digits)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_folder_with_a_configuration_of_something_else_is_not_overwritten(tmp_path: Path, digits: ImageData) -> None:
    (tmp_path / "config.json").write_text('{"my": 1}')
    with pytest.raises(ValueError, match="exists and is no bundle"):
        write(tmp_path, digits)
    assert (tmp_path / "config.json").read_text() == '{"my": 1}'


def test_what_somebody_put_beside_a_bundle_is_not_lost(whole: Whole, tmp_path: Path, digits: ImageData) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(whole[0], folder)
    write(folder, digits)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds 'thesis\.txt' besides a bundle"):
        write(folder, digits)
    assert (folder / "thesis.txt").read_text() == "years of work"


# ---- what is read ----


def test_an_image_file_is_predicted_like_its_pixels(whole: Whole, digits: ImageData) -> None:
    folder, model, _ = whole
    assert digits.test is not None
    loaded = Bundle(folder)
    path = folder.parent / "one.png"
    to_image(digits.test.images[5]).save(path)
    (prediction,) = predict(loaded, [path], top=10)
    with torch.inference_mode():
        expected = model(torch.from_numpy(digits.test.images[5:6])).softmax(1)[0].numpy()
    assert prediction.path == str(path)
    assert sum(p for _, p in prediction.top) == pytest.approx(1, abs=1e-4)
    assert prediction.top[0] == (digits.classes[expected.argmax()], pytest.approx(float(expected.max()), abs=1e-5))


def test_reading_and_predicting_import_neither_torch_nor_ray_and_need_no_experiments(whole: Whole) -> None:
    folder, _, _ = whole
    code = (
        "import sys; from pathlib import Path; from trainer.bundle import Bundle; from trainer.predicting import predict; "
        f"list(predict(Bundle(Path({str(folder)!r})), sorted(Path({str(folder / 'samples')!r}).iterdir()))); "
        "assert not {'torch', 'ray', 'optuna', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_bundle_goes_to_another_process_whole(whole: Whole, digits: ImageData) -> None:
    loaded = Bundle(whole[0], threads=1)
    again = pickle.loads(pickle.dumps(loaded))
    assert digits.test is not None
    images = np.array(digits.test.images[:5])
    np.testing.assert_array_equal(again.probabilities(images), loaded.probabilities(images))
    assert (again.classes, again.image_shape) == (loaded.classes, loaded.image_shape)


def test_another_user_runs_a_bundle_in_another_place(whole: Whole) -> None:
    if os.geteuid() != 0:
        pytest.skip("Only root can become another user.")
    place = Path("/tmp") / f"convsweep-test-{os.getpid()}"
    shutil.copytree(whole[0], place)
    try:
        for path in [place, *place.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        code = (
            "import os; from pathlib import Path; from trainer.bundle import Bundle\n"
            "from trainer.predicting import predict\n"
            "def classify(folder): return next(predict(Bundle(folder), [folder / 'samples' / '0-0.png'])).top[0][0]\n"
            f"classify(Path({str(whole[0])!r}))\n"  # imports everything: the packages may be where only root can read
            "os.setgid(65534); os.setuid(65534); os.environ['HOME'] = '/nonexistent'\n"
            f"print(classify(Path({str(place)!r})))"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (expected,) = predict(Bundle(whole[0]), [whole[0] / "samples" / "0-0.png"])
        assert done.stdout.strip() == expected.top[0][0]
    finally:
        shutil.rmtree(place)


def test_a_precision_that_was_not_exported_is_answered_with_how_to_have_it(whole: Whole) -> None:
    with pytest.raises(ValueError, match=r"has no model\.int8\.onnx, only fp32: `convsweep export --int8` writes it"):
        Bundle(whole[0], "int8")
    with pytest.raises(ValueError, match="A precision is one of fp32, fp16, int8, but got 'int4'"):
        Bundle(whole[0], "int4")
