"""The command `confirm`."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster import activity, tables
from cluster.experiments import Experiments
from cluster.options import (
    DEFAULT_FOLDER,
    Address,
    Cache,
    DataRoot,
    Folder,
    Json,
    StoragePath,
    StudyStorage,
    Takeover,
)


def confirm(
    name: str,
    top: Annotated[int, typer.Option(help="How many of the best configurations.")] = 3,
    seeds: Annotated[int, typer.Option(help="How many seeds for each: 0, 1, ...")] = 5,
    takeover: Takeover = False,
    data_root: DataRoot = None,
    cache: Cache = None,
    address: Address = None,
    experiments: Folder = DEFAULT_FOLDER,
    study_storage: StudyStorage = None,
    storage_path: StoragePath = None,
    as_json: Json = False,
) -> None:
    """Train the best configurations again with several seeds, and say which of them are really better than others.

    They are trained on training and validation images together and scored on the test split, each model once. What is there is
    not done again: with more --seeds or --top only what is missing is.
    """
    from cluster.confirm import confirm as run

    where = Experiments(experiments, study_storage, storage_path)
    with activity.decoding() as on_progress:
        confirmation = run(
            name,
            top,
            seeds,
            where,
            address,
            on_progress,
            data_root=data_root,
            cache=cache,
            takeover=takeover,
        )
    tables.show_confirmed(confirmation.sweep, confirmation.failures, as_json)
    if not confirmation.is_over:
        option = "" if experiments == DEFAULT_FOLDER else f" --experiments {experiments}"
        again = f"convsweep confirm {name} --top {top} --seeds {seeds}{option}"
        typer.echo(f"Interrupted. What is finished is kept; go on with it: {again}", err=True)
        raise typer.Exit(130)
    if confirmation.failures:
        raise typer.Exit(1)
