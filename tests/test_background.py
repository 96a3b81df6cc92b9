"""Checkpoints written beside the training: `python -m pytest tests/test_background.py`."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from trainer.background import BackgroundSaver
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.hyperparameters import TrialConfig
from trainer.training_state import TrainingState


class SlowStore(CheckpointStore):
    """Writes only when it is let."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.let = threading.Event()
        self.written: list[int] = []

    def save(self, trial: int, checkpoint: Checkpoint) -> None:
        assert self.let.wait(30)
        super().save(trial, checkpoint)
        self.written.append(checkpoint.epoch)


def checkpoint(weight: torch.Tensor, epoch: int) -> Checkpoint:
    return Checkpoint({"weight": weight}, TrialConfig(), epoch, 0.5)


def state(weight: torch.Tensor) -> TrainingState:
    return TrainingState(TrialConfig(), (), 1.5, {"model.weight": weight})


def written_state(store: CheckpointStore) -> list[float]:
    content = store.load_state(7)
    assert content is not None
    weights: list[float] = TrainingState.from_bytes(content).tensors["model.weight"].tolist()
    return weights


def test_training_goes_on_while_the_weights_of_that_moment_are_written(tmp_path: Path) -> None:
    store, weight = SlowStore(tmp_path), torch.zeros(3)
    with BackgroundSaver(store, 7) as saver:
        saver.save(state(weight), checkpoint(weight, 1))
        weight += 1
        assert store.written == []
        store.let.set()
        saver.wait()
        assert store.written == [1]
        saver.save(state(weight), checkpoint(weight, 2))
    assert store.written == [1, 2]
    loaded = store.load(7)
    assert (loaded.epoch, loaded.weights["weight"].tolist(), written_state(store)) == (2, [1, 1, 1], [1, 1, 1])


def test_the_weights_are_those_of_the_moment_of_saving(tmp_path: Path) -> None:
    store, weight = SlowStore(tmp_path), torch.zeros(3)
    with BackgroundSaver(store, 7) as saver:
        saver.save(state(weight), checkpoint(weight, 1))
        weight += 1
        store.let.set()
    assert store.load(7).weights["weight"].tolist() == written_state(store) == [0, 0, 0]


def test_an_epoch_that_is_not_the_best_leaves_the_best_ones_weights(tmp_path: Path) -> None:
    store, weight = CheckpointStore(str(tmp_path)), torch.zeros(1)
    with BackgroundSaver(store, 7) as saver:
        saver.save(state(weight), checkpoint(weight, 1))
        saver.save(state(weight + 1), None)
    assert (store.load(7).epoch, store.load(7).weights["weight"].item(), written_state(store)) == (1, 0, [1])


@pytest.mark.parametrize("asked", ["wait", "save"])
def test_storage_that_cannot_be_written_is_told_the_next_time(tmp_path: Path, asked: str) -> None:
    (tmp_path / "file").write_text("")
    with BackgroundSaver(CheckpointStore(str(tmp_path / "file")), 7) as saver:
        saver.save(state(torch.zeros(1)), None)
        with pytest.raises(OSError, match="file"):
            saver.wait() if asked == "wait" else saver.save(state(torch.zeros(1)), None)
