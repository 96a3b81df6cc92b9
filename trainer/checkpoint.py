"""A trial's weights on the storage path: a local folder or a URI that pyarrow knows (s3://, gs://, ...)."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from trainer.hyperparameters import TrialConfig, flatten, unflatten

if TYPE_CHECKING:
    from torch import Tensor


_WEIGHTS, _STATE, _ANALYSIS, _WRITING = ".safetensors", ".state", ".analysis.npz", ".writing"


@dataclass(frozen=True)
class Checkpoint:
    """The best epoch's weights and what is needed to build the network they belong to."""

    weights: dict[str, Tensor]
    config: TrialConfig
    epoch: int
    value: float


class CheckpointStore:
    """The checkpoints of one sweep, one file per trial under `uri`, and beside it the trial's analysis if it was made.

    A file is safetensors; its header carries the configuration, so that a checkpoint describes itself. An analysis
    belongs to the weights that it was computed from and goes with them. A trial that is not over also has the state that
    its training goes on from. Files are written under a temporary name and renamed.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._files, self._root = open_storage(uri)

    def check(self) -> None:
        """Raise OSError when nothing can be written; leaves no file there."""
        probe = f"{self._root}/.{uuid.uuid4().hex}"
        self._write(probe, b"x")
        self._remove(probe)

    def save(self, trial: int, checkpoint: Checkpoint) -> None:
        """Write the trial's checkpoint in place of its last one, whose analysis is removed.

        Raises OSError when the storage cannot be written.
        """
        import safetensors.torch  # imports torch, which those who only list or delete do not need

        facts = {
            "config": json.dumps(flatten(checkpoint.config)),
            "epoch": str(checkpoint.epoch),
            "value": repr(checkpoint.value),
        }
        weights = {name: tensor.contiguous() for name, tensor in checkpoint.weights.items()}
        content = safetensors.torch.save(weights, facts)
        self._write(self._path(trial), content, lambda: self._remove(self._analysis_path(trial)))

    def load(self, trial: int) -> Checkpoint:
        """The trial's checkpoint, on the CPU. Raises FileNotFoundError when there is none, ValueError when it is damaged."""
        import safetensors.torch

        content = self._read(self._path(trial))
        try:
            header = _header(content)
            config = unflatten(json.loads(header["config"]))
            return Checkpoint(safetensors.torch.load(content), config, int(header["epoch"]), float(header["value"]))
        except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"The checkpoint {self._path(trial)!r} is damaged ({reason}).") from error

    def configuration(self, trial: int) -> TrialConfig | None:
        """That of the trial's checkpoint, without its weights being read; None when there is no whole one."""
        try:
            return unflatten(json.loads(self._read_header(trial)["config"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None

    def save_state(self, trial: int, content: bytes) -> None:
        """Write the state that the trial's training goes on from, in place of its last one. Raises OSError."""
        self._write(self._state_path(trial), content)

    def load_state(self, trial: int) -> bytes | None:
        """What `save_state` wrote, or None when there is none."""
        try:
            return self._read(self._state_path(trial))
        except FileNotFoundError:
            return None

    def kernels(self, trial: int) -> NDArray[np.float32] | None:
        """The weights `(F, C, k, k)` of the network's first convolution, or None when the trial has no checkpoint.

        Raises ValueError for a network without convolutions.
        """
        import safetensors.numpy

        try:
            weights = safetensors.numpy.load(self._read(self._path(trial)))
        except FileNotFoundError:
            return None
        # The image's mean and standard deviation, which lie outside the features, have four dimensions too.
        kernels = [
            name
            for name, w in weights.items()
            if name.startswith("features.") and name.endswith("weight") and w.ndim == 4
        ]
        if not kernels:
            raise ValueError("The network of this trial has no convolutions, so there are no kernels to show.")
        return weights[min(kernels, key=_forward_order)].astype(np.float32)

    def save_analysis(self, trial: int, content: bytes, epoch: int | None = None) -> bool:
        """Write the analysis of the trial's checkpoint, and say whether it was.

        It is not when the trial's checkpoint is gone, or is that of another epoch than `epoch`: a trial that runs saves
        better weights while the last ones are analysed. Raises OSError when the storage cannot be written.
        """
        try:
            present = int(self._read_header(trial)["epoch"])
        except FileNotFoundError:
            return False
        if epoch not in (None, present):
            return False
        self._write(self._analysis_path(trial), content)
        return True

    def load_analysis(self, trial: int) -> bytes | None:
        """What `save_analysis` wrote, or None when there is none."""
        try:
            return self._read(self._analysis_path(trial))
        except FileNotFoundError:
            return None

    def trials(self) -> list[int]:
        """The numbers of the trials that have a checkpoint."""
        parts = [_parts(file.base_name) for file in self._listed()]
        return sorted(number for number, ending in parts if ending == _WEIGHTS and number is not None)

    def delete(self, trial: int) -> None:
        """Remove the trial's checkpoint and its analysis, if there are any."""
        self._remove(self._analysis_path(trial))
        self._remove(self._path(trial))

    def delete_state(self, trial: int) -> None:
        """Remove the state of the trial's training, if there is one."""
        self._remove(self._state_path(trial))

    def surplus(self, keep: Set[int], unfinished: Set[int]) -> dict[str, int]:
        """The files that nobody needs, with their sizes in bytes, while nobody writes.

        Needed are the weights and the analyses of the trials to `keep`, and all of the `unfinished` ones. What was being written when
        its writer died is never.
        """
        found, weights = {}, set(self.trials())
        for file in self._listed():
            number, ending = _parts(file.base_name)
            needed = number in unfinished or (number in keep and number in weights and ending != _STATE)
            if ending is not None and not needed:
                found[file.path] = int(file.size or 0)
        return found

    def remove(self, files: Iterable[str]) -> None:
        """Remove these of the files that `surplus` gave."""
        for path in files:
            self._remove(path)

    def _read_header(self, trial: int) -> Mapping[str, Any]:
        with self._files.open_input_stream(self._path(trial)) as stream:
            length = stream.read(8)
            return _header(length + stream.read(int.from_bytes(length, "little")))

    def _listed(self) -> list[fs.FileInfo]:
        return list(self._files.get_file_info(fs.FileSelector(self._root, allow_not_found=True)))

    def _path(self, trial: int) -> str:
        return f"{self._root}/trial-{trial:05d}{_WEIGHTS}"

    def _analysis_path(self, trial: int) -> str:
        return f"{self._root}/trial-{trial:05d}{_ANALYSIS}"

    def _state_path(self, trial: int) -> str:
        return f"{self._root}/trial-{trial:05d}{_STATE}"

    def _write(self, path: str, content: bytes, before_move: Callable[[], None] = lambda: None) -> None:
        """Under a temporary name of its own, then renamed: a writer that is killed leaves the file before whole."""
        self._files.create_dir(self._root, recursive=True)
        temporary = f"{self._root}/.{uuid.uuid4().hex}{_WRITING}"
        try:
            with self._files.open_output_stream(temporary) as stream:
                stream.write(content)
            before_move()
            self._files.move(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):  # a full disk: what is half written is in the way
                self._remove(temporary)
            raise

    def _read(self, path: str) -> bytes:
        with self._files.open_input_stream(path) as stream:
            content: bytes = stream.read()
        return content

    def _remove(self, path: str) -> None:
        if self._files.get_file_info(path).type != fs.FileType.NotFound:
            with contextlib.suppress(FileNotFoundError):  # another process removed it in between
                self._files.delete_file(path)


def _parts(name: str) -> tuple[int | None, str | None]:
    """The trial that a file belongs to, and its ending; (None, None) for a file that is not the store's."""
    match = re.fullmatch(r"trial-(\d+)(\..+)", name)
    if match and match[2] in (_WEIGHTS, _STATE, _ANALYSIS):
        return int(match[1]), match[2]
    return (None, _WRITING) if name.endswith(_WRITING) else (None, None)


def _header(content: bytes) -> Mapping[str, Any]:
    """What `save` wrote into the beginning of a file: safetensors puts the header's length before it."""
    facts: Mapping[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    return facts


def _forward_order(name: str) -> list[tuple[int, str]]:
    """Sorts the features' weights as the forward pass uses them: `features.2.` before `features.10.`, a stem before all else."""
    parts = ["" if part == "stem" else part for part in name.split(".")]
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def open_storage(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system and the path in it of a URI or a local path."""
    if "://" in uri:
        files, path = fs.FileSystem.from_uri(uri)
        return files, path
    return fs.LocalFileSystem(), str(Path(uri).absolute())
