"""The exported model as it is read: a folder that classifies images. Imports no torch. `bundle_writing.py` writes it."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from trainer import checksums, onnx_session
from trainer.onnx_session import OnnxSession

FORMAT = 2
GRAPHS = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
"""The ONNX graph of each precision. A bundle always has the first, and those that `export` was asked for."""
CHECKED = ("model.pt2", "model.onnx", "weights.safetensors", "config.json", "classes.json", "metrics.json")
"""What every bundle has, besides its card, its pictures and the checksums."""
CARD, PICTURES, SAMPLES = "README.md", ("confusion.png", "reliability.png"), "samples"
FILES = (*CHECKED, *PICTURES, CARD, checksums.NAME)
MAX_SIDE = 4096
"""Pixels of the largest image that a bundle may ask for: what is read from a stranger is not to fill the memory."""
_MOST_JSON_BYTES = 2**26
_CLASSIFIER = {"classifier.weight", "classifier.bias"}
"""Weights that the graph has as they are: those before them may be folded together."""


class Bundle:
    """A bundle that was read from its folder, and runs the ONNX graph of one precision. Raises ValueError when the folder is none.

    All that is read is numbers and text, so that a bundle is safe from anybody; model.pt2, of which torch runs what it holds, is for
    those who know where it comes from. `image_shape` is (C, H, W). It can be pickled, for other processes. `threads`: `OnnxSession`.
    """

    def __init__(self, folder: Path, precision: str = "fp32", threads: int | None = None) -> None:
        name = _graph_name(folder, precision)
        try:
            name = "config.json"
            self.image_shape = _image_shape(_read_json(folder / name))
            name = "classes.json"
            self.classes = _classes(_read_json(folder / name))
            name = "metrics.json"
            _read_json(folder / name)
            name = checksums.NAME
            checksums.check(folder, [*CHECKED, GRAPHS[precision]])
            name = "model.pt2"
            _check_archive(folder / name)
            name = GRAPHS[precision]
            graph = (folder / name).read_bytes()
            model = onnx_session.check_graph(graph, self.image_shape, len(self.classes))
            self._session = OnnxSession(graph, threads)
            self._try()
            if precision == "fp32":
                name = "weights.safetensors"
                _check_weights(folder / name, model)
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
            raise ValueError(f"{str(folder)!r} is no whole bundle: {name}: {str(error)[:300]}.") from error

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities `(N, classes)` of uint8 images `(N, C, H, W)`."""
        return self._session.run(images)

    def _try(self) -> None:
        """Raise ValueError unless the graph gives probabilities."""
        try:
            found = self._session.run(np.zeros((1, *self.image_shape), np.uint8))
        except Exception as error:  # onnxruntime has a class for each kind
            raise ValueError(f"onnxruntime cannot run it: {' '.join(str(error).split())[:200]}") from error
        if found.shape != (1, len(self.classes)) or not math.isclose(float(found.sum()), 1, abs_tol=0.01):
            raise ValueError("what it gives are no probabilities")


def is_bundle(folder: Path) -> bool:
    """Whether the folder has the configuration of a bundle, of any format."""
    try:
        content = _read_json(folder / "config.json")
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "convsweep_bundle" in content


def _graph_name(folder: Path, precision: str) -> str:
    """The file of the precision's graph. Raises ValueError when the folder has not all that it needs."""
    if not folder.is_dir():
        raise ValueError(f"There is no bundle {str(folder)!r}: it is a folder that `convsweep export` writes.")
    if precision not in GRAPHS:
        raise ValueError(f"A precision is one of {', '.join(GRAPHS)}, but got {precision!r}.")
    missing = [name for name in (*CHECKED, checksums.NAME) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{str(folder)!r} is no bundle: it has no {missing[0]}. Bundles are written by `convsweep export`; one that an older "
            "convsweep wrote must be exported again."
        )
    name = GRAPHS[precision]
    if not (folder / name).is_file():
        there = ", ".join(p for p, graph in GRAPHS.items() if (folder / graph).is_file())
        raise ValueError(
            f"The bundle {str(folder)!r} has no {name}, only {there}: `convsweep export --{precision}` writes it."
        )
    return name


def _read_json(path: Path) -> Any:
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise ValueError("it is too large")
    return json.loads(path.read_text())


def _image_shape(config: Any) -> tuple[int, int, int]:
    if config["convsweep_bundle"] != FORMAT:
        raise ValueError(f"it is of format {config['convsweep_bundle']!r}, but this convsweep reads format {FORMAT}")
    shape = tuple(config["image"][side] for side in ("channels", "height", "width"))
    if not all(type(side) is int and 0 < side <= MAX_SIDE for side in shape):
        raise ValueError(
            f"an image's channels, height and width must be whole numbers above 0, at most {MAX_SIDE}, but it says {shape}"
        )
    channels, height, width = shape
    if channels not in (1, 3):
        raise ValueError(f"an image has 1 channel or 3, but it says {channels}")
    return channels, height, width


def _classes(content: Any) -> tuple[str, ...]:
    if not (isinstance(content, list) and content and all(isinstance(c, str) for c in content)):
        raise ValueError("it must be a list of the classes' names")
    return tuple(content)


def _check_archive(path: Path) -> None:
    """Raise ValueError unless it is torch.export's archive: a truncated one may end with another archive that was in it."""
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("/archive_format") for name in archive.namelist()):
            raise ValueError("it is not an archive that torch.export wrote")


def _check_weights(path: Path, model: Any) -> None:
    """Raise ValueError unless the weights are those of the graph, as far as it has them unchanged."""
    with safetensors.safe_open(path, "numpy") as weights:
        if not set(weights.keys()) >= _CLASSIFIER:
            raise ValueError("it has not the weights of a classifier")
        for name in _CLASSIFIER:
            inside = onnx_session.initializer(model, f"model.{name}")
            if inside is None or not np.array_equal(inside, weights.get_tensor(name)):
                raise ValueError("these are not the weights of model.onnx")
