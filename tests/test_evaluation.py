"""Scores of logits, and latency: `python -m pytest tests/test_evaluation.py`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_fscore_support
from torch import Tensor

from trainer.evaluation import calibrate, class_scores, evaluate
from trainer.loop import Evaluation


def sure_of(classes: int, predicted: list[int], confidence: float = 0.9) -> Tensor:
    """Logits whose softmax has `confidence` at the predicted class and the rest evenly on the others."""
    probabilities = torch.full((len(predicted), classes), (1 - confidence) / (classes - 1), dtype=torch.float64)
    probabilities[torch.arange(len(predicted)), predicted] = confidence
    return probabilities.log().float()


def naive_macro_f1(labels: list[int], predicted: list[int]) -> float:
    """Over the classes that occur, as label or as prediction."""
    scores = []
    for c in set(labels + predicted):
        hits = sum(1 for y, p in zip(labels, predicted, strict=True) if y == p == c)
        scores.append(2 * hits / (labels.count(c) + predicted.count(c)) if hits else 0.0)
    return sum(scores) / len(scores)


def naive_calibration_error(probabilities: np.ndarray, labels: list[int], bins: int = 15) -> float:
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    total = 0.0
    for b in range(bins):
        inside = (confidence >= b / bins) & ((confidence < (b + 1) / bins) | (b == bins - 1))
        if inside.any():
            accuracy = (predicted[inside] == np.array(labels)[inside]).mean()
            total += inside.mean() * abs(accuracy - confidence[inside].mean())
    return total


def test_scores_of_six_images_are_those_counted_by_hand() -> None:
    labels, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 2]
    scores = evaluate(Evaluation(sure_of(3, predicted), torch.tensor(labels)))
    assert scores.images == 6
    assert scores.accuracy == 4 / 6
    assert scores.confusion == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    # F1 of the classes: 2 of 3 and 2 of 3; 1 of 2 and 1 of 2; all
    assert scores.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert scores.loss == pytest.approx(-(4 * np.log(0.9) + 2 * np.log(0.05)) / 6, rel=1e-5)
    assert scores.calibration_error == pytest.approx(0.9 - 4 / 6, abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_scores_are_those_of_counting(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = [y for y, _ in pairs], [p for _, p in pairs]
    scores = evaluate(Evaluation(sure_of(5, predicted), torch.tensor(labels)))
    assert scores.confusion == [[pairs.count((y, p)) for p in range(5)] for y in range(5)]
    assert scores.accuracy == pytest.approx(sum(y == p for y, p in pairs) / len(pairs))
    assert scores.macro_f1 == pytest.approx(naive_macro_f1(labels, predicted))


def test_loss_and_calibration_of_random_logits_are_those_of_their_formulas() -> None:
    """Of the images that the model is less sure of all are right, of the others few: no bin makes up for another."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 4, generator=generator)
    confidence, predicted = logits.softmax(1).max(1)
    labels = torch.where(confidence < 0.7, predicted, torch.randint(0, 4, (500,), generator=generator))
    scores = evaluate(Evaluation(logits, labels))
    powers = np.exp(logits.double().numpy())
    probabilities = powers / powers.sum(1, keepdims=True)
    assert scores.loss == pytest.approx(-np.log(probabilities[np.arange(500), labels]).mean(), rel=1e-4)
    assert scores.calibration_error == pytest.approx(naive_calibration_error(probabilities, labels.tolist()), abs=1e-5)


def test_a_model_as_good_as_it_thinks_is_calibrated() -> None:
    """Of 20 images with 80% confidence 16 are right, of 20 with 55% 11."""
    logits = torch.cat([sure_of(4, [0] * 20, 0.8), sure_of(4, [0] * 20, 0.55)])
    labels = torch.tensor([0] * 16 + [1] * 4 + [0] * 11 + [2] * 9)
    assert evaluate(Evaluation(logits, labels)).calibration_error == pytest.approx(0, abs=1e-6)


def test_a_model_that_is_sure_and_half_wrong_is_off_by_half() -> None:
    logits = torch.tensor([[100.0, 0.0]] * 10)
    labels = torch.tensor([0, 1] * 5)
    assert evaluate(Evaluation(logits, labels)).calibration_error == pytest.approx(0.5)


def test_too_little_confidence_counts_as_much_as_too_much() -> None:
    labels = torch.tensor([0] * 10)
    assert evaluate(Evaluation(sure_of(4, [0] * 10, 0.7), labels)).calibration_error == pytest.approx(0.3, abs=1e-6)


def test_classes_that_do_not_occur_have_rows_and_columns_too() -> None:
    scores = evaluate(Evaluation(sure_of(4, [1, 1]), torch.tensor([1, 1])))
    assert scores.confusion == [[0] * 4, [0, 2, 0, 0], [0] * 4, [0] * 4]
    assert scores.macro_f1 == 1  # as scikit-learn has it, and the search


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_the_classes_scores_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = [y for y, _ in pairs], [p for _, p in pairs]
    scores = evaluate(Evaluation(sure_of(5, predicted), torch.tensor(labels)))
    found = class_scores(np.array(scores.confusion))
    expected = precision_recall_fscore_support(labels, predicted, labels=range(5), zero_division=0.0)
    for ours, theirs in zip((found.precision, found.recall, found.f1, found.support), expected, strict=True):
        assert ours.tolist() == pytest.approx(theirs.tolist())
    assert scores.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0.0))


def test_a_class_that_is_never_predicted_or_never_there_has_scores_of_zero() -> None:
    """Class 1 is never predicted, class 2 has no images, class 3 neither: no warning, and no NaN."""
    found = class_scores(np.array([[2, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert found.precision.tolist() == [2 / 3, 0, 0, 0]
    assert found.recall.tolist() == [2 / 3, 0, 0, 0]
    assert found.f1.tolist() == [4 / 6, 0, 0, 0]
    assert found.support.tolist() == [3, 1, 0, 0]


def test_calibration_bins_have_the_means_of_their_predictions() -> None:
    confidence = np.array([0.5, 0.52, 1.0, 0.99, 0.95, 0.0], dtype=np.float32)
    found = calibrate(confidence, np.array([True, False, True, True, False, False]))
    assert {i: n for i, n in enumerate(found.count.tolist()) if n} == {0: 1, 7: 2, 14: 3}
    assert found.confidence[[0, 7, 14]] == pytest.approx([0.0, 0.51, 2.94 / 3])
    assert found.accuracy[[0, 7, 14]] == pytest.approx([0.0, 1 / 2, 2 / 3])
    empty = found.count == 0
    assert np.isnan(found.confidence[empty]).all()
    assert np.isnan(found.accuracy[empty]).all()
    assert found.error == pytest.approx((2 * 0.01 + 3 * (2.94 / 3 - 2 / 3)) / 6, abs=1e-6)


def test_scores_are_plain_values() -> None:
    scores = evaluate(Evaluation(sure_of(3, [0, 1, 2]), torch.tensor([0, 1, 1])))
    assert json.loads(json.dumps(scores.to_json())) == scores.to_json()
    assert set(scores.to_json()) == {"images", "loss", "accuracy", "macro_f1", "calibration_error", "confusion"}
