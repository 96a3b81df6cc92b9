"""One trial as tables and sentences. Pure functions: no Streamlit, no database, no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cluster.record import SweepRecord, TrialRecord
from dashboard import tables
from trainer.analysis import Analysis, Pictures
from trainer.evaluation import CALIBRATION_BINS, Calibration
from trainer.hyperparameters import ModelConfig, flatten, in_short, parameter, unflatten
from trainer.layers import Layer

MOST_CLASSES = 100
"""How many classes a confusion matrix shows at most."""

MOST_PAIRS = 20


@dataclass(frozen=True)
class Fact:
    """A headline number, as text, and what it means."""

    label: str
    value: str
    help: str


def headline(sweep: SweepRecord, trial: TrialRecord) -> list[Fact]:
    """The trial's headline numbers; what it does not have is '–'."""
    speeds = trial.history.get("images_per_second") or ()
    baseline = sweep.baseline
    gain = None if baseline is None or trial.value is None else 100 * (trial.value - baseline.value_or_zero)
    planned = planned_epochs(sweep, trial)
    accuracy = trial.value if trial.value is not None else max(trial.history.get("val_accuracy") or (), default=None)
    of_which = "of its last epoch" if trial.state == "PRUNED" else "of its best epoch"
    against = f"trial {baseline.number}, preset {baseline.preset}" if baseline else "none that ran to its end"
    return [
        Fact("Accuracy", _text(accuracy, "{:.4f}"), f"On the validation split, {of_which}"),
        Fact("Gain", _text(gain, "{:+.2f} pp"), f"Percentage points of accuracy over the preset's trial ({against})"),
        Fact("Parameters", _text(trial.parameters, "{:,}"), "Trained numbers of the network"),
        Fact("Epochs", f"{trial.epochs_done} of {planned}", "Epochs that were trained and validated"),
        Fact("Train time", tables.duration(trial.train_seconds), "Training and validation, without waiting"),
        Fact(
            "Images/s",
            _text(statistics.median(speeds) if speeds else None, "{:,.0f}"),
            "Median training throughput of its epochs, all ranks",
        ),
    ]


def planned_epochs(sweep: SweepRecord, trial: TrialRecord) -> int:
    """How many epochs the trial has when it runs to its end."""
    return int(trial.config.get("training.epochs", sweep.config.epochs))


def summary(trial: TrialRecord) -> str:
    """The trial's origin in one line: its preset, the few values that tell configurations apart, its group, its time."""
    facts = [f"preset {trial.preset}"] if trial.preset else []
    if "model.blocks" in trial.config:
        facts.append(in_short(trial.config))
    if trial.group is not None:
        facts.append(f"worker {trial.group}")
    if trial.begun is not None:
        facts.append(f"{trial.begun:%-d %B %Y, %H:%M} UTC")
    return " · ".join(facts)


def why_no_weights(trial: TrialRecord) -> str:
    """Why there is no checkpoint of the trial, for people who look for it."""
    match trial.state:
        case "WAITING":
            return "The trial has not begun, so there are no weights to look at yet."
        case "RUNNING":
            return "The trial's first epoch has not ended, so there are no weights to look at yet."
        case "PRUNED":
            return "The search stopped this trial, and weights are kept of the best trials only."
        case "FAIL":
            return "The trial failed, and weights are kept of the best trials only."
    return (
        "The weights of this trial were not kept, or they are gone from where they were: a sweep keeps those of its best "
        "trials, five unless --keep-checkpoints says otherwise."
    )


def model_config(trial: TrialRecord) -> ModelConfig:
    """The network's hyperparameters. Raises ValueError when the record does not say them, or says others than there are."""
    if not any(name.startswith("model.") for name in trial.config):
        raise ValueError("The record of this trial has no configuration.")
    return unflatten(trial.config).model


def configuration(trial: TrialRecord) -> pd.DataFrame:
    """A row per hyperparameter: section, hyperparameter, value, default (as text), differs, meaning."""
    found = tables.hyperparameter_values([trial])
    defaults = _defaults(trial)
    rows = []
    for column in tables.hyperparameter_columns([trial]):
        value, default = found[column.name][0], defaults.get(column.name)
        section = column.name.partition(".")[0]
        meaning = parameter(column.name).doc if column.name in defaults else column.help
        rows.append((section, column.label, _written(value), _written(default), value != default, meaning))
    return pd.DataFrame(rows, columns=["section", "hyperparameter", "value", "default", "differs", "meaning"])


def _defaults(trial: TrialRecord) -> dict[str, Any]:
    """The defaults of what the trial's configuration has, by the column's name: '3-3-3' for a value per block."""
    blocks = trial.config.get("model.blocks")
    try:
        flat = flatten(unflatten({"model.blocks": blocks} if blocks is not None else {}))
    except ValueError:  # another version's number of blocks
        flat = flatten(unflatten({}))
    joined = {
        name: values[0]
        for name, values in tables.hyperparameter_values([TrialRecord(0, "COMPLETE", None, flat)]).items()
    }
    conditional = {}
    for name in tables.hyperparameter_values([trial]):
        try:
            conditional[name] = parameter(name).default
        except ValueError:
            continue
    return conditional | {k: v for k, v in joined.items() if k in conditional} | {"model.blocks": ModelConfig().blocks}
