"""A study of many trials that nobody ran, for measuring how the dashboard bears it: written straight into Optuna's tables."""

from __future__ import annotations

import json
import random
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.storages._rdb import models

from cluster.config import make_config
from cluster.experiments import Experiments
from cluster.studies import Studies
from trainer.hyperparameters import flatten
from trainer.metrics import EpochMetrics, history

STATES = ("COMPLETE", "PRUNED", "PRUNED", "FAIL", "COMPLETE")


def write_study(experiments: Experiments, name: str, trials: int, epochs: int) -> None:
    """A finished sweep of so many trials of up to `epochs` epochs. The proposals are those of the default space."""
    config = make_config({"name": name, "data": "cifar10", "trials": trials, "epochs": epochs, "preset": "none"})
    studies = Studies(experiments, create=True)
    study = studies.create(config, [f"class {i}" for i in range(10)], (3, 32, 32))
    study.begin_run(config, groups=8)
    study.note_startup(15.0)
    space, draw = config.build_space(), random.Random(0)
    engine, study_id = studies._rdb and studies._rdb.engine, study._study._study_id
    assert engine is not None
    rows: dict[Any, list[dict[str, Any]]] = {}
    began, clock = datetime(2026, 1, 1), [time.time()] * 8
    for number in range(trials):
        if number % 100 == 0:  # a study in memory becomes slow as it grows
            proposals = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
        trial = proposals.ask()
        chosen = flatten(space.suggest(trial))
        values, distributions = trial.params, trial.distributions
        state = STATES[number % len(STATES)] if number else "COMPLETE"
        done = epochs if state == "COMPLETE" else draw.randrange(1, epochs) if state == "PRUNED" else 0
        top = draw.uniform(0.4, 0.93)
        curve = [top * (1 - 0.6 * 0.7**e) + draw.gauss(0, 0.005) for e in range(1, done + 1)]
        metrics = [
            EpochMetrics(e, 2.3 - 2 * a, 2.4 - 2 * a, a, 0.01 * (1 - e / epochs), draw.uniform(8e3, 2e4), 2.5)
            for e, a in enumerate(curve, 1)
        ]
        group = number % 8
        attributes: dict[str, Any] = {
            "config": chosen,
            "history": history(metrics),
            "train_seconds": 2.5 * done,
            "parameters": draw.randrange(10_000, 3_000_000),
            "group": f"group-{group}",
            "group_began": clock[group],
        }
        clock[group] += 2.5 * done + 0.1
        if state == "FAIL":
            attributes["error"] = "NotFiniteError: The loss is not finite in epoch 1: train nan, validation nan."
        trial_id = number + 1
        rows.setdefault(models.TrialModel, []).append(
            {
                "trial_id": trial_id,
                "number": number,
                "study_id": study_id,
                "state": optuna.trial.TrialState[state],
                "datetime_start": began + timedelta(seconds=6 * number),
                "datetime_complete": began + timedelta(seconds=6 * number + 50),
            }
        )
        if curve:
            value = max(curve) if state == "COMPLETE" else curve[-1]
            rows.setdefault(models.TrialValueModel, []).append(
                {"trial_id": trial_id, "objective": 0, "value": value, "value_type": "FINITE"}
            )
        rows.setdefault(models.TrialUserAttributeModel, []).extend(
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()
        )
        rows.setdefault(models.TrialIntermediateValueModel, []).extend(
            {"trial_id": trial_id, "step": e, "intermediate_value": a, "intermediate_value_type": "FINITE"}
            for e, a in enumerate(curve, 1)
        )
        rows.setdefault(models.TrialParamModel, []).extend(
            {
                "trial_id": trial_id,
                "param_name": key,
                "param_value": distributions[key].to_internal_repr(value),
                "distribution_json": optuna.distributions.distribution_to_json(distributions[key]),
            }
            for key, value in values.items()
        )
    with engine.begin() as connection:
        for model, inserted in rows.items():
            connection.execute(model.__table__.insert(), inserted)
    study.end_run("FINISHED")


if __name__ == "__main__":
    write_study(Experiments(Path(sys.argv[1])), "synthetic", int(sys.argv[2]), int(sys.argv[3]))
