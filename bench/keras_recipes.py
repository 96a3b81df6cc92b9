"""The Keras recipes that `bench.train` compares with: `python bench/keras_recipes.py DATA mnist-3conv|cifar-3conv SEED [EPOCHS]`.

Runs in a Python that has TensorFlow and needs nothing of convsweep; DATA is a torchvision root. Prints one JSON document.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
EPOCHS = {"mnist-3conv": 5, "cifar-3conv": 10}
BATCH = 32


def mnist(root: Path) -> list[Any]:
    """Training images, training labels, test images, test labels: float32 (N, 28, 28, 1) in 0 to 1, int64 (N,)."""

    def read(name: str, skip: int) -> Any:
        plain = root / "MNIST/raw" / name
        content = plain.read_bytes() if plain.exists() else gzip.decompress(plain.with_name(name + ".gz").read_bytes())
        return np.frombuffer(content, np.uint8, offset=skip)

    found = []
    for part in ("train", "t10k"):
        images = read(f"{part}-images-idx3-ubyte", 16).reshape(-1, 28, 28, 1)
        found += [images.astype("float32") / 255, read(f"{part}-labels-idx1-ubyte", 8).astype("int64")]
    return found


def cifar10(root: Path) -> list[Any]:
    """The same of CIFAR-10: float32 (N, 32, 32, 3)."""
    found: list[Any] = []
    for names in ([f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]):
        files = [root / "cifar-10-batches-py" / name for name in names]
        parts = [pickle.loads(file.read_bytes(), encoding="bytes") for file in files]
        images = np.concatenate([p[b"data"] for p in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        found += [images.astype("float32") / 255, np.concatenate([p[b"labels"] for p in parts]).astype("int64")]
    return found


def run(root: Path, recipe: str, seed: int, epochs: int) -> dict[str, float]:
    """Train as the tutorial does; the test accuracy and what it took."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    images, labels, test_images, test_labels = mnist(root) if recipe == "mnist-3conv" else cifar10(root)
    network = keras.Sequential(
        [
            layers.Input(images.shape[1:]),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    began = time.time()
    network.fit(images, labels, epochs=epochs, batch_size=BATCH, verbose=0)
    seconds = time.time() - began
    _, accuracy = network.evaluate(test_images, test_labels, verbose=0)
    return {
        "test_accuracy": float(accuracy),
        "train_seconds": seconds,
        "images_per_second": epochs * len(images) / seconds,
    }


if __name__ == "__main__":
    asked = int(sys.argv[4]) if len(sys.argv) > 4 else EPOCHS[sys.argv[2]]
    print(json.dumps(run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), asked)))
