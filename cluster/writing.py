"""Writing into the study database, everything that belongs together at once.

Optuna's own way asks the database twice for each parameter, and a transaction is made for each attribute: a trial of 25 parameters
takes it 90 ms, which a group may have to wait for.
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

_ATTRIBUTES: Any = models.TrialUserAttributeModel.__table__


def create_trial(
    engine: sql.Engine,
    study_id: int,
    params: Mapping[str, tuple[Any, BaseDistribution]],
    attributes: Mapping[str, Any],
) -> int:
    """A running trial with these parameters and user attributes, in one transaction; gives its id.

    The distributions must be compatible with those that the study has.
    """
    began = datetime.now(UTC).replace(tzinfo=None)
    is_asked_again = False

    def ask() -> int:
        nonlocal is_asked_again
        known = _trial_that_began(engine, study_id, began) if is_asked_again else None  # the answer may have been lost
        is_asked_again = True
        return _create_trial(engine, study_id, params, attributes, began) if known is None else known

    return patiently(ask)


def _trial_that_began(engine: sql.Engine, study_id: int, at: datetime) -> int | None:
    trials = models.TrialModel.__table__
    there = (trials.c.study_id == study_id) & (trials.c.datetime_start == at)
    with engine.connect() as connection:
        return connection.execute(sql.select(trials.c.trial_id).where(there)).scalar_one_or_none()


def _create_trial(
    engine: sql.Engine,
    study_id: int,
    params: Mapping[str, tuple[Any, BaseDistribution]],
    attributes: Mapping[str, Any],
    began: datetime,
) -> int:
    studies, trials, values = models.StudyModel.__table__, models.TrialModel.__table__, models.TrialParamModel.__table__
    with engine.begin() as connection:
        # As Optuna does: two that create trials at a time may not count the same number.
        connection.execute(sql.select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update())
        new = trials.insert().values(study_id=study_id, state=TrialState.RUNNING, datetime_start=began)
        key: Any = connection.execute(new).inserted_primary_key
        trial_id = int(key[0])
        before = (trials.c.study_id == study_id) & (trials.c.trial_id < trial_id)
        number = connection.execute(sql.select(sql.func.count()).select_from(trials).where(before)).scalar_one()
        connection.execute(trials.update().where(trials.c.trial_id == trial_id).values(number=number))
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
    return trial_id


def set_attributes(engine: sql.Engine, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """Set these user attributes of the trial, in one transaction."""
    patiently(lambda: _set_attributes(engine, trial_id, attributes))


def _set_attributes(engine: sql.Engine, trial_id: int, attributes: Mapping[str, Any]) -> None:
    with engine.begin() as connection:
        known = (_ATTRIBUTES.c.trial_id == trial_id) & _ATTRIBUTES.c.key.in_([*attributes])
        connection.execute(_ATTRIBUTES.delete().where(known))
        connection.execute(_ATTRIBUTES.insert(), _rows(trial_id, attributes))


def _rows(trial_id: int, attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]
