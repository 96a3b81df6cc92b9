"""Checkpoints on a storage path: `python -m pytest tests/test_checkpoint.py`."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.hyperparameters import TrialConfig, unflatten
from trainer.model import build_model

CONFIG = unflatten({"model.blocks": 2, "model.filters.1": 4, "model.filters.2": 8, "optimizer.learning_rate": 1 / 3})


def checkpoint(seed: int = 0, epoch: int = 3, value: float = 0.1 + 0.2, config: TrialConfig = CONFIG) -> Checkpoint:
    torch.manual_seed(seed)
    model = build_model(config.model, (3, 8, 8), 5, [100.0, 110.0, 120.0], [50.0, 51.0, 52.0])
    return Checkpoint(model.state_dict(), config, epoch, value)


def assert_same(first: Checkpoint, second: Checkpoint) -> None:
    assert set(first.weights) == set(second.weights)
    for name, weight in first.weights.items():
        assert weight.dtype == second.weights[name].dtype
        assert torch.equal(weight, second.weights[name])
    assert (first.config, first.epoch, first.value) == (second.config, second.epoch, second.value)


@pytest.fixture(params=["path", "path with spaces", "file URI"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    """A store whose folder does not exist yet."""
    return CheckpointStore(
        {
            "path": str(tmp_path / "checkpoints"),
            "path with spaces": str(tmp_path / "my experiments 50% #1" / "a?b"),
            "file URI": (tmp_path / "checkpoints").as_uri(),
        }[request.param]
    )


def test_a_checkpoint_comes_back_bit_for_bit(store: CheckpointStore) -> None:
    store.save(7, checkpoint())
    assert_same(store.load(7), checkpoint())


def test_the_weights_fit_the_network_of_the_configuration(store: CheckpointStore) -> None:
    store.save(7, checkpoint())
    loaded = store.load(7)
    model = build_model(loaded.config.model, (3, 8, 8), 5, [0.0] * 3, [1.0] * 3)
    assert not torch.equal(model.classifier.weight, loaded.weights["classifier.weight"])
    model.load_state_dict(loaded.weights)
    assert torch.equal(model.classifier.weight, checkpoint().weights["classifier.weight"])
    assert model.mean.flatten().tolist() == [100.0, 110.0, 120.0]


@pytest.mark.parametrize("value", [0.0, 1.0, 1 / 3, 5e-324, math.inf])
def test_the_value_is_kept_exactly(tmp_path: Path, value: float) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(0, checkpoint(value=value))
    assert store.load(0).value == value


def test_a_later_checkpoint_takes_the_place_of_the_trials_last(store: CheckpointStore) -> None:
    store.save(1, checkpoint(seed=0, epoch=1))
    store.save(1, checkpoint(seed=1, epoch=2))
    assert_same(store.load(1), checkpoint(seed=1, epoch=2))
    assert store.trials() == [1]


def test_trials_are_numbered_and_listed_in_order(store: CheckpointStore) -> None:
    for trial in (12, 3, 123456, 0):
        store.save(trial, checkpoint(seed=trial))
    assert store.trials() == [0, 3, 12, 123456]
    assert_same(store.load(123456), checkpoint(seed=123456))


def test_a_store_without_checkpoints_has_no_trials(store: CheckpointStore) -> None:
    assert store.trials() == []


def test_a_checkpoint_can_be_removed_and_the_others_stay(store: CheckpointStore) -> None:
    for trial in (0, 1):
        store.save(trial, checkpoint(seed=trial))
    store.delete(0)
    assert store.trials() == [1]
    assert_same(store.load(1), checkpoint(seed=1))
    with pytest.raises(FileNotFoundError):
        store.load(0)


def test_removing_what_is_not_there_does_nothing(store: CheckpointStore) -> None:
    store.delete(0)
    store.save(1, checkpoint())
    store.delete(0)
    assert store.trials() == [1]


def test_a_checkpoint_that_is_not_there_is_not_found(store: CheckpointStore) -> None:
    with pytest.raises(FileNotFoundError):
        store.load(3)
    store.save(1, checkpoint())
    with pytest.raises(FileNotFoundError):
        store.load(3)


@pytest.mark.parametrize("content", [b"", b"garbage that is no header", None])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes | None) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(3, checkpoint())
    file = tmp_path / "trial-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-10] if content is None else content)
    with pytest.raises(ValueError, match=r"trial-00003\.safetensors' is damaged"):
        store.load(3)


def test_no_temporary_file_stays(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    for epoch in (1, 2):
        store.save(5, checkpoint(epoch=epoch))
    assert [p.name for p in tmp_path.iterdir()] == ["trial-00005.safetensors"]


def test_what_a_killed_writer_left_is_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(5, checkpoint())
    whole = (tmp_path / "trial-00005.safetensors").read_bytes()
    (tmp_path / ".5.writing").write_bytes(whole[:100])
    (tmp_path / ".6.writing").write_bytes(whole[:100])
    assert store.trials() == [5]
    assert_same(store.load(5), checkpoint())
    store.save(5, checkpoint(seed=1))
    assert_same(store.load(5), checkpoint(seed=1))


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(5, checkpoint())
    shared = torch.zeros(4)
    unwritable = Checkpoint({"a": shared, "b": shared}, CONFIG, 9, 0.9)  # safetensors refuses shared memory
    with pytest.raises(RuntimeError, match="share memory"):
        store.save(5, unwritable)
    assert store.trials() == [5]
    assert_same(store.load(5), checkpoint())


def test_storage_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        CheckpointStore(str(tmp_path / "file" / "checkpoints")).save(0, checkpoint())


def test_path_and_uri_are_the_same_place(tmp_path: Path) -> None:
    CheckpointStore(str(tmp_path)).save(2, checkpoint())
    assert_same(CheckpointStore(tmp_path.as_uri()).load(2), checkpoint())


def test_a_relative_path_is_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = CheckpointStore("here/below")
    store.save(2, checkpoint())
    assert (tmp_path / "here/below/trial-00002.safetensors").is_file()
    monkeypatch.chdir("/")
    assert store.trials() == [2]


def test_any_safetensors_reader_finds_the_configuration(tmp_path: Path) -> None:
    from safetensors import safe_open

    CheckpointStore(str(tmp_path)).save(2, checkpoint())
    with safe_open(tmp_path / "trial-00002.safetensors", "pt") as file:
        assert set(file.keys()) == set(checkpoint().weights)
        assert '"model.filters.2": 8' in file.metadata()["config"]
        assert file.metadata()["epoch"] == "3"


# ---- analyses ----


def test_an_analysis_is_kept_beside_its_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(12, checkpoint())
    assert store.load_analysis(12) is None
    assert store.save_analysis(12, b"first")
    assert store.save_analysis(12, b"second")
    assert store.load_analysis(12) == b"second"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trial-00012.analysis.npz", "trial-00012.safetensors"]


def test_an_analysis_is_no_checkpoint(store: CheckpointStore) -> None:
    store.save(3, checkpoint())
    assert store.save_analysis(3, b"analysis")
    assert store.trials() == [3]
    assert_same(store.load(3), checkpoint())


def test_new_weights_make_the_analysis_of_the_last_ones_go(store: CheckpointStore) -> None:
    for trial in (1, 2):
        store.save(trial, checkpoint(epoch=1))
        assert store.save_analysis(trial, b"of epoch 1")
    store.save(1, checkpoint(seed=1, epoch=2))
    assert store.load_analysis(1) is None
    assert store.load_analysis(2) == b"of epoch 1"


def test_an_analysis_goes_with_its_checkpoint(store: CheckpointStore) -> None:
    for trial in (1, 2):
        store.save(trial, checkpoint())
        assert store.save_analysis(trial, b"analysis")
    store.delete(1)
    assert store.load_analysis(1) is None
    assert store.load_analysis(2) == b"analysis"
    assert store.trials() == [2]


def test_no_analysis_is_kept_of_weights_that_are_gone(store: CheckpointStore) -> None:
    assert not store.save_analysis(1, b"analysis")
    store.save(1, checkpoint())
    store.delete(1)
    assert not store.save_analysis(1, b"analysis")
    assert store.load_analysis(1) is None


def test_no_analysis_is_kept_of_an_epoch_whose_weights_were_replaced(store: CheckpointStore) -> None:
    store.save(1, checkpoint(epoch=4))
    assert not store.save_analysis(1, b"of epoch 3", epoch=3)
    assert store.load_analysis(1) is None
    assert store.save_analysis(1, b"of epoch 4", epoch=4)
    assert store.load_analysis(1) == b"of epoch 4"


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_ones_analysis(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(5, checkpoint())
    assert store.save_analysis(5, b"analysis")
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError, match="share memory"):
        store.save(5, Checkpoint({"a": shared, "b": shared}, CONFIG, 9, 0.9))
    assert store.load_analysis(5) == b"analysis"


# ---- kernels ----


@pytest.mark.parametrize("options", [{}, {"model.residual": True}, {"model.convolutions": 2, "model.residual": True}])
def test_kernels_are_the_first_convolutions_weights(tmp_path: Path, options: dict[str, Any]) -> None:
    """Not the image's mean, which has four dimensions too, and not the shortcut beside the convolution."""
    config = unflatten({"model.blocks": 2, "model.filters": [4, 8], "model.kernel_size": [5, 3], **options})
    saved = checkpoint(config=config)
    store = CheckpointStore(str(tmp_path))
    store.save(1, saved)
    kernels = store.kernels(1)
    assert kernels is not None
    assert kernels.dtype == np.float32
    assert kernels.shape == (4, 3, 5, 5)
    assert np.array_equal(kernels, saved.weights["features.0.convolutions.0.weight"].numpy())


