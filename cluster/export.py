"""From a trial's weights to its bundle. Imports no Ray: a sweep's models can be exported when the cluster is gone."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cluster.experiments import Experiments
from cluster.record import SweepRecord, TrialRecord
from trainer.batches import ImageTensors
from trainer.bundle import Origin, check_target, write_bundle
from trainer.checkpoint import Checkpoint
from trainer.data import DataConfig, ImageData, OnProgress, load_data
from trainer.evaluation import Scores, evaluate, latency_milliseconds
from trainer.hyperparameters import TrialConfig, flatten, unflatten
from trainer.loop import create_model, predict_split
from trainer.model import Classifier
from trainer.named_data import NAMES


@dataclass(frozen=True)
class Exported:
    """What an export gave: the bundle's folder, the largest difference between written and live model, the scores by split."""

    folder: Path
    difference: float
    scores: dict[str, Scores]


def load_trial(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> Checkpoint:
    """The weights of a sweep's trial. Raises ValueError, with the trials that have theirs, when they were not kept."""
    store = experiments.of(sweep.storage_path).checkpoints(sweep.name)
    try:
        return store.load(trial.number)
    except FileNotFoundError as error:
        kept = ", ".join(map(str, store.trials())) or "none"
        raise ValueError(
            f"The weights of trial {trial.number} ({trial.state}) were not kept. Trials with weights: {kept}; "
            "`convsweep sweep --keep-checkpoints N` keeps more."
        ) from error


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
    checkpoint = load_trial(experiments, sweep, trial)
    config = sweep.config.data
    config = replace(config, root=data_root or config.root, cache=cache or config.cache)
    return export(checkpoint, load_data(config, on_progress), config, folder, sweep.name, trial.number, samples)


def rebuild(checkpoint: Checkpoint, data: ImageData) -> Classifier:
    """The checkpoint's network on the CPU, in evaluation mode."""
    model = create_model(checkpoint.config, data, torch.device("cpu"), is_new=False)
    model.load_state_dict(checkpoint.weights)
    return model.eval()


def score_splits(model: Classifier, data: ImageData) -> dict[str, Scores]:
    """The model's scores on the validation split and, where there is one, on the test split."""
    splits = {"validation": data.validation} | ({"test": data.test} if data.test else {})
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
) -> Exported:
    """Write the checkpoint's bundle to `folder`."""
    model = rebuild(checkpoint, data)
    scores = score_splits(model, data)
    one = torch.zeros(1, *data.image_shape, dtype=torch.uint8)
    latency = {
        "one image": latency_milliseconds(model, one),
        "64 images": latency_milliseconds(model, one.repeat(64, 1, 1, 1)),
    }
    command = training_command(checkpoint.config, data_config)
    origin = Origin(sweep=sweep, trial=trial, epochs=checkpoint.epoch, command=command)
    difference = write_bundle(folder, model, checkpoint.config, data, scores, latency, origin, samples)
    return Exported(folder, difference, scores)


def training_command(config: TrialConfig, data: DataConfig) -> str:
    """The `convsweep train` that trains this configuration again on this data."""
    kind = {"model.family": config.model.family, "model.blocks": config.model.blocks}
    plain = flatten(unflatten(kind)) | {name: flatten(TrialConfig())[name] for name in kind}
    words = ["convsweep", "train", "--data", data.data if data.data in NAMES else data.name]
    for option in ("validation_fraction", "image_size", "skip_broken"):
        value = getattr(data, option)
        if value != DataConfig.__dataclass_fields__[option].default:
            words += [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])]
    for name, value in flatten(config).items():
        if plain.get(name) != value:
            words += ["--set", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    return shlex.join(words)
