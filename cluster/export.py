"""From a trial's weights to its bundle. Imports no Ray: a sweep's models can be exported when the cluster is gone."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cluster.experiments import Experiments
from cluster.preference import Preference
from cluster.record import SweepRecord, TrialRecord
from trainer.batches import ImageTensors
from trainer.bundle import Origin, check_target, write_bundle
from trainer.checkpoint import Checkpoint
from trainer.data import DataConfig, ImageData, OnProgress, load_data
from trainer.evaluation import Scores, evaluate, latency_milliseconds
from trainer.fold_scores import FoldFigures
from trainer.folds import first_fold
from trainer.hyperparameters import TrialConfig, flatten, unflatten
from trainer.loop import create_model, predict_split
from trainer.measuring import ACCURACY
from trainer.model import Classifier
from trainer.named_data import NAMES
from trainer.seed_figures import SeedFigures


@dataclass(frozen=True)
class Exported:
    """What an export gave: the bundle's folder, the largest difference between written and live model, the scores by split.

    `seeds` are what the configuration has over several seeds, if it was confirmed, `folds` what it has if it was cross-validated.
    """

    folder: Path
    difference: float
    scores: dict[str, Scores]
    seeds: SeedFigures | None = None
    folds: FoldFigures | None = None


def load_trial(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> Checkpoint:
    """The weights of a sweep's trial; of a cross-validated one those of its first fold.

    Raises ValueError, with the trials that have theirs, when they were not kept.
    """
    store = experiments.of(sweep.storage_path).checkpoints(sweep.name)
    try:
        return store.load(trial.number)
    except FileNotFoundError as error:
        kept = ", ".join(map(str, store.trials())) or "none"
        raise ValueError(
            f"The weights of trial {trial.number} ({trial.state}) were not kept. Trials with weights: {kept}; "
            "`convsweep sweep --keep-checkpoints N` keeps more."
        ) from error


def load_model(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> tuple[Checkpoint, bool]:
    """The weights that stand for a trial, and whether they are final: those of a cross-validated sweep's winner are, once it is trained
    on everything. Raises as `load_trial`.
    """
    if sweep.config.folds > 1:
        store = experiments.of(sweep.storage_path).winner(sweep.name)
        if store.configuration(trial.number) == unflatten(trial.config):
            return store.load(trial.number), True
    return load_trial(experiments, sweep, trial), False


def fold_figures(sweep: SweepRecord, trial: TrialRecord) -> FoldFigures | None:
    """What the trial has over its folds, for the bundle; None where it has none."""
    return FoldFigures(sweep.config.metric, trial.fold_values) if trial.fold_values else None


def export_trial(
    experiments: Experiments,
    sweep: SweepRecord,
    trial: TrialRecord,
    folder: Path,
    *,
    data_root: str | None = None,
    cache: str | None = None,
    samples: int = 0,
    on_progress: OnProgress | None = None,
) -> Exported:
    """Write the bundle of a sweep's trial to `folder`. `data_root` and `cache` stand in for those that the sweep had.

    Raises ValueError when the weights were not kept, when the data is not there, and when `folder` is something else.
    """
    check_target(folder)
    checkpoint, final = load_model(experiments, sweep, trial)
    config = _data_config(sweep, data_root, cache)
    data, metric = first_fold(load_data(config, on_progress), config, sweep.config.folds), sweep.config.metric
    figures = fold_figures(sweep, trial)
    return export(checkpoint, data, config, folder, sweep.name, trial.number, samples, metric, final, folds=figures)


def export_final(
    experiments: Experiments,
    sweep: SweepRecord,
    preference: Preference,
    folder: Path,
    *,
    data_root: str | None = None,
    cache: str | None = None,
    samples: int = 0,
    on_progress: OnProgress | None = None,
) -> Exported:
    """Write the bundle of the final model that a confirmed sweep stands for to `folder`, as `export_trial` does.

    Raises ValueError when its weights are gone, else as there.
    """
    check_target(folder)
    model = preference.model
    try:
        checkpoint = experiments.of(sweep.storage_path).confirmed(sweep.name).load(model.key)
    except FileNotFoundError as error:
        raise ValueError(
            f"The weights of the final model of trial {model.trial}, seed {model.seed}, are gone: `convsweep confirm {sweep.name}` trains "
            f"it again, `convsweep export {sweep.name} --trial {model.trial}` takes the search's model."
        ) from error
    config = _data_config(sweep, data_root, cache)
    data, metric = load_data(config, on_progress), sweep.config.metric
    return export(checkpoint, data, config, folder, sweep.name, model.trial, samples, metric, True, preference.figures)


def _data_config(sweep: SweepRecord, root: str | None, cache: str | None) -> DataConfig:
    """The sweep's data, with another root and cache where they are given."""
    config = sweep.config.data
    return replace(config, root=root or config.root, cache=cache or config.cache)


def rebuild(checkpoint: Checkpoint, data: ImageData) -> Classifier:
    """The checkpoint's network on the CPU, in evaluation mode."""
    model = create_model(checkpoint.config, data, torch.device("cpu"), is_new=False)
    model.load_state_dict(checkpoint.weights)
    return model.eval()


def score_splits(model: Classifier, data: ImageData, final: bool = False) -> dict[str, Scores]:
    """The model's scores on the validation split, unless it is a `final` one, which has seen it, and on the test split if there is one."""
    splits = ({} if final else {"validation": data.validation}) | ({"test": data.test} if data.test else {})
    return {
        name: evaluate(predict_split(model, ImageTensors.of(split, torch.device("cpu"))))
        for name, split in splits.items()
    }


def export(
    checkpoint: Checkpoint,
    data: ImageData,
    data_config: DataConfig,
    folder: Path,
    sweep: str | None = None,
    trial: int | None = None,
    samples: int = 0,
    metric: str = ACCURACY.name,
    final: bool = False,
    seeds: SeedFigures | None = None,
    folds: FoldFigures | None = None,
) -> Exported:
    """Write the checkpoint's bundle to `folder`; of a `final` model without a word on the validation split, which it has seen."""
    model = rebuild(checkpoint, data)
    scores = score_splits(model, data, final)
    one = torch.zeros(1, *data.image_shape, dtype=torch.uint8)
    latency = {
        "one image": latency_milliseconds(model, one),
        "64 images": latency_milliseconds(model, one.repeat(64, 1, 1, 1)),
    }
    command = training_command(checkpoint.config, data_config, metric)
    epochs = checkpoint.epoch
    origin = Origin(sweep=sweep, trial=trial, epochs=epochs, command=command, final=final, seeds=seeds, folds=folds)
    difference = write_bundle(folder, model, checkpoint.config, data, scores, latency, origin, samples)
    return Exported(folder, difference, scores, seeds, folds)


def training_command(config: TrialConfig, data: DataConfig, metric: str = ACCURACY.name) -> str:
    """The `convsweep train` that trains this configuration again on this data, and keeps the best epoch by the metric."""
    kind = {"model.family": config.model.family, "model.blocks": config.model.blocks}
    plain = flatten(unflatten(kind)) | {name: flatten(TrialConfig())[name] for name in kind}
    words = ["convsweep", "train", "--data", data.data if data.data in NAMES else data.name]
    for option in ("validation_fraction", "image_size", "skip_broken"):
        value = getattr(data, option)
        if value != DataConfig.__dataclass_fields__[option].default:
            words += [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])]
    words += [] if metric == ACCURACY.name else ["--metric", metric]
    for name, value in flatten(config).items():
        if plain.get(name) != value:
            words += ["--set", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    return shlex.join(words)
