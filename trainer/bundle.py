"""The exported model: a folder that classifies images without convsweep. Write, verify, load."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.batches import ImageTensors
from trainer.data import ImageData
from trainer.evaluation import Scores
from trainer.fold_scores import FoldFigures
from trainer.hyperparameters import ModelConfig, TrialConfig, flatten, unflatten
from trainer.images import to_image
from trainer.model import Classifier, build_model
from trainer.model_card import model_card
from trainer.seed_figures import SeedFigures

FORMAT = 1
FILES = ("model.pt2", "weights.safetensors", "config.json", "classes.json", "metrics.json", "README.md")
SAMPLES = "samples"
MAX_DIFFERENCE = 1e-4
VERIFIED_IMAGES = 256
MAX_SIDE = 4096
"""Pixels of the largest image that a bundle may ask for: what is read from a stranger is not to fill the memory."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an exported model comes from, for its card: the sweep and its trial, or a single training.

    A `final` model was trained on the validation images too, with several `seeds` if the sweep was confirmed. `folds` are the trial's
    values where it was cross-validated.
    """

    sweep: str | None
    trial: int | None
    epochs: int
    command: str
    final: bool = False
    seeds: SeedFigures | None = None
    folds: FoldFigures | None = None


def check_target(folder: Path) -> None:
    """Raise ValueError unless a bundle may be written there: nothing is there, an empty folder, or a bundle and nothing else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file: choose another folder with --to.")
    there = {path.name for path in folder.iterdir()}
    if there and not _is_bundle(folder):
        raise ValueError(f"{str(folder)!r} exists and is no bundle: choose another folder with --to.")
    if strange := sorted(there - {*FILES, SAMPLES}):
        raise ValueError(
            f"{str(folder)!r} holds {strange[0]!r} besides a bundle, which would be lost: choose another folder with --to."
        )


