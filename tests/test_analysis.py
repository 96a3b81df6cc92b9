"""What a trial's pictures need: `python -m pytest tests/test_analysis.py`."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer import analysis as module
from trainer.analysis import Analysis, analyse, summarise
from trainer.batches import ImageTensors
from trainer.data import ImageData, Split
from trainer.evaluation import evaluate
from trainer.hyperparameters import ModelConfig
from trainer.loop import Evaluation, predict_split
from trainer.model import Classifier, build_model

ROOT = Path(__file__).resolve().parent.parent


def split_of(labels: list[int], side: int = 2) -> Split:
    """Image i has the value i everywhere; the split's images lie backwards in the array, after one that is another's."""
    images = np.arange(len(labels), dtype=np.uint8)[::-1, None, None, None] * np.ones((1, 3, side, side), np.uint8)
    images = np.concatenate([np.full_like(images[:1], 255), images])
    return Split(images, np.array([0, *labels[::-1]]), np.arange(len(labels), 0, -1))


def logits_of(predicted: list[int], probabilities: list[float], classes: int = 3) -> Tensor:
    """The rest of the probability is evenly on the other classes."""
    rows = torch.tensor([(1 - p) / (classes - 1) for p in probabilities])[:, None].repeat(1, classes)
    rows[torch.arange(len(predicted)), predicted] = torch.tensor(probabilities)
    return rows.log()


def summary(labels: list[int], predicted: list[int], probabilities: list[float], side: int = 2) -> Analysis:
    evaluation = Evaluation(logits_of(predicted, probabilities), torch.tensor(labels))
    return summarise(evaluation, split_of(labels, side), ("cat", "dog", "owl"))


def six() -> Analysis:
    return summary([0, 0, 1, 1, 2, 2], [0, 1, 1, 0, 0, 2], [0.9, 0.6, 0.7, 0.95, 0.8, 0.5])


@pytest.fixture(scope="module")
def model(digits: ImageData) -> Classifier:
    torch.manual_seed(0)
    config = ModelConfig(blocks=1, filters=(4,), kernel_size=(3,), dense_units=0, dropout=0.5)
    return build_model(config, digits.image_shape, 10, digits.mean, digits.std)


@pytest.fixture(scope="module")
def analysed(model: Classifier, digits: ImageData) -> Analysis:
    return analyse(model, digits)


def assert_same(first: Analysis, second: Analysis) -> None:
    assert first.classes == second.classes
    assert first.scores == second.scores
    for part in ("calibration", "mistakes", "samples"):
        for name, values in vars(getattr(first, part)).items():
            other = getattr(getattr(second, part), name)
            assert other.dtype == values.dtype
            assert np.array_equal(other, values, equal_nan=part == "calibration")


# ---- mistakes, samples, calibration ----


def test_the_mistakes_are_the_wrong_predictions_the_surest_first() -> None:
    mistakes = six().mistakes
    assert mistakes.positions.tolist() == [3, 4, 1]
    assert mistakes.labels.tolist() == [1, 2, 0]
    assert mistakes.predicted.tolist() == [0, 0, 1]
    assert mistakes.probability.tolist() == pytest.approx([0.95, 0.8, 0.6])
    assert mistakes.images.shape == (3, 3, 2, 2)
    assert mistakes.images.dtype == np.uint8
    assert [set(image.ravel().tolist()) for image in mistakes.images] == [{3}, {4}, {1}]


def test_equally_sure_mistakes_stay_in_the_splits_order() -> None:
    assert summary([0] * 5, [1] * 5, [0.5] * 5).mistakes.positions.tolist() == [0, 1, 2, 3, 4]


def test_of_many_mistakes_the_surest_24_are_shown() -> None:
    probabilities = [0.4 + 0.01 * i for i in range(40)]
    assert summary([0] * 40, [1] * 40, probabilities).mistakes.positions.tolist() == list(range(39, 15, -1))


def test_a_model_without_mistakes_has_no_pictures_of_them() -> None:
    found = summary([0, 1, 2], [0, 1, 2], [0.9, 0.8, 0.7])
    assert len(found.mistakes) == 0
    assert found.mistakes.images.shape == (0, 3, 2, 2)
    assert_same(Analysis.from_bytes(found.to_bytes()), found)


def test_the_samples_are_up_to_four_of_each_class() -> None:
    samples = summary([1, 0, 1, 1, 0, 1, 1, 1], [2] * 8, [0.5 + 0.01 * i for i in range(8)]).samples
    assert samples.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert samples.positions.tolist() == [1, 4, 0, 2, 3, 5]
    assert samples.predicted.tolist() == [2] * 6
    assert samples.probability.tolist() == pytest.approx([0.51, 0.54, 0.5, 0.52, 0.53, 0.55])
    assert samples.images[:, 0, 0, 0].tolist() == [1, 4, 0, 2, 3, 5]


def test_of_many_classes_40_samples_are_of_different_ones() -> None:
    labels = [i % 60 for i in range(120)]
    evaluation = Evaluation(logits_of([0] * 120, [0.5] * 120, 60), torch.tensor(labels))
    samples = summarise(evaluation, split_of(labels), tuple(map(str, range(60)))).samples
    assert samples.labels.tolist() == list(range(40))


def test_pictures_of_large_images_are_few_but_not_none(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [0, 1, 2] * 4
    monkeypatch.setattr(module, "MOST_PICTURE_BYTES", 5 * 3 * 4 * 4 + 1)
    found = summary(labels, [0] * 12, [0.9] * 12, side=4)
    assert found.samples.labels.tolist() == [0, 0, 1, 1, 2]
    assert len(found.mistakes) == 5
    monkeypatch.setattr(module, "MOST_PICTURE_BYTES", 1)
    found = summary(labels, [0] * 12, [0.9] * 12, side=4)
    assert (len(found.samples), len(found.mistakes)) == (1, 1)


def test_confusion_and_scores_of_the_classes_are_those_counted_by_hand() -> None:
    found = six()
    assert found.confusion.tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 1]]
    assert found.confusion.dtype == np.int64
    assert found.per_class.precision.tolist() == [1 / 3, 1 / 2, 1]
    assert found.per_class.recall.tolist() == [1 / 2] * 3
    assert found.per_class.support.tolist() == [2] * 3


def test_the_bins_are_those_of_the_predictions_confidence() -> None:
    """Of 15 bins, 0.9 and 0.95 lie in those from 13/15 and 14/15, and so on."""
    calibration = six().calibration
    assert calibration.count.tolist() == [0] * 7 + [1, 0, 1, 1, 0, 1, 1, 1]
    filled = calibration.count > 0
    assert calibration.confidence[filled] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
    assert calibration.accuracy[filled].tolist() == [1, 0, 1, 0, 1, 0]
    assert np.isnan(calibration.confidence[~filled]).all()
    assert np.isnan(calibration.accuracy[~filled]).all()


# ---- a model on the digits ----


def test_a_model_is_analysed_on_the_validation_split(model: Classifier, digits: ImageData, analysed: Analysis) -> None:
    evaluation = predict_split(model, ImageTensors.of(digits.validation, torch.device("cpu")))
    assert analysed.scores == evaluate(evaluation)
    assert analysed.classes == digits.classes
    assert analysed.confusion.sum() == analysed.calibration.count.sum() == 144
    assert analysed.calibration.error == analysed.scores.calibration_error
    assert len(analysed.mistakes) == 24  # it was not trained
    assert analysed.samples.labels.tolist() == [label for label in range(10) for _ in range(4)]
    probabilities = evaluation.logits.softmax(1)
    for pictures in (analysed.mistakes, analysed.samples):
        rows = digits.validation.rows[pictures.positions]
        assert np.array_equal(pictures.images, digits.validation.images[rows])
        assert np.array_equal(pictures.labels, digits.validation.labels[rows])
        assert np.array_equal(pictures.predicted, probabilities.argmax(1).numpy()[pictures.positions])
        assert np.array_equal(pictures.probability, probabilities.amax(1).numpy()[pictures.positions])


def test_the_analysis_is_of_the_model_as_it_predicts(model: Classifier, digits: ImageData, analysed: Analysis) -> None:
    """With dropout, a model in training mode gives other scores each time."""
    assert_same(analyse(model.train(), digits), analysed)
    assert not model.training


def test_progress_counts_the_images(
    model: Classifier, digits: ImageData, analysed: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.loop.EVALUATION_BATCH", 60)
    seen: list[tuple[int, int]] = []
    in_parts = analyse(model, digits, lambda done, total: seen.append((done, total)))
    assert seen == [(60, 144), (120, 144), (144, 144)]
    assert in_parts.confusion.tolist() == analysed.confusion.tolist()
    assert in_parts.scores.loss == pytest.approx(analysed.scores.loss, rel=1e-5)


# ---- bytes ----


def test_bytes_are_read_back_as_they_were_written(analysed: Analysis) -> None:
    assert_same(Analysis.from_bytes(analysed.to_bytes()), analysed)
    assert_same(Analysis.from_bytes(six().to_bytes()), six())


def test_the_names_of_classes_may_be_anything() -> None:
    names = ("", "Käfer 甲虫\0", "a\udc80")  # the last is a folder's name that is no UTF-8
    found = replace(six(), classes=names)
    assert Analysis.from_bytes(found.to_bytes()).classes == names


def test_pictures_can_be_changed_and_are_not_the_files_own(digits: ImageData, analysed: Analysis) -> None:
    for found in (analysed, Analysis.from_bytes(analysed.to_bytes())):
        assert type(found.samples.images) is np.ndarray
        assert not np.shares_memory(found.samples.images, digits.validation.images)
        assert found.samples.images.flags.writeable


def parts_of(content: bytes) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(content)) as archive:
        return dict(archive)


def with_parts(**changes: NDArray[Any] | None) -> bytes:
    """The analysis of six images with some arrays exchanged or left out."""
    parts = parts_of(six().to_bytes()) | {name.replace("__", "."): array for name, array in changes.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in parts.items() if array is not None})
    return buffer.getvalue()


def with_facts(**changes: object) -> bytes:
    facts = json.loads(parts_of(six().to_bytes())["facts"].tobytes()) | changes
    return with_parts(facts=np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8))


def with_zip_entry(name: str, content: bytes) -> bytes:
    """The analysis of six images with one array's file in the archive exchanged."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(six().to_bytes())) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, content if entry == name else old.read(entry))
    return buffer.getvalue()


