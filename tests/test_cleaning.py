"""What a sweep does not need on disk, and its removal: `python -m pytest tests/test_cleaning.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.cleaning import clean
from cluster.config import make_config
from cluster.experiments import Experiments
from cluster.lease import LeaseHeldError
from cluster.studies import Studies
from trainer.checkpoint import Checkpoint
from trainer.metrics import EpochMetrics


@pytest.fixture
def where(tmp_path: Path) -> Experiments:
    """A sweep of three complete trials, a pruned one and one that was killed, with more files than it needs."""
    found = Experiments(tmp_path / "experiments")
    config = make_config({"name": "s", "data": "digits", "trials": 9, "epochs": 2, "keep_checkpoints": 2})
    study = Studies(found, create=True).create(config, ["a", "b"])
    study.begin_run(config, groups=1)
    store = found.checkpoints("s")
    for number, accuracy in enumerate((0.5, 0.9, 0.8, 0.1, 0.6)):
        trial = study.ask()
        trial.begin(10, "group", 1.0)
        trial.report(EpochMetrics(1, 0.5, 0.5, accuracy, 0.1, 10.0, 1.0), 1.0)
        store.save(number, Checkpoint({"weight": torch.zeros(4)}, trial.config, 1, accuracy))
        store.save_state(number, b"state")
        if number < 4:
            trial.prune() if number == 3 else trial.complete()
    assert store.save_analysis(0, b"analysis")
    (tmp_path / "experiments/s/checkpoints/.abc.writing").write_bytes(b"half")
    (tmp_path / "experiments/s/checkpoints/mine.txt").write_text("of the user")
    (tmp_path / "experiments/s/tune/x").mkdir(parents=True)
    (tmp_path / "experiments/s/tune/x/params.pkl").write_bytes(b"12345")
    return found


def names(where: Experiments) -> set[str]:
    return {file.name for file in (where.folder / "s").rglob("*") if file.is_file()}


UNNEEDED = {
    "trial-00000.safetensors",
    "trial-00000.analysis.npz",
    "trial-00000.state",
    "trial-00001.state",
    "trial-00002.state",
    "trial-00003.safetensors",
    "trial-00003.state",
    ".abc.writing",
    "params.pkl",
}


def test_what_is_not_needed_is_shown_and_stays_until_it_is_to_go(where: Experiments) -> None:
    before = names(where)
    found = clean("s", where, keep=None, remove=False)
    assert {Path(file).name for file in found.files} == UNNEEDED
    assert found.kept == (1, 2)
    assert found.size == sum(Path(file).stat().st_size for file in found.files)
    assert names(where) == before


def test_what_goes_leaves_the_best_weights_what_is_unfinished_and_what_is_not_ours(where: Experiments) -> None:
    before, record = names(where), Studies(where).read("s").trials
    clean("s", where, keep=None, remove=True)
    assert names(where) == before - UNNEEDED
    assert where.checkpoints("s").trials() == [1, 2, 4]
    assert where.checkpoints("s").load_state(4) == b"state"
    assert Studies(where).read("s").trials == record
    assert clean("s", where, keep=None, remove=False).files == {}


def test_fewer_can_be_kept_but_not_none(where: Experiments) -> None:
    assert clean("s", where, keep=1, remove=True).kept == (1,)
    assert where.checkpoints("s").trials() == [1, 4]
    with pytest.raises(ValueError, match="at least 1"):
        clean("s", where, keep=0, remove=True)


def test_a_sweep_that_runs_is_left_alone(where: Experiments) -> None:
    with Studies(where).open("s").lease(False, print), pytest.raises(LeaseHeldError):
        clean("s", where, keep=None, remove=True)
