"""Folds of the images, and trials that are trained on them: `python -m pytest tests/test_folds.py`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy import stats
from sklearn.model_selection import StratifiedKFold

from tests.local_group import KilledError, LocalGroup
from trainer.checkpoint import CheckpointStore
from trainer.data import DataConfig, ImageData, Split, load_data
from trainer.fold_scores import averaged, best_by_fold, interval, margin, with_margin
from trainer.folds import check_folds, divide, first_fold, fold_positions
from trainer.hyperparameters import TrialConfig, unflatten
from trainer.joined import join
from trainer.loop import create_model, train
from trainer.mailbox import Assignment, Report
from trainer.measuring import METRICS
from trainer.metrics import EpochMetrics, epochs_of, history
from trainer.objective import build_optimizers
from trainer.training_state import Position, TrainingState

CPU = torch.device("cpu")
CLASSES = ("a", "b", "c")
SMALL: dict[str, Any] = {
    "model.blocks": 1,
    "model.filters": 4,
    "model.dense_units": 0,
    "model.dropout": 0.2,
    "training.batch_size": 256,
    "training.epochs": 2,
    "training.precision": "float32",
}


def data_of(labels: np.ndarray, own_validation: int = 0) -> ImageData:
    """Images of random labels, each as bright as its place; the last ones may be a validation array of their own, or a tenth is one."""
    images = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None, None], (len(labels), 1, 8, 8)).copy()
    if own_validation:
        first = len(labels) - own_validation
        parts = [(images[:first].copy(), labels[:first]), (images[first:].copy(), labels[first:])]
        train, validation = (Split(i, y, np.arange(len(y))) for i, y in parts)
    else:
        held_out = np.arange(len(labels)) % 10 == 3
        train, validation = (Split(images, labels, np.flatnonzero(rows)) for rows in (~held_out, held_out))
    return ImageData("tiny", CLASSES, (100.0,), (50.0,), train, validation, None)


def labels_of(count: int) -> np.ndarray:
    return np.random.default_rng(1).choice(3, count, p=[0.6, 0.3, 0.1])


def brightness(split: Split) -> list[int]:
    """Which images they are."""
    return [int(i) for i in split.images[split.rows, 0, 0, 0]]


# ---- the folds ----


@pytest.mark.parametrize("own_validation", [0, 50])
@pytest.mark.parametrize(("folds", "seed"), [(2, 0), (5, 0), (10, 7)])
def test_the_folds_are_scikit_learns(folds: int, seed: int, own_validation: int) -> None:
    labels = labels_of(200)
    data = data_of(labels, own_validation)
    divisions = divide(data, join(data, CPU), folds, seed)
    theirs = StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed).split(np.zeros((200, 1)), labels)
    assert len(divisions) == folds
    for division, (trained, held_out) in zip(divisions, theirs, strict=True):
        assert division.validation is not None
        for split, expected in ((division.training, trained), (division.validation, held_out)):
            images, found = split.select(torch.arange(len(split)))
            assert images[:, 0, 0, 0].tolist() == expected.tolist()
            assert found.tolist() == labels[expected].tolist()


def test_every_image_is_held_out_once_and_never_trained_on_then() -> None:
    positions = fold_positions(labels_of(100), CLASSES, 4, 0)
    assert sorted(np.concatenate([held_out for _, held_out in positions])) == list(range(100))
    assert all(sorted([*trained, *held_out]) == list(range(100)) for trained, held_out in positions)


@pytest.mark.parametrize("own_validation", [0, 20, 60])
def test_what_a_network_is_built_from_holds_no_image_that_is_held_out(own_validation: int) -> None:
    data = data_of(labels_of(100), own_validation)
    for division in divide(data, join(data, CPU), 4, 0):
        assert division.validation is not None
        held_out, _ = division.validation.select(torch.arange(len(division.validation)))
        seen = brightness(division.data.train)
        assert not set(seen) & set(held_out[:, 0, 0, 0].tolist())
        assert len(seen) >= 75 / 2


@pytest.mark.parametrize("own_validation", [0, 50])
def test_no_image_is_copied(own_validation: int) -> None:
    data = data_of(labels_of(100), own_validation)
    for division in divide(data, join(data, CPU), 5, 0):
        assert division.training.images.data_ptr() == data.train.images.ctypes.data


@pytest.mark.parametrize("own_validation", [0, 50])
def test_the_first_fold_holds_out_what_its_weights_have_not_seen(own_validation: int) -> None:
    labels = labels_of(100)
    data, config = data_of(labels, own_validation), DataConfig(data="digits", split_seed=3)
    found = first_fold(data, config, 4)
    _, held_out = fold_positions(labels, CLASSES, 4, seed=3)[0]
    assert brightness(found.validation) == held_out.tolist()
    assert found.validation.labels[found.validation.rows].tolist() == labels[held_out].tolist()
    assert first_fold(data, config, 1) is data


def test_a_class_with_fewer_images_than_folds_is_refused() -> None:
    data = data_of(np.array([0] * 30 + [1] * 30 + [2] * 4))
    check_folds(data, 4)
    check_folds(data, 1)
    with pytest.raises(ValueError, match=r"class 'c' has 4 images .* for 5 folds: take fewer"):
        check_folds(data, 5)


# ---- what they say together ----


def epoch(number: int, fold: int, accuracy: float, loss: float = 0.5) -> EpochMetrics:
    return EpochMetrics(number, 0.5, loss, accuracy, 0.01, 1000.0, 1.5, fold=fold)


UNEVEN = [epoch(1, 1, 0.5, 0.9), epoch(2, 1, 0.8, 0.2), epoch(3, 1, 0.7, 0.3), epoch(4, 2, 0.6, 0.5)]
"""The second fold has fewer epochs."""


@pytest.mark.parametrize("values", [(0.9, 0.92), (0.9, 0.95, 0.91, 0.94, 0.88)])
def test_the_interval_is_students(values: tuple[float, ...]) -> None:
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), np.std(values, ddof=1) / len(values) ** 0.5)
    assert interval(values) == pytest.approx(expected, abs=1e-12)


def test_one_fold_has_no_interval() -> None:
    assert margin([0.9]) is interval([0.9]) is interval([]) is None
    assert with_margin(0.9, [0.9]) == with_margin(0.9, []) == "0.9000"
    assert with_margin(0.915, [0.9, 0.93]) == "0.9150 ± 0.1906"


def test_a_folds_value_is_that_of_its_best_epoch() -> None:
    assert best_by_fold(history(UNEVEN), METRICS["accuracy"]) == [0.8, 0.6]
    assert best_by_fold(history(UNEVEN), METRICS["loss"]) == [0.2, 0.5]


def test_the_mean_curve_has_at_each_epoch_the_folds_that_got_so_far() -> None:
    curve = averaged(history(UNEVEN))
    assert curve["epoch"] == [1, 2, 3]
    assert curve["val_accuracy"] == pytest.approx([0.55, 0.8, 0.7])
    assert "fold" not in curve
    plain = history([replace(e, fold=0) for e in UNEVEN])
    assert averaged(plain) is plain


def test_a_history_says_its_folds_only_where_there_are_any() -> None:
    assert epochs_of(history(UNEVEN)) == UNEVEN
    plain = [replace(e, fold=0) for e in UNEVEN]
    assert "fold" not in history(plain)
    assert "fold" not in plain[0].to_json()
    assert epochs_of(history(plain)) == plain


# ---- a trial in a worker group ----


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalGroup]:
    with LocalGroup(monkeypatch) as group:
        yield group


@pytest.fixture
def data(cache: Path) -> DataConfig:
    return DataConfig(data="digits", cache=str(cache))


def assignment(data: DataConfig, place: Path, folds: int = 3, **changes: Any) -> Assignment:
    config = unflatten(SMALL | {name.replace("__", "."): value for name, value in changes.items()})
    return Assignment(7, config, data, str(place), folds=folds)


def metrics_of(reports: list[Report]) -> list[EpochMetrics]:
    return [report.metrics for report in reports if report.metrics is not None]


def without_times(epochs: list[EpochMetrics]) -> list[EpochMetrics]:
    return [replace(e, seconds=0.0, images_per_second=0.0, latency=0.0) for e in epochs]


def state_in(place: Path) -> TrainingState:
    content = CheckpointStore(str(place)).load_state(7)
    assert content is not None
    return TrainingState.from_bytes(content)


def test_a_trial_trains_fold_after_fold_and_counts_its_epochs_through(
    group: LocalGroup, data: DataConfig, tmp_path: Path
) -> None:
    reports = group.train(assignment(data, tmp_path))
    epochs = metrics_of(reports)
    assert [(e.epoch, e.fold) for e in epochs] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3)]
    assert [r.ends_fold for r in reports] == [False, True] * 3
    assert [r.done for r in reports] == [False] * 5 + [True]
    assert len({e.train_loss for e in epochs}) == 6

    # Each fold is a training of its own, from the trial's seed.
    images, config = load_data(data), assignment(data, tmp_path).config
    for number, division in enumerate(divide(images, join(images, CPU), 3, seed=0), 1):
        model = create_model(config, division.data, CPU)
        assert division.validation is not None
        alone = list(train(model, config, division.training, division.validation))
        own = [replace(e, epoch=place, fold=0) for place, e in enumerate((e for e in epochs if e.fold == number), 1)]
        assert without_times(alone) == without_times(own)


def test_patience_ends_a_fold_and_the_next_one_begins_with_all_of_its_own(
    group: LocalGroup, data: DataConfig, tmp_path: Path
) -> None:
    stuck = {"training__epochs": 6, "training__patience": 1, "optimizer__learning_rate": 1e-5}
    reports = group.train(assignment(data, tmp_path, **stuck))
    folds = [[e.val_accuracy for e in metrics_of(reports) if e.fold == fold] for fold in (1, 2, 3)]
    assert min(map(len, folds)) < 6
    for accuracies in folds:
        best = accuracies.index(max(accuracies))
        assert len(accuracies) == min(6, best + 1 + 1)
    ends = list(itertools.accumulate(map(len, folds)))
    assert [place for place, report in enumerate(reports, 1) if report.ends_fold] == ends
    assert reports[-1].done


def test_the_weights_that_are_kept_are_those_of_the_first_folds_best_epoch(
    group: LocalGroup, data: DataConfig, tmp_path: Path
) -> None:
    epochs = metrics_of(group.train(assignment(data, tmp_path)))
    kept = CheckpointStore(str(tmp_path)).load(7)
    first = [e for e in epochs if e.fold == 1]
    assert kept.value == max(e.val_accuracy for e in first)
    assert kept.epoch == next(e.epoch for e in first if e.val_accuracy == kept.value)


def test_a_trial_without_folds_is_trained_and_reported_as_ever(
    group: LocalGroup, data: DataConfig, digits: ImageData, tmp_path: Path
) -> None:
    given = assignment(data, tmp_path, folds=1)
    reports = group.train(given)
    model, splits = create_model(given.config, digits, CPU), divide_once(digits)
    assert without_times(metrics_of(reports)) == without_times(list(train(model, given.config, *splits)))
    assert [r.done for r in reports] == [False, True]
    assert {e.fold for e in metrics_of(reports)} == {0}


def divide_once(data: ImageData) -> tuple[Any, Any]:
    from trainer.batches import ImageTensors

    return ImageTensors.of(data.train, CPU), ImageTensors.of(data.validation, CPU)


@pytest.mark.parametrize("after", [2, 3, 4])  # at a fold's end, in its middle, at the next one's end
@pytest.mark.parametrize("how", ["death", "notice"])
def test_a_trial_that_lost_its_processes_goes_on_in_its_fold_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, data: DataConfig, tmp_path: Path, how: str, after: int
) -> None:
    with LocalGroup(monkeypatch) as group:
        whole = metrics_of(group.train(assignment(data, tmp_path / "whole")))
    with LocalGroup(monkeypatch) as group:

        def lose(report: Report) -> None:
            if report.metrics is not None and report.metrics.epoch == after and len(group.reports) == after:
                if how == "death":
                    raise KilledError
                group.notice()

        group.after = lose
        with pytest.raises(BaseException) as raised:  # noqa: PT011 -- of two kinds, neither of which is the worker's public word
            group.train(assignment(data, tmp_path / "lost"))
        assert type(raised.value).__name__ in ("KilledError", "_LeavingError")
        before = metrics_of(group.reports)
        group.call("leave", [])
        group.call("died", "a", "killed")
        group.start_again()
        again = metrics_of(group.reports)[len(before) :]
        assert again[:after] == before  # their times too: nothing of it was trained twice
        assert without_times(metrics_of(group.read(7))) == without_times(whole)
    mine, other = state_in(tmp_path / "lost"), state_in(tmp_path / "whole")
    assert (mine.position.fold, mine.position.epochs, len(mine.history)) == (3, 2, 6)
    assert mine.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(mine.tensors[name], other.tensors[name]) for name in mine.tensors)


def test_a_state_of_a_fold_that_the_trial_has_not_is_left_alone(
    group: LocalGroup, data: DataConfig, tmp_path: Path
) -> None:
    given = assignment(data, tmp_path, folds=1, training__epochs=1)
    model = create_model(given.config, load_data(data), CPU)
    optimizers = build_optimizers(given.config.optimizer, model)
    state = TrainingState.of(model, optimizers, given.config, [epoch(1, 2, 0.5)], 1.0, Position(1, fold=2))
    CheckpointStore(str(tmp_path)).save_state(7, state.to_bytes())
    (report,) = group.train(replace(given, begun=True))
    assert report.metrics is not None
    assert (report.metrics.fold, report.done) == (0, True)
    assert report.metrics.train_loss != 0.5


def test_a_state_knows_its_fold_and_one_that_was_written_before_there_were_any_has_none() -> None:
    epochs = [epoch(1, 1, 0.5), epoch(2, 1, 0.6), epoch(3, 2, 0.7)]
    state = TrainingState(
        TrialConfig(), tuple(epochs), 2.5, {"model.x": torch.ones(2)}, Position(1, 4, 0.5, 0.1, fold=2)
    )
    again = TrainingState.from_bytes(state.to_bytes())
    assert (again.position, list(again.history)) == (state.position, epochs)
    with pytest.raises(ValueError, match="damaged"):
        TrainingState.from_bytes(replace(state, position=Position(2, fold=2)).to_bytes())
    old = {"epochs": 1, "steps": 0, "loss": 0.0, "epoch_seconds": 0.0}
    known = epoch(1, 0, 0.5).to_json()
    facts = {"config": "{}", "history": json.dumps([known]), "seconds": "1.5", "position": json.dumps(old)}
    found = TrainingState.from_bytes(safetensors.torch.save({"model.x": torch.ones(1)}, facts))
    assert (found.position, found.history) == (Position(1), (epoch(1, 0, 0.5),))
