"""What a bundle's README says: `python -m pytest tests/test_model_card.py`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from PIL import Image

from tests.family_networks import RESNET, RNN, TRANSFORMER, Flat
from tests.written_bundles import CPU, ORIGIN, write
from trainer.batches import ImageTensors
from trainer.bundle import PICTURES, Bundle
from trainer.bundle_writing import Accuracy, Written
from trainer.data import ImageData
from trainer.evaluation import Scores, evaluate
from trainer.fold_scores import FoldFigures
from trainer.hyperparameters import flatten, unflatten
from trainer.images import to_image
from trainer.latency import Latency
from trainer.loop import create_model, predict_split
from trainer.measuring import ACCURACY
from trainer.model_card import model_card
from trainer.origin import Baseline, Origin, Search
from trainer.predicting import predict
from trainer.seed_figures import SeedFigures
from trainer.verification import Check

SEARCH = Search(
    sweep="s",
    trial=3,
    metric=ACCURACY,
    value=0.9,
    sampler="tpe",
    pruner="halving",
    trials=MappingProxyType({"COMPLETE": 5, "PRUNED": 7, "FAIL": 0}),
    budget="12 trials of up to 10 epochs",
    spent="3m 05s of wall time",
    space=MappingProxyType({"model.blocks": "1, 2, 3", "optimizer.learning_rate": "0.0001 to 0.1, logarithmic"}),
    baseline=Baseline("default", 0, 0.85, flatten(unflatten({"optimizer.learning_rate": 0.01}))),
    environment=MappingProxyType({"torch": "2.9", "git_commit": "abc"}),
)


def scores_of(data: ImageData, flat: Flat) -> Scores:
    assert data.test is not None
    return evaluate(predict_split(create_model(unflatten(flat), data, CPU), ImageTensors.of(data.test, CPU)))


def card(data: ImageData, flat: Flat | None = None, origin: Origin = ORIGIN, **written: Any) -> str:
    config = unflatten(flat or {})
    found = Check(256, 1e-6, 0, {1: Latency(1.5, 2.5, 50), 64: Latency(30.0, 40.0, 50)})
    parts = {
        "scores": {"test": scores_of(data, flat or {})},
        "checks": {"model.onnx": found},
        "smaller": {},
        "sizes": {"model.onnx": 1_234_567},
    }
    model = create_model(config, data, CPU)
    return model_card(model, config, data, Written(**(parts | written)), origin, {"torch": "2.15", "python": "3.11"})


def section(text: str, title: str) -> str:
    [found] = [part for part in text.split("\n## ")[1:] if part.startswith(f"{title}\n")]
    return found


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        ({}, "A convolutional network that says which of 10 classes a gray image of 8x8 pixels shows"),
        (RESNET, "A residual network that says"),
        (RNN, "A recurrent network, which reads the rows of an image, that says"),
        (TRANSFORMER, "A vision transformer that says"),
        ({"model.family": "torchvision:resnet18"}, "A network of torchvision's kind resnet18 that says"),
    ],
)
def test_it_says_what_kind_of_network_it_is(flat: Flat, words: str, digits: ImageData) -> None:
    assert words in card(digits, flat)


def test_it_says_where_pretrained_weights_are_from(digits: ImageData) -> None:
    flat: Flat = {"model.family": "torchvision:resnet18"}
    config = unflatten(flat | {"model.pretrained": True})
    model = create_model(unflatten(flat), digits, CPU)
    text = model_card(
        model, config, digits, Written({}, {"model.onnx": Check(1, 0, 0, {})}, {}, {"model.onnx": 1}), ORIGIN, {}
    )
    assert "which began with torchvision's weights from ImageNet, that says" in text


def test_the_data_are_there_with_their_hashes_and_every_class_with_its_counts(digits: ImageData) -> None:
    text = section(card(digits), "The data")
    assert digits.test is not None
    for name, split in (("train", digits.train), ("validation", digits.validation), ("test", digits.test)):
        assert f"| {name} | {len(split):,} | `{split.fingerprint()}` |" in text
    counts = [int((digits.test.labels == label).sum()) for label in range(10)]
    rows = [line.split("|")[1:-1] for line in text.splitlines() if re.match(r"\| \d \|", line)]
    assert [int(row[3]) for row in rows] == counts
    assert [row[0].strip() for row in rows] == list(digits.classes)


def test_a_fingerprint_is_of_the_images_the_labels_and_their_order(digits: ImageData) -> None:
    train = digits.train
    fewer = dataclasses.replace(train, rows=train.rows[:-1])
    turned = dataclasses.replace(train, rows=train.rows[::-1])
    relabelled = dataclasses.replace(train, labels=9 - train.labels)
    copied = dataclasses.replace(train, images=train.images.copy())
    assert copied.fingerprint() == train.fingerprint()
    assert len({x.fingerprint() for x in (train, fewer, turned, relabelled)}) == 4


def test_accuracies_have_wilson_intervals(digits: ImageData) -> None:
    scores = dataclasses.replace(scores_of(digits, {}), images=100, accuracy=0.9)
    # (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), by hand
    assert "| test | 100 | 0.9000 (0.8256 to 0.9448) |" in card(digits, scores={"test": scores})


def test_latency_size_agreement_and_the_cost_of_fewer_bits_are_told(digits: ImageData) -> None:
    text = card(digits, smaller={"int8": Accuracy(0.905, 0.91)})
    assert "| `model.onnx` | 1.23 MB | 1.50 (2.50) ms | 30.00 (40.00) ms | 1e-06 | 256 of 256 labels |" in text
    assert (
        "`model.int8.onnx` has an accuracy of 0.9050 on the validation split, where float32 has 0.9100: a drop of 0.0050"
        in text
    )
    assert "The same holds for `model.int8.onnx`." in text


def test_the_hardest_classes_and_those_with_too_few_images_are_named(digits: ImageData) -> None:
    confusion = [[50 if i == j else 0 for j in range(10)] for i in range(10)]
    confusion[3] = [30, 0, 0, 20, 0, 0, 0, 0, 0, 0]
    confusion[7] = [0, 0, 0, 0, 0, 0, 0, 5, 0, 0]
    text = card(digits, scores={"test": dataclasses.replace(scores_of(digits, {}), confusion=confusion)})
    assert "that is recognised: 3 (40.0%), 0 (100.0%)" in text
    assert "Of 1 class(es) the test split has fewer than 20 images, too few to judge them: 7." in text


def test_the_search_is_told_with_its_space_its_budget_and_what_it_gained_over_the_preset(digits: ImageData) -> None:
    text = section(card(digits, origin=dataclasses.replace(ORIGIN, search=SEARCH)), "How it was found")
    assert "Trial 3, validation accuracy 0.9000, of the sweep s: 5 complete, 7 pruned." in text
    assert "The budget was 12 trials of up to 10 epochs; spent were 3m 05s of wall time." in text
    assert "| `optimizer.learning_rate` | 0.0001 to 0.1, logarithmic |" in text
    assert (
        "The preset `default` (trial 0) has a validation accuracy of 0.8500. The exported trial's differs by +0.0500."
        in text
    )
    assert "| `optimizer.learning_rate` | 0.01 | 0.003 |" in text
    assert "`optimizer.weight_decay`" not in text  # the same in both


def test_a_preset_that_won_and_a_sweep_without_one_are_told(digits: ImageData) -> None:
    assert SEARCH.baseline is not None
    won = dataclasses.replace(SEARCH, trial=0)
    without = dataclasses.replace(SEARCH, baseline=None)
    assert "the search found nothing better" in card(digits, origin=dataclasses.replace(ORIGIN, search=won))
    assert "No preset ran to its end" in card(digits, origin=dataclasses.replace(ORIGIN, search=without))
    assert "there was no search" in card(digits)


def test_where_it_was_searched_and_exported_stand_side_by_side(digits: ImageData) -> None:
    text = section(card(digits, origin=dataclasses.replace(ORIGIN, search=SEARCH)), "Where")
    assert "| torch | 2.9 | 2.15 |" in text
    assert "| git commit | abc |  |" in text
    assert "| python |  | 3.11 |" in text


def test_a_final_model_has_its_seeds_and_no_validation_score(digits: ImageData) -> None:
    seeds = SeedFigures(metric="accuracy", n=3, mean=0.98, deviation=0.01, interval=(0.96, 1.0), seed=2, compared=2)
    text = card(digits, origin=dataclasses.replace(ORIGIN, final=True, seeds=seeds))
    assert "mean accuracy 0.9800, 95 % interval 0.9600 to 1.0000, 3 seeds" in text
    assert "chosen among 2 configurations" in text
    assert "with the validation images among the training images" in section(text, "How to make it again")


def test_folds_are_told_with_whose_weights_these_are(digits: ImageData) -> None:
    folds = FoldFigures("accuracy", (0.9, 0.92))
    text = card(digits, origin=dataclasses.replace(ORIGIN, folds=folds))
    assert "the mean of 2 folds (95 % interval)" in text
    assert "of the first of which these are the weights" in text


def test_a_model_that_has_seen_every_image_has_no_scores_and_no_pictures(digits: ImageData) -> None:
    text = card(digits, origin=dataclasses.replace(ORIGIN, final=True), scores={})
    assert "There are no images that the model has not seen" in text
    assert not any(picture in text for picture in PICTURES)


def test_names_are_text_and_no_markup(digits: ImageData) -> None:
    names = ["![x](http://evil)", "<script>", "a|b", "`c`", "*d*", "# e", "f\ng", "[h](i)", "j", "$k$"]
    text = card(dataclasses.replace(digits, classes=tuple(names), name="<img src=x>"))
    assert "![x](" not in text
    assert "<script" not in text.replace("\\<script", "")
    assert "<img" not in text.replace("\\<img", "")
    assert "a\\|b" in text
    assert not re.search(r"^# e", text, re.MULTILINE)
    assert "f g" in text


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "digits"
    write(folder, digits, samples=10)
    return folder


def test_its_pictures_are_there(bundle: Path) -> None:
    for name in PICTURES:
        assert f"]({name})" in (bundle / "README.md").read_text()
        with Image.open(bundle / name) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) >= 400
            assert len(set(picture.convert("L").get_flattened_data())) > 10  # it is not blank


ONNXRUNTIME = ("onnxruntime", "pillow")
"""What the card says is needed."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with onnxruntime, Pillow and what they require, and no other package."""
    folder = tmp_path_factory.mktemp("alone")
    for name in requirements(*ONNXRUNTIME):
        for file in importlib.metadata.distribution(name).files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(
                    Path(str(file.locate())).parents[len(file.parts) - 2] if len(file.parts) > 1 else file.locate()
                )
    return folder


