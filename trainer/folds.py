"""Stratified folds of all images but the test split's: each is held out once, and trained on all other times.

Imports no torch before it has tensors to divide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainer.data import DataConfig, ImageData, Split

if TYPE_CHECKING:
    from trainer.batches import ImageTensors

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Division:
    """Images to train on, and those that are held out to score an epoch on, if any. `data` is what a network is built from."""

    data: ImageData
    training: ImageTensors
    validation: ImageTensors | None


def check_folds(data: ImageData, folds: int) -> None:
    """Raise ValueError when a class has fewer images than there are folds, if there are several."""
    if folds > 1:
        _check(_all_labels(data), data.classes, folds)


def fold_positions(labels: Rows, classes: tuple[str, ...], folds: int, seed: int) -> list[tuple[Rows, Rows]]:
    """For each fold the positions of the labels to train on and of those that are held out, each sorted.

    They are those of scikit-learn's StratifiedKFold. Raises ValueError when a class has fewer images than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    _check(labels, classes, folds)
    splitter = StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(labels)), labels))


def divide(data: ImageData, whole: ImageTensors, folds: int, seed: int) -> list[Division]:
    """Every fold of the `whole`, which is what `trainer.joined.join` makes of the data; no image is copied."""
    import torch

    found = []
    for trained, held_out in fold_positions(_all_labels(data), data.classes, folds, seed):
        training, validation = (replace(whole, rows=whole.rows[torch.from_numpy(p)]) for p in (trained, held_out))
        # What is fitted to images, whitening, sees none that is held out: of two arrays it sees those of the one that has more.
        seen = max(_parts(data, trained), key=len)
        found.append(Division(replace(data, train=seen), training, validation))
    return found


def first_fold(data: ImageData, config: DataConfig, folds: int) -> ImageData:
    """The data with the images as validation split that the first fold holds out, whose weights a trial keeps.

    One fold is the data as they are. The training split is left as it is.
    """
    if folds == 1:
        return data
    _, held_out = fold_positions(_all_labels(data), data.classes, folds, config.split_seed)[0]
    parts = [part for part in _parts(data, held_out) if len(part)]
    if len(parts) == 1:
        return replace(data, validation=parts[0])
    images = np.concatenate([part.images[part.rows] for part in parts])
    labels = np.concatenate([part.labels[part.rows] for part in parts])
    return replace(data, validation=Split(images, labels, np.arange(len(labels))))


def all_rows(data: ImageData) -> Rows:
    """The rows of training and validation images together; a validation array of its own comes after the training images."""
    if data.train.images is data.validation.images:
        return np.sort(np.concatenate([data.train.rows, data.validation.rows]))
    return np.concatenate([data.train.rows, data.validation.rows + len(data.train.images)])


def _all_labels(data: ImageData) -> Rows:
    """Of training and validation images, in the order of `all_rows`."""
    if data.train.images is data.validation.images:
        return data.train.labels[all_rows(data)]
    return np.concatenate([part.labels[part.rows] for part in (data.train, data.validation)])


def _parts(data: ImageData, positions: Rows) -> list[Split]:
    """The images at these positions of `all_rows`, as rows of the arrays that they are in."""
    rows, first = all_rows(data)[positions], len(data.train.images)
    arrays = ((data.train, rows[rows < first]), (data.validation, rows[rows >= first] - first))
    return [Split(split.images, split.labels, own) for split, own in arrays]


def _check(labels: Rows, classes: tuple[str, ...], folds: int) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < folds:
        scarce = counts.argmin()
        raise ValueError(
            f"Every fold holds out an image of each class at least, but class {classes[scarce]!r} has {counts[scarce]} images besides "
            f"those of the test split, for {folds} folds: take fewer folds, or leave the class out."
        )
