"""Whether a bundle's files give what the live model gave, and how fast: asked in a process of their own, as on another machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer import latency
from trainer.latency import Latency

BATCHES = (1, 64)
"""Of how many images the latency is measured."""
_PASSES, _MOST_SECONDS = 50, 1.0
_QUESTIONS, _ANSWERS = "questions.npz", "answers.json"

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Check:
    """What one file gives for so many `images`: how much a probability differs at most from the live model's, and how many labels do.

    `latency` is by the number of images in a batch; weights alone have none.
    """

    images: int
    max_difference: float
    different_labels: int
    latency: Mapping[int, Latency]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "images": self.images,
            "max_difference": self.max_difference,
            "label_agreement": 1 - self.different_labels / self.images,
        }


def verify(
    folder: Path, names: list[str], images: NDArray[np.uint8], expected: NDArray[np.float32]
) -> dict[str, Check]:
    """Run these files of the folder on `images` `(N, C, H, W)` in a fresh process, and compare with `expected` `(N, classes)`.

    The process knows the files alone, and no GPU. It writes beside them, and removes what it wrote. Raises RuntimeError when it fails.
    """
    questions, answers = folder / _QUESTIONS, folder / _ANSWERS
    np.savez(questions, images=images, expected=expected)
    # Its own `python -m` would take a folder `trainer` of the user's for ours.
    code = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from trainer.verification import main; main()"
    command = [sys.executable, "-P", "-c", code, json.dumps(sys.path), str(folder), *names]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            how = (
                f"with status {done.returncode}"
                if done.returncode > 0
                else f"by {signal.Signals(-done.returncode).name}"
            )
            where = (done.stdout.split() or ["the beginning"])[-1]
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise RuntimeError(f"No bundle was written: the process that verifies it ended {how} at {where}: {last}")
        found = json.loads(answers.read_text())
    finally:
        questions.unlink(missing_ok=True)
        answers.unlink(missing_ok=True)
    return {name: _check(len(images), **found[name]) for name in names}


def _check(images: int, max_difference: float, different_labels: int, latency: Mapping[str, Any]) -> Check:
    return Check(images, max_difference, different_labels, {int(n): Latency(**x) for n, x in latency.items()})


# ---- in the fresh process ----


def main() -> None:
    """Answer for the files that the arguments name, in the folder that the first one names."""
    folder, *names = sys.argv[1:]
    with np.load(Path(folder) / _QUESTIONS) as archive:
        images, expected = archive["images"], archive["expected"]
    answers = {}
    for name in names:
        print(name, flush=True)  # where it was, if it dies
        answers[name] = _answer(Path(folder) / name, images, expected)
    (Path(folder) / _ANSWERS).write_text(json.dumps(answers))


def _answer(path: Path, images: NDArray[np.uint8], expected: NDArray[np.float32]) -> dict[str, Any]:
    run = _RUNNERS[path.suffix](path)
    got = np.concatenate([run(images[i : i + BATCHES[-1]]) for i in range(0, len(images), BATCHES[-1])])
    alone = np.concatenate([run(images[i : i + 1]) for i in range(min(4, len(images)))])
    differences = np.abs(got - expected).max(), np.abs(alone - expected[: len(alone)]).max()
    measured = {}
    if path.suffix != ".safetensors":
        for n in BATCHES:
            batch = np.resize(images, (n, *images.shape[1:]))
            measured[n] = latency.measure(lambda batch=batch: run(batch), _PASSES, _MOST_SECONDS).to_json()  # type: ignore[misc]
    return {
        "max_difference": float(max(differences)),
        "different_labels": int((got.argmax(1) != expected.argmax(1)).sum()),
        "latency": measured,
    }


def _onnx(path: Path) -> Run:
    from trainer.onnx_session import OnnxSession

    return OnnxSession(path.read_bytes()).run


def _torch(path: Path) -> Run:
    import torch

    graph = torch.export.load(path).module()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            probabilities: NDArray[np.float32] = graph(torch.from_numpy(images)).numpy()
        return probabilities

    return run


def _weights(path: Path) -> Run:
    """The network as its bundle's configuration says it, with these weights."""
    import safetensors.torch
    import torch

    from trainer.graphs import Probabilities
    from trainer.hyperparameters import unflatten
    from trainer.model import build_model

    config = json.loads((path.parent / "config.json").read_text())
    shape = tuple(config["image"][side] for side in ("channels", "height", "width"))
    classes = len(json.loads((path.parent / "classes.json").read_text()))
    nothing = (0.0,) * shape[0]  # what normalises the images is among the weights
    model = build_model(unflatten(config["hyperparameters"]).model, shape, classes, nothing, nothing)
    model.load_state_dict(safetensors.torch.load_file(path))
    live = Probabilities(model.eval())

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            probabilities: NDArray[np.float32] = live(torch.from_numpy(images)).numpy()
        return probabilities

    return run


_RUNNERS: dict[str, Callable[[Path], Run]] = {".onnx": _onnx, ".pt2": _torch, ".safetensors": _weights}
