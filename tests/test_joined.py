"""Final trainings in one process: all images but the test split's, no epoch scored. `python -m pytest tests/test_joined.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ImageFolder

from trainer.batches import ImageTensors
from trainer.data import DataConfig, ImageData, load_data
from trainer.hyperparameters import TrialConfig, unflatten
from trainer.joined import join
from trainer.loop import create_model, train
from trainer.metrics import EpochMetrics
from trainer.objective import build_optimizers
from trainer.training_state import Position

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "model.blocks": 1,
    "model.filters": 4,
    "model.dense_units": 8,
    "model.dropout": 0.3,
    "augmentation.shift": 1,
    "training.batch_size": 8,
    "training.epochs": 3,
}


@pytest.fixture
def two_arrays(image_folder: ImageFolder, tmp_path: Path) -> ImageData:
    """15 images to train with, and 9 to validate in an array of their own; of both, a third has each label."""
    root = image_folder({"a": 5, "b": 5, "c": 5}, below="train")
    image_folder({"a": 3, "b": 3, "c": 3}, below="val")
    return load_data(DataConfig(data=str(root), image_size=8, cache=str(tmp_path / "cache")))


def run(config: TrialConfig, data: ImageData, **options: Any) -> tuple[list[EpochMetrics], dict[str, torch.Tensor]]:
    model = create_model(config, data, CPU)
    return list(train(model, config, join(data, CPU), None, **options)), model.state_dict()


def test_rows_of_one_array_are_joined_in_its_order_without_a_copy(digits: ImageData) -> None:
    joined = join(digits, CPU)
    assert len(joined) == len(digits.train) + len(digits.validation) == len(digits.train.images)
    assert joined.rows.tolist() == list(range(len(joined)))
    assert joined.images.data_ptr() == digits.train.images.ctypes.data
    images, labels = joined.select(torch.tensor([700, 3]))
    np.testing.assert_array_equal(images, digits.train.images[[700, 3]])
    np.testing.assert_array_equal(labels, digits.train.labels[[700, 3]])


def test_two_arrays_are_one_split_without_a_copy(two_arrays: ImageData) -> None:
    joined = join(two_arrays, CPU)
    train, validation = two_arrays.train, two_arrays.validation
    assert train.images is not validation.images
    assert joined.images.data_ptr() == train.images.ctypes.data
    assert len(joined) == len(joined.labels) == 24
    found = [joined.select(torch.tensor(positions)) for positions in ([14, 15, 0, 23], [20], [2])]
    expected = [
        np.stack([train.images[14], validation.images[0], train.images[0], validation.images[8]]),
        validation.images[[5]],
        train.images[[2]],
    ]
    for (images, labels), there in zip(found, expected, strict=True):
        np.testing.assert_array_equal(images, there)
        assert labels.tolist() == ((there.min((1, 2, 3)).astype(int) - 20) // 50).tolist()  # as the pictures tell
    assert joined.labels[joined.rows].bincount().tolist() == [8, 8, 8]


def test_selecting_from_two_arrays_changes_neither(two_arrays: ImageData) -> None:
    before = np.array(two_arrays.train.images), np.array(two_arrays.validation.images)
    images, _ = join(two_arrays, CPU).select(torch.arange(24))
    images.zero_()
    np.testing.assert_array_equal(two_arrays.train.images, before[0])
    np.testing.assert_array_equal(two_arrays.validation.images, before[1])


def test_every_image_is_trained_on_once_an_epoch(two_arrays: ImageData) -> None:
    joined, config = join(two_arrays, CPU), unflatten({})
    batches = joined.shuffled(8, config.augmentation, torch.Generator().manual_seed(0))
    seen = np.concatenate([images.numpy() for images, _, _ in batches])
    everything = np.concatenate([two_arrays.train.images, two_arrays.validation.images])
    assert sorted(image.tobytes() for image in seen) == sorted(image.tobytes() for image in everything)


def test_two_arrays_train_like_one(two_arrays: ImageData) -> None:
    config = unflatten(SMALL)
    one = ImageTensors(
        torch.from_numpy(np.concatenate([two_arrays.train.images, two_arrays.validation.images])),
        torch.from_numpy(np.concatenate([two_arrays.train.labels, two_arrays.validation.labels])),
        torch.arange(24),
        CPU,
    )
    model = create_model(config, two_arrays, CPU)
    expected = [metrics.train_loss for metrics in train(model, config, one, None)]
    assert [metrics.train_loss for metrics in run(config, two_arrays)[0]] == expected


def test_without_a_validation_split_no_epoch_has_a_score(digits: ImageData) -> None:
    epochs, _ = run(unflatten(SMALL | {"training.batch_size": 128}), digits)
    assert [e.epoch for e in epochs] == [1, 2, 3]
    assert {(e.val_loss, e.val_accuracy, e.latency) for e in epochs} == {(0.0, 0.0, 0.0)}
    assert epochs[0].train_loss > epochs[-1].train_loss > 0


def test_what_is_held_out_changes_nothing_but_the_scores(digits: ImageData) -> None:
    """The same images give the same weights, whether a validation split is scored after each epoch or not."""
    config, training = unflatten(SMALL | {"training.batch_size": 128}), ImageTensors.of(digits.train, CPU)
    weights = []
    for validation in (None, ImageTensors.of(digits.validation, CPU)):
        model = create_model(config, digits, CPU)
        losses = [metrics.train_loss for metrics in train(model, config, training, validation)]
        weights.append((losses, {name: t.tolist() for name, t in model.state_dict().items()}))
    assert weights[0] == weights[1]


def test_a_final_training_that_is_stopped_goes_on_as_if_nothing_had_happened(digits: ImageData) -> None:
    config = unflatten(SMALL | {"training.batch_size": 128})
    whole, expected = run(config, digits)
    model, position = create_model(config, digits, CPU), Position()
    words = {"optimizers": build_optimizers(config.optimizer, model), "position": position}
    calls = iter(range(1000))
    first = list(train(model, config, join(digits, CPU), None, should_stop=lambda: next(calls) >= 17, **words))
    assert (len(first), position.epochs, position.steps) == (1, 1, 6)
    rest = list(train(model, config, join(digits, CPU), None, **words))
    assert [e.train_loss for e in [*first, *rest]] == [e.train_loss for e in whole]
    assert all(torch.equal(weights, expected[name]) for name, weights in model.state_dict().items())
