"""Exports of trials, one at a time for all readers, and what is shown of the bundles that they write."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from cluster.experiments import Experiments
from cluster.record import SweepRecord, TrialRecord
from dashboard.analyses import data_config, missing_data
from dashboard.pictures import enlarged
from trainer.bundle import CARD, CHECKED, PICTURES, Bundle
from trainer.folds import first_fold
from trainer.images import BrokenImageError, read_image
from trainer.predicting import Failure, predict

SAMPLES = 10
MOST_CLASSES = 10
"""So many of an image's classes are shown, the likeliest ones."""

_PREVIEW = 240
_PICTURE = re.compile(r"!\[[^\]]*\]\((?:" + "|".join(map(re.escape, PICTURES)) + r")\)")
_SHOWN = (*CHECKED, CARD)


# ---- exporting ----


@dataclass(eq=False)
class Export:
    """An export that is under way or over. Its own thread writes it, every page may read it."""

    sweep: str
    trial: int
    folder: Path
    steps: list[str] = field(default_factory=list)
    images: tuple[int, int] | None = None
    """How many images of how many the last step has done, where it counts any."""

    error: str | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def begin(self, step: str) -> None:
        """Note that the next step begins."""
        self.steps.append(step)
        self.images = None

    def count(self, what: str, done: int, total: int) -> None:
        """Note how far the step `what` is; the first time it begins with it."""
        if what.capitalize() != self.steps[-1]:
            self.begin(what.capitalize())
        self.images = (done, total)


class Exporter:
    """Runs one export at a time in a thread of its own: a reader who leaves the page finds it further on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: Export | None = None

    @property
    def running(self) -> Export | None:
        """The export that is under way."""
        last = self._last
        return last if last is not None and not last.over.is_set() else None

    def failed(self, folder: Path) -> str | None:
        """Why the last export failed, if it was into `folder` and did."""
        last = self._last
        return last.error if last is not None and last.over.is_set() and last.folder == folder else None

    def start(self, experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> None:
        """Begin to export the trial to its place among the experiments; nothing happens while another is under way."""
        with self._lock:
            if self.running is not None:
                return
            export = self._last = Export(sweep.name, trial.number, experiments.bundle(sweep.name, trial.number))
        threading.Thread(target=_run, args=(export, experiments, sweep, trial), daemon=True, name="export").start()


EXPORTER = Exporter()  # of the process and not in `st.cache_resource`, which every reader can clear


def _run(export: Export, experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> None:
    try:
        _export(export, experiments, sweep, trial)
    except (ValueError, RuntimeError, OSError) as error:
        export.error = str(error)
    except Exception as error:
        logging.getLogger(__name__).exception("The export of trial %d of sweep %s failed", trial.number, sweep.name)
        export.error = f"{type(error).__name__}: {error}. The log of the dashboard has more."
    finally:
        export.over.set()


def _export(export: Export, experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> None:
    """As `cluster.export.export_trial`, with its steps told apart, and without a download."""
    export.begin("Loading PyTorch")
    from cluster.export import Options, load_model, origin_of
    from cluster.export import export as write
    from trainer.data import load_data

    export.begin("Reading the weights")
    checkpoint, final = load_model(experiments, sweep, trial)
    export.begin("Reading the images")
    missing = missing_data(sweep)
    if missing is not None:
        raise ValueError(missing)
    config = data_config(sweep)
    data = first_fold(load_data(config, export.count), config, sweep.config.folds)
    origin = origin_of(checkpoint, config, sweep, trial, final=final)
    options = Options(samples=SAMPLES, on_step=lambda step: export.begin(step.capitalize()))
    write(checkpoint, data, origin, export.folder, options)


def missing(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> str | None:
    """What is not there that an export of the trial needs, and what to do; None when all of it is."""
    try:
        kept = _trials_with_weights(experiments, sweep.name)
    except OSError as error:
        reason = str(error).split("\n", 1)[0]
        return f"The weights of the trials cannot be read from {experiments.checkpoints_uri(sweep.name)}: {reason}."
    if trial.number not in kept:
        others = (
            f"Choose one that has its own: {', '.join(map(str, kept))}." if kept else "No trial's weights are there."
        )
        return (
            f"The weights of trial {trial.number} ({trial.state}) were not kept. {others} "
            "`convsweep sweep --keep-checkpoints N` keeps those of more trials."
        )
    return missing_data(sweep)


@st.cache_resource(ttl=2.0, max_entries=8, show_spinner=False, hash_funcs={Experiments: repr})
def _trials_with_weights(experiments: Experiments, sweep: str) -> list[int]:
    return experiments.checkpoints(sweep).trials()


# ---- what was exported ----


@dataclass(frozen=True)
class Written:
    """A bundle in its folder. `card` is without its `pictures`, which a page shows itself. `scores` are those in its `metrics.json` by
    split, `samples` its pictures to try, by label. `version` is another one when the folder was written anew.
    """

    folder: Path
    card: str
    pictures: tuple[Path, ...]
    scores: dict[str, dict[str, float]]
    latency_milliseconds: float
    megabytes: float
    samples: dict[str, Path]
    version: int


def read(folder: Path) -> Written | None:
    """The bundle in the folder, None when there is none. Raises ValueError for a damaged one."""
    if not all((folder / name).is_file() for name in _SHOWN):
        return None
    try:
        metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
        return Written(
            folder=folder,
            card=_PICTURE.sub("", (folder / CARD).read_text()).replace("![", "!\\["),  # no picture from elsewhere
            pictures=tuple(folder / name for name in PICTURES if (folder / name).is_file()),
            scores={split: metrics[split] for split in ("validation", "test") if split in metrics},
            latency_milliseconds=metrics["latency_milliseconds"]["model.onnx"]["1"]["median"],
            megabytes=sum(file.stat().st_size for file in _files(folder)) / 1e6,
            samples=_samples(folder / "samples"),
            version=(folder / "config.json").stat().st_mtime_ns,
        )
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"The bundle {str(folder)!r} cannot be read: {error}. Export the trial again.") from error


def zipped(folder: Path, name: str) -> bytes:
    """The bundle as one zip archive with the folder `name` in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in _files(folder):
            archive.write(file, f"{name}/{file.relative_to(folder).as_posix()}")
    return buffer.getvalue()


