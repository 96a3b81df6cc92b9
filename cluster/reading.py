"""Reading the study database fast: plain queries on Optuna's tables, and of a study that was read before only what is new.

Optuna's own way builds an object for each parameter and each reported value: 10,000 trials of 20 epochs take it most of a
minute (`bench/dashboard.py` measures both). Finished trials never change, so they are read once.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import optuna
import orjson
import sqlalchemy as sql
from optuna.storages._rdb import models  # the tables; tests/test_reading.py compares with what Optuna reads
from optuna.trial import TrialState

from cluster.budget import Amounts, Ending
from cluster.config import SweepConfig
from cluster.confirmed import FinalScore
from cluster.lease import KEY as LEASE
from cluster.lease import Holder
from cluster.notes import noted_trials, read_note
from cluster.patience import patiently
from cluster.record import (
    ENDING_ATTRIBUTE,
    HELD_ATTRIBUTE,
    STATES,
    SWEEP_ATTRIBUTE,
    SweepRecord,
    SweepSummary,
    TrialRecord,
    rank,
    wall_seconds,
)
from trainer.measuring import ACCURACY

_Study: Any = models.StudyModel
_Trial: Any = models.TrialModel
_TrialValue: Any = models.TrialValueModel
_TrialParameter: Any = models.TrialParamModel
_TrialAttribute: Any = models.TrialUserAttributeModel
_StudyDirection: Any = models.StudyDirectionModel
_StudyAttribute: Any = models.StudyUserAttributeModel
_StudySystemAttribute: Any = models.StudySystemAttributeModel
_AT_MOST_ASKED = 500
"""So many unfinished trials are asked for one by one; databases limit how many a query may name."""


class StudyReader:
    """Reads one sweep again and again. May be shared by threads."""

    def __init__(self, engine: sql.Engine, name: str, study_id: int) -> None:
        self.engine, self._name, self._id = engine, name, study_id
        self._trials: dict[int, TrialRecord] = {}
        self._open: set[int] = set()
        self._last: SweepRecord | None = None
        self._lock = threading.Lock()

    def read(self) -> SweepRecord:
        """The sweep as it is now; the very object of the last time if nothing has changed."""
        with self._lock, self.engine.connect() as connection:
            attributes = _attributes(connection, _StudyAttribute, self._id)
            system = _attributes(connection, _StudySystemAttribute, self._id)
            changed = self._update(connection)
            shape, config = attributes.get("image_shape"), SweepConfig.from_text(attributes[SWEEP_ATTRIBUTE])
            known = list(self._trials.values())
            record = SweepRecord(
                name=self._name,
                state=_state(attributes),
                config=config,
                classes=tuple(attributes.get("classes", ())),
                image_shape=tuple(shape) if shape else None,
                runs=tuple(attributes.get("runs", ())),
                trials=self._last.trials if self._last and not changed else rank(known, config.goal),
                notes=_notes(system, self._trials),
                storage_path=attributes.get("storage_path"),
                confirmed=tuple(FinalScore(**score) for score in attributes.get("confirmed", ())),
                held=attributes.get(HELD_ATTRIBUTE, {}),
                ending=Ending.from_attribute(attributes.get(ENDING_ATTRIBUTE)),
            )
            if record != self._last:
                self._last = record
            return self._last or record

    def states(self) -> dict[str, list[int]]:
        """The database's own numbers of the trials in each state, by its name."""
        found: dict[str, list[int]] = {state.name: [] for state in TrialState}
        query = sql.select(_Trial.trial_id, _Trial.state).where(_Trial.study_id == self._id).order_by(_Trial.trial_id)

        def ask() -> list[Any]:
            with self.engine.connect() as connection:
                return list(connection.execute(query))

        for trial_id, state in patiently(ask):
            found[state.name].append(trial_id)
        return found

    def _update(self, connection: sql.Connection) -> bool:
        """Read the trials that are new or were not finished; whether any of them has changed."""
        last = max(self._trials, default=-1)
        wanted: Any = _Trial.trial_id > last
        if len(self._open) > _AT_MOST_ASKED:
            wanted = _Trial.trial_id >= min(self._open)
        elif self._open:
            wanted = wanted | _Trial.trial_id.in_(sorted(self._open))
        where = (_Trial.study_id == self._id) & wanted
        changed = False
        for trial in _read_trials(connection, where):
            assert trial.id is not None
            changed |= self._trials.get(trial.id) != trial
            self._trials[trial.id] = trial
            (self._open.add if trial.state in ("RUNNING", "WAITING") else self._open.discard)(trial.id)
        return changed


