"""Checkpoints on storage that is no local folder, or that is full: `python -m pytest tests/test_storage.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.config import make_config
from cluster.experiments import Experiments
from cluster.studies import Studies
from tests.services import s3
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.hyperparameters import TrialConfig


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "any")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with s3("convsweep-test") as uri:
            yield uri


def checkpoint(weight: float, epoch: int = 1, size: int = 4) -> Checkpoint:
    return Checkpoint({"weight": torch.full((size,), weight)}, TrialConfig(), epoch, 0.5)


def test_a_uri_keeps_its_options_at_its_end() -> None:
    where = Experiments(Path("experiments"), None, "s3://bucket/a/?endpoint_override=x&scheme=http")
    assert where.checkpoints_uri("s") == "s3://bucket/a/s/checkpoints?endpoint_override=x&scheme=http"
    assert Experiments(Path("experiments"), None, "s3://bucket/a").groups_uri("s") == "s3://bucket/a/s/groups"
    assert Experiments(Path("/e")).checkpoints_uri("s") == "/e/s/checkpoints"


@pytest.mark.parametrize(
    ("said", "recorded"),
    [
        (None, None),
        ("s3://bucket/a", "s3://bucket/a"),
        ("s3://key:secret@bucket/a", None),
        ("/shared/sweeps", "/shared/sweeps"),
    ],
)
def test_a_sweep_knows_where_its_checkpoints_are(tmp_path: Path, said: str | None, recorded: str | None) -> None:
    where = Experiments(tmp_path, None, said)
    Studies(where, create=True).create(make_config({"name": "s", "data": "digits"}), ["a", "b"])
    found = Studies(Experiments(tmp_path)).read("s").storage_path
    assert found == recorded
    assert Experiments(tmp_path).of(found).storage_path == recorded
    assert Experiments(tmp_path, None, "/moved").of(found).storage_path == "/moved"


def test_checkpoints_states_and_analyses_live_on_s3_as_in_a_folder(bucket: str) -> None:
    where = Experiments(Path("nowhere"), None, bucket)
    where_store = where.checkpoints("s")
    assert where_store.trials() == []
    where_store.save(3, checkpoint(1.0))
    where_store.save(3, checkpoint(2.0, 2))
    where_store.save(5, checkpoint(3.0))
    where_store.save_state(5, b"state")
    assert where_store.save_analysis(3, b"analysis", 2)
    again = CheckpointStore(where.checkpoints_uri("s"))
    assert again.trials() == [3, 5]
    assert (again.load(3).epoch, again.load(3).weights["weight"].tolist()) == (2, [2.0] * 4)
    assert (again.load_state(5), again.load_state(3), again.load_analysis(3)) == (b"state", None, b"analysis")
    surplus = again.surplus(keep={3}, unfinished=set())
    assert sorted(Path(path).name for path in surplus) == ["trial-00005.safetensors", "trial-00005.state"]
    again.remove(surplus)
    assert again.trials() == [3]
    where.remove_sweep_files("s")
    assert again.trials() == []


def test_a_bucket_that_is_not_there_is_named(bucket: str, tmp_path: Path) -> None:
    other = bucket.replace("convsweep-test", "no-such-bucket")
    with pytest.raises(ValueError, match=r"--storage-path .*no-such-bucket.* cannot be written"):
        Experiments(tmp_path, None, other).check()
    Experiments(tmp_path, None, bucket).check()


@pytest.mark.slow
def test_a_sweep_with_its_checkpoints_on_s3_is_exported_from_there(bucket: str, tmp_path: Path) -> None:
    def run(*words: object) -> str:
        command = [sys.executable, "-m", "cluster.cli", *map(str, words), "--storage-path", bucket]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    narrow = ["--set", "model.filters=8", "--set", "model.blocks=2"]
    run("sweep", "--data", "digits", "--trials", 3, "--epochs", 2, "--name", "s", "--pruner", "none", *narrow)
    store = Experiments(tmp_path, None, bucket).checkpoints("s")
    assert store.trials() == [0, 1, 2]
    assert store.surplus({0, 1, 2}, set()) == {}
    assert not (tmp_path / "experiments" / "s").exists()
    exported = json.loads(run("export", "s", "--to", "bundle", "--json"))
    assert exported["max_difference"] <= 1e-4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("Only root can mount a small file system.")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_and_what_was_there_stays_whole(small_disk: Path) -> None:
    store = CheckpointStore(str(small_disk / "checkpoints"))
    store.save(1, checkpoint(1.0, size=20_000))
    with pytest.raises(OSError, match="No space left"):
        store.save(1, checkpoint(2.0, 2, size=200_000))
    assert store.load(1).weights["weight"][0] == 1.0
    assert [file.name for file in (small_disk / "checkpoints").iterdir()] == ["trial-00001.safetensors"]


@pytest.mark.slow
def test_a_sweep_on_a_full_disk_says_so_and_goes_on_when_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    def run(*words: object, storage: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cluster.cli", *map(str, words)]
        command += ["--storage-path", str(small_disk)] if storage else []
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    full = run("sweep", "--data", "digits", "--trials", 3, "--epochs", 2, "--name", "s", "--pruner", "none")
    assert full.returncode == 1
    assert "No space left" in full.stderr
    assert "convsweep resume s" in full.stderr
    assert "Traceback" not in full.stderr
    listed = json.loads(
        subprocess.run(
            [sys.executable, "-m", "cluster.cli", "list", "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )[0]
    assert (listed["state"], listed["trials"]["FAIL"], listed["trials"]["RUNNING"]) == ("FAILED", 0, 0)
    subprocess.run(["mount", "-o", "remount,size=80m", str(small_disk)], check=True)
    going_on = run("resume", "s", "--json", storage=False)  # it knows
    assert going_on.returncode == 0, going_on.stderr
    assert [t["state"] for t in json.loads(going_on.stdout)["trials"]] == ["COMPLETE"] * 3
