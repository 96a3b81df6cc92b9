"""One trial as tables and sentences. Pure functions: no Streamlit, no database, no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from cluster.record import SweepRecord, TrialRecord
from dashboard import gains, tables
from trainer.costs import COSTS
from trainer.domains import Value
from trainer.fold_scores import interval, numbered_by_fold
from trainer.hyperparameters import ModelConfig, flatten, in_short, parameter, unflatten
from trainer.layers import Layer

NOTHING = "–"


@dataclass(frozen=True)
class Fact:
    """A headline number, as text, and what it means."""

    label: str
    value: str
    help: str


def headline(sweep: SweepRecord, trial: TrialRecord) -> list[Fact]:
    """The trial's headline numbers; what it does not have is NOTHING."""
    baseline, goal = sweep.baseline, sweep.config.goal
    gain = None
    if baseline is not None and baseline.value is not None and trial.value is not None:
        gain = gains.gain(goal, trial.value, baseline.value)
    planned = planned_epochs(sweep, trial)
    value = trial.value if trial.value is not None else goal.best(trial.history.get(goal.field) or ())
    of_which = "of its last epoch" if trial.state == "PRUNED" else "of its best epoch"
    if trial.fold_values:
        value, of_which = statistics.fmean(trial.fold_values), _over_folds(sweep, trial)
    against = f"trial {baseline.number}, preset {baseline.preset}" if baseline else "none that ran to its end"
    return [
        Fact(goal.title, _text(value, "{:.4f}"), f"On the validation split, {of_which}"),
        Fact(
            "Gain",
            _text(gain, f"{{:{gains.form(goal)}}}{' pp' if goal.is_share else ''}"),
            f"{gains.meaning(goal)} ({against})",
        ),
        Fact("Parameters", _text(trial.parameters, "{:,}"), "Trained numbers of the network"),
        *_costs(sweep, trial),
        Fact(
            "Epochs",
            f"{trial.epochs_done} of {planned}",
            "Epochs that were trained and validated" + _early(trial, planned),
        ),
        Fact("Train time", tables.duration(trial.train_seconds), "Training and validation, without waiting"),
        Fact(
            "Images/s",
            _text(tables.median(trial, "images_per_second"), "{:,.0f}"),
            "Median training throughput of its epochs, all ranks",
        ),
    ]


def _early(trial: TrialRecord, planned: int) -> str:
    if trial.state != "COMPLETE" or trial.epochs_done >= planned:
        return ""
    return f"; the last {trial.config.get('training.patience')} were no better, so it ended (training.patience)"


def _costs(sweep: SweepRecord, trial: TrialRecord) -> list[Fact]:
    """What else was measured of the network, where the sweep has goals or constraints."""
    measured = [cost for name, cost in COSTS.items() if name in trial.costs and name != "parameters"]
    batch = f", {sweep.config.latency_batch} image(s) at a time"
    return [
        Fact(
            cost.label.capitalize(),
            f"{trial.costs[cost.name]:.4g} {cost.unit}",
            cost.meaning.capitalize() + batch * (cost.name == "latency_ms"),
        )
        for cost in measured
    ]


def _over_folds(sweep: SweepRecord, trial: TrialRecord) -> str:
    values = trial.fold_values
    between = interval(values)
    sure = f"; 95 % interval {between[0]:.4f} to {between[1]:.4f}" if between else ""
    folds = ", ".join(f"{value:.4f}" for value in values)
    return f"mean of the best epochs of {len(values)} of {sweep.config.folds} folds ({folds}){sure}"


def planned_epochs(sweep: SweepRecord, trial: TrialRecord) -> int:
    """How many epochs the trial has when it runs to its end, over all its folds."""
    return int(trial.config.get("training.epochs", sweep.config.epochs)) * sweep.config.folds


def summary(trial: TrialRecord) -> list[str]:
    """The trial's origin in short: its preset, the few values that tell configurations apart, its group, its time."""
    facts = [f"preset {trial.preset}"] if trial.preset else []
    if "optimizer.name" in trial.config:
        facts.append(in_short(trial.config))
    if trial.group is not None:
        facts.append(f"worker {trial.group}")
    if trial.begun is not None:
        facts.append(f"{trial.begun:%-d %B %Y, %H:%M} UTC")
    return facts


def why_no_weights(trial: TrialRecord) -> str:
    """Why there is no checkpoint of the trial, for people who look for it."""
    match trial.state:
        case "WAITING":
            return "The trial has not begun, so there are no weights to look at yet."
        case "RUNNING":
            return "The trial's first epoch has not ended, so there are no weights to look at yet."
        case "PRUNED" if trial.infeasible and not trial.epochs_done:
            return "The trial was not trained, so there are no weights to look at."
        case "PRUNED":
            return "The search stopped this trial, and weights are kept of the best trials only."
        case "FAIL":
            return "The trial failed, and weights are kept of the best trials only."
    return (
        "The weights of this trial were not kept, or they are gone from where they were: a sweep keeps those of its best "
        "trials, five unless --keep-checkpoints says otherwise."
    )


