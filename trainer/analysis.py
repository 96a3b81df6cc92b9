"""What the pictures of a trained trial need, computed once on the validation split and stored beside the weights."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation import CALIBRATION_BINS, Calibration, ClassScores, Scores, calibrate, class_scores, evaluate

if TYPE_CHECKING:
    from trainer.data import ImageData, Split
    from trainer.loop import Evaluation
    from trainer.model import Classifier

FORMAT = 1
MOST_MISTAKES = 24
MOST_SAMPLES = 40
SAMPLES_PER_CLASS = 4
MOST_PICTURE_BYTES = 16 * 2**20
"""Of the mistakes, and of the samples: of images of 1024x1024 pixels these are five."""
_MOST_BYTES = 2**30
"""What an unpacked analysis may have at most; that of 1,000 classes has 40 MB."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Some images of the validation split with what the model makes of them.

    `images` are uint8 `(N, C, H, W)`, `labels` and `predicted` int64 `(N,)`, `probability`, float32 `(N,)`, is that of
    the predicted class, and `positions`, int64 `(N,)`, are the images' places in the split.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probability: NDArray[np.float32]
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class Analysis:
    """A trained model on the validation split.

    `mistakes` are the wrong predictions that the model was surest of, the surest first, at most 24; `samples` are up to
    four images of each class, at most 40 in all, by class. Large images are fewer: 16 MiB of each.
    """

    classes: tuple[str, ...]
    scores: Scores
    calibration: Calibration
    mistakes: Pictures
    samples: Pictures

    @property
    def confusion(self) -> NDArray[np.int64]:
        """How many images of each class (rows) were taken for each class (columns): `(classes, classes)`."""
        return np.array(self.scores.confusion, dtype=np.int64)

    @property
    def per_class(self) -> ClassScores:
        """Precision, recall, F1 and support of each class."""
        return class_scores(self.confusion)

    def to_bytes(self) -> bytes:
        """As an .npz archive without pickled objects; `from_bytes` is the way back."""
        scores = self.scores.to_json()
        confusion = scores.pop("confusion")
        facts = json.dumps({"convsweep_analysis": FORMAT, "classes": self.classes, "scores": scores})
        arrays: dict[str, NDArray[Any]] = {
            "facts": np.frombuffer(facts.encode(), dtype=np.uint8),
            "confusion": np.array(confusion, dtype=np.int64),
            **_prefixed("calibration", self.calibration),
            **_prefixed("mistakes", self.mistakes),
            **_prefixed("samples", self.samples),
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Analysis:
        """The analysis that `to_bytes` wrote. Raises ValueError for anything else, also for that of another format."""
        try:
            return _read(content)
        except Exception as error:  # damaged archives make zipfile, zlib and numpy raise nearly anything
            reason = str(error).split("\n", 1)[0][:200]
            raise ValueError(
                f"This is no analysis that this version of convsweep can read ({type(error).__name__}: {reason}): compute it again."
            ) from error


def analyse(model: Classifier, data: ImageData, on_progress: Callable[[int, int], None] | None = None) -> Analysis:
    """The analysis of a model, on the device where it is; the model is put into eval mode.

    `on_progress` is called with how many images of the validation split are done, and how many there are.
    """
    import torch

    from trainer.batches import ImageTensors
    from trainer.loop import EVALUATION_BATCH, Evaluation, predict_split

    split = ImageTensors.of(data.validation, next(model.parameters()).device)
    parts, done = [], 0
    for rows in torch.split(split.rows, EVALUATION_BATCH):
        parts.append(predict_split(model, replace(split, rows=rows)))
        done += len(rows)
        if on_progress:
            on_progress(done, len(split))
    logits, labels = torch.cat([part.logits for part in parts]), torch.cat([part.labels for part in parts])
    return summarise(Evaluation(logits, labels), data.validation, data.classes)


def summarise(evaluation: Evaluation, split: Split, classes: tuple[str, ...]) -> Analysis:
    """The analysis of a model's logits for the images of `split`."""
    highest, likeliest = evaluation.logits.softmax(1).max(1)
    confidence, predicted, labels = highest.numpy(), likeliest.numpy(), evaluation.labels.numpy()
    most = max(1, MOST_PICTURE_BYTES // split.images[0].nbytes)

    def pictures(positions: NDArray[np.int64]) -> Pictures:
        images = np.array(split.images[split.rows[positions]])
        return Pictures(images, labels[positions], predicted[positions], confidence[positions], positions)

    wrong = np.flatnonzero(predicted != labels)
    surest_first = wrong[np.argsort(-confidence[wrong], kind="stable")]
    return Analysis(
        classes=classes,
        scores=evaluate(evaluation),
        calibration=calibrate(confidence, predicted == labels),
        mistakes=pictures(surest_first[: min(MOST_MISTAKES, most)]),
        samples=pictures(_sample(labels, len(classes), min(MOST_SAMPLES, most))),
    )


def _sample(labels: NDArray[np.int64], classes: int, most: int) -> NDArray[np.int64]:
    """The places of the first images of each class, by class; a class has a second one once all have their first."""
    of_class = [np.flatnonzero(labels == label)[:SAMPLES_PER_CLASS] for label in range(classes)]
    by_turn = [places[turn] for turn in range(SAMPLES_PER_CLASS) for places in of_class if turn < len(places)]
    chosen = np.sort(np.array(by_turn[:most], dtype=np.int64))
    return chosen[np.argsort(labels[chosen], kind="stable")]


def _prefixed(prefix: str, arrays: Calibration | Pictures) -> dict[str, NDArray[Any]]:
    return {f"{prefix}.{name}": values for name, values in vars(arrays).items()}


def _read(content: bytes) -> Analysis:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        size = sum(entry.file_size for entry in archive.zip.infolist())
        _require(size <= _MOST_BYTES, f"it would have {size:,} bytes")
        arrays = {name: archive[name] for name in archive.files}
    facts = json.loads(arrays["facts"].tobytes())
    _require(facts["convsweep_analysis"] == FORMAT, f"it has the format {facts['convsweep_analysis']!r}, not {FORMAT}")
    classes = tuple(facts["classes"])
    _require(len(classes) > 0 and all(isinstance(name, str) for name in classes), "its classes are no names")
    confusion = _array(arrays, "confusion", np.int64, (len(classes), len(classes)))
    _require(confusion.min() >= 0, "its confusion matrix has negative counts")
    scores = Scores(confusion=confusion.tolist(), **facts["scores"])
    values = (scores.loss, scores.accuracy, scores.macro_f1, scores.calibration_error)
    _require(scores.images == confusion.sum() and all(type(v) is float for v in values), "its scores are no scores")
    bins = (CALIBRATION_BINS,)
    calibration = Calibration(
        confidence=_array(arrays, "calibration.confidence", np.float64, bins),
        accuracy=_array(arrays, "calibration.accuracy", np.float64, bins),
        count=_array(arrays, "calibration.count", np.int64, bins),
    )
    mistakes, samples = (_pictures(arrays, name, len(classes)) for name in ("mistakes", "samples"))
    return Analysis(classes, scores, calibration, mistakes, samples)


def _pictures(arrays: dict[str, NDArray[Any]], name: str, classes: int) -> Pictures:
    images = arrays[f"{name}.images"]
    _require(images.dtype == np.uint8 and images.ndim == 4 and min(images.shape[1:]) > 0, f"its {name} are no images")
    each = images.shape[:1]
    pictures = Pictures(
        images=images,
        labels=_array(arrays, f"{name}.labels", np.int64, each),
        predicted=_array(arrays, f"{name}.predicted", np.int64, each),
        probability=_array(arrays, f"{name}.probability", np.float32, each),
        positions=_array(arrays, f"{name}.positions", np.int64, each),
    )
    named = np.concatenate([pictures.labels, pictures.predicted])
    _require(bool(((named >= 0) & (named < classes)).all()), f"its {name} have classes that are not there")
    return pictures


def _array(arrays: dict[str, NDArray[Any]], name: str, kind: type, shape: tuple[int, ...]) -> NDArray[Any]:
    array = arrays[name]
    _require(array.dtype == kind and array.shape == shape, f"{name} is {array.dtype} {array.shape}, not {shape}")
    return array


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
