"""One configuration without a search: in this process, or on the ranks of one worker group."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from cluster.connection import connect
from cluster.experiments import Experiments
from cluster.plan import GroupShape
from trainer import memory
from trainer.averaging import build_average, judged
from trainer.batches import ImageTensors
from trainer.checkpoint import Checkpoint
from trainer.data import DataConfig, ImageData
from trainer.hyperparameters import TrialConfig
from trainer.loop import create_model, train
from trainer.measuring import ACCURACY, Metric
from trainer.metrics import EpochMetrics


@dataclass
class Training:
    """A training that runs while `epochs` is iterated over; afterwards `checkpoint` has the best epoch's weights."""

    config: TrialConfig
    epochs: Iterator[EpochMetrics]
    seconds: float = 0.0
    history: list[EpochMetrics] = field(default_factory=list)
    checkpoint: Checkpoint | None = None


def train_here(config: TrialConfig, data: ImageData, goal: Metric = ACCURACY) -> Training:
    """Train in this process, on its GPU if it has one, else on all its cores. The best epoch is that by the `goal`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run() -> Iterator[EpochMetrics]:
        memory.keep_freed()
        model = create_model(config, data, device)
        average = build_average(config.training, model)
        parts = ImageTensors.of(data.train, device), ImageTensors.of(data.validation, device)
        started = time.perf_counter()
        for metrics in train(model, config, *parts, average=average, goal=goal):
            best, value = training.checkpoint, goal.value_of(metrics)
            if best is None or goal.is_better(value, best.value):
                kept = judged(model, average).state_dict()
                weights = {name: tensor.cpu().clone() for name, tensor in kept.items()}
                training.checkpoint = Checkpoint(weights, config, metrics.epoch, value)
            training.seconds = time.perf_counter() - started
            training.history.append(metrics)
            yield metrics

    training = Training(config, run())
    return training


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def train_on_group(
    config: TrialConfig,
    data: DataConfig,
    shape: GroupShape,
    experiments: Experiments,
    address: str | None,
    goal: Metric = ACCURACY,
) -> Training:
    """The same on the ranks of one Ray Train worker group. Raises ValueError when it does not fit on the cluster."""

    def run() -> Iterator[EpochMetrics]:
        import ray

        from cluster.worker_group import WorkerGroups
        from trainer.mailbox import Assignment

        name = f"train-{uuid.uuid4().hex[:8]}"
        store = experiments.checkpoints(name)
        with connect(address) as there, contextlib.ExitStack() as cleanup:
            plan = there.plan(shape, trials=1)
            cleanup.callback(experiments.remove_sweep_files, name)
            groups = cleanup.enter_context(WorkerGroups(plan, experiments.groups_uri(name), there, _say))
            groups.wait_until_up(lambda: False)
            mailbox = groups.mailbox
            ray.get(mailbox.post.remote(Assignment(0, config, data, store.uri, metric=goal.name)))
            for position in itertools.count():
                report = ray.get(mailbox.read.remote(0, position))
                if report.metrics is None:
                    raise RuntimeError(report.error)
                training.seconds = report.reported_at - report.begun_at
                training.history.append(report.metrics)
                yield report.metrics
                if report.done:
                    break
            training.checkpoint = store.load(0)

    training = Training(config, run())
    return training
