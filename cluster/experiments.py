"""Where everything of the sweeps is: the one place that knows the paths."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from trainer.checkpoint import CheckpointStore, open_storage


@dataclass(frozen=True)
class Experiments:
    """The experiments folder, or the shared places that stand in for parts of it.

    `study_storage` is the study database's URL (default: SQLite in the folder), `storage_path` where the checkpoints go
    (default: the folder), a path or a URI such as s3://bucket/prefix.
    """

    folder: Path
    study_storage: str | None = None
    storage_path: str | None = None

    @property
    def database(self) -> str:
        """The database's URL."""
        return self.study_storage or f"sqlite:///{self.folder.absolute() / 'studies.db'}"

    @property
    def database_exists(self) -> bool:
        """False when the database is a file that is not there yet."""
        prefix = "sqlite:///"
        return not self.database.startswith(prefix) or Path(self.database.removeprefix(prefix)).exists()

    def check(self) -> None:
        """Raise ValueError when the folder, or where checkpoints go, cannot be written. Leaves nothing there."""
        _check_local(self.folder, "--experiments")
        if self.storage_path is None:
            return
        if "://" not in self.storage_path:
            _check_local(Path(self.storage_path), "--storage-path")
            return
        try:
            CheckpointStore(self.storage_path).check()
        except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"--storage-path {self.storage_path!r} cannot be written: {error}") from error

    def of(self, storage_path: str | None) -> Experiments:
        """The same with the storage path that a sweep was started with, unless another was said."""
        return replace(self, storage_path=self.storage_path or storage_path)

    @property
    def recorded_storage(self) -> str | None:
        """The storage path as a sweep's record has it, so that nobody has to say it again; never one with a password in it."""
        if self.storage_path is None or "://" not in self.storage_path:
            return self.storage_path and str(Path(self.storage_path).absolute())
        return None if "@" in self.storage_path else self.storage_path

    def checkpoints_uri(self, sweep: str) -> str:
        """Where a sweep's checkpoints are."""
        return self._stored(f"{sweep}/checkpoints")

    def groups_uri(self, sweep: str) -> str:
        """Where Ray Train keeps the little it writes while a sweep's worker groups run."""
        return self._stored(f"{sweep}/groups")

    def tune_folder(self, sweep: str) -> Path:
        """Where Ray Tune keeps what it writes while the sweep runs, which nobody reads: always on this machine."""
        return self.folder.absolute() / sweep / "tune"

    def tensorboard_folder(self, sweep: str) -> Path:
        """Where a sweep's event files for TensorBoard are, one folder per trial: always on this machine."""
        return self.folder.absolute() / sweep / "tensorboard"

    def checkpoints(self, sweep: str) -> CheckpointStore:
        """A sweep's checkpoints."""
        return CheckpointStore(self.checkpoints_uri(sweep))

    def confirmed(self, sweep: str) -> CheckpointStore:
        """The final models of a sweep that was confirmed: beside its checkpoints, in a folder of their own."""
        return CheckpointStore(self._stored(f"{sweep}/checkpoints/confirm"))

    def winner(self, sweep: str) -> CheckpointStore:
        """The model of a cross-validated sweep's best configuration, trained on everything, under the best trial's number."""
        return CheckpointStore(self._stored(f"{sweep}/checkpoints/winner"))

    def bundle(self, sweep: str, trial: int) -> Path:
        """Where the dashboard exports a trial to: always on this machine."""
        return self.folder.absolute() / sweep / "bundles" / f"trial-{trial:05d}"

    def ray_files(self, sweep: str) -> dict[str, int]:
        """What Ray wrote for the sweep and a killed run has left, with the sizes in bytes."""
        found: dict[str, int] = {}
        for folder in (self.groups_uri(sweep), str(self.tune_folder(sweep))):
            files, path = open_storage(folder)
            below = files.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
            found |= {file.path: int(file.size or 0) for file in below if file.type == fs.FileType.File}
        return found

    def remove_ray_files(self, sweep: str) -> None:
        """Remove what Ray Train and Ray Tune wrote for the sweep, also in a run before that was killed."""
        _delete_folder(self.groups_uri(sweep))
        _delete_folder(str(self.tune_folder(sweep)))
        with contextlib.suppress(OSError):  # the checkpoints are beside it, unless they are elsewhere
            self.tune_folder(sweep).parent.rmdir()

    def remove_sweep_files(self, sweep: str) -> None:
        """Remove all files of the sweep; the database keeps its record."""
        _delete_folder(self._stored(sweep))

    def _stored(self, below: str) -> str:
        """A path or a URI below the storage path; what a URI has after its path, such as another endpoint, stays at its end."""
        place = self.storage_path or str(self.folder)
        if "://" not in place:
            return f"{Path(place).absolute()}/{below}"
        path, mark, options = place.partition("?")
        return f"{path.rstrip('/')}/{below}{mark}{options}"


def _delete_folder(uri: str) -> None:
    files, folder = open_storage(uri)
    if files.get_file_info(folder).type == fs.FileType.Directory:
        files.delete_dir(folder)


def _check_local(folder: Path, option: str) -> None:
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"{option} must name a folder, but {str(place)!r} is a file.")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise ValueError(f"{option} {str(folder)!r} cannot be written: {error.strerror or error}.") from error
