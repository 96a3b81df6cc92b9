"""The study database: all sweeps, opened by name. Imports no Ray."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import optuna
import sqlalchemy

from cluster import reading
from cluster.config import SweepConfig
from cluster.experiments import Experiments
from cluster.patience import PatientStorage, connect_patiently
from cluster.reading import StudyReader
from cluster.record import SWEEP_ATTRIBUTE, SweepRecord, SweepSummary
from cluster.study import SweepStudy
from trainer.hyperparameters import nearest

_CREATIONS = 20
"""How often the tables of a database are tried to be created while another process does."""


class Studies:
    """All sweeps of a database."""

    def __init__(self, experiments: Experiments, create: bool = False) -> None:
        """Open the database; without `create`, one that is not there counts as empty. Raises ValueError for a bad URL."""
        self._storage: optuna.storages.BaseStorage | None = None
        self._rdb: optuna.storages.RDBStorage | None = None
        self._where = experiments
        self._readers: dict[str, StudyReader] = {}
        if experiments.study_storage is None and experiments.folder.is_file():
            raise ValueError(f"--experiments must name a folder, but {str(experiments.folder)!r} is a file.")
        if create and experiments.study_storage is None:
            experiments.folder.mkdir(parents=True, exist_ok=True)
        if create or experiments.database_exists:
            self._rdb = _open(experiments.database)
            self._storage = optuna.storages.get_storage(self._rdb)

    def summaries(self) -> list[SweepSummary]:
        """All sweeps, the newest last. Other studies in the database are left alone."""
        return [] if self._rdb is None else reading.summaries(self._rdb.engine)

    def names(self) -> list[str]:
        """The sweeps' names, the newest last."""
        return [summary.name for summary in self.summaries()]

    def foreign(self) -> list[str]:
        """The names of the studies that are no sweeps, but those of other programs; the newest last."""
        return [] if self._rdb is None else reading.foreign_studies(self._rdb.engine)

    def notes(self) -> dict[str, str]:
        """The notes on whole sweeps, by the sweep's name."""
        return {} if self._rdb is None else reading.study_notes(self._rdb.engine)

    def read(self, name: str) -> SweepRecord:
        """The sweep as it is now; raises ValueError, with the nearest name, when there is none."""
        if name not in self._readers:
            self._readers[name] = self._reader(name)
        return self._readers[name].read()

    def open(self, name: str) -> SweepStudy:
        """The sweep's study, to run it; raises ValueError, with the nearest name, when there is none."""
        reader = self._reader(name)
        return SweepStudy(optuna.load_study(study_name=name, storage=self._storage), reader)  # type: ignore[arg-type]

    def optuna_study(self, name: str, keep: Callable[[int], bool] = lambda number: True) -> optuna.Study:
        """A copy in memory for Optuna's own plots, with the trials whose numbers `keep` accepts: `reading.optuna_study`."""
        assert self._rdb is not None
        return reading.optuna_study(self._rdb.engine, name, keep)

    def close(self) -> None:
        """Close all connections to the database."""
        if self._rdb is not None:
            self._rdb.remove_session()
            self._rdb.engine.dispose()

    def _reader(self, name: str) -> StudyReader:
        if self._storage is None or self._rdb is None or name not in (known := self.names()):
            known = self.names()
            hint = nearest(name, known) or (f" Sweeps: {', '.join(known)}." if known else " There are no sweeps yet.")
            raise ValueError(f"There is no sweep {name!r} in {_shown(self._where.database)!r}.{hint}")
        assert known
        return StudyReader(self._rdb.engine, name, self._storage.get_study_id_from_name(name))

    def create(
        self, config: SweepConfig, classes: Sequence[str], image_shape: tuple[int, int, int] | None = None
    ) -> SweepStudy:
        """A new sweep, its baseline or grid enqueued. Raises ValueError when the name is taken."""
        assert self._storage is not None
        if config.name in self.foreign() and not self._remove_unfinished(config.name):
            raise ValueError(f"The database has a study {config.name!r} of another program: choose another --name.")
        if config.name in self.names():
            raise ValueError(
                f"There is a sweep {config.name!r} already. Go on with it: `convsweep resume {config.name}`; give it more trials: "
                f"`convsweep extend {config.name} --trials N`; or choose another --name."
            )
        if config.warm_start_from is not None:
            self._reader(config.warm_start_from)  # raises: there is no such sweep
        study = optuna.create_study(study_name=config.name, storage=self._storage, direction=config.goal.direction)
        study.set_user_attr("classes", list(classes))
        study.set_user_attr("image_shape", image_shape)
        study.set_user_attr("storage_path", self._where.recorded_storage)
        assert self._rdb is not None
        SweepStudy(study, StudyReader(self._rdb.engine, config.name, study._study_id)).enqueue_first_trials(config)
        study.set_user_attr(SWEEP_ATTRIBUTE, json.dumps(config.to_json()))  # it is a sweep from here on
        return self.open(config.name)

    def _remove_unfinished(self, name: str) -> bool:
        """Remove what is there of a sweep whose creation was killed half-way; whether the study was one."""
        assert self._storage is not None
        study = optuna.load_study(study_name=name, storage=self._storage)
        known = study.user_attrs.keys()
        unfinished = "classes" in known and known <= {"classes", "image_shape", "storage_path"}
        if unfinished:
            optuna.delete_study(study_name=name, storage=self._storage)
        return unfinished


def _open(url: str) -> optuna.storages.RDBStorage:
    sqlite = url.startswith("sqlite")
    arguments: dict[str, Any] = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
    try:
        storage = _create_or_open(_with_driver(url), arguments)
        if sqlite:
            sqlalchemy.event.listen(storage.engine, "connect", _set_pragmas)
            storage.engine.dispose()  # connections from now on have them
        else:
            sqlalchemy.event.listen(storage.engine, "do_connect", connect_patiently)
        return storage
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"The study database {_shown(url)!r} cannot be opened: {reason}.") from error


def _create_or_open(url: str, arguments: dict[str, Any]) -> optuna.storages.RDBStorage:
    """Optuna's storage. When several processes open a new database at once, Optuna's creation of the tables fails in one."""
    for _ in range(_CREATIONS - 1):
        try:
            return PatientStorage(url, engine_kwargs=arguments)
        except (
            sqlalchemy.exc.IntegrityError,
            sqlalchemy.exc.OperationalError,
            sqlalchemy.exc.ProgrammingError,
        ) as error:
            if "UNIQUE" not in str(error).upper() and "EXISTS" not in str(error).upper():
                raise
            time.sleep(0.1)
    return PatientStorage(url, engine_kwargs=arguments)


def _with_driver(url: str) -> str:
    """SQLAlchemy takes psycopg2 for PostgreSQL when the URL names no driver; ours is its successor."""
    ours = url.startswith("postgresql://") and importlib.util.find_spec("psycopg") is not None
    return url.replace("postgresql://", "postgresql+psycopg://", 1) if ours else url


def _shown(url: str) -> str:
    """The URL without its password."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


def _set_pragmas(connection: Any, record: object) -> None:
    """With a write-ahead log, readers (the dashboard) and the writer do not wait for each other; synced at its checkpoints
    it survives the death of any process, and a commit takes 0.1 ms instead of several.
    """
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