def _is_bundle(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "convsweep_bundle" in config


class Probabilities(nn.Module):
    """What is exported: raw uint8 images `(N, C, H, W)` in, probabilities float32 `(N, classes)` out."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities of uint8 images."""
        return cast(Tensor, self.model(images).softmax(1))


def write_bundle(
    folder: Path,
    model: Classifier,
    config: TrialConfig,
    data: ImageData,
    scores: Mapping[str, Scores],
    latency: Mapping[str, float],
    origin: Origin,
    samples: int = 0,
) -> float:
    """Write the bundle of a trained model (on the CPU) to `folder`; gives the largest difference of a probability.

    The written graph runs on real images against the live model, and RuntimeError is raised when they disagree: `folder` is
    then as it was before. `samples` test images are added as pictures to try the bundle with. Raises ValueError when
    `folder` holds something that is not a bundle.
    """
    check_target(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        # An archive of weights in channels_last order loads with a warning.
        live = Probabilities(copy.deepcopy(model).to(memory_format=torch.contiguous_format).eval())
        _export(live, data.image_shape, temporary / "model.pt2")
        difference = _verify(live, temporary / "model.pt2", data)
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        (temporary / "weights.safetensors").write_bytes(safetensors.torch.save(weights))
        channels, height, width = data.image_shape
        image = {"channels": channels, "height": height, "width": width}
        _write_json(
            temporary / "config.json",
            {"convsweep_bundle": FORMAT, "data": data.name, "image": image, "hyperparameters": flatten(config)},
        )
        _write_json(temporary / "classes.json", list(data.classes))
        metrics = {split: s.to_json() for split, s in scores.items()} | {
            "latency_milliseconds": dict(latency),
            "max_difference": difference,
            "epochs": origin.epochs,
            "sweep": origin.sweep,
            "trial": origin.trial,
            "final": origin.final,
            "seeds": asdict(origin.seeds) if origin.seeds else None,
        }
        if origin.folds is not None:
            metrics["folds"] = origin.folds.to_json()
        _write_json(temporary / "metrics.json", metrics)
        card = model_card(
            model, config, data, scores, latency, origin.command, origin.final, origin.seeds, origin.folds
        )
        (temporary / "README.md").write_text(card)
        _write_samples(temporary / SAMPLES, data, samples)
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(temporary, folder)  # noqa: PTH104 -- a folder, atomically
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return difference


def _export(live: Probabilities, image_shape: tuple[int, int, int], path: Path) -> None:
    example = torch.zeros(2, *image_shape, dtype=torch.uint8)
    with (
        warnings.catch_warnings()
    ):  # a recurrent layer has its weights in a list as well, which export changes and puts right
        warnings.filterwarnings("ignore", r"The tensor attributes .*_flat_weights")
        program = torch.export.export(live, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)


def _verify(live: Probabilities, path: Path, data: ImageData) -> float:
    split = ImageTensors.of(data.test or data.validation, torch.device("cpu"))
    images, _ = split.select(torch.arange(min(VERIFIED_IMAGES, len(split))))
    written = torch.export.load(path).module()
    with torch.inference_mode():
        expected, got = live(images), written(images)
        alone = written(images[:1])
    difference: float = max((expected - got).abs().max().item(), (expected[:1] - alone).abs().max().item())
    different_labels = int((expected.argmax(1) != got.argmax(1)).sum())
    if not difference <= MAX_DIFFERENCE or different_labels:
        raise RuntimeError(
            f"The exported graph disagrees with the model on {len(images)} images: probabilities differ by up to {difference:.2g} "
            f"(at most {MAX_DIFFERENCE:g} is allowed) and {different_labels} labels differ. No bundle was written."
        )
    return difference


def _write_samples(folder: Path, data: ImageData, count: int) -> None:
    """One picture of each class in turn, named after its label."""
    split = data.test or data.validation
    by_class = [split.rows[split.labels[split.rows] == label] for label in range(len(data.classes))]
    chosen = [(label, rows[turn]) for turn in range(count) for label, rows in enumerate(by_class) if turn < len(rows)]
    if count:
        folder.mkdir()
    for number, (label, row) in enumerate(chosen[:count]):
        name = "".join(c if c.isalnum() else "-" for c in data.classes[label])
        to_image(split.images[row]).save(folder / f"{number}-{name}.png")


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


@dataclass(frozen=True)
class _Facts:
    """What a bundle's files say: the images' shape (C, H, W), the classes, the network and its weights."""

    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    model: ModelConfig
    weights: Mapping[str, Tensor]


def _read_facts(folder: Path) -> _Facts:
    """Raises ValueError for files that are not whole."""
    name = "config.json"
    try:
        config = json.loads((folder / name).read_text())
        if config["convsweep_bundle"] != FORMAT:
            raise ValueError(
                f"it is of format {config['convsweep_bundle']!r}, but this convsweep reads format {FORMAT}"
            )
        shape = tuple(config["image"][side] for side in ("channels", "height", "width"))
        if not all(type(side) is int and 0 < side <= MAX_SIDE for side in shape):
            raise ValueError(
                f"an image's channels, height and width must be whole numbers above 0, at most {MAX_SIDE}, but it says {shape}"
            )
        model = unflatten(config["hyperparameters"]).model
        name = "classes.json"
        classes = json.loads((folder / name).read_text())
        if not (isinstance(classes, list) and classes and all(isinstance(c, str) for c in classes)):
            raise ValueError("it must be a list of the classes' names")
        name = "metrics.json"
        json.loads((folder / name).read_text())
        name = "model.pt2"
        zipfile.ZipFile(folder / name).close()
        name = "weights.safetensors"
        weights = safetensors.torch.load_file(folder / name)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,  # of JSON in JSON in JSON
        NotImplementedError,  # of archives of a kind that there will be one day
        zipfile.BadZipFile,
        safetensors.SafetensorError,
    ) as error:
        raise ValueError(f"{str(folder)!r} is no whole bundle: {name}: {str(error)[:200]}.") from error
    return _Facts(cast(tuple[int, int, int], shape), tuple(classes), model, weights)


def _rebuild(facts: _Facts) -> Classifier:
    """The network that the hyperparameters say, with the weights. Raises ValueError where they do not fit together."""
    channels = facts.image_shape[0]
    nothing = (0.0,) * channels
    with torch.device("meta"):  # what is too large for its weights takes no memory
        model = build_model(facts.model, facts.image_shape, len(facts.classes), nothing, nothing)
    try:
        model.load_state_dict(facts.weights, assign=True)
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())[:300]) from error
    return model.to(memory_format=torch.channels_last).eval()


class Bundle:
    """A bundle that was read from its folder. Raises ValueError when the folder is none.

    The network is built from the hyperparameters and the weights. The graph, model.pt2, is for those who have no convsweep: torch
    runs what a graph holds when it loads it, so one should know where it comes from; numbers and JSON are safe from anybody.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ValueError(f"There is no bundle {str(folder)!r}: it is a folder that `convsweep export` writes.")
        missing = [name for name in FILES[:5] if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{str(folder)!r} is no bundle: it has no {missing[0]}. Bundles are written by `convsweep export`."
            )
        facts = _read_facts(folder)
        self.image_shape, self.classes = facts.image_shape, facts.classes
        try:
            self._model = Probabilities(_rebuild(facts))
            self.probabilities(np.zeros((1, *self.image_shape), np.uint8))
        except (ValueError, RuntimeError) as error:  # the latter of tensors of a wrong type
            reason = str(error).split("\n", 1)[0][:300]
            raise ValueError(
                f"{str(folder)!r} is no whole bundle: weights.safetensors does not fit to config.json and classes.json: {reason}."
            ) from error

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities `(N, classes)` of uint8 images `(N, C, H, W)`."""
        with torch.inference_mode():
            return cast(NDArray[np.float32], self._model(torch.from_numpy(images)).numpy())
