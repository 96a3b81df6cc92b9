"""The searches that `bench.search` compares with: `python bench/peer_search.py DATA optuna|keras MINUTES`. Prints JSON.

Runs in a Python that has the tool and needs nothing of convsweep. 40,000 training and 10,000 validation images; the model of the
best epoch so far is scored on the test split.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from keras_recipes import cifar10

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
TRAINING, EPOCHS = 40_000, 10


def optuna_search(root: Path, end: float) -> dict[str, Any]:
    """Optuna around a plain PyTorch loop."""
    import optuna
    import torch
    from torch import nn

    torch.manual_seed(0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    arrays = [torch.from_numpy(array) for array in cifar10(root)]
    images, labels, test_images, test_labels = (
        arrays[0].permute(0, 3, 1, 2),
        arrays[1],
        arrays[2].permute(0, 3, 1, 2),
        arrays[3],
    )
    best = {"value": 0.0, "test": 0.0}

    def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
        network.eval()
        with torch.no_grad():
            hits = sum(
                (network(x).argmax(1) == y).sum() for x, y in zip(images.split(1000), labels.split(1000), strict=True)
            )
        return float(hits) / len(labels)

    def build(trial: optuna.Trial) -> nn.Module:
        kinds = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh}
        activation = kinds[trial.suggest_categorical("activation", [*kinds])]
        pooling = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}[trial.suggest_categorical("pool", ["max", "average"])]
        batch_norm = trial.suggest_categorical("batch_norm", [True, False])
        layers: list[nn.Module] = []
        channels = 3
        for i in range(trial.suggest_int("blocks", 2, 4)):
            kernel = trial.suggest_categorical(f"kernel{i}", [3, 5])
            filters = trial.suggest_categorical(f"filters{i}", [32, 64, 128])
            layers.append(nn.Conv2d(channels, filters, kernel, padding=kernel // 2))
            layers += [nn.BatchNorm2d(filters)] if batch_norm else []
            layers += [activation(), pooling(2)]
            channels = filters
        layers += [nn.Flatten(), nn.LazyLinear(trial.suggest_categorical("dense", [64, 128])), activation()]
        layers += [nn.Dropout(trial.suggest_float("dropout", 0, 0.5)), nn.LazyLinear(10)]
        network = nn.Sequential(*layers)
        network(torch.zeros(2, 3, 32, 32))
        return network

    def objective(trial: optuna.Trial) -> float:
        network, rate = build(trial), trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        adam = trial.suggest_categorical("optimizer", ["adam", "sgd"]) == "adam"
        optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(network.parameters(), rate) if adam else torch.optim.SGD(network.parameters(), rate, 0.9)
        )
        batch, loss_of, value = trial.suggest_categorical("batch", [64, 128, 256]), nn.CrossEntropyLoss(), 0.0
        for epoch in range(EPOCHS):
            network.train()
            for rows in torch.randperm(TRAINING).split(batch):
                optimizer.zero_grad()
                loss_of(network(images[rows]), labels[rows]).backward()
                optimizer.step()
                if time.time() > end:
                    raise optuna.TrialPruned
            value = accuracy(network, images[TRAINING:], labels[TRAINING:])
            if value > best["value"]:
                best.update(value=value, test=accuracy(network, test_images, test_labels))
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0), pruner=pruner)
    study.optimize(objective, timeout=end - time.time())
    return {"trials": len(study.trials), "test": best["test"]}


def keras_search(root: Path, end: float) -> dict[str, Any]:
    """Keras Tuner's Hyperband."""
    import keras
    import keras_tuner
    from keras import layers

    keras.utils.set_random_seed(0)
    images, labels, test_images, test_labels = cifar10(root)
    best = {"value": 0.0, "test": 0.0}

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if time.time() > end:
                raise TimeoutError

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if logs["val_accuracy"] > best["value"]:
                _, test = self.model.evaluate(test_images, test_labels, verbose=0, batch_size=1000)
                best.update(value=logs["val_accuracy"], test=test)

    def build(choose: Any) -> Any:
        activation, batch_norm = (
            choose.Choice("activation", ["relu", "leaky_relu", "tanh"]),
            choose.Boolean("batch_norm"),
        )
        pooling = {"max": layers.MaxPooling2D, "average": layers.AveragePooling2D}[
            choose.Choice("pool", ["max", "average"])
        ]
        network = keras.Sequential([layers.Input((32, 32, 3))])
        for i in range(choose.Int("blocks", 2, 4)):
            filters, kernel = choose.Choice(f"filters{i}", [32, 64, 128]), choose.Choice(f"kernel{i}", [3, 5])
            network.add(layers.Conv2D(filters, kernel, padding="same"))
            if batch_norm:
                network.add(layers.BatchNormalization())
            network.add(layers.Activation(activation))
            network.add(pooling(2))
        network.add(layers.Flatten())
        network.add(layers.Dense(choose.Choice("dense", [64, 128]), activation=activation))
        network.add(layers.Dropout(choose.Float("dropout", 0, 0.5)))
        network.add(layers.Dense(10, activation="softmax"))
        rate = choose.Float("rate", 1e-4, 1e-1, sampling="log")
        adam = choose.Choice("optimizer", ["adam", "sgd"]) == "adam"
        optimizer = keras.optimizers.Adam(rate) if adam else keras.optimizers.SGD(rate, 0.9)
        network.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        return network

    tuner = keras_tuner.Hyperband(
        build,
        "val_accuracy",
        max_epochs=EPOCHS,
        factor=3,
        hyperband_iterations=100,
        seed=0,
        directory=tempfile.mkdtemp(),
        project_name="search",
    )
    try:
        tuner.search(
            images[:TRAINING],
            labels[:TRAINING],
            validation_data=(images[TRAINING:], labels[TRAINING:]),
            batch_size=128,
            verbose=0,
            callbacks=[Clock()],
        )
    except (TimeoutError, RuntimeError):
        if not best["value"]:
            raise
    return {"trials": len(tuner.oracle.trials), "test": best["test"]}


if __name__ == "__main__":
    until = time.time() + 60 * float(sys.argv[3])
    ways = {"optuna": optuna_search, "keras": keras_search}
    print(json.dumps(ways[sys.argv[2]](Path(sys.argv[1]), until)))