def requirements(*names: str) -> set[str]:
    """The distributions and all that they require, without extras."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            for wanted in importlib.metadata.requires(name) or ():
                if "extra ==" not in wanted:
                    left.append(re.split(r"[ ;<>=!~\[(]", wanted, maxsplit=1)[0])
    return found


def run_alone(alone: Path, code: str, folder: Path) -> str:
    """What the code prints where there are no other packages than `alone` has."""
    begin = f"import sys; sys.path.append({str(alone)!r})\n"
    command = [sys.executable, "-I", "-S", "-W", "error", "-c", begin + code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def picture(bundle: Path, digits: ImageData) -> Iterator[Path]:
    assert digits.test is not None
    path = bundle / "image.png"
    to_image(digits.test.images[3]).save(path)
    yield path
    path.unlink()


def test_its_example_has_six_lines_and_runs_with_onnxruntime_alone(alone: Path, bundle: Path, picture: Path) -> None:
    code = (bundle / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) == 6
    label, probability = run_alone(alone, code, bundle).split()
    (found,) = predict(Bundle(bundle), [picture])
    expected, highest = found.top[0]
    assert (label, float(probability)) == (expected, pytest.approx(highest, abs=1e-5))
    assert "torch" not in {path.name for path in alone.iterdir()}


def test_onnxruntime_alone_gives_every_label_of_a_split(
    alone: Path, bundle: Path, digits: ImageData, tmp_path: Path
) -> None:
    import numpy as np

    assert digits.test is not None
    np.save(tmp_path / "images.npy", digits.test.images)
    code = (
        f"import numpy, onnxruntime; images = numpy.load({str(tmp_path / 'images.npy')!r})\n"
        "session = onnxruntime.InferenceSession('model.onnx')\n"
        "print(*session.run(None, {'images': images})[0].argmax(1))\n"
        "assert 'torch' not in sys.modules"
    )
    labels = [int(word) for word in run_alone(alone, code, bundle).split()]
    assert labels == Bundle(bundle).probabilities(np.array(digits.test.images)).argmax(1).tolist()
