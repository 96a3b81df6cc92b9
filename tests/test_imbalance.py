"""Classes of unequal size: `python -m pytest tests/test_imbalance.py`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.batches import Draws, ImageTensors, augment
from trainer.data import ImageData, Split
from trainer.hyperparameters import AugmentationConfig, LossConfig, TrialConfig, unflatten
from trainer.imbalance import balanced_order, change_probabilities, class_weights
from trainer.loop import create_model, predict_split, train
from trainer.metrics import EpochMetrics
from trainer.model import Classifier
from trainer.objective import build_loss

CPU = torch.device("cpu")
UNEQUAL = torch.tensor([0] * 60 + [2] * 30 + [1] * 10)
NOTHING = AugmentationConfig()
LOSSES = ("cross_entropy", "focal", "mean_squared_error")
SMALL: dict[str, Any] = {
    "model.blocks": 2,
    "model.filters": 8,
    "model.batch_norm": False,
    "model.dense_units": 16,
    "optimizer.learning_rate": 0.01,
    "training.batch_size": 32,
    "training.epochs": 4,
    "training.precision": "float32",
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def unequal() -> ImageTensors:
    """100 images of 3x6x7 random pixels, of which 60, 10 and 30 are of classes 0, 1 and 2."""
    images = np.random.default_rng(0).integers(0, 256, (100, 3, 6, 7), np.uint8)
    return ImageTensors.of(Split(images, UNEQUAL.numpy(), np.arange(100)), CPU)


@pytest.fixture
def few_eights(digits: ImageData) -> ImageData:
    """The digits with 8 images of an eight to train with, among 120 of each other; the validation split is whole."""
    rows, labels = digits.train.rows, digits.train.labels[digits.train.rows]
    kept = np.concatenate([rows[labels == label][: 8 if label == 8 else 120] for label in range(10)])
    return dataclasses.replace(digits, train=Split(digits.train.images, digits.train.labels, np.sort(kept)))


def run(config: TrialConfig, data: ImageData) -> tuple[list[EpochMetrics], Classifier]:
    model = create_model(config, data, CPU)
    parts = ImageTensors.of(data.train, CPU), ImageTensors.of(data.validation, CPU)
    return list(train(model, config, *parts)), model


# ---- what an image weighs ----


def test_without_being_asked_for_there_are_no_weights() -> None:
    assert class_weights(LossConfig(), UNEQUAL, 3) is None


def test_inverse_weights_are_one_over_the_number_of_images() -> None:
    weights = class_weights(LossConfig(class_weights="inverse"), UNEQUAL, 3)
    torch.testing.assert_close(weights, torch.tensor([100 / 180, 100 / 30, 100 / 90]))


@pytest.mark.parametrize("beta", [0.5, 0.99, 0.999])
def test_effective_weights_are_one_over_the_effective_number_of_images(beta: float) -> None:
    weights = class_weights(LossConfig(class_weights="effective", effective_beta=beta), UNEQUAL, 3)
    assert weights is not None
    effective = [sum(beta**i for i in range(n)) for n in (60, 10, 30)]  # 1 + beta + beta^2 + ...: each image adds less
    torch.testing.assert_close(weights[1] / weights[0], torch.tensor(effective[0] / effective[1]))
    torch.testing.assert_close(weights[1] / weights[2], torch.tensor(effective[2] / effective[1]))


def test_effective_weights_lie_between_none_and_inverse() -> None:
    none = class_weights(LossConfig(class_weights="effective", effective_beta=0.0), UNEQUAL, 3)
    torch.testing.assert_close(none, torch.ones(3))
    inverse = class_weights(LossConfig(class_weights="inverse"), UNEQUAL, 3)
    nearly = class_weights(LossConfig(class_weights="effective", effective_beta=0.999999), UNEQUAL, 3)
    torch.testing.assert_close(nearly, inverse, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["inverse", "effective"])
@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_the_mean_weight_of_the_images_is_one_also_where_a_class_has_none(name: str, labels: list[int]) -> None:
    weights = class_weights(LossConfig(class_weights=name), torch.tensor(labels), 6)
    assert weights is not None
    assert weights.isfinite().all()
    assert weights[torch.tensor(labels)].mean().item() == pytest.approx(1, rel=1e-5)


def test_a_weighted_cross_entropy_is_torchs() -> None:
    logits, labels = torch.randn(50, 3, generator=generator()), torch.arange(50) % 3
    weights = torch.tensor([0.2, 3.0, 1.5])
    got = build_loss(LossConfig(), weights)(logits, labels)
    torch.testing.assert_close(got, F.cross_entropy(logits, labels, weight=weights, reduction="none"))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_multiplied_by_the_weight_of_the_images_class(name: str) -> None:
    logits, labels = torch.randn(50, 3, generator=generator()), torch.arange(50) % 3
    weights = torch.tensor([0.2, 3.0, 1.5])
    plain = build_loss(LossConfig(name=name))(logits, labels)
    weighted = build_loss(LossConfig(name=name), weights)
    torch.testing.assert_close(weighted(logits, labels), plain * weights[labels])
    half = torch.full((50, 3), 0.0)
    half[:, :2] = 0.5  # between the first two classes
    torch.testing.assert_close(weighted(logits, half), build_loss(LossConfig(name=name))(logits, half) * 1.6)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_training_loss_is_the_weighted_one(few_eights: ImageData, loss: str) -> None:
    """With all images in one batch, the loss of the first epoch is that of the untrained network."""
    words = {"loss.name": loss, "loss.class_weights": "inverse", "training.batch_size": 65536, "training.epochs": 1}
    config = unflatten(SMALL | words)
    [metrics], _ = run(config, few_eights)
    untrained = predict_split(create_model(config, few_eights, CPU), ImageTensors.of(few_eights.train, CPU))
    losses = build_loss(LossConfig(name=loss))(untrained.logits, untrained.labels)
    by_class = torch.stack([losses[untrained.labels == label].mean() for label in range(10)])
    assert metrics.train_loss == pytest.approx(by_class.mean().item(), rel=1e-4)  # each class counts as much as another
    assert metrics.train_loss != pytest.approx(losses.mean().item(), rel=1e-4)


# ---- how often an image is drawn ----


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=80), seed=st.integers(0, 3))
def test_balanced_draws_have_every_class_equally_often(labels: list[int], seed: int) -> None:
    own = torch.tensor(labels)
    order = balanced_order(own, generator(seed))
    assert len(order) == len(labels)
    assert set(order.tolist()) <= set(range(len(labels)))
    counts = torch.bincount(own[order])[own.unique()]
    assert counts.max() - counts.min() <= 1
    for label in own.unique().tolist():
        times = torch.bincount(order, minlength=len(labels))[own == label]
        assert times.max() - times.min() <= 1  # within a class, too


def test_balanced_draws_of_equal_classes_are_each_image_once() -> None:
    labels = torch.arange(40) % 4
    assert sorted(balanced_order(labels, generator()).tolist()) == list(range(40))


def test_the_generator_decides_what_is_drawn_and_the_order_is_random() -> None:
    first, again = (balanced_order(UNEQUAL, generator()) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, balanced_order(UNEQUAL, generator(1)))
    assert (UNEQUAL[first][1:] != UNEQUAL[first][:-1]).sum() > 40  # the classes do not come one after the other


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("batch_size", [10, 33])
def test_several_ranks_draw_together_what_one_draws(unequal: ImageTensors, world_size: int, batch_size: int) -> None:
    def epoch(rank: int = 0, world_size: int = 1) -> list[tuple[Tensor, Tensor, int]]:
        words = (batch_size, NOTHING, generator(), rank, world_size, None, 0, "balanced")
        return list(unequal.shuffled(*words))

    alone, parts = epoch(), [epoch(rank, world_size) for rank in range(world_size)]
    assert len(alone) == 100 // batch_size
    for step, (images, labels, size) in enumerate(alone):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), labels)
        assert {part[step][2] for part in parts} == {size} == {batch_size}
    counts = torch.bincount(torch.cat([labels for _, labels, _ in alone]))
    assert (counts - len(alone) * batch_size / 3).abs().max() < 4  # but for the incomplete batch, which is left out


def test_shuffled_epochs_have_each_image_once(unequal: ImageTensors) -> None:
    for words in ((), (0, 1, None, 0, "shuffled")):
        labels = torch.cat([labels for _, labels, _ in unequal.shuffled(20, NOTHING, generator(), *words)])
        assert torch.bincount(labels).tolist() == [60, 10, 30]


# ---- how often an image is changed ----


def test_the_rarest_are_always_changed_and_others_by_the_root_of_the_ratio() -> None:
    probabilities = change_probabilities(UNEQUAL)
    expected = {0: (10 / 60) ** 0.5, 1: 1.0, 2: (10 / 30) ** 0.5}
    torch.testing.assert_close(probabilities, torch.tensor([expected[label] for label in UNEQUAL.tolist()]))


def test_what_is_not_to_be_changed_stays_as_it_is(unequal: ImageTensors) -> None:
    config = AugmentationConfig(shift=3, cutout=3, randaugment=1, balanced=True)
    changed, seen = torch.zeros(3), torch.zeros(3)
    source = generator()
    for _ in range(20):
        draws = Draws.make(100, config, source, change_probabilities(UNEQUAL))
        assert draws.changed is not None
        got = augment(unequal.images, config, draws)
        everywhere = augment(unequal.images, config, dataclasses.replace(draws, changed=None))
        here = draws.changed[:, 0]
        assert torch.equal(got[here], everywhere[here])
        assert torch.equal(got[~here], unequal.images[~here])
        changed += torch.bincount(UNEQUAL[here], minlength=3)
        seen += torch.bincount(UNEQUAL, minlength=3)
    assert changed[1] == seen[1]
    assert (changed / seen)[[0, 2]].tolist() == pytest.approx([0.41, 0.58], abs=0.06)


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_ranks_change_together_what_one_changes(unequal: ImageTensors, world_size: int) -> None:
    config = AugmentationConfig(flip=True, shift=2, balanced=True)
    alone = list(unequal.shuffled(20, config, generator()))
    parts = [list(unequal.shuffled(20, config, generator(), rank, world_size)) for rank in range(world_size)]
    for step, (images, _, _) in enumerate(alone):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images)
    everything = dataclasses.replace(config, balanced=False)
    assert any(
        not torch.equal(a[0], b[0]) for a, b in zip(alone, unequal.shuffled(20, everything, generator()), strict=True)
    )


# ---- what it does ----


@pytest.mark.parametrize(
    "words", [{"loss.class_weights": "inverse"}, {"loss.class_weights": "effective"}, {"training.sampling": "balanced"}]
)
def test_a_rare_class_is_recognised_more_often(few_eights: ImageData, words: dict[str, Any]) -> None:
    def recall(model: Classifier) -> float:
        evaluation = predict_split(model, ImageTensors.of(few_eights.validation, CPU))
        eights = evaluation.labels == 8
        return (evaluation.logits.argmax(1)[eights] == 8).double().mean().item()

    _, plain = run(unflatten(SMALL), few_eights)
    _, balanced = run(unflatten(SMALL | words), few_eights)
    assert recall(balanced) > recall(plain)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_validation_split_is_never_weighted_resampled_or_changed(few_eights: ImageData, loss: str) -> None:
    everything = {
        "loss.name": loss,
        "loss.class_weights": "inverse",
        "training.sampling": "balanced",
        "augmentation.shift": 2,
        "augmentation.mixup": 0.5,
        "augmentation.cutmix": 1.0,
        "augmentation.randaugment": 2,
        "augmentation.balanced": True,
        "loss.l2": 0.001,
        "training.epochs": 1,
    }
    [metrics], model = run(unflatten(SMALL | everything), few_eights)
    evaluation = predict_split(model, ImageTensors.of(few_eights.validation, CPU))
    plain = build_loss(LossConfig(name=loss))(evaluation.logits, evaluation.labels).mean().item()
    assert metrics.val_loss == pytest.approx(plain, rel=1e-4)
    assert metrics.val_accuracy == (evaluation.logits.argmax(1) == evaluation.labels).sum().item() / 144


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_each_validation_image_is_scored_once_however_many_ranks_there_are(digits: ImageData, world_size: int) -> None:
    validation = ImageTensors.of(digits.validation, CPU)  # 144 images: ranks of five have 28 or 29
    parts = [list(validation.in_order(20, rank, world_size)) for rank in range(world_size)]
    images = torch.cat([images for part in parts for images, _ in part])
    expected = torch.from_numpy(digits.validation.images[digits.validation.rows])
    assert sorted(map(bytes, images.flatten(1).numpy())) == sorted(map(bytes, expected.flatten(1).numpy()))
