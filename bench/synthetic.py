"""A study of many trials that nobody ran, for measuring how the dashboard bears it: written straight into Optuna's tables.

python -m bench.synthetic FOLDER TRIALS EPOCHS
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages._rdb import models

from cluster.config import SweepConfig, make_config
from cluster.experiments import Experiments
from cluster.space import Space
from cluster.studies import Studies
from cluster.study import SweepStudy
from trainer.domains import Value
from trainer.hyperparameters import parameters
from trainer.metrics import EpochMetrics, history

NAME = "synthetic"
STATES = ("COMPLETE", "PRUNED", "PRUNED", "FAIL", "COMPLETE")
ERROR = "NotFiniteError: The loss is not finite in epoch 1: train nan, validation nan."
GROUPS = 8
EPOCH_SECONDS = 2.5
TRIALS_AT_ONCE = 1000
BEGAN = datetime(2026, 1, 1)


def write_study(experiments: Experiments, name: str, trials: int, epochs: int) -> None:
    """A finished sweep of so many trials of up to `epochs` epochs: the preset's, then random ones of the default space."""
    words = {"name": name, "data": "cifar10", "trials": trials, "epochs": epochs, "preset": "cifar-3conv"}
    config = make_config(words | {"sampler": "random"})
    study = Studies(experiments, create=True).create(config, [f"class {i}" for i in range(10)], (3, 32, 32))
    study.begin_run(config, groups=GROUPS)
    study.note_startup(15.0)
    draw = Draw(config.build_space(), 0)
    _run_first(study, config, draw.random)
    study.end_run("FINISHED")  # now: of all trials it would read every row
    engine = sqlalchemy.create_engine(experiments.database)
    with engine.begin() as connection:
        (study_id,) = connection.execute(
            sqlalchemy.select(models.StudyModel.study_id).where(models.StudyModel.study_name == name)
        ).one()
        numbers = range(1, trials)
        for block in (numbers[i : i + TRIALS_AT_ONCE] for i in range(0, len(numbers), TRIALS_AT_ONCE)):
            rows: dict[Any, list[dict[str, Any]]] = {}
            for number in block:
                _add_trial(rows, draw, config, study_id, number)
            for model, inserted in rows.items():
                connection.execute(model.__table__.insert(), inserted)
    engine.dispose()


def _run_first(study: SweepStudy, config: SweepConfig, draw: random.Random) -> None:
    """The preset's trial, which waits since the sweep was made."""
    trial = study.ask()
    trial.begin(parameters=122_570, group="group-0", group_began=time.time())
    for metrics in learning_curve(0.7, config.epochs, draw):
        trial.report(metrics, EPOCH_SECONDS * metrics.epoch)
    trial.complete()


class Draw:
    """Stands in for an Optuna trial: draws each value by itself, and makes each distribution only once."""

    def __init__(self, space: Space, seed: int) -> None:
        self.random = random.Random(seed)
        self.params: dict[str, tuple[float, str]] = {}
        self.space = space
        self._known: dict[tuple[Any, ...], tuple[BaseDistribution, str]] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number, as `optuna.Trial.suggest_float`."""
        value = self.random.uniform(math.log(low), math.log(high)) if log else self.random.uniform(low, high)
        value = min(max(math.exp(value), low), high) if log else value
        return self._note(name, value, FloatDistribution, low, high, log)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number, as `optuna.Trial.suggest_int`."""
        return self._note(name, self.random.randrange(low, high + 1, step), IntDistribution, low, high, log, step)

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Value:
        """One of the values, as `optuna.Trial.suggest_categorical`."""
        return self._note(name, self.random.choice(choices), CategoricalDistribution, tuple(choices))

    def _note(self, name: str, value: Any, kind: Any, *described: Any) -> Any:
        key = (kind, described, type(value))
        if key not in self._known:
            made = kind(*described)
            self._known[key] = made, optuna.distributions.distribution_to_json(made)
        distribution, text = self._known[key]
        self.params[name] = distribution.to_internal_repr(value), text
        return value

    def configuration(self) -> dict[str, Value]:
        """A point of the space, as `Space.suggest` asks for it, without checking what is right by itself."""
        flat: dict[str, Value] = {}
        self.params = {}
        for p in parameters():
            if p.is_active(flat):
                names = [f"{p.name}.{i}" for i in range(1, int(flat["model.blocks"]) + 1)] if p.per_block else [p.name]
                for name in names:
                    flat[name] = self.space._domain(name, flat).suggest(self, name)  # type: ignore[arg-type]
        return flat