def header_without_data(shape: str) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def bytes_of_one_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


class _Trap:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return pytest.exit, ("a pickle was run",)


SCORES = {"images": 6, "loss": 1.0, "accuracy": 0.5, "macro_f1": 0.5, "calibration_error": 0.1}


def test_what_is_exchanged_in_the_hostile_archives_is_all_that_is_wrong_with_them() -> None:
    confusion = zipfile.ZipFile(io.BytesIO(six().to_bytes())).read("confusion.npy")
    for content in (with_parts(), with_facts(scores=SCORES), with_zip_entry("confusion.npy", confusion)):
        assert Analysis.from_bytes(content).confusion.tolist() == six().confusion.tolist()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda: b"", id="nothing"),
        pytest.param(lambda: b"PK\x03\x04", id="the beginning of an archive"),
        pytest.param(lambda: b"<html>404</html>" * 100, id="a web page"),
        pytest.param(lambda: pickle.dumps(_Trap()), id="a pickle"),
        pytest.param(lambda: with_parts(confusion=np.array([_Trap()], dtype=object)), id="a pickle in an array"),
        pytest.param(bytes_of_one_array, id="one array"),
        pytest.param(lambda: six().to_bytes()[:-30], id="cut off"),
        pytest.param(lambda: six().to_bytes()[:400] + b"\0" * 40 + six().to_bytes()[440:], id="damaged"),
        pytest.param(lambda: with_parts(facts=None), id="no facts"),
        pytest.param(lambda: with_parts(facts=np.zeros(4, np.uint8)), id="facts that are no JSON"),
        pytest.param(lambda: with_parts(facts=np.frombuffer(b"[" * 100_000, np.uint8)), id="deep facts"),
        pytest.param(lambda: with_parts(facts=np.frombuffer(b"[1]", np.uint8)), id="facts that are a list"),
        pytest.param(lambda: with_facts(convsweep_analysis=2), id="a later format"),
        pytest.param(lambda: with_facts(classes=[]), id="no classes"),
        pytest.param(lambda: with_facts(classes=["a", "b"]), id="fewer classes"),
        pytest.param(lambda: with_facts(classes=["a", "b", 3]), id="a class that is a number"),
        pytest.param(lambda: with_facts(scores={}), id="no scores"),
        pytest.param(lambda: with_facts(scores=SCORES | {"loss": "low"}), id="a loss in words"),
        pytest.param(lambda: with_facts(scores=SCORES | {"images": 7}), id="another number of images"),
        pytest.param(lambda: with_facts(scores=SCORES | {"beauty": 1.0}), id="another score"),
        pytest.param(lambda: with_parts(confusion=None), id="no confusion"),
        pytest.param(lambda: with_parts(confusion=np.full((3, 3), -1)), id="negative counts"),
        pytest.param(lambda: with_parts(confusion=np.full((3, 3), 0.5)), id="counts that are no integers"),
        pytest.param(lambda: with_parts(calibration__count=np.ones(10, int)), id="ten bins"),
        pytest.param(lambda: with_parts(mistakes__labels=np.zeros(2, int)), id="a mistake without a label"),
        pytest.param(lambda: with_parts(mistakes__predicted=np.array([0, 0, 3])), id="an unknown class"),
        pytest.param(lambda: with_parts(samples__labels=np.full(6, -1)), id="a class before the first"),
        pytest.param(lambda: with_parts(samples__images=np.zeros((6, 2, 2), np.uint8)), id="images without channels"),
        pytest.param(lambda: with_parts(samples__images=np.zeros((6, 3, 0, 2), np.uint8)), id="images without pixels"),
        pytest.param(lambda: with_parts(samples__images=np.zeros((6, 3, 2, 2))), id="images that are no bytes"),
        pytest.param(lambda: with_parts(samples__probability=np.zeros(6)), id="probabilities of another type"),
        pytest.param(lambda: with_zip_entry("samples.images.npy", b"?" * 99), id="an entry that is no array"),
        pytest.param(
            lambda: with_zip_entry("samples.images.npy", header_without_data("(1000000, 1000000, 1000000, 1000)")),
            id="an exabyte of images",
        ),
    ],
)
def test_other_bytes_are_no_analysis(content: Callable[[], bytes]) -> None:
    with pytest.raises(
        ValueError, match=r"^This is no analysis that this version of convsweep can read .*compute it again"
    ):
        Analysis.from_bytes(content())


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    content = with_parts(extra=np.zeros(100_000, np.uint8))
    Analysis.from_bytes(content)
    monkeypatch.setattr(module, "_MOST_BYTES", 100_000)
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match=r"it would have 10[0-9],[0-9]{3} bytes"):
        Analysis.from_bytes(content)


def test_an_analysis_is_read_without_torch(tmp_path: Path) -> None:
    """A page shows a stored analysis in milliseconds; torch alone takes seconds."""
    (tmp_path / "analysis.npz").write_bytes(six().to_bytes())
    code = f"""
import sys
import trainer.attention, trainer.layers
from trainer.analysis import Analysis
found = Analysis.from_bytes(open({str(tmp_path / "analysis.npz")!r}, "rb").read())
print(found.per_class.support.sum(), *(name for name in ("torch", "sklearn", "captum", "matplotlib") if name in sys.modules))
"""
    read = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert read.stdout.split() == ["6"]
