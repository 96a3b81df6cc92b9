"""Notes on a sweep and its trials, kept as optuna-dashboard 0.21 keeps them, so that either shows what the other wrote.

A note is Markdown. It lies among the study's system attributes in pieces, with a version; a trial's is marked by its id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna

_PIECE = 2045  # characters, optuna_dashboard._note.SYSTEM_ATTR_MAX_LENGTH
MAX_LENGTH = 20_000
"""Characters of a note: pages show them all."""


def read_note(attributes: Mapping[str, Any], trial_id: int | None) -> str:
    """The note on the trial with this id, or with None on the study; empty when there is none."""
    piece = _key(trial_id, "note_str:")
    pieces = {int(key.removeprefix(piece)): text for key, text in attributes.items() if key.startswith(piece)}
    return "".join(pieces[i] for i in sorted(pieces))


def noted_trials(attributes: Mapping[str, Any]) -> list[int]:
    """The ids of the trials that have a note."""
    return [int(key.split(":")[1]) for key in attributes if key.endswith(":note_ver") and key.count(":") == 2]


def write_note(study: optuna.Study, trial_id: int | None, text: str) -> None:
    """Write the note on the trial with this id, or with None on the study, in place of the one before.

    Raises ValueError for more than MAX_LENGTH characters.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"A note has at most {MAX_LENGTH:,} characters, but this one has {len(text):,}.")
    storage, study_id = study._storage, study._study_id  # of such attributes, only the storage knows
    attributes = storage.get_study_system_attrs(study_id)
    pieces = [text[i : i + _PIECE] for i in range(0, len(text), _PIECE)]
    before = sum(key.startswith(_key(trial_id, "note_str:")) for key in attributes)
    for i, piece in enumerate(pieces + [""] * (before - len(pieces))):
        storage.set_study_system_attr(study_id, f"{_key(trial_id, 'note_str:')}{i}", piece)
    version = int(attributes.get(_key(trial_id, "note_ver"), 0)) + 1
    storage.set_study_system_attr(study_id, _key(trial_id, "note_ver"), version)


def _key(trial_id: int | None, name: str) -> str:
    return f"dashboard:{name}" if trial_id is None else f"dashboard:{trial_id}:{name}"
