"""The event files of a sweep's trials, as TensorBoard itself reads them: `python -m pytest tests/test_tensorboard.py -q`."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

from cluster.config import make_config
from cluster.experiments import Experiments
from cluster.running_trial import RunningTrial
from cluster.studies import Studies
from cluster.study import SweepStudy
from cluster.sweep import _check_tensorboard
from cluster.tensorboard import EventFiles
from trainer.hyperparameters import flatten
from trainer.metrics import EpochMetrics


@pytest.fixture
def study(tmp_path: Path) -> SweepStudy:
    return resumed(tmp_path, create=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Experiments(tmp_path).tensorboard_folder("s")


class Said(list[str]):
    """What was told to whoever watches."""


@pytest.fixture
def said() -> Said:
    return Said()


def resumed(folder: Path, create: bool = False) -> SweepStudy:
    """The sweep, in a process that runs it."""
    config = make_config({"name": "s", "data": "digits", "epochs": 4, "preset": "none", "tensorboard": True})
    studies = Studies(Experiments(folder), create=True)
    study = studies.create(config, ["a", "b"]) if create else studies.open("s")
    study.begin_run(config, groups=1)
    return study


def files(folder: Path, study: SweepStudy, said: Said) -> EventFiles:
    return EventFiles(folder, "s", study.read().trials, said.append)


def epoch(number: int, accuracy: float) -> EpochMetrics:
    return EpochMetrics(number, 1.0 / number, 1.5 / number, accuracy, 0.1 / number, 1000.0, 2.0, 0.5)


def train(trial: RunningTrial, written: EventFiles, accuracies: Mapping[int, float]) -> None:
    for number, accuracy in accuracies.items():
        trial.report(epoch(number, accuracy), 1.0)
        written.reported(trial)


def end(trial: RunningTrial, written: EventFiles, state: str) -> None:
    how: dict[str, Any] = {"COMPLETE": trial.complete, "PRUNED": trial.prune, "WAITING": trial.wait}
    how[state]() if state in how else trial.fail("it broke")
    written.ended(trial, state)


def read(place: Path) -> EventAccumulator:
    found = EventAccumulator(str(place))
    found.Reload()
    return found


def points(place: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 6)) for event in read(place).Scalars(tag)]


def test_every_number_of_every_epoch_is_a_scalar_at_its_epoch(folder: Path, study: SweepStudy, said: Said) -> None:
    written, trial = files(folder, study, said), study.ask()
    written.started(trial)
    train(trial, written, {1: 0.5, 2: 0.75, 3: 0.7})
    end(trial, written, "COMPLETE")
    place = folder / "0"
    numbers = {field.name for field in fields(EpochMetrics)} - {"epoch", "fold"}
    assert set(read(place).Tags()["scalars"]) == {*numbers, "value"}
    assert points(place, "val_accuracy") == [(1, 0.5), (2, 0.75), (3, 0.7)]
    assert points(place, "train_loss") == [(1, 1.0), (2, 0.5), (3, 0.333333)]
    assert points(place, "value") == [(3, 0.75)]
    assert [path.name for path in folder.iterdir()] == ["0"]
    assert len([*place.iterdir()]) == 1
    assert said == []


def test_the_hyperparameters_are_those_of_the_trial_and_a_failure_is_told(
    folder: Path, study: SweepStudy, said: Said
) -> None:
    written = files(folder, study, said)
    for state in ("COMPLETE", "FAIL"):
        trial = study.ask()
        written.started(trial)
        train(trial, written, {1: 0.5} if state == "COMPLETE" else {})
        end(trial, written, state)
        about = read(folder / str(trial.number)).SummaryMetadata
        start = metadata.parse_session_start_info_plugin_data(
            about(metadata.SESSION_START_INFO_TAG).plugin_data.content
        )
        session = metadata.parse_session_end_info_plugin_data(about(metadata.SESSION_END_INFO_TAG).plugin_data.content)
        kinds = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
        assert kinds == flatten(trial.config)
        assert start.group_name == f"s {trial.number}"
        assert session.status == (api_pb2.STATUS_SUCCESS if state == "COMPLETE" else api_pb2.STATUS_FAILURE)


def test_a_trial_that_goes_on_in_another_run_has_each_epoch_once_and_in_the_order_of_time(
    tmp_path: Path, folder: Path, study: SweepStudy, said: Said
) -> None:
    written, trial = files(folder, study, said), study.ask()
    written.started(trial)
    train(trial, written, {1: 0.5, 2: 0.6})
    end(trial, written, "WAITING")
    assert points(folder / "0", "val_accuracy") == [(1, 0.5), (2, 0.6)]
    again = resumed(tmp_path)
    written, trial = files(folder, again, said), again.ask()
    written.started(trial)
    train(trial, written, {3: 0.7, 4: 0.8})
    end(trial, written, "COMPLETE")
    assert points(folder / "0", "val_accuracy") == [(1, 0.5), (2, 0.6), (3, 0.7), (4, 0.8)]
    times = [event.wall_time for event in read(folder / "0").Scalars("val_loss")]
    assert times == sorted(times)


def test_an_epoch_that_is_trained_again_takes_the_place_of_those_from_there_on(
    folder: Path, study: SweepStudy, said: Said
) -> None:
    written, trial = files(folder, study, said), study.ask()
    written.started(trial)
    train(trial, written, {1: 0.1, 2: 0.2, 3: 0.3})
    written.begun_again(trial)
    train(trial, written, {2: 0.4})
    assert points(folder / "0", "val_accuracy") == [(1, 0.1), (2, 0.4)]
    train(trial, written, {3: 0.5})
    end(trial, written, "COMPLETE")
    assert points(folder / "0", "val_accuracy") == [(1, 0.1), (2, 0.4), (3, 0.5)]


def test_who_reads_while_a_trial_goes_on_in_another_file_sees_no_epoch_twice(
    tmp_path: Path, folder: Path, study: SweepStudy, said: Said
) -> None:
    written, trial = files(folder, study, said), study.ask()
    written.started(trial)
    train(trial, written, {1: 0.1, 2: 0.2})
    reader = read(folder / "0")
    again = resumed(tmp_path)
    written, trial = files(folder, again, said), again.ask()
    written.started(trial)
    train(trial, written, {3: 0.3})
    reader.Reload()
    assert [event.step for event in reader.Scalars("val_accuracy")] == [1, 2, 3]


def test_finished_trials_without_a_file_get_one_and_those_with_one_keep_it(
    tmp_path: Path, folder: Path, study: SweepStudy, said: Said
) -> None:
    for accuracy, state in ((0.9, "COMPLETE"), (0.2, "PRUNED")):
        trial = study.ask()
        for number in (1, 2):
            trial.report(epoch(number, accuracy), 1.0)
        trial.complete() if state == "COMPLETE" else trial.prune()
    (folder / "1").mkdir(parents=True)
    files(folder, study, said)
    assert points(folder / "0", "val_accuracy") == [(1, 0.9), (2, 0.9)]
    assert points(folder / "0", "value") == [(2, 0.9)]
    assert [*(folder / "1").iterdir()] == []
    ended = study.read().trial(0).ended
    assert ended is not None
    assert [event.wall_time for event in read(folder / "0").Scalars("seconds")] == pytest.approx(
        [ended.timestamp() - 2, ended.timestamp()]
    )


def test_a_folder_that_cannot_be_written_is_said_once_and_the_sweep_goes_on(
    folder: Path, study: SweepStudy, said: Said
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file")
    written = files(folder, study, said)
    for _ in range(2):
        trial = study.ask()
        written.started(trial)
        train(trial, written, {1: 0.5, 2: 0.6})
        end(trial, written, "COMPLETE")
    (line,) = said
    assert "event files for TensorBoard cannot be written" in line
    assert str(folder) in line


def test_after_a_full_disk_the_next_epoch_has_all_again(
    folder: Path, study: SweepStudy, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, trial = files(folder, study, said), study.ask()
    written.started(trial)
    train(trial, written, {1: 0.1})

    def half(self: EventFiles, number: int, events: object) -> None:
        with self._files[number].open("ab") as file:
            file.write(b"half a record")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(EventFiles, "_append", half)
        train(trial, written, {2: 0.2, 3: 0.3})
    assert said == [
        "event files for TensorBoard cannot be written ([Errno 28] No space left on device); the sweep goes on without them"
    ]
    train(trial, written, {4: 0.4})
    end(trial, written, "COMPLETE")
    assert points(folder / "0", "val_accuracy") == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert len(said) == 1


def test_without_the_package_event_files_are_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = make_config({"name": "s", "data": "digits", "tensorboard": True})
    _check_tensorboard(wanted)
    monkeypatch.delitem(sys.modules, "cluster.tensorboard")
    import_module = builtins.__import__

    def absent(name: str, *words: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return import_module(name, *words)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match=r"tensorboard needs a package that is not there .*`pip install tensorboard`"):
        _check_tensorboard(wanted)
    _check_tensorboard(make_config({"name": "s", "data": "digits"}))
