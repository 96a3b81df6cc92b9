"""What a trial's pictures need, read or computed once for all who look on: analysis, kernels, network, heat maps.

PyTorch is imported where it is needed and not before: that takes seconds. What is kept of a trial is kept by its state and
its epochs: a trial that runs may have better weights after each of them.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import streamlit as st
from numpy.typing import NDArray
from safetensors import SafetensorError

from cluster.experiments import Experiments
from cluster.record import SweepRecord, TrialRecord
from dashboard import trial_tables
from trainer.analysis import Analysis, analyse
from trainer.attention import grad_cam
from trainer.data import DataConfig, load_data, needs_download
from trainer.folds import first_fold
from trainer.hyperparameters import unflatten
from trainer.layers import Layer, describe_layers
from trainer.named_data import NAMES

if TYPE_CHECKING:
    from trainer.checkpoint import Checkpoint
    from trainer.model import Classifier

P = ParamSpec("P")
R = TypeVar("R")

OnProgress = Callable[[str, float], None]
"""Called with what is being done and how much of it is done, 0 to 1."""

FRESH_SECONDS = 10.0
"""How long what lies on the storage path is taken to be as it was: other programs write and remove there."""

_DAMAGED = (KeyError, RuntimeError, SafetensorError, UnicodeDecodeError, json.JSONDecodeError)
_ANALYSING = threading.Lock()
_EXPLAINING = threading.Lock()
_BY_VERSION: dict[str | type[Any], Callable[[Any], Any]] = {
    Experiments: repr,
    TrialRecord: lambda t: (t.id, t.number, t.state, t.epochs_done, t.begun, t.ended),
}
_BY_NAME = {**_BY_VERSION, SweepRecord: lambda sweep: sweep.name}


def _readable(function: Callable[P, R]) -> Callable[P, R]:
    """Turns what a storage, and what damaged weights, may raise into a ValueError with one sentence."""

    @functools.wraps(function)
    def read(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except OSError as error:
            reason = str(error).split("\n", 1)[0]
            raise ValueError(f"The checkpoints cannot be read: {reason}.") from error
        except _DAMAGED as error:
            raise ValueError(
                f"The weights of this trial are damaged, or another version wrote them ({type(error).__name__})."
            ) from error

    return read


def torch_is_loaded() -> bool:
    """Whether PyTorch was imported before, so that nobody has to wait for it."""
    return "torch" in sys.modules


@_readable
@st.cache_resource(ttl=FRESH_SECONDS, max_entries=8, show_spinner=False, hash_funcs=_BY_VERSION)
def has_weights(experiments: Experiments, sweep: str, trial: TrialRecord) -> bool:
    """Whether the trial has a checkpoint."""
    return trial.number in experiments.checkpoints(sweep).trials()


@_readable
def stored(experiments: Experiments, sweep: str, trial: TrialRecord) -> Analysis | None:
    """The analysis that lies beside the trial's weights, if there is one. Raises ValueError for a damaged one."""
    return _stored(experiments, sweep, trial)


@st.cache_resource(ttl=FRESH_SECONDS, max_entries=8, show_spinner=False, hash_funcs=_BY_VERSION)
def _stored(experiments: Experiments, sweep: str, trial: TrialRecord) -> Analysis | None:
    content = experiments.checkpoints(sweep).load_analysis(trial.number)
    return None if content is None else Analysis.from_bytes(content)


@_readable
@st.cache_resource(ttl=FRESH_SECONDS, max_entries=8, show_spinner=False, hash_funcs=_BY_VERSION)
def kernels(experiments: Experiments, sweep: str, trial: TrialRecord) -> NDArray[np.float32] | None:
    """The weights `(F, C, k, k)` of the first convolution, or None without a checkpoint; without PyTorch."""
    return experiments.checkpoints(sweep).kernels(trial.number)


def layers(sweep: SweepRecord, trial: TrialRecord) -> list[Layer]:
    """The trial's network, layer by layer. Raises ValueError when the record does not say what that needs."""
    return _layers(*trial_tables.network(sweep, trial))


_layers = st.cache_resource(max_entries=32, show_spinner=False)(describe_layers)


@st.cache_resource(max_entries=32, show_spinner=False, hash_funcs=_BY_NAME)
def training_command(sweep: SweepRecord, trial: TrialRecord) -> str:
    """The command that trains the trial's configuration again. Raises ValueError for what this version does not know."""
    from cluster.export import training_command

    return training_command(unflatten(trial.config), sweep.config.data, sweep.config.metric)