def _read_trials(connection: sql.Connection, where: Any) -> list[TrialRecord]:
    def of_trials(model: Any, *columns: Any) -> Any:
        query = sql.select(model.trial_id, *columns).join(_Trial, _Trial.trial_id == model.trial_id).where(where)
        return connection.execute(query)

    columns = (_Trial.trial_id, _Trial.number, _Trial.state, _Trial._datetime_start_utc, _Trial._datetime_complete_utc)
    # The trials come first: one that ends in between is then read again the next time.
    rows = connection.execute(sql.select(*columns).where(where).order_by(_Trial.trial_id)).all()
    values: dict[int, float] = dict(of_trials(_TrialValue, _TrialValue.value).all())
    attributes: dict[int, dict[str, str]] = defaultdict(dict)
    for trial_id, key, text in of_trials(_TrialAttribute, _TrialAttribute.key, _TrialAttribute.value_json):
        attributes[trial_id][key] = text
    return [
        _record(trial_id, number, state, values.get(trial_id), attributes[trial_id], begun, ended)
        for trial_id, number, state, begun, ended in rows
    ]


def _record(
    trial_id: int,
    number: int,
    state: TrialState,
    value: float | None,
    attributes: Mapping[str, str],
    begun: datetime | None,
    ended: datetime | None,
) -> TrialRecord:
    found = {key: _parse(text) for key, text in attributes.items() if key != "gradients"}
    return TrialRecord(
        number=number,
        state=state.name,
        value=value,
        config=found.get("config", {}),
        history=found.get("history", {}),
        train_seconds=float(found.get("train_seconds", 0.0)),
        group=found.get("group"),
        group_began=found.get("group_began"),
        parameters=found.get("parameters"),
        preset=found.get("preset"),
        error=found.get("error"),
        log=found.get("log"),
        begun=begun and begun.replace(tzinfo=UTC),
        ended=ended and ended.replace(tzinfo=UTC),
        id=trial_id,
        fold_values=tuple(found.get("fold_values", ())),
        costs=found.get("costs", {}),
        infeasible=found.get("infeasible"),
        gradient_text=attributes.get("gradients"),
    )


def _state(attributes: Mapping[str, Any]) -> str:
    """The sweep's state; that of one whose process is gone without a word is INTERRUPTED."""
    state, holder = str(attributes.get("state", "NEW")), Holder.from_attribute(attributes.get(LEASE))
    return "INTERRUPTED" if state == "RUNNING" and holder and (holder.is_gone() or holder.is_silent()) else state


def _attributes(connection: sql.Connection, model: Any, study_id: int) -> dict[str, Any]:
    rows = connection.execute(sql.select(model.key, model.value_json).where(model.study_id == study_id))
    return {key: _parse(text) for key, text in rows}


def _notes(system: Mapping[str, Any], trials: Mapping[int, TrialRecord]) -> dict[int | None, str]:
    found: dict[int | None, str] = {trials[i].number: read_note(system, i) for i in noted_trials(system) if i in trials}
    found[None] = read_note(system, None)
    return {number: text for number, text in found.items() if text}


def summaries(engine: sql.Engine) -> list[SweepSummary]:
    """All sweeps of the database, the newest last."""
    attribute = _StudyAttribute
    found: dict[int, tuple[str, dict[str, Any]]] = {}
    counts: dict[int, dict[str, int]] = defaultdict(lambda: dict.fromkeys(STATES, 0))
    with engine.connect() as connection:
        for study_id, name, key, text in connection.execute(
            sql.select(_Study.study_id, _Study.study_name, attribute.key, attribute.value_json)
            .join(attribute, attribute.study_id == _Study.study_id)
            .order_by(_Study.study_id)
        ):
            found.setdefault(study_id, (name, {}))[1][key] = _parse(text)
        for study_id, state, count in connection.execute(
            sql.select(_Trial.study_id, _Trial.state, sql.func.count()).group_by(_Trial.study_id, _Trial.state)
        ):
            counts[study_id][state.name] = count
        extremes = {
            study_id: (lowest, highest)
            for study_id, lowest, highest in connection.execute(
                sql.select(_Trial.study_id, sql.func.min(_TrialValue.value), sql.func.max(_TrialValue.value))
                .join(_TrialValue, _TrialValue.trial_id == _Trial.trial_id)
                .where(_Trial.state == TrialState.COMPLETE)
                .group_by(_Trial.study_id)
            )
        }
    return [
        _summary(name, attributes, counts[study_id], extremes.get(study_id, ()))
        for study_id, (name, attributes) in found.items()
        if SWEEP_ATTRIBUTE in attributes
    ]