def learning_curve(top: float, epochs: int, draw: random.Random | None = None) -> list[EpochMetrics]:
    """A trial's epochs, whose accuracies near `top`; they and the speeds scatter where there is a `draw`."""
    scatter = draw.gauss if draw else lambda mean, deviation: mean
    accuracies = [scatter(top * (1 - 0.6 * 0.7**e), 0.005) for e in range(1, epochs + 1)]
    return [
        EpochMetrics(
            e,
            2.3 - 2 * a,
            2.4 - 2 * a,
            a,
            0.01 * (1 - e / epochs),
            scatter(15e3, 2e3),
            EPOCH_SECONDS,
            scatter(0.05, 0.01),
        )
        for e, a in enumerate(accuracies, 1)
    ]


def _add_trial(
    rows: dict[Any, list[dict[str, Any]]], draw: Draw, config: SweepConfig, study_id: int, number: int
) -> None:
    """Add a trial's rows to those of each of Optuna's tables."""
    chosen = draw.configuration()
    state, done = STATES[number % len(STATES)], config.epochs
    if state != "COMPLETE":
        done = draw.random.randint(1, max(1, done - 1)) if state == "PRUNED" else 0
    parameters = int(10 ** draw.random.uniform(4, 6.5))
    epochs = learning_curve(draw.random.uniform(0.4, 0.8) + 0.05 * math.log10(parameters / 1e4), done, draw.random)
    attributes: dict[str, Any] = {
        "config": chosen,
        "parameters": parameters,
        "group": f"group-{number % GROUPS}",
        "group_began": 1e9 + (EPOCH_SECONDS * config.epochs + 0.1) * (number // GROUPS),
    }
    if epochs:
        attributes |= {"history": history(epochs), "train_seconds": EPOCH_SECONDS * done * draw.random.uniform(0.5, 2)}
    if state == "FAIL":
        attributes["error"] = ERROR
    trial = {"trial_id": number + 1}
    began = BEGAN + timedelta(seconds=EPOCH_SECONDS * config.epochs * (number // GROUPS))
    found: dict[Any, list[dict[str, Any]]] = {
        models.TrialModel: [
            {
                **trial,
                "number": number,
                "study_id": study_id,
                "state": optuna.trial.TrialState[state],
                "datetime_start": began,
                "datetime_complete": began + timedelta(seconds=EPOCH_SECONDS * done + 1),
            }
        ],
        models.TrialUserAttributeModel: [
            {**trial, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()
        ],
        models.TrialParamModel: [
            {**trial, "param_name": name, "param_value": value, "distribution_json": text}
            for name, (value, text) in draw.params.items()
        ],
        models.TrialIntermediateValueModel: [
            {
                **trial,
                "step": e.epoch,
                "intermediate_value": e.val_accuracy,
                "intermediate_value_type": models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE,
            }
            for e in epochs
        ],
    }
    if epochs:
        value = max(e.val_accuracy for e in epochs) if state == "COMPLETE" else epochs[-1].val_accuracy
        finite = models.TrialValueModel.TrialValueType.FINITE
        found[models.TrialValueModel] = [{**trial, "objective": 0, "value": value, "value_type": finite}]
    for model, made in found.items():
        rows.setdefault(model, []).extend(made)


if __name__ == "__main__":
    write_study(Experiments(Path(sys.argv[1])), NAME, int(sys.argv[2]), int(sys.argv[3]))
