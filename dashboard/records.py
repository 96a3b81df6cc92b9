"""What the pages read: the study database is opened once and a sweep read at most once a second, for all who look on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import optuna
import sqlalchemy
import streamlit as st

from cluster.config import SweepConfig
from cluster.experiments import Experiments
from cluster.study import STATES, Studies, Timing, TrialRecord

FRESH_SECONDS = 1.0


@dataclass(frozen=True)
class Sweep:
    """A sweep as the database had it at one moment; `trials` are best first."""

    name: str
    state: str
    trials: tuple[TrialRecord, ...]
    timing: Timing
    config: SweepConfig

    @property
    def is_live(self) -> bool:
        """Whether a process works on it, so that there will be news."""
        return self.state == "RUNNING"

    @property
    def best(self) -> TrialRecord | None:
        """The best trial that ran to its end."""
        return next((t for t in self.trials if t.state == "COMPLETE"), None)

    @property
    def counts(self) -> dict[str, int]:
        """How many trials there are in each state."""
        found = Counter(t.state for t in self.trials)
        return {state: found[state] for state in STATES}


def sweep_names(experiments: Experiments) -> list[str]:
    """The sweeps' names, the newest first; none when there is no database. Raises ValueError for a broken one."""
    if not experiments.database_exists:
        return []
    try:
        return _studies(experiments, _file_identity(experiments)).names()[::-1]
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise _unreadable(error) from error


def read_sweep(experiments: Experiments, name: str) -> Sweep:
    """The sweep as it is now. Raises ValueError when it or the database cannot be read."""
    try:
        return _read(experiments, _file_identity(experiments), name)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise _unreadable(error) from error


# The records are frozen, so that sessions can share them; st.cache_data would pickle every epoch at every reading.
@st.cache_resource(ttl=FRESH_SECONDS, max_entries=8, show_spinner=False, hash_funcs={Experiments: repr})
def _read(experiments: Experiments, file: tuple[int, int] | None, name: str) -> Sweep:
    study = _studies(experiments, file).open(name)
    return Sweep(name, study.state, tuple(study.ranking()), study.timing(), study.config)


@st.cache_resource(max_entries=2, show_spinner=False, hash_funcs={Experiments: repr})
def _studies(experiments: Experiments, file: tuple[int, int] | None) -> Studies:
    """The open database. `file` is another one when the folder was removed and made anew, which an open file outlives."""
    return Studies(experiments)


def _file_identity(experiments: Experiments) -> tuple[int, int] | None:
    file = Path(experiments.database.removeprefix("sqlite:///"))
    if not experiments.database.startswith("sqlite:///") or not file.exists():
        return None
    status = file.stat()
    return status.st_dev, status.st_ino


def _unreadable(error: Exception) -> ValueError:
    reason = str(error.__cause__ or error).split("\n", 1)[0]
    return ValueError(f"The study database cannot be read: {reason}.")