def _summary(
    name: str, attributes: Mapping[str, Any], counts: Mapping[str, int], extremes: Iterable[float]
) -> SweepSummary:
    runs = attributes.get("runs", ())
    spent = Amounts(wall_seconds(runs), **attributes.get(HELD_ATTRIBUTE, {}))
    try:
        config: SweepConfig | None = SweepConfig.from_text(attributes[SWEEP_ATTRIBUTE])
    except ValueError:  # one damaged record does not hide the others
        config = None
    goal = config.goal if config else ACCURACY
    return SweepSummary(
        name=name,
        state=_state(attributes) if config else "UNREADABLE",
        data=config.data.data if config else "?",
        trials=config.trials if config else None,
        counts=counts,
        best_value=goal.best(extremes),
        begun=datetime.fromtimestamp(runs[0]["begun"], UTC) if runs else None,
        wall_seconds=spent.seconds,
        groups=runs[-1]["groups"] if runs else 0,
        metric=goal,
        limits=config.budget.limits(spent) if config else (),
        ending=Ending.from_attribute(attributes.get(ENDING_ATTRIBUTE)),
    )


def foreign_studies(engine: sql.Engine) -> list[str]:
    """The names of the studies that are no sweeps, but those of other programs; the newest last."""
    sweeps = sql.select(_StudyAttribute.study_id).where(_StudyAttribute.key == SWEEP_ATTRIBUTE)
    others = sql.select(_Study.study_name).where(_Study.study_id.not_in(sweeps)).order_by(_Study.study_id)
    with engine.connect() as connection:
        return list(connection.execute(others).scalars())


def study_notes(engine: sql.Engine) -> dict[str, str]:
    """The notes on whole studies, by the study's name."""
    attribute = _StudySystemAttribute
    notes = attribute.key.startswith("dashboard:note_str:", autoescape=True)
    query = sql.select(_Study.study_name, attribute.key, attribute.value_json).where(notes)
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    with engine.connect() as connection:
        for name, key, text in connection.execute(query.join(attribute, attribute.study_id == _Study.study_id)):
            found[name][key] = _parse(text)
    return {name: note for name, system in found.items() if (note := read_note(system, None))}


def optuna_study(engine: sql.Engine, name: str, keep: Callable[[int], bool] = lambda number: True) -> optuna.Study:
    """A copy of the study in memory, for Optuna's own plots, with the trials whose number `keep` accepts.

    Intermediate values are left out, and trials that are waiting. The copy's trials are numbered anew; each has its own number
    as user attribute "number".
    """
    parameters: dict[int, dict[str, tuple[float, str]]] = defaultdict(dict)
    with engine.connect() as connection:
        study_id = connection.execute(sql.select(_Study.study_id).where(_Study.study_name == name)).scalar_one()
        ways = sql.select(_StudyDirection.direction).where(_StudyDirection.study_id == study_id)
        direction = connection.execute(ways.order_by(_StudyDirection.objective)).scalars().first()
        here = _Trial.study_id == study_id
        columns = (
            _Trial.trial_id,
            _Trial.number,
            _Trial.state,
            _Trial._datetime_start_utc,
            _Trial._datetime_complete_utc,
        )
        rows = connection.execute(sql.select(*columns).where(here).order_by(_Trial.trial_id)).all()
        scores: dict[int, float] = dict(
            connection.execute(
                sql.select(_TrialValue.trial_id, _TrialValue.value)
                .join(_Trial, _Trial.trial_id == _TrialValue.trial_id)
                .where(here)
            ).all()
        )
        for trial_id, key, value, text in connection.execute(
            sql.select(
                _TrialParameter.trial_id,
                _TrialParameter.param_name,
                _TrialParameter.param_value,
                _TrialParameter.distribution_json,
            )
            .join(_Trial, _Trial.trial_id == _TrialParameter.trial_id)
            .where(here)
        ):
            parameters[trial_id][key] = (value, text)
    study = optuna.create_study(study_name=name, direction=direction)
    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    for trial_id, number, state, begun, ended in rows:
        if not keep(number) or state == TrialState.WAITING or (state == TrialState.COMPLETE and trial_id not in scores):
            continue
        for _, text in parameters[trial_id].values():
            if text not in distributions:
                distributions[text] = optuna.distributions.json_to_distribution(text)
        given = {key: distributions[text] for key, (_, text) in parameters[trial_id].items()}
        study.add_trial(
            optuna.trial.FrozenTrial(
                number=number,
                state=state,
                value=scores.get(trial_id),
                datetime_start=begun and _local(begun),
                datetime_complete=ended and _local(ended),
                params={key: given[key].to_external_repr(value) for key, (value, _) in parameters[trial_id].items()},
                distributions=given,
                user_attrs={"number": number},
                system_attrs={},
                intermediate_values={},
                trial_id=trial_id,
            )
        )
    return study


def _parse(text: str) -> Any:
    try:
        return orjson.loads(text)  # of 10,000 trials the histories are 25 MB: 0.1 s instead of 0.9
    except orjson.JSONDecodeError:
        return json.loads(text)  # Optuna writes NaN, which is not JSON


def _local(utc: datetime) -> datetime:
    """What Optuna has in its objects: this machine's time, without a zone; its tables have UTC."""
    return utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
