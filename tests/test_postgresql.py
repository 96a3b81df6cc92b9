"""The record in PostgreSQL. `python -m pytest tests/test_postgresql.py -q`."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
import sqlalchemy

from cluster import patience
from cluster.config import make_config
from cluster.experiments import Experiments
from cluster.running_trial import RunningTrial
from cluster.studies import Studies
from tests.services import PostgreSQL, postgresql
from trainer.failures import OUT_OF_MEMORY
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


@pytest.mark.parametrize("moment", ["statements", "answers"])
def test_a_connection_that_breaks_inside_a_transaction_is_made_again_and_nothing_is_lost_or_done_twice(
    server: PostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    name = "broken-at-" + moment
    where = Experiments(tmp_path / "experiments", study_storage=server.url)
    config = make_config({"name": name, "data": "digits", "trials": 4, "epochs": 2})
    studies = Studies(where, create=True)
    study = studies.create(config, ["zero", "one"], (1, 8, 8))
    engine = study._reader.engine
    broken = list[str]()
    (_break_at_statements if moment == "statements" else _break_at_answers)(engine, broken, monkeypatch)
    study.begin_run(config, groups=1)
    study.note_startup(1.5)
    ends: list[Callable[[RunningTrial], None]] = [
        RunningTrial.complete,
        RunningTrial.prune,
        lambda t: t.fail("it took too much", log="here:/log", kind=OUT_OF_MEMORY),
    ]
    for number, end in enumerate(ends):
        trial = study.ask()
        trial.begin(parameters=10, group="group", group_began=float(number))
        for epoch in (1, 2):
            trial.report(EpochMetrics(epoch, 0.5, 0.4, number / 10, 0.01, 1000.0, 0.5), train_seconds=0.5)
            trial.should_prune()
        end(trial)
    study.ask()
    study.end_run("INTERRUPTED")
    assert len(broken) > 10
    with contextlib.closing(Studies(where)) as others:
        read = others.read(name)
    assert [t.state for t in sorted(read.trials, key=lambda t: t.number)] == ["COMPLETE", "PRUNED", "FAIL", "WAITING"]
    assert [t.epochs_done for t in sorted(read.trials, key=lambda t: t.number)] == [2, 2, 2, 0]
    assert (read.trial(2).error, read.state, len(read.runs)) == ("it took too much", "INTERRUPTED", 1)
    studies.close()


def _break_at_statements(engine: sqlalchemy.Engine, broken: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ends the connection when it is asked something for the first time, whatever it is."""

    def before(connection: sqlalchemy.Connection, cursor: Any, statement: str, *_: object) -> None:
        if statement not in broken:
            broken.append(statement)
            _end(cursor.connection)

    sqlalchemy.event.listen(engine, "before_cursor_execute", before)


def _break_at_answers(engine: sqlalchemy.Engine, broken: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second transaction is committed, but nobody hears of it."""
    commits, commit = itertools.count(), engine.dialect.do_commit

    def commit_and_break(connection: Any) -> None:
        commit(connection)
        if next(commits) % 2:
            broken.append("commit")
            _end(connection.dbapi_connection)
            connection.dbapi_connection.execute("SELECT 1")

    monkeypatch.setattr(engine.dialect, "do_commit", commit_and_break)


def _end(connection: Any) -> None:
    with psycopg.connect(connection.info.dsn) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])


def test_a_server_that_does_not_come_back_is_an_error(
    server: PostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 0.0)
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
