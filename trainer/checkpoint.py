"""A trial's weights on the storage path: a local folder or a URI that pyarrow knows (s3://, gs://, ...)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow import fs

from trainer.hyperparameters import TrialConfig, flatten, unflatten

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """The best epoch's weights and what is needed to build the network they belong to."""

    weights: dict[str, Tensor]
    config: TrialConfig
    epoch: int
    value: float


class CheckpointStore:
    """The checkpoints of one sweep, one file per trial under `uri`.

    A file is safetensors; its header carries the configuration, so that a checkpoint describes itself. Files are
    written under a temporary name and renamed.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._files, self._root = open_storage(uri)

    def save(self, trial: int, checkpoint: Checkpoint) -> None:
        """Write the trial's checkpoint in place of its last one. Raises OSError when the storage cannot be written."""
        import safetensors.torch  # imports torch, which those who only list or delete do not need

        facts = {
            "config": json.dumps(flatten(checkpoint.config)),
            "epoch": str(checkpoint.epoch),
            "value": repr(checkpoint.value),
        }
        weights = {name: tensor.contiguous() for name, tensor in checkpoint.weights.items()}
        self._files.create_dir(self._root, recursive=True)
        temporary = f"{self._root}/.{trial}.writing"
        with self._files.open_output_stream(temporary) as stream:
            stream.write(safetensors.torch.save(weights, facts))
        self._files.move(temporary, self._path(trial))

    def load(self, trial: int) -> Checkpoint:
        """The trial's checkpoint, on the CPU. Raises FileNotFoundError when there is none."""
        import safetensors.torch

        with self._files.open_input_stream(self._path(trial)) as stream:
            content = stream.read()
        header: Mapping[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        config = unflatten(json.loads(header["config"]))
        return Checkpoint(safetensors.torch.load(content), config, int(header["epoch"]), float(header["value"]))

    def trials(self) -> list[int]:
        """The numbers of the trials that have a checkpoint."""
        found = self._files.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        names = [Path(f.path).stem for f in found if f.path.endswith(".safetensors")]
        return sorted(int(name.removeprefix("trial-")) for name in names)

    def delete(self, trial: int) -> None:
        """Remove the trial's checkpoint, if there is one."""
        if trial in self.trials():
            self._files.delete_file(self._path(trial))

    def _path(self, trial: int) -> str:
        return f"{self._root}/trial-{trial:05d}.safetensors"


def open_storage(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system and the path in it of a URI or a local path."""
    if "://" in uri:
        files, path = fs.FileSystem.from_uri(uri)
        return files, path
    return fs.LocalFileSystem(), str(Path(uri).absolute())