def test_kernels_are_found_by_number_and_not_by_spelling(tmp_path: Path) -> None:
    weights = {f"features.{i}.convolutions.0.weight": torch.full((1, 1, 3, 3), float(i)) for i in (10, 2)}
    store = CheckpointStore(str(tmp_path))
    store.save(1, Checkpoint(weights, CONFIG, 1, 0.5))
    kernels = store.kernels(1)
    assert kernels is not None
    assert kernels[0, 0, 0, 0] == 2


def test_a_trial_without_a_checkpoint_has_no_kernels(store: CheckpointStore) -> None:
    assert store.kernels(1) is None


def test_kernels_and_analyses_are_read_and_removed_without_torch(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(1, checkpoint())
    assert store.save_analysis(1, b"analysis")
    code = f"""
import sys
from trainer.checkpoint import CheckpointStore
store = CheckpointStore({str(tmp_path)!r})
print(store.kernels(1).shape, store.load_analysis(1), store.save_analysis(1, b"new", 3), store.delete(1), "torch" in sys.modules)
"""
    root = Path(__file__).resolve().parent.parent
    run = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "(4, 3, 3, 3) b'analysis' True None False"
    assert store.trials() == []


def test_the_configuration_is_read_without_the_weights(store: CheckpointStore) -> None:
    assert store.configuration(1) is None
    store.save(1, checkpoint(seed=3))
    assert store.configuration(1) == checkpoint(seed=3).config


@pytest.mark.parametrize("content", [b"", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0{}", b"\x04\0\0\0\0\0\0\0null"])
def test_a_damaged_checkpoint_has_no_configuration(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "trial-00001.safetensors").write_bytes(content)
    assert CheckpointStore(str(tmp_path)).configuration(1) is None
