"""Bundles for tests: an untrained network, written as `convsweep export` writes a trained one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainer import checksums
from trainer.batches import ImageTensors
from trainer.bundle_writing import Smaller, Written, write_bundle
from trainer.data import ImageData
from trainer.hyperparameters import unflatten
from trainer.loop import create_model, predict_split
from trainer.model import Classifier
from trainer.origin import Origin

CPU = torch.device("cpu")
ORIGIN = Origin(epochs=1, command="convsweep train --data digits")


def write(
    folder: Path,
    data: ImageData,
    flat: Mapping[str, Any] | None = None,
    *,
    samples: int = 0,
    smaller: Smaller | None = None,
    origin: Origin = ORIGIN,
) -> tuple[Classifier, Written]:
    """The network in eval mode, and what was written of it with its scores on the test split."""
    config = unflatten(flat or {})
    model = create_model(config, data, CPU).eval()
    assert data.test is not None
    evaluations = {"test": predict_split(model, ImageTensors.of(data.test, CPU))}
    return model, write_bundle(folder, model, config, data, evaluations, origin, samples, smaller)


def forge_checksums(folder: Path) -> None:
    """Write the list of checksums anew, as somebody would who has changed files of the bundle."""
    listed = [line.split()[1] for line in (folder / checksums.NAME).read_text().splitlines()]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in listed]
    (folder / checksums.NAME).write_text("".join(lines))
