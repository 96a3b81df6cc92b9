"""Final trainings without Ray: what is trained at all, what is followed, what is shown. `python -m pytest tests/test_finals.py`."""

from __future__ import annotations

import io
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import ray
import torch
from rich.console import Console

from cluster import worker_group
from cluster.config import make_config
from cluster.connection import Cluster
from cluster.experiments import Experiments
from cluster.finals import Final, Trained, train_finals
from cluster.finals_progress import FinalsProgress
from cluster.plan import Plan
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.failures import NO_GROUP
from trainer.hyperparameters import unflatten
from trainer.mailbox import Assignment, Report
from trainer.metrics import EpochMetrics

FINALS = [
    Final(key, f"trial {key}", unflatten({"training.epochs": 2, "training.seed": key, "model.blocks": 1}))
    for key in range(3)
]
PLAN = Plan(2, 1, 1.0, 0.0, at_once=2, most=2)


class Here(Cluster):
    """A cluster that is there, and knows no Ray."""

    def __init__(self) -> None:
        super().__init__(can_change=False)

    def plan(self, shape: object, trials: int) -> Plan:
        return PLAN


@dataclass(frozen=True, eq=False)
class Reference:
    """Stands for Ray's reference to a report: none is like another."""

    report: Report


class Groups:
    """Worker groups and their mailbox in one: `will` says by key how each training goes, from its first report on."""

    will: dict[int, list[Report]]
    store: CheckpointStore

    def __init__(self, *_: object) -> None:
        self.mailbox = self
        self.assignments: dict[int, Assignment] = {}

    def __enter__(self) -> Groups:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def wait_until_up(self, should_stop: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return type("Method", (), {"remote": staticmethod(getattr(self, f"on_{name}"))})

    def on_post(self, assignment: Assignment) -> None:
        assert assignment.final
        assert assignment.begun
        self.assignments[assignment.trial] = assignment

    def on_no_more(self, count: int) -> None:
        assert count == len(self.assignments)

    def on_read(self, key: int, position: int) -> Reference:
        report = self.will[key][position]
        if report.done and report.error is None:
            config = self.assignments[key].config
            self.store.save(key, Checkpoint({"weight": torch.zeros(2)}, config, 2, 0.0))
        return Reference(report)


def epoch(number: int, done: bool = False) -> Report:
    metrics = EpochMetrics(number, 0.25, 0.0, 0.0, 0.1, 1234.0, 1.0)
    return Report("group", metrics, done, begun_at=10.0, reported_at=10.0 + number, parameters=7)


def broken(error: str, kind: str | None = None) -> Report:
    return Report("group", None, True, begun_at=10.0, reported_at=11.0, parameters=7, error=error, kind=kind)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return Experiments(tmp_path / "experiments").confirmed("s")


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, store: CheckpointStore) -> type[Groups]:
    """All of them train without a fault unless `will` says otherwise."""
    Groups.will = defaultdict(lambda: [epoch(1), epoch(2, done=True)])
    Groups.store = store
    monkeypatch.setattr(worker_group, "WorkerGroups", Groups)
    monkeypatch.setattr(ray, "get", lambda given: given and given.report)
    monkeypatch.setattr(ray, "wait", lambda references, timeout: (references[:1], references[1:]))
    return Groups


def train(store: CheckpointStore, tmp_path: Path, stop: Any = lambda: False, connected: Any = None) -> Trained:
    def there() -> AbstractContextManager[Cluster]:
        return nullcontext(Here())

    config = make_config({"name": "s", "data": "digits"})
    return train_finals(FINALS, config, store, Experiments(tmp_path / "experiments"), connected or there, stop)


def test_all_are_trained_and_their_weights_can_be_loaded(
    groups: type[Groups], store: CheckpointStore, tmp_path: Path
) -> None:
    trained = train(store, tmp_path)
    assert (trained.done, trained.failures) == ({0, 1, 2}, {})
    assert trained.checkpoint(2).config == FINALS[2].config


