"""Which experiments the dashboard shows: handed to its pages in environment variables, the only way into `streamlit run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cluster.experiments import Experiments

FOLDER = "CONVSWEEP_EXPERIMENTS"
STUDY_STORAGE = "CONVSWEEP_STUDY_STORAGE"
STORAGE_PATH = "CONVSWEEP_STORAGE_PATH"


def from_environment(environment: Mapping[str, str]) -> Experiments:
    """The experiments that the variables name; an empty variable counts as none."""
    return Experiments(
        folder=Path(environment.get(FOLDER) or "experiments"),
        study_storage=environment.get(STUDY_STORAGE) or None,
        storage_path=environment.get(STORAGE_PATH) or None,
    )


def to_environment(experiments: Experiments) -> dict[str, str]:
    """The variables that name the experiments, all three of them; `from_environment` is the way back."""
    return {
        FOLDER: str(experiments.folder.absolute()),
        STUDY_STORAGE: experiments.study_storage or "",
        STORAGE_PATH: experiments.storage_path or "",
    }
