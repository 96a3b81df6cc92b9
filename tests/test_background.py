"""Checkpoints written beside the training: `python -m pytest tests/test_background.py`."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from trainer.background import BackgroundSaver
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.hyperparameters import TrialConfig


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


def test_training_goes_on_while_the_weights_of_that_moment_are_written(tmp_path: Path) -> None:
    store, weight = SlowStore(tmp_path), torch.zeros(3)
    with BackgroundSaver(store, 7) as saver:
        saver.save(checkpoint(weight, 1))
        weight += 1
        assert store.written == []
        store.let.set()
        saver.wait()
        assert store.written == [1]
        saver.save(checkpoint(weight, 2))
    assert store.written == [1, 2]
    loaded = store.load(7)
    assert (loaded.epoch, loaded.weights["weight"].tolist()) == (2, [1, 1, 1])


def test_the_weights_are_those_of_the_moment_of_saving(tmp_path: Path) -> None:
    store, weight = SlowStore(tmp_path), torch.zeros(3)
    with BackgroundSaver(store, 7) as saver:
        saver.save(checkpoint(weight, 1))
        weight += 1
        store.let.set()
    assert store.load(7).weights["weight"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("asked", ["wait", "save"])
def test_storage_that_cannot_be_written_is_told_the_next_time(tmp_path: Path, asked: str) -> None:
    (tmp_path / "file").write_text("")
    with BackgroundSaver(CheckpointStore(str(tmp_path / "file")), 7) as saver:
        saver.save(checkpoint(torch.zeros(1), 1))
        with pytest.raises(OSError, match="file"):
            saver.wait() if asked == "wait" else saver.save(checkpoint(torch.zeros(1), 2))