def why_pruned(sweep: SweepRecord, trial: TrialRecord) -> str:
    """When the search stopped a pruned trial, and what that means."""
    if trial.infeasible and not trial.epochs_done:
        return f"This trial was not trained, since its network costs more than the sweep's constraints allow: {trial.infeasible}."
    when = f"epoch {trial.epochs_done} of {planned_epochs(sweep, trial)}: its"
    if trial.fold_values:
        when = f"fold {len(trial.fold_values)} of {sweep.config.folds}: its mean"
    return (
        f"The search stopped this trial after {when} {sweep.config.goal.label} was not among the best of the trials that got "
        "there. Weights of pruned trials are not kept."
    )


def model_config(trial: TrialRecord) -> ModelConfig:
    """The network's hyperparameters. Raises ValueError when the record does not say them, or says others than there are."""
    if not any(name.startswith("model.") for name in trial.config):
        raise ValueError("The record of this trial has no configuration.")
    return unflatten(trial.config).model


def network(sweep: SweepRecord, trial: TrialRecord) -> tuple[ModelConfig, tuple[int, int, int], int]:
    """What `describe_layers` needs to know of the trial's network. Raises ValueError when the record does not say it."""
    if sweep.image_shape is None:
        raise ValueError(
            "The record of this sweep does not say how large its images are, so the network cannot be drawn."
        )
    return model_config(trial), sweep.image_shape, len(sweep.classes)


def configuration(trial: TrialRecord) -> pd.DataFrame:
    """A row per hyperparameter: section, hyperparameter, value, default (as text), differs, meaning."""
    found = tables.hyperparameter_values([trial])
    rows = []
    for column in tables.hyperparameter_columns([trial]):
        value, default = found[column.name][0], _default(column.name, trial)
        section = column.name.partition(".")[0]
        meaning = parameter(column.name).doc if default is not None else column.help
        rows.append((section, column.label, _written(value), _written(default), value != default, meaning))
    return pd.DataFrame(rows, columns=["section", "hyperparameter", "value", "default", "differs", "meaning"])


def _default(name: str, trial: TrialRecord) -> Value | None:
    """A hyperparameter's default, '3-3-3' for as many blocks as the trial has; None for one of another version."""
    try:
        declared = parameter(name)
        blocks = {"model.blocks": trial.config["model.blocks"]} if declared.per_block else {}
        defaults = TrialRecord(0, "COMPLETE", None, flatten(unflatten(blocks)))
    except (KeyError, ValueError):
        return None
    return tables.hyperparameter_values([defaults])[name][0] if declared.per_block else declared.default


def epochs(trial: TrialRecord) -> pd.DataFrame:
    """A row per epoch and metric, for curves: fold, epoch (in it), metric (a field of `EpochMetrics`), value.

    The fold is 0 where there are none. What is not finite is missing.
    """
    numbers = numbered_by_fold(trial.history)
    folds = trial.history.get("fold") or [0] * len(numbers)
    rows = [
        (int(fold), number, name, value if math.isfinite(value) else None)
        for name, values in trial.history.items()
        if name not in ("epoch", "fold")
        for fold, number, value in zip(folds, numbers, values, strict=True)
    ]
    return pd.DataFrame(rows, columns=["fold", "epoch", "metric", "value"])


def gradients(trial: TrialRecord) -> pd.DataFrame:
    """A row per epoch and layer, for a logarithmic chart: epoch, layer, norm of its gradient. What is 0 or not finite is left out."""
    found = trial.gradients
    rows = [
        (epoch, layer.removesuffix(".weight"), norm)
        for epoch, norms in enumerate(found.norms, 1)
        for layer, norm in zip(found.layers, norms, strict=False)
        if norm
    ]
    return pd.DataFrame(rows, columns=["epoch", "layer", "norm"])


def layer_table(layers: Sequence[Layer]) -> pd.DataFrame:
    """A row per layer in the order of the forward pass: layer, output, parameters, share (of all parameters), settings."""
    total = max(1, sum(layer.parameters for layer in layers))
    return pd.DataFrame(
        {
            "layer": [layer.name for layer in layers],
            "output": ["×".join(map(str, layer.output_shape)) for layer in layers],
            "parameters": [layer.parameters for layer in layers],
            "share": [100 * layer.parameters / total for layer in layers],
            "settings": [layer.settings for layer in layers],
        }
    )


def _written(value: Value | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: float | None, template: str) -> str:
    return template.format(value) if value is not None else NOTHING
