"""The norms of the layers' gradients, from the training to the page of a trial: `python -m pytest tests/test_gradients.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import tables
from cluster.config import make_config
from cluster.experiments import Experiments
from cluster.record import TrialRecord
from cluster.studies import Studies
from dashboard import trial_charts, trial_tables
from tests.dashboard_studies import dashboard_on, run, texts
from trainer.batches import ImageTensors
from trainer.data import ImageData
from trainer.gradients import Gradients, blame, measure, note, read, troubles
from trainer.hyperparameters import LossConfig, unflatten
from trainer.loop import NotFiniteError, create_model, train
from trainer.measuring import ACCURACY
from trainer.metrics import EpochMetrics
from trainer.objective import build_loss
from trainer.training_state import Position

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "model.blocks": 2,
    "model.filters": 8,
    "model.batch_norm": False,
    "model.dense_units": 16,
    "optimizer.learning_rate": 0.01,
    "training.batch_size": 256,
    "training.epochs": 3,
    "training.precision": "float32",
}
ONE_STEP: dict[str, Any] = {"training.batch_size": 65536}
LAYERS = [
    "features.0.convolutions.0.weight",
    "features.1.convolutions.0.weight",
    "features.3.weight",
    "classifier.weight",
]
LAYERS_AFTER = ("features.4.weight", "classifier.weight")
"""Behind a whitening layer and two blocks."""


def gradients(*rows: list[float | None], weights: float = 1.0) -> Gradients:
    """Of three layers, with weights of that norm in every epoch."""
    held = tuple((weights,) * len(row) for row in rows)
    return Gradients(("first", "second", "third"), tuple(map(tuple, rows)), held)


# ---- measuring ----


def test_a_layer_is_a_tensor_of_weights_and_its_norms_are_those_of_gradient_and_weights(digits: ImageData) -> None:
    config = unflatten(SMALL | ONE_STEP | {"training.epochs": 1})
    position = Position()
    model = create_model(config, digits, CPU)
    parts = ImageTensors.of(digits.train, CPU), ImageTensors.of(digits.validation, CPU)
    list(train(model, config, *parts, position=position))

    expected = create_model(config, digits, CPU).train()
    images, labels = parts[0].select(torch.arange(len(digits.train)))
    torch.autograd.backward(build_loss(LossConfig())(expected(images), labels).mean())
    layers = {name: p for name, p in expected.named_parameters() if name.endswith("weight")}
    assert list(layers) == LAYERS == list(Gradients.of(model, position.gradients).layers)
    [(norms, weights)] = position.gradients
    assert norms == pytest.approx([float(p.grad.norm()) for p in layers.values() if p.grad is not None], rel=0.006)
    assert weights == pytest.approx([p.norm().item() for p in layers.values()], rel=0.006)


@pytest.mark.parametrize("words", [{"optimizer.clip_norm": 0.001}, {"training.ema": 0.9}])
def test_they_are_measured_before_what_changes_a_step(digits: ImageData, words: dict[str, Any]) -> None:
    found = []
    for changes in ({}, words):
        config, position = unflatten(SMALL | ONE_STEP | {"training.epochs": 1} | changes), Position()
        parts = ImageTensors.of(digits.train, CPU), ImageTensors.of(digits.validation, CPU)
        list(train(create_model(config, digits, CPU), config, *parts, position=position))
        found.append(position.gradients)
    assert found[0] == found[1]


def test_there_is_a_row_for_each_epoch_and_fixed_kernels_have_none(digits: ImageData) -> None:
    config, position = unflatten(SMALL | {"model.whitening": True, "model.batch_norm": True}), Position()
    model = create_model(config, digits, CPU)
    parts = ImageTensors.of(digits.train, CPU), ImageTensors.of(digits.validation, CPU)
    list(train(model, config, *parts, position=position))
    found = Gradients.of(model, position.gradients)
    assert len(found.norms) == len(found.weights) == 3
    assert "features.0.convolution.weight" in dict(model.named_parameters())
    assert found.layers == ("features.1.convolutions.0.weight", "features.2.convolutions.0.weight", *LAYERS_AFTER)
    assert all(len(row) == 4 and all(value is not None and value > 0 for value in row) for row in found.norms)


def test_numbers_have_three_digits_and_what_is_not_finite_is_none() -> None:
    model = torch.nn.Linear(2, 2, bias=True)
    assert measure(model)[0].tolist() == [0.0]  # without a gradient
    model.weight.grad = torch.tensor([[1 / 3, 0.0], [0.0, 0.0]])
    [[norm], [weight]] = read(measure(model))
    assert (norm, weight) == (0.333, pytest.approx(model.weight.norm().item(), rel=0.006))
    for broken in (torch.inf, torch.nan):
        model.weight.grad = torch.full((2, 2), broken)
        assert read(measure(model))[0] == [None]
    text = json.dumps(read(torch.tensor([[1.23456e-9, 7654321.0], [0.0, 1.0]])))
    assert text == "[[1.23e-09, 7650000.0], [0.0, 1.0]]"


def test_epochs_without_a_measurement_have_an_empty_row() -> None:
    rows: list[Any] = []
    note(rows, 3, [[1.0], [2.0]])
    assert rows == [[], [], [[1.0], [2.0]]]
    note(rows, 3, [[5.0], [2.0]])
    note(rows, 2, [[4.0], [2.0]])
    assert rows == [[], [[4.0], [2.0]]]


# ---- the record ----


def one(value: float) -> Gradients:
    return Gradients(("a", "b"), ((value, None),), ((1.0, 2.0),))


def test_an_epoch_takes_the_place_of_those_from_there_on() -> None:
    found = Gradients().then(1, one(0.1)).then(2, one(0.2)).then(3, one(0.3))
    assert found.norms == ((0.1, None), (0.2, None), (0.3, None))
    assert found.then(2, one(0.5)).norms == ((0.1, None), (0.5, None))
    assert Gradients().then(3, one(0.3)).norms == ((), (), (0.3, None))


def test_gradients_survive_json_which_has_no_infinity() -> None:
    found = Gradients().then(2, one(0.25))
    text = json.dumps(found.to_json(), allow_nan=False)
    assert Gradients.from_text(text) == found
    assert Gradients.from_text(None) == Gradients.from_json({}) == Gradients()


def test_a_trials_record_has_the_gradients_of_its_epochs_also_after_a_resume(tmp_path: Path) -> None:
    where = Experiments(tmp_path)
    config = make_config({"name": "s", "data": "digits", "trials": 2, "epochs": 3, "preset": "none"})
    study = Studies(where, create=True).create(config, ["zero"])
    study.begin_run(config, groups=1)
    trial = study.ask()
    for epoch in (1, 2):
        metrics = EpochMetrics(epoch, 0.5, 0.5, 0.1 * epoch, 0.1, 1000.0, 1.0)
        assert trial.report(metrics, 1.0, one(0.1 * epoch))
    assert not trial.report(metrics, 1.0, one(7.0))  # told again
    trial.wait()
    again = Studies(where).open("s")
    again.begin_run(config, groups=1)
    trial = again.ask()
    assert trial.report(EpochMetrics(3, 0.5, 0.5, 0.3, 0.1, 1000.0, 1.0), 1.0, one(0.3))
    trial.complete()
    without = again.ask()  # as a version before this one reported
    without.report(EpochMetrics(1, 0.5, 0.5, 0.3, 0.1, 1000.0, 1.0), 1.0)
    without.complete()
    sweep = Studies(where).read("s")
    assert sweep.trial(0).gradients.norms == ((0.1, None), (0.2, None), (0.3, None))
    assert sweep.trial(0).gradients.layers == ("a", "b")
    assert sweep.trial(1).gradients == Gradients()


def record(found: Gradients) -> TrialRecord:
    return TrialRecord(0, "COMPLETE", 0.5, {}, gradient_text=json.dumps(found.to_json()))


def test_show_gives_them_as_json_and_their_troubles_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    found = gradients([1.0, 1.0, 1.0], [5000.0, 1.0, None])
    tables.show_trial(record(found), ACCURACY, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["gradients"] == json.loads(json.dumps(found.to_json()))
    tables.show_trial(record(found), ACCURACY, as_json=False)
    assert "The gradients of third and 1 other layer have exploded" in capsys.readouterr().out
    tables.show_trial(record(Gradients()), ACCURACY, as_json=True)
    assert json.loads(capsys.readouterr().out)["gradients"] == {"layers": [], "norms": [], "weights": []}


# ---- troubles ----


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [[1.0, 1.0, 1.0]],
        [[1.0, 0.1, 0.01]] * 5,
        [[1e-9, 1e-9, 1e-9]] * 5,  # it has converged: there is nothing left to learn
        [[1e-9, 1e-9, 5e-5]] * 5,
        [[1e-9, 1.0, 1.0]] * 2,  # too few epochs to tell
        [[1e-9, 1.0, 1.0], [1e-9, 1.0, 1.0], [1e-3, 1.0, 1.0]],  # it has recovered
        [[1e-9, 1.0, 1.0], [1e-9, 1.0, 1.0], []],
        [[1e-9, 1.0, 1.0], [1e-9, 1.0, 1.0], [1e-9, 1e-6, 1e-6]],
        [[0.1, 1.0, 1.0], [99.0, 0.001, 1.0]],  # a factor of 990
        [[1e-8, 1.0, 1.0], [0.05, 1.0, 1.0], [0.09, 1.0, 1.0]],  # it woke up
        [[], [], []],
    ],
)
def test_gradients_as_they_are_in_trainings_that_learn_are_no_trouble(rows: list[list[float | None]]) -> None:
    assert troubles(gradients(*rows)) == []


def test_a_gradient_that_vanishes_is_named_with_one_that_does_not() -> None:
    rows: list[list[float | None]] = [[0.5, 1.0, 1.0], [1e-8, 0.0, 0.02], [2e-8, 0.0, 0.03], [3e-8, 0.0, 0.04]]
    [trouble] = troubles(gradients(*rows))
    assert (trouble.kind, trouble.layers) == ("vanishing", ("second", "first"))
    assert "The gradients of second and 1 other layer have vanished: in the last 3 epochs" in trouble.text
    assert "for third it was 0.04" in trouble.text
    [alone] = troubles(gradients(*[[1e-8, 1.0, 1.0]] * 3))
    assert "The gradient of first has vanished: in the last 3 epochs its norm was at most 1e-08" in alone.text


def test_what_counts_is_a_gradients_norm_against_that_of_its_weights() -> None:
    rows: list[list[float | None]] = [[1e-5, 1.0, 1.0]] * 3
    assert troubles(gradients(*rows)) == []
    [trouble] = troubles(gradients(*rows, weights=1000.0))
    assert trouble.layers == ("first",)


def test_a_gradient_that_explodes_is_named_the_worst_first() -> None:
    [trouble] = troubles(gradients([0.1, 0.1, 0.1], [50.0, 0.1, 0.1], [200.0, 9000.0, 0.2]))
    assert (trouble.kind, trouble.layers) == ("exploding", ("second", "first"))
    assert "have exploded: the norm of the first was 9e+03 in epoch 3, after 0.1 in epoch 1." in trouble.text
    [alone] = troubles(gradients([0.1, 0.1, 0.1], [0.1, 0.1, None], [0.1, 0.1, 0.1]))
    assert "The gradient of third has exploded: its norm was not finite in epoch 2" in alone.text


def test_both_troubles_may_be_there() -> None:
    rows: list[list[float | None]] = [[1e-9, 1.0, 1.0], [1e-9, 2000.0, 1.0], [1e-9, 3000.0, 1.0]]
    assert [trouble.kind for trouble in troubles(gradients(*rows))] == ["exploding", "vanishing"]


def test_who_is_to_blame_is_told_where_it_can_be_told() -> None:
    assert "second has exploded" in blame(gradients([1.0, 1.0, 1.0], [1.0, 5000.0, 1.0], [None, None, None]))
    assert "third has exploded" in blame(gradients([1.0, 1.0, None]))
    assert blame(gradients([1.0, 1.0, 1.0], [None, None, None])) == ""
    assert blame(gradients([None, None, None])) == blame(Gradients()) == ""


# From step to step the weights are multiplied by -99, and gradients with them.
DIVERGES: dict[str, Any] = {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 10,
    "optimizer.weight_decay": 10,
    "schedule.name": "constant",
}


def test_a_loss_that_is_not_finite_names_the_layer_whose_gradient_exploded(digits: ImageData) -> None:
    config = unflatten(SMALL | ONE_STEP | DIVERGES | {"training.epochs": 50})
    parts = ImageTensors.of(digits.train, CPU), ImageTensors.of(digits.validation, CPU)
    with pytest.raises(NotFiniteError, match=r"validation .*\. The gradients? of [\w.]+weight .*exploded") as error:
        list(train(create_model(config, digits, CPU), config, *parts))
    assert any(layer in str(error.value) for layer in LAYERS)


def test_where_everything_breaks_at_once_no_layer_is_named(digits: ImageData) -> None:
    config = unflatten(SMALL)
    model = create_model(config, digits, CPU)
    with torch.no_grad():
        model.classifier.weight[0, 0] = torch.nan
    parts = ImageTensors.of(digits.train, CPU), ImageTensors.of(digits.validation, CPU)
    with pytest.raises(NotFiniteError, match=r"validation nan\.$"):
        next(train(model, config, *parts))


# ---- the page ----


def test_the_table_for_the_chart_leaves_out_what_a_logarithm_does_not_know() -> None:
    table = trial_tables.gradients(record(gradients([1.0, 0.0, 0.1], [], [2.0, None, 0.2])))
    assert table.to_dict("list") == {
        "epoch": [1, 1, 3, 3],
        "layer": ["first", "third", "first", "third"],
        "norm": [1.0, 0.1, 2.0, 0.2],
    }
    chart = trial_charts.gradients(table, 190).to_dict()
    encoding = chart["layer"][0]["encoding"]
    assert encoding["y"]["scale"] == {"type": "log"}
    assert encoding["color"]["scale"]["domain"] == ["first", "third"]


def test_the_page_of_a_trial_shows_its_gradients_and_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = Experiments(tmp_path / "experiments")
    config = make_config({"name": "s", "data": "digits", "trials": 3, "epochs": 4, "preset": "none"})
    study = Studies(where, create=True).create(config, ["zero"])
    study.begin_run(config, groups=1)
    for rows in ([[1.0, 0.5, 0.2]] * 3, [[1.0, 0.5, 0.2], [4000.0, 1e-9, 0.1], [5000.0, 0.0, 0.1]], []):
        trial, found = study.ask(), gradients(*rows)
        for epoch in range(1, 4):
            metrics = EpochMetrics(epoch, 0.5, 0.5, 0.9, 0.1, 1000.0, 1.0)
            row = Gradients(found.layers, found.norms[epoch - 1 : epoch], found.weights[epoch - 1 : epoch])
            trial.report(metrics, 1.0, row)
        trial.complete()
    page = dashboard_on(where.folder, "trial", monkeypatch)
    charts = {}
    for number in range(3):
        run(page, sweep="s", trial=str(number))
        charts[number] = [element.proto.alt for element in page.get("vega_lite_chart")]
        assert ("exploded" in texts(page)) == (number == 1)
        assert ("3 of 4" in [metric.value for metric in page.metric]) is True
    assert [len(charts[number]) for number in range(3)] == [5, 5, 4]
    assert charts[0][-1] == "Norm of each layer's gradient by epoch"
