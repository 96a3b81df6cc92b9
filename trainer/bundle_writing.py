"""The exported model as it is written: graphs, weights, figures and card, verified before anybody sees them."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from trainer import card_pictures, checksums, graphs
from trainer.bundle import CARD, CHECKED, FILES, FORMAT, GRAPHS, PICTURES, SAMPLES, Bundle, is_bundle
from trainer.data import ImageData, Split
from trainer.environment import environment
from trainer.evaluation import Scores, evaluate
from trainer.graphs import Probabilities
from trainer.hyperparameters import TrialConfig, flatten
from trainer.images import to_image
from trainer.loop import Evaluation
from trainer.model import Classifier
from trainer.model_card import model_card
from trainer.onnx_session import OnnxSession
from trainer.origin import Origin
from trainer.verification import Check, verify

MAX_DIFFERENCE = 1e-4
VERIFIED_IMAGES = 256
CALIBRATION_IMAGES = 512
_EXACT = ("model.onnx", "model.pt2", "weights.safetensors")
"""What must give the live model's probabilities."""
_BATCH = 256


@dataclass(frozen=True)
class Smaller:
    """Which graphs of fewer bits are written besides, and by how much their accuracy on the validation split may lie below."""

    precisions: tuple[str, ...] = ()
    max_drop: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 1:
            raise ValueError(f"max_drop is a share of the images, 0 to 1, but got {self.max_drop:g}.")


@dataclass(frozen=True)
class Accuracy:
    """Of a graph of fewer bits on the validation split, and of the exact one on the same images."""

    accuracy: float
    exact: float

    @property
    def drop(self) -> float:
        """What the bits cost; below 0 where they happen to help."""
        return self.exact - self.accuracy


@dataclass(frozen=True)
class Written:
    """What was written: the live model's scores by split, what each file gave when it was verified, and how large it is in bytes.

    `smaller` has the accuracy of each precision of fewer bits.
    """

    scores: Mapping[str, Scores]
    checks: Mapping[str, Check]
    smaller: Mapping[str, Accuracy]
    sizes: Mapping[str, int]

    @property
    def max_difference(self) -> float:
        """The largest difference of a probability between the live model and what was written of it exactly."""
        return max(self.checks[name].max_difference for name in _EXACT)


