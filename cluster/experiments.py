"""Where everything of the sweeps is: the one place that knows the paths."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

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

    def check_folder(self) -> None:
        """Raise ValueError when there is no such folder and none can be made, or nothing can be written into it."""
        place = self.folder.absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise ValueError(f"--experiments must name a folder, but {str(place)!r} is a file.")
        try:
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            raise ValueError(
                f"--experiments {str(self.folder)!r} cannot be written: {error.strerror or error}."
            ) from error

    def checkpoints_uri(self, sweep: str) -> str:
        """Where a sweep's checkpoints are."""
        return f"{self._storage}/{sweep}/checkpoints"

    def groups_uri(self, sweep: str) -> str:
        """Where Ray Train keeps the little it writes while a sweep's worker groups run."""
        return f"{self._storage}/{sweep}/groups"

    def tune_folder(self, sweep: str) -> Path:
        """Where Ray Tune keeps what it writes while the sweep runs, which nobody reads: always on this machine."""
        return self.folder.absolute() / sweep / "tune"

    def checkpoints(self, sweep: str) -> CheckpointStore:
        """A sweep's checkpoints."""
        return CheckpointStore(self.checkpoints_uri(sweep))

    def bundle(self, sweep: str, trial: int) -> Path:
        """Where the dashboard exports a trial to: always on this machine."""
        return self.folder.absolute() / sweep / "bundles" / f"trial-{trial:05d}"

    def remove_ray_files(self, sweep: str) -> None:
        """Remove what Ray Train and Ray Tune wrote for the sweep, also in a run before that was killed."""
        _delete_folder(self.groups_uri(sweep))
        _delete_folder(str(self.tune_folder(sweep)))
        with contextlib.suppress(OSError):  # the checkpoints are beside it, unless they are elsewhere
            self.tune_folder(sweep).parent.rmdir()

    def remove_sweep_files(self, sweep: str) -> None:
        """Remove all files of the sweep; the database keeps its record."""
        _delete_folder(f"{self._storage}/{sweep}")

    @property
    def _storage(self) -> str:
        place = self.storage_path or str(self.folder)
        return place.rstrip("/") if "://" in place else str(Path(place).absolute())


def _delete_folder(uri: str) -> None:
    files, folder = open_storage(uri)
    if files.get_file_info(folder).type == fs.FileType.Directory:
        files.delete_dir(folder)