def test_nobody_is_asked_for_a_cluster_when_all_is_there(
    groups: type[Groups], store: CheckpointStore, tmp_path: Path
) -> None:
    train(store, tmp_path)
    store.save_state(1, b"left by a driver that was killed")
    assert train(store, tmp_path, connected=lambda: pytest.fail("there is nothing to train")).done == {0, 1, 2}
    assert store.load_state(1) is None


def test_weights_of_another_configuration_are_not_taken_for_its_own(
    groups: type[Groups], store: CheckpointStore, tmp_path: Path
) -> None:
    other = unflatten({"training.epochs": 2, "training.seed": 1, "model.blocks": 2})
    store.save(1, Checkpoint({"weight": torch.ones(2)}, other, 2, 0.0))
    groups.will[1] = [broken("ValueError: too small")]
    trained = train(store, tmp_path)
    assert trained.done == {0, 2}
    assert train(store, tmp_path).failures.keys() == {1}
    del groups.will[1]
    assert train(store, tmp_path).checkpoint(1).config == FINALS[1].config


def test_a_failure_keeps_its_cause_and_the_others_go_on(
    groups: type[Groups], store: CheckpointStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups.will[0] = [epoch(1), broken("NotFiniteError: it is nan\n\nTraceback")]
    store.save_state(0, b"of the first epoch")
    trained = train(store, tmp_path)
    assert trained.done == {1, 2}
    assert trained.failures == {0: "NotFiniteError: it is nan\n\nTraceback"}
    assert store.load_state(0) is None  # it begins anew the next time
    assert "[1/3] trial 0: FAILED: NotFiniteError: it is nan\n" in capsys.readouterr().err


def test_what_was_stopped_keeps_its_state(groups: type[Groups], store: CheckpointStore, tmp_path: Path) -> None:
    store.save_state(2, b"of the first epoch")
    trained = train(store, tmp_path, stop=lambda: store.trials() == [0])
    assert (trained.done, trained.failures) == ({0}, {})
    assert store.load_state(2) == b"of the first epoch"
    assert train(store, tmp_path, stop=lambda: True, connected=lambda: pytest.fail("it is to stop")).done == {0}


def test_where_no_group_is_left_no_training_is_to_blame(
    groups: type[Groups], store: CheckpointStore, tmp_path: Path
) -> None:
    groups.will[1] = [broken("The worker group was lost: a node is gone", NO_GROUP)]
    with pytest.raises(RuntimeError, match=r"a node is gone\. What is finished is kept"):
        train(store, tmp_path)
    assert store.trials() == [0]


# ---- what is shown ----


def shown(terminal: bool, *reports: tuple[int, Report]) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120, color_system=None)
    with FinalsProgress("s", PLAN, FINALS, 5, console) as progress:
        for key, report in reports:
            progress.reported(FINALS[key], report)
    return text.getvalue()


def test_without_a_terminal_every_training_has_a_line_at_its_end() -> None:
    lines = shown(False, (0, epoch(1)), (0, epoch(2, done=True)), (1, broken("ValueError: no\nmore"))).splitlines()
    assert lines[0].startswith("s: 2 worker group(s) of 1 rank(s) with 1 CPU each start")
    assert lines[0].endswith("2 of 5 are there already.")
    assert lines[1:] == [
        "[3/5] trial 0: train loss 0.2500 after 2 epochs, 2.0 s",
        "[4/5] trial 1: FAILED: ValueError: no",
    ]


def test_on_a_terminal_there_are_bars_and_a_line_for_what_failed() -> None:
    text = shown(True, (0, epoch(1)), (1, epoch(1)), (0, epoch(2, done=True)), (1, broken("ValueError: no")))
    assert "[4/5] trial 1: FAILED: ValueError: no" in text
    assert "[3/5]" not in text
    assert "s: final trainings" in text
