"""One configuration without a search: in this process, or on the ranks of one worker group."""

from __future__ import annotations

import contextlib
import shlex
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cluster.connection import connect
from cluster.experiments import Experiments
from cluster.plan import GroupShape, make_plan
from trainer.batches import ImageTensors
from trainer.bundle import Origin, write_bundle
from trainer.checkpoint import Checkpoint
from trainer.data import DataConfig, ImageData
from trainer.evaluation import Scores, evaluate, latency_milliseconds
from trainer.hyperparameters import TrialConfig, flatten, unflatten
from trainer.loop import create_model, predict_split, train
from trainer.metrics import EpochMetrics
from trainer.model import Classifier
from trainer.named_data import NAMES


@dataclass
class Training:
    """A training that runs while `epochs` is iterated over; afterwards `checkpoint` has the best epoch's weights."""

    config: TrialConfig
    epochs: Iterator[EpochMetrics]
    seconds: float = 0.0
    history: list[EpochMetrics] = field(default_factory=list)
    checkpoint: Checkpoint | None = None


def train_here(config: TrialConfig, data: ImageData) -> Training:
    """Train in this process, on its GPU if it has one, else on all its cores."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run() -> Iterator[EpochMetrics]:
        model = create_model(config, data, device)
        parts = ImageTensors.of(data.train, device), ImageTensors.of(data.validation, device)
        started = time.perf_counter()
        for metrics in train(model, config, *parts):
            best = training.checkpoint
            if best is None or metrics.val_accuracy > best.value:
                weights = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
                training.checkpoint = Checkpoint(weights, config, metrics.epoch, metrics.val_accuracy)
            training.seconds = time.perf_counter() - started
            training.history.append(metrics)
            yield metrics

    training = Training(config, run())
    return training


def train_on_group(
    config: TrialConfig, data: DataConfig, shape: GroupShape, experiments: Experiments, address: str | None
) -> Training:
    """Train on the ranks of one Ray Train worker group. Raises ValueError when it does not fit on the cluster."""

    def run() -> Iterator[EpochMetrics]:
        import ray

        from cluster.worker_group import WorkerGroups
        from trainer.mailbox import Assignment

        name = f"train-{uuid.uuid4().hex[:8]}"
        store = experiments.checkpoints(name)
        with connect(address) as nodes, contextlib.ExitStack() as cleanup:
            plan = make_plan(shape, nodes, trials=1)
            cleanup.callback(experiments.remove_sweep_files, name)
            mailbox = cleanup.enter_context(WorkerGroups(plan, experiments.groups_uri(name))).mailbox
            ray.get(mailbox.post.remote(Assignment(0, config, data, store.uri)))
            for position in range(config.training.epochs):
                report = ray.get(mailbox.read.remote(0, position))
                if report.metrics is None:
                    raise RuntimeError(report.error)
                training.seconds = report.reported_at - report.begun_at
                training.history.append(report.metrics)
                yield report.metrics
            training.checkpoint = store.load(0)

    training = Training(config, run())
    return training


def rebuild(checkpoint: Checkpoint, data: ImageData) -> Classifier:
    """The checkpoint's network on the CPU, in evaluation mode."""
    model = create_model(checkpoint.config, data, torch.device("cpu"))
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
) -> tuple[float, dict[str, Scores]]:
    """Write the checkpoint's bundle; gives the largest difference between live and written model, and the scores."""
    model = rebuild(checkpoint, data)
    scores = score_splits(model, data)
    one = torch.zeros(1, *data.image_shape, dtype=torch.uint8)
    latency = {
        "one image": latency_milliseconds(model, one),
        "64 images": latency_milliseconds(model, one.repeat(64, 1, 1, 1)),
    }
    command = training_command(checkpoint.config, data_config)
    origin = Origin(sweep=sweep, trial=trial, epochs=checkpoint.epoch, command=command)
    return write_bundle(folder, model, checkpoint.config, data, scores, latency, origin, samples), scores


def training_command(config: TrialConfig, data: DataConfig) -> str:
    """The `convsweep train` that trains this configuration again on this data."""
    plain = flatten(unflatten({"model.blocks": config.model.blocks})) | {"model.blocks": TrialConfig().model.blocks}
    words = ["convsweep", "train", "--data", data.data if data.data in NAMES else data.name]
    for option in ("validation_fraction", "image_size", "skip_broken"):
        value = getattr(data, option)
        if value != DataConfig.__dataclass_fields__[option].default:
            words += [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])]
    for name, value in flatten(config).items():
        if plain.get(name) != value:
            words += ["--set", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    return shlex.join(words)