def _samples(folder: Path) -> dict[str, Path]:
    """The pictures under their class's name, and with a number where a class has several."""
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*-*.png"), key=lambda file: int(file.name.partition("-")[0])):
        number, _, name = file.stem.partition("-")
        found[name if name not in found else f"{name} ({number})"] = file
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


# ---- trying it ----


@st.cache_resource(max_entries=2, show_spinner="Loading the model")
def load(folder: Path, version: int) -> Bundle:
    """The model in the folder; `version` is `Written.version`. Raises ValueError for a damaged bundle."""
    return Bundle(folder)


def probabilities(bundle: Bundle, source: Path | IO[bytes]) -> pd.DataFrame:
    """The likeliest classes of an image, the likeliest first, for `trial_charts.probabilities`: class, probability, true.

    Which class is the true one is not known of an upload: none is told apart. Raises BrokenImageError for what is no image,
    and for an upload with too many pixels.
    """
    (prediction,) = predict(bundle, [source], MOST_CLASSES, decoders=0)
    if isinstance(prediction, Failure):
        raise BrokenImageError(prediction.error)
    return pd.DataFrame(prediction.top, columns=["class", "probability"]).assign(true=True)


def preview(bundle: Bundle, source: Path | IO[bytes]) -> NDArray[np.uint8]:
    """What of the image the model sees, large enough for people: `(H, W, 3)`, or `(H, W)`. Raises BrokenImageError.

    An upload is shown finer than the model sees it, a picture of the bundle pixel by pixel.
    """
    channels, height, width = bundle.image_shape
    if isinstance(source, Path):
        return enlarged(read_image(source, height, width, channels), _PREVIEW)
    scale = _PREVIEW / max(height, width)
    pixels = read_image(source, max(1, round(height * scale)), max(1, round(width * scale)), 3)
    return pixels.transpose(1, 2, 0)
