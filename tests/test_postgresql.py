"""The record in PostgreSQL. `python -m pytest tests/test_postgresql.py -q`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from cluster import studies as databases
from cluster.config import make_config
from cluster.experiments import Experiments
from cluster.studies import Studies
from tests.services import PostgreSQL, postgresql
from trainer.metrics import EpochMetrics


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    with postgresql(tmp_path_factory.mktemp("postgresql")) as running:
        yield running


def test_a_sweep_is_recorded_and_read_as_in_sqlite(server: PostgreSQL, tmp_path: Path) -> None:
    url = server.url
    where = Experiments(tmp_path / "experiments", study_storage=url)
    config = make_config({"name": "s", "data": "digits", "trials": 4, "epochs": 2})
    writer, studies = Studies(where, create=True), Studies(where)
    study = writer.create(config, ["zero", "one"], (1, 8, 8))
    study.begin_run(config, groups=1)
    for number, accuracy in enumerate((0.5, 0.9, 0.7)):
        trial = study.ask()
        trial.begin(parameters=10, group="group", group_began=float(number))
        trial.report(EpochMetrics(1, 0.5, 0.4, accuracy, 0.01, 1000.0, 0.5), train_seconds=0.5)
        if number == 2:
            trial.prune()
        else:
            trial.complete()
        assert studies.read("s").counts["RUNNING"] == 0
    study.write_note("as *expected*")
    study.end_run("FINISHED")

    read = studies.read("s")
    storage = optuna.storages.RDBStorage(url.replace("postgresql:", "postgresql+psycopg:"))
    theirs = optuna.load_study(study_name="s", storage=storage)
    assert [t.number for t in read.trials] == [1, 0, 2]
    assert read.best is not None
    assert read.best.value == theirs.best_value == 0.9
    assert [t.value for t in sorted(read.trials, key=lambda t: t.number)] == [t.value for t in theirs.trials]
    assert read.notes == {None: "as *expected*"}
    assert (read.state, read.image_shape) == ("FINISHED", (1, 8, 8))
    (summary,) = studies.summaries()
    assert (summary.best_value, summary.counts["PRUNED"]) == (0.9, 1)
    assert len(studies.optuna_study("s").trials) == 3
    with pytest.raises(ValueError, match="There is a sweep 's' already"):
        writer.create(config, ["zero"])
    storage.remove_session()
    storage.engine.dispose()
    studies.close()
    writer.close()


def test_a_server_that_starts_again_is_waited_for_and_nothing_is_lost(server: PostgreSQL, tmp_path: Path) -> None:
    where = Experiments(tmp_path / "experiments", study_storage=server.url)
    config = make_config({"name": "restarted", "data": "digits", "trials": 4, "epochs": 2})
    studies = Studies(where, create=True)
    study = studies.create(config, ["zero", "one"], (1, 8, 8))
    lost = list[str]()
    with study.lease(False, lost.append):
        study.begin_run(config, groups=1)
        trial = study.ask()
        server.stop()
        going_on = threading.Timer(1.0, server.start)
        going_on.start()
        try:
            trial.report(EpochMetrics(1, 0.5, 0.4, 0.7, 0.01, 1000.0, 0.5), train_seconds=0.5)
        finally:
            going_on.join()
        server.stop()
        server.start()
        trial.complete()
        assert study.ask().number == 1
        study.end_run("INTERRUPTED")
    assert not lost
    assert [t.state for t in studies.read("restarted").trials] == ["COMPLETE", "WAITING"]
    studies.close()


def test_a_server_that_does_not_come_back_is_an_error(
    server: PostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "PATIENCE", 0.0)
    studies = Studies(Experiments(tmp_path / "experiments", study_storage=server.url), create=True)
    server.stop()
    try:
        with pytest.raises((sqlalchemy.exc.OperationalError, optuna.exceptions.StorageInternalError)):
            studies.summaries()
        with pytest.raises(ValueError, match="cannot be opened"):
            Studies(Experiments(tmp_path / "experiments", study_storage=server.url))
    finally:
        server.start()
    studies.close()
