"""Writing into the study database, everything that belongs together at once.

Optuna's own way asks the database twice for each parameter, reads all of a trial before and after it ends, and makes a transaction for
each attribute: a trial of 25 parameters takes it 150 ms, which a group may have to wait for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sql
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models  # the tables; tests/test_reading.py compares with what Optuna reads
from optuna.trial import TrialState

from cluster.patience import patiently

_TRIALS: Any = models.TrialModel.__table__
_ATTRIBUTES: Any = models.TrialUserAttributeModel.__table__
_VALUES: Any = models.TrialValueModel.__table__
_REPORTED: Any = models.TrialIntermediateValueModel.__table__


def create_trial(
    engine: sql.Engine,
    study_id: int,
    params: Mapping[str, tuple[Any, BaseDistribution]],
    attributes: Mapping[str, Any],
) -> tuple[int, int]:
    """A running trial with these parameters and user attributes, in one transaction; gives its id and its number.

    The distributions must be compatible with those that the study has.
    """
    began = _now()
    is_asked_again = False

    def ask() -> tuple[int, int]:
        nonlocal is_asked_again
        known = _trial_that_began(engine, study_id, began) if is_asked_again else None  # the answer may have been lost
        is_asked_again = True
        return _create_trial(engine, study_id, params, attributes, began) if known is None else known

    return patiently(ask)


def _trial_that_began(engine: sql.Engine, study_id: int, at: datetime) -> tuple[int, int] | None:
    there = (_TRIALS.c.study_id == study_id) & (_TRIALS.c.datetime_start == at)
    with engine.connect() as connection:
        row = connection.execute(sql.select(_TRIALS.c.trial_id, _TRIALS.c.number).where(there)).one_or_none()
    return None if row is None else (row.trial_id, row.number)


def _create_trial(
    engine: sql.Engine,
    study_id: int,
    params: Mapping[str, tuple[Any, BaseDistribution]],
    attributes: Mapping[str, Any],
    began: datetime,
) -> tuple[int, int]:
    studies, values = models.StudyModel.__table__, models.TrialParamModel.__table__
    with engine.begin() as connection:
        # As Optuna does: two that create trials at a time may not count the same number.
        connection.execute(sql.select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update())
        new = _TRIALS.insert().values(study_id=study_id, state=TrialState.RUNNING, datetime_start=began)
        key: Any = connection.execute(new).inserted_primary_key
        trial_id = int(key[0])
        before = (_TRIALS.c.study_id == study_id) & (_TRIALS.c.trial_id < trial_id)
        number = connection.execute(sql.select(sql.func.count()).select_from(_TRIALS).where(before)).scalar_one()
        connection.execute(_TRIALS.update().where(_TRIALS.c.trial_id == trial_id).values(number=number))
        entered = [
            {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": distribution.to_internal_repr(value),
                "distribution_json": distribution_to_json(distribution),
            }
            for name, (value, distribution) in params.items()
        ]
        if entered:
            connection.execute(values.insert(), entered)
        connection.execute(_ATTRIBUTES.insert(), _rows(trial_id, attributes))
    return trial_id, number


def report(engine: sql.Engine, trial_id: int, values: Mapping[int, float], attributes: Mapping[str, Any]) -> None:
    """Set the running trial's intermediate values of these steps, and these user attributes, in one transaction."""
    rows = []
    for step, value in values.items():
        stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
        row = {"trial_id": trial_id, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}
        rows.append(row)

    def write() -> None:
        with engine.begin() as connection:
            if rows:
                known = (_REPORTED.c.trial_id == trial_id) & _REPORTED.c.step.in_([*values])
                connection.execute(_REPORTED.delete().where(known))
                connection.execute(_REPORTED.insert(), rows)
            _set_attributes(connection, trial_id, attributes)

    patiently(write)


def end_trial(
    engine: sql.Engine, trial_id: int, state: TrialState, value: float | None, attributes: Mapping[str, Any]
) -> None:
    """The running trial ends in this state, with this value if any, and these user attributes, in one transaction."""
    ended = _now()

    def write() -> None:
        with engine.begin() as connection:
            of_trial = _TRIALS.c.trial_id == trial_id
            connection.execute(_TRIALS.update().where(of_trial).values(state=state, datetime_complete=ended))
            connection.execute(_VALUES.delete().where(_VALUES.c.trial_id == trial_id))
            if value is not None:
                stored, kind = models.TrialValueModel.value_to_stored_repr(value)
                row = {"trial_id": trial_id, "objective": 0, "value": stored, "value_type": kind}
                connection.execute(_VALUES.insert(), row)
            _set_attributes(connection, trial_id, attributes)

    patiently(write)


def _now() -> datetime:
    """As the tables have it: in UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def _set_attributes(connection: sql.Connection, trial_id: int, attributes: Mapping[str, Any]) -> None:
    if attributes:
        known = (_ATTRIBUTES.c.trial_id == trial_id) & _ATTRIBUTES.c.key.in_([*attributes])
        connection.execute(_ATTRIBUTES.delete().where(known))
        connection.execute(_ATTRIBUTES.insert(), _rows(trial_id, attributes))


def _rows(trial_id: int, attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]
