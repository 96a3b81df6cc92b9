"""The graphs of fewer bits, and what they cost: `python -m pytest tests/test_smaller_graphs.py`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.written_bundles import CPU, ORIGIN
from trainer import bundle_writing
from trainer.batches import ImageTensors
from trainer.bundle import GRAPHS, Bundle
from trainer.bundle_writing import Smaller, Written, write_bundle
from trainer.data import ImageData, Split
from trainer.hyperparameters import TrialConfig, unflatten
from trainer.loop import create_model, predict_split, train
from trainer.model import Classifier

CONFIG = unflatten({"training.epochs": 8, "model.filters": 16})
BOTH = Smaller(("int8", "fp16"))


@pytest.fixture(scope="module")
def trained(digits: ImageData) -> tuple[Classifier, TrialConfig]:
    model = create_model(CONFIG, digits, CPU)
    for _ in train(model, CONFIG, ImageTensors.of(digits.train, CPU), ImageTensors.of(digits.validation, CPU)):
        pass
    return model.eval(), CONFIG


def write(folder: Path, trained: tuple[Classifier, TrialConfig], data: ImageData, smaller: Smaller) -> Written:
    model, config = trained
    evaluations = {"validation": predict_split(model, ImageTensors.of(data.validation, CPU))}
    return write_bundle(folder, model, config, data, evaluations, ORIGIN, smaller=smaller)


@pytest.fixture(scope="module")
def whole(
    trained: tuple[Classifier, TrialConfig], tmp_path_factory: pytest.TempPathFactory, digits: ImageData
) -> tuple[Path, Written]:
    folder = tmp_path_factory.mktemp("bundles") / "smaller"
    return folder, write(folder, trained, digits, BOTH)


def accuracy(bundle: Bundle, split: Split) -> float:
    predicted = bundle.probabilities(np.array(split.images[split.rows])).argmax(1)
    return float((predicted == split.labels[split.rows]).mean())


@pytest.mark.parametrize("precision", BOTH.precisions)
def test_its_accuracy_on_the_validation_split_is_what_the_card_says(
    whole: tuple[Path, Written], digits: ImageData, precision: str
) -> None:
    folder, written = whole
    found = written.smaller[precision]
    assert found.accuracy == pytest.approx(accuracy(Bundle(folder, precision), digits.validation))
    assert found.exact == pytest.approx(accuracy(Bundle(folder), digits.validation))
    assert found.exact > 0.9
    assert found.drop <= 0.01
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["precisions"][precision] == {"validation_accuracy": found.accuracy, "drop": found.drop}
    assert f"`{GRAPHS[precision]}` has an accuracy of {found.accuracy:.4f}" in (folder / "README.md").read_text()


def test_its_weights_have_the_bits_that_its_name_says(whole: tuple[Path, Written]) -> None:
    folder, _ = whole
    kinds = {precision: weights(folder / GRAPHS[precision]) for precision in GRAPHS}
    assert kinds["fp32"] == {onnx.TensorProto.FLOAT}
    assert kinds["fp16"] == {onnx.TensorProto.FLOAT16}
    assert onnx.TensorProto.INT8 in kinds["int8"]
    assert onnx.TensorProto.FLOAT not in kinds["int8"]


def weights(path: Path) -> set[int]:
    """The types of the tensors with more than 500 values."""
    return {tensor.data_type for tensor in onnx.load(path).graph.initializer if np.prod(tensor.dims) > 500}


def test_what_costs_too_much_is_refused_with_the_figures_and_nothing_is_written(
    trained: tuple[Classifier, TrialConfig], tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_images = bundle_writing._some_images

    def only_white(splits: list[Split], count: int) -> np.ndarray:
        images = some_images(splits, count)
        return np.full_like(images, 255) if splits == [digits.train] else images

    monkeypatch.setattr(bundle_writing, "_some_images", only_white)  # ranges that fit no digit
    sentence = r"int8 costs too much: its accuracy on 144 validation images is 0\.\d+, 0\.\d+ below that of float32, and 0\.01 is"
    with pytest.raises(RuntimeError, match=sentence):
        write(tmp_path / "bundle", trained, digits, Smaller(("int8",)))
    assert not any(tmp_path.iterdir())


def test_a_drop_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_drop is a share of the images, 0 to 1, but got -1"):
        Smaller(("int8",), -1)


def test_another_export_without_them_leaves_none(
    whole: tuple[Path, Written], trained: tuple[Classifier, TrialConfig], tmp_path: Path, digits: ImageData
) -> None:
    write(tmp_path / "bundle", trained, digits, Smaller(("fp16",)))
    write(tmp_path / "bundle", trained, digits, Smaller())
    assert not (tmp_path / "bundle" / GRAPHS["fp16"]).exists()
    assert GRAPHS["fp16"] not in (tmp_path / "bundle" / "SHA256SUMS").read_text()