# ---- the analysis ----


def missing_data(sweep: SweepRecord) -> str | None:
    """What to do when the sweep's images are not on this machine; None when they are. Nothing is ever downloaded."""
    config = data_config(sweep)
    if needs_download(config):
        return (
            f"The images of {config.data} are not on this machine, and this page downloads nothing. Set CONVSWEEP_DATA to the "
            f"folder that holds {NAMES[config.data].path} and start the dashboard again."
        )
    if config.data not in NAMES and not Path(config.data).is_dir():
        return f"The folder {config.data} with the images is not on this machine. Start the dashboard where it is."
    return None


def analyse_trial(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord, on_progress: OnProgress) -> None:
    """Compute the trial's analysis on the CPU and store it beside its weights; one at a time in this process.

    Raises ValueError, with a sentence, when another one is under way, and when anything goes wrong.
    """
    if not _ANALYSING.acquire(blocking=False):
        raise ValueError("Another trial is being analysed for somebody. Try again in a moment.")
    try:
        _analyse(experiments, sweep, trial, on_progress)
    except (OSError, RuntimeError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"The trial could not be analysed: {reason}") from error
    finally:
        _ANALYSING.release()


def _analyse(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord, on_progress: OnProgress) -> None:
    on_progress("Loading PyTorch and the weights", 0.0)
    from cluster.export import rebuild

    missing = missing_data(sweep)
    if missing is not None:
        raise ValueError(missing)
    checkpoint = _weights(experiments, sweep, trial)
    config = data_config(sweep)
    data = load_data(config, lambda what, done, total: on_progress(what, done / max(1, total)))
    data = first_fold(data, config, sweep.config.folds)  # whose weights these are
    model = rebuild(checkpoint, data)
    found = analyse(model, data, lambda done, total: on_progress(f"Classifying {total:,} images", done / total))
    kept = experiments.checkpoints(sweep.name).save_analysis(trial.number, found.to_bytes(), epoch=checkpoint.epoch)
    _stored.clear()
    if not kept:
        raise ValueError("The trial has got other weights meanwhile. Analyse it again.")


def data_config(sweep: SweepRecord) -> DataConfig:
    """The sweep's data, under the sweep's root or where it was moved to."""
    config, moved = sweep.config.data, os.environ.get("CONVSWEEP_DATA")
    gone = needs_download(config) or not Path(config.root or ".").is_dir()
    return replace(config, root=moved) if gone and moved else config


# ---- heat maps ----


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a network makes of one image: probabilities float32 `(classes,)`, and for some classes a heat map `(H, W)`, 0 to 1.

    Where there can be no heat maps, `note` says why.
    """

    probabilities: NDArray[np.float32]
    heat: Mapping[int, NDArray[np.float32]]
    note: str | None = None


@_readable
@st.cache_resource(max_entries=64, show_spinner=False, hash_funcs=_BY_NAME)
def explain(
    experiments: Experiments, sweep: SweepRecord, trial: TrialRecord, image: NDArray[np.uint8], labels: tuple[int, ...]
) -> Explanation:
    """What speaks for each of the `labels` in `image` `(C, H, W)`, by Grad-CAM.

    Raises ValueError when the weights are gone.
    """
    import torch

    model = _network(experiments, sweep, trial, image.shape)
    with _EXPLAINING:  # a heat map hangs a hook on the model, which would also see another thread's image
        with torch.inference_mode():
            probabilities = model(torch.tensor(image)[None]).softmax(1)[0].numpy()
        try:
            return Explanation(probabilities, {label: grad_cam(model, image, label) for label in labels})
        except ValueError as error:  # it has no convolutions
            return Explanation(probabilities, {}, str(error))


@st.cache_resource(max_entries=2, show_spinner=False, hash_funcs=_BY_NAME)
def _network(
    experiments: Experiments, sweep: SweepRecord, trial: TrialRecord, image_shape: tuple[int, int, int]
) -> Classifier:
    """The trained network on the CPU. What normalises the images is among its weights, so that it needs no data."""
    from trainer.model import build_model

    checkpoint = _weights(experiments, sweep, trial)
    channels = [0.0] * image_shape[0]
    model = build_model(checkpoint.config.model, image_shape, len(sweep.classes), channels, channels)
    model.load_state_dict(checkpoint.weights)
    return model.eval()


@_readable
def _weights(experiments: Experiments, sweep: SweepRecord, trial: TrialRecord) -> Checkpoint:
    from cluster.export import load_trial

    return load_trial(experiments, sweep, trial)
