"""The fixed list of `bench.sweep` in the ways of the others: `python -m bench.peers WAY TRIALS DATA`. Prints a line."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.sweep import BATCH, EPOCHS, configurations

Report = Callable[[dict[str, float]], Any]


def train(given: dict[str, Any], data: Path, threads: int, report: Report) -> None:
    """One trial, as PyTorch's own tutorials train; reports accuracy and seconds after every epoch."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(threads)
    torch.manual_seed(0)

    def split(name: str) -> TensorDataset:
        arrays = np.load(data / f"{name}.npz")
        images = torch.from_numpy(arrays["images"]).float()[:, None] / 255
        return TensorDataset(images, torch.from_numpy(arrays["labels"]))

    training, validation = DataLoader(split("train"), BATCH, shuffle=True), DataLoader(split("val"), 512)
    kernel, filters = given["kernel"], given["filters"]
    network = nn.Sequential(
        nn.Conv2d(1, filters, kernel, padding=kernel // 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(filters, 2 * filters, kernel, padding=kernel // 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * filters * 49, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    optimizer = (
        torch.optim.Adam(network.parameters(), given["rate"])
        if given["optimizer"] == "adam"
        else torch.optim.SGD(network.parameters(), given["rate"], momentum=0.9)
    )
    loss_of = nn.CrossEntropyLoss()
    began = time.time()
    for _ in range(EPOCHS):
        network.train()
        for images, labels in training:
            optimizer.zero_grad()
            loss_of(network(images), labels).backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            correct = sum((network(images).argmax(1) == labels).sum().item() for images, labels in validation)
        report({"accuracy": correct / len(validation.dataset), "seconds": time.time() - began})  # type: ignore[arg-type]


def loop(trials: int, data: Path) -> float:
    """One after the other, in one process, with all cores."""
    found: list[dict[str, float]] = []
    for given in configurations(trials):
        train(given, data, os.cpu_count() or 1, found.append)
    return max(f["accuracy"] for f in found)


def optuna_study(trials: int, data: Path) -> float:
    """The same in an Optuna study."""
    import optuna

    grid = configurations(trials)

    def objective(trial: optuna.Trial) -> float:
        found: list[dict[str, float]] = []
        train(grid[trial.suggest_int("i", 0, trials - 1)], data, os.cpu_count() or 1, found.append)
        return found[-1]["accuracy"]

    sampler = optuna.samplers.GridSampler({"i": list(range(trials))})
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=trials)
    return study.best_value


def ray_tune(trials: int, data: Path, with_train: bool) -> float:
    """Ray Tune, a trial per core at once; with `with_train`, a TorchTrainer in each, as Ray documents it."""
    import ray
    import ray.train
    from ray import tune

    cores = os.cpu_count() or 1
    ray.init(num_cpus=2 * cores, include_dashboard=False, log_to_driver=False)

    def plain(config: dict[str, Any]) -> None:
        train(config["given"], data, 1, tune.report)

    def per_worker(config: dict[str, Any]) -> None:
        train(config["given"], data, 1, ray.train.report)

    def nested(config: dict[str, Any]) -> None:
        from ray.train.torch import TorchTrainer
        from ray.tune.integration.ray_train import TuneReportCallback

        TorchTrainer(
            per_worker,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(
                name=tune.get_context().get_trial_id(),
                storage_path=tempfile.gettempdir(),
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    trainable = tune.with_resources(nested if with_train else plain, {"CPU": 0.1 if with_train else 2})
    results = tune.Tuner(
        trainable,
        param_space={"given": tune.grid_search(configurations(trials))},
        tune_config=tune.TuneConfig(max_concurrent_trials=cores),
        run_config=tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0),
    ).fit()
    accuracies = [r.metrics["accuracy"] for r in results if r.metrics and "accuracy" in r.metrics]
    if len(accuracies) < trials:
        raise RuntimeError(f"Only {len(accuracies)} of {trials} trials gave a result.")
    return max(accuracies)


def main() -> None:
    """Run the list in the way that the command line names."""
    way, trials, data = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    ways: dict[str, Callable[[], float]] = {
        "loop": lambda: loop(trials, data),
        "optuna": lambda: optuna_study(trials, data),
        "tune": lambda: ray_tune(trials, data, with_train=False),
        "train": lambda: ray_tune(trials, data, with_train=True),
    }
    best = ways[way]()
    print(f"best {best:.4f}; this process at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
