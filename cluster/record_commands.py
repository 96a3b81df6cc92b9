"""The commands about what is recorded of a sweep: `list`, `rank`, `show` and `clean`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cluster import tables
from cluster.experiments import Experiments
from cluster.model_commands import find_trial
from cluster.options import (
    DEFAULT_FOLDER,
    Folder,
    Json,
    StoragePath,
    StudyStorage,
)
from cluster.studies import Studies

if TYPE_CHECKING:
    pass


def list_(experiments: Folder = DEFAULT_FOLDER, study_storage: StudyStorage = None, as_json: Json = False) -> None:
    """List the sweeps."""
    studies = Studies(Experiments(experiments, study_storage))
    tables.show_list(studies.summaries(), as_json)


def rank(
    name: str,
    top: Annotated[int | None, typer.Option(help="How many trials. [default: 10; with --json all]")] = None,
    front: Annotated[
        bool, typer.Option("--front", help="Only those that no other trial beats in all goals, by the metric.")
    ] = False,
    experiments: Folder = DEFAULT_FOLDER,
    study_storage: StudyStorage = None,
    as_json: Json = False,
) -> None:
    """Rank a sweep's trials, the best first."""
    if top is not None and top < 1:
        raise ValueError(f"--top must be at least 1, but got {top}.")
    tables.show_ranking(Studies(Experiments(experiments, study_storage)).read(name), top, as_json, front)


def show(
    name: str,
    trial: Annotated[str, typer.Argument(help="Its number, or best.")],
    experiments: Folder = DEFAULT_FOLDER,
    study_storage: StudyStorage = None,
    as_json: Json = False,
) -> None:
    """Show one trial: its configuration, its epochs, and why it failed if it did."""
    record = Studies(Experiments(experiments, study_storage)).read(name)
    tables.show_trial(find_trial(record, trial), record.config.goal, as_json)


def clean(
    name: str,
    keep: Annotated[
        int | None, typer.Option(help="Keep the weights of that many best trials. [default: the sweep's]")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Free it without asking.")] = False,
    experiments: Folder = DEFAULT_FOLDER,
    study_storage: StudyStorage = None,
    storage_path: StoragePath = None,
    as_json: Json = False,
) -> None:
    """Show what a sweep has on disk that it does not need, and free it: weights beyond the best, what killed runs left.

    The record stays, and so does all that unfinished trials go on from.
    """
    from cluster.cleaning import clean as find

    where = Experiments(experiments, study_storage, storage_path)
    surplus = find(name, where, keep, remove=False)
    tables.show_surplus(surplus, as_json)
    asked = bool(surplus.files) and not yes and sys.stdin.isatty() and not as_json
    if surplus.files and (yes or (asked and typer.confirm("Free it?", err=True))):
        find(name, where, keep, remove=True)