def check_target(folder: Path) -> None:
    """Raise ValueError unless a bundle may be written there: nothing is there, an empty folder, or a bundle and nothing else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file: choose another folder with --to.")
    there = {path.name for path in folder.iterdir()}
    if there and not is_bundle(folder):
        raise ValueError(f"{str(folder)!r} exists and is no bundle: choose another folder with --to.")
    if strange := sorted(there - {*FILES, *GRAPHS.values(), SAMPLES}):
        raise ValueError(
            f"{str(folder)!r} holds {strange[0]!r} besides a bundle, which would be lost: choose another folder with --to."
        )


def write_bundle(
    folder: Path,
    model: Classifier,
    config: TrialConfig,
    data: ImageData,
    evaluations: Mapping[str, Evaluation],
    origin: Origin,
    samples: int = 0,
    smaller: Smaller | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Written:
    """Write the bundle of a trained model (on the CPU), with its `evaluations` by split, to `folder`; `on_step` is told what begins.

    What was written runs on real images in a fresh process, and RuntimeError is raised when it disagrees with the live model, or when a
    graph of fewer bits costs more than it may: `folder` is then as it was before. `samples` test images are added as pictures to try
    the bundle with. Raises ValueError when `folder` holds something that is not a bundle.
    """
    check_target(folder)
    smaller, on_step = smaller or Smaller(), on_step or (lambda what: None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        # An archive of weights in channels_last order loads with a warning.
        live = Probabilities(copy.deepcopy(model).to(memory_format=torch.contiguous_format).eval())
        on_step("writing the graphs")
        graphs.write_graphs(live, data.image_shape, temporary / "model.pt2", temporary / "model.onnx")
        _write_smaller(temporary, smaller.precisions, data)
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        (temporary / "weights.safetensors").write_bytes(safetensors.torch.save(weights))
        channels, height, width = data.image_shape
        image = {"channels": channels, "height": height, "width": width}
        _write_json(
            temporary / "config.json",
            {"convsweep_bundle": FORMAT, "data": data.name, "image": image, "hyperparameters": flatten(config)},
        )
        _write_json(temporary / "classes.json", list(data.classes))
        on_step("running what was written in a fresh process")
        names = [*_EXACT, *(GRAPHS[precision] for precision in smaller.precisions)]
        written = Written(
            scores={split: evaluate(e) for split, e in evaluations.items()},
            checks=_verify(live, temporary, names, data),
            smaller=_accuracies(temporary, smaller, data),
            sizes={name: (temporary / name).stat().st_size for name in names},
        )
        on_step("writing the card")
        surroundings = environment()
        _write_json(temporary / "metrics.json", _metrics(written, origin, surroundings))
        if evaluations:
            card_pictures.write(temporary, [*evaluations.values()][-1], data.classes)
        (temporary / CARD).write_text(model_card(model, config, data, written, origin, surroundings))
        pictures = [name for name in PICTURES if (temporary / name).exists()]
        checksums.write(temporary, sorted({*CHECKED, *pictures, *names}))
        _write_samples(temporary / SAMPLES, data, samples)
        Bundle(temporary)
        temporary.chmod(0o755)
        _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written


def _put_in_place(new: Path, folder: Path) -> None:
    """Give the folder its name, in place of a bundle that has it now, which is there until the new one is."""
    old = new.with_name(f"{new.name}-old")
    if folder.exists():
        os.rename(folder, old)  # noqa: PTH104 -- a folder, atomically
    os.rename(new, folder)  # noqa: PTH104
    shutil.rmtree(old, ignore_errors=True)


def _verify(live: Probabilities, folder: Path, names: list[str], data: ImageData) -> dict[str, Check]:
    """What the files give. Raises RuntimeError when one of those that are exact disagrees with the live model."""
    images = _some_images([split for split in (data.test, data.validation, data.train) if split], VERIFIED_IMAGES)
    with torch.inference_mode():
        parts = [live(torch.from_numpy(images[i : i + _BATCH])) for i in range(0, len(images), _BATCH)]
    checks = verify(folder, names, images, torch.cat(parts).numpy())
    for name in _EXACT:
        found = checks[name]
        if not found.max_difference <= MAX_DIFFERENCE or found.different_labels:
            raise RuntimeError(
                f"{name} disagrees with the model on {len(images)} images: probabilities differ by up to {found.max_difference:.2g} "
                f"(at most {MAX_DIFFERENCE:g} is allowed) and {found.different_labels} labels differ. No bundle was written."
            )
    return checks


def _write_smaller(folder: Path, precisions: tuple[str, ...], data: ImageData) -> None:
    exact = folder / GRAPHS["fp32"]
    for precision in precisions:
        if precision == "int8":
            graphs.write_int8(exact, folder / GRAPHS[precision], _some_images([data.train], CALIBRATION_IMAGES))
        else:
            graphs.write_float16(exact, folder / GRAPHS[precision])


def _accuracies(folder: Path, smaller: Smaller, data: ImageData) -> dict[str, Accuracy]:
    """Of each precision of fewer bits on the validation split. Raises RuntimeError where it costs more than it may."""
    if not smaller.precisions:
        return {}
    exact = _accuracy(folder / GRAPHS["fp32"], data.validation)
    found = {}
    for precision in smaller.precisions:
        cost = found[precision] = Accuracy(_accuracy(folder / GRAPHS[precision], data.validation), exact)
        if not cost.drop <= smaller.max_drop:
            raise RuntimeError(
                f"{precision} costs too much: its accuracy on {len(data.validation)} validation images is {cost.accuracy:.4f}, "
                f"{cost.drop:.4f} below that of float32, and {smaller.max_drop:g} is allowed. No bundle was written: leave out "
                f"--{precision}, or allow more with --max-drop."
            )
    return found


def _accuracy(graph: Path, split: Split) -> float:
    session = OnnxSession(graph.read_bytes())
    rows = [split.rows[i : i + _BATCH] for i in range(0, len(split), _BATCH)]
    hits = sum(int((session.run(split.images[r]).argmax(1) == split.labels[r]).sum()) for r in rows)
    return hits / len(split)


def _some_images(splits: list[Split], count: int) -> NDArray[np.uint8]:
    """So many images, from the first split as far as it has them, evenly spread over it: folders are in the order of their classes."""
    parts: list[NDArray[np.uint8]] = []
    for split in splits:
        missing = count - sum(map(len, parts))
        if missing > 0:
            places = np.unique(np.linspace(0, len(split) - 1, min(missing, len(split))).astype(np.int64))
            parts.append(split.images[split.rows[places]])
    return np.concatenate(parts)


def _metrics(written: Written, origin: Origin, surroundings: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {split: s.to_json() for split, s in written.scores.items()}
    found |= {
        "max_difference": written.max_difference,
        "verification": {name: check.to_json() for name, check in written.checks.items()},
        "latency_milliseconds": {
            name: {str(n): x.to_json() for n, x in check.latency.items()}
            for name, check in written.checks.items()
            if check.latency
        },
        "bytes": dict(written.sizes),
        "precisions": {
            name: {"validation_accuracy": a.accuracy, "drop": a.drop} for name, a in written.smaller.items()
        },
        "epochs": origin.epochs,
        "sweep": origin.search.sweep if origin.search else None,
        "trial": origin.search.trial if origin.search else None,
        "final": origin.final,
        "seeds": asdict(origin.seeds) if origin.seeds else None,
        "environment": dict(surroundings),
    }
    return found | ({"folds": origin.folds.to_json()} if origin.folds is not None else {})


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
