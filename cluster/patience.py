"""A database server may be started again, or end a connection in the middle of a transaction: what was asked of it is asked again.

SQLite is not concerned: a file does not go away, and who waits for its lock does so inside.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sql
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

PATIENCE = 60.0
"""So many seconds a database server that has been there is waited for."""

P = ParamSpec("P")
T = TypeVar("T")


def patiently(ask: Callable[[], T]) -> T:
    """What `ask`, a transaction of its own, gives; asked again when the connection was lost in it.

    It may then have been done already, and only the answer be lost: doing it twice must be as good as once.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except (sql.exc.DBAPIError, StorageInternalError) as error:
            if not _is_lost_connection(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def connect_patiently(dialect: Any, record: object, arguments: Any, options: Any) -> Any:
    """A connection to a server that was there (SQLAlchemy's event `do_connect`); it is waited for."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return dialect.connect(*arguments, **options)
        except dialect.dbapi.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def _is_lost_connection(error: BaseException) -> bool:
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(
        cause, sql.exc.PendingRollbackError
    ):  # Optuna asks a second time in the lost connection's transaction
        return True
    return isinstance(cause, sql.exc.DBAPIError) and cause.connection_invalidated


def _patient(method: Callable[Concatenate[RDBStorage, P], T]) -> Callable[Concatenate[RDBStorage, P], T]:
    @functools.wraps(method)
    def asked(self: RDBStorage, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return patiently(lambda: method(self, *args, **kwargs))

    return asked


class PatientStorage(RDBStorage):
    """Optuna's storage in a database, patient in all that a sweep asks of it while it runs. One process writes at a time."""

    set_study_user_attr = _patient(RDBStorage.set_study_user_attr)
    set_study_system_attr = _patient(RDBStorage.set_study_system_attr)
    get_study_user_attrs = _patient(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _patient(RDBStorage.get_study_system_attrs)
    get_study_directions = _patient(RDBStorage.get_study_directions)
    get_study_name_from_id = _patient(RDBStorage.get_study_name_from_id)
    get_trial = _patient(RDBStorage.get_trial)
    set_trial_intermediate_value = _patient(RDBStorage.set_trial_intermediate_value)
    set_trial_user_attr = _patient(RDBStorage.set_trial_user_attr)
    set_trial_system_attr = _patient(RDBStorage.set_trial_system_attr)
    _set_trial_param = _patient(RDBStorage._set_trial_param)
    _get_trials = _patient(RDBStorage._get_trials)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the trial's state; whether it was not so before. It cannot be set twice, so after a lost answer it is looked at."""
        times_asked = 0

        def ask() -> bool:
            nonlocal times_asked
            times_asked += 1
            try:
                is_set = RDBStorage.set_trial_state_values(self, trial_id, state, values)
            except UpdateFinishedTrialError:
                if times_asked == 1:
                    raise
                is_set = False
            return is_set or (times_asked > 1 and self.get_trial(trial_id).state == state)

        return patiently(ask)
