"""The commands that are programs of the package `dashboard`: `dashboard` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.dashboard_programs import become
from cluster.experiments import Experiments
from cluster.options import DEFAULT_FOLDER, Folder, Json, StoragePath, StudyStorage


def report(
    name: str,
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="The file. [default: NAME.html]")] = None,
    experiments: Folder = DEFAULT_FOLDER,
    study_storage: StudyStorage = None,
    storage_path: StoragePath = None,
    as_json: Json = False,
) -> None:
    """Write a sweep as one HTML file to send around: ranking, curves, importances, the winner and its command.

    It opens in any browser, without a network and without convsweep. Of a sweep that runs it is the moment's. A report that is
    there is replaced, any other file is not.

    Example:  convsweep report mnist-1 --to mnist.html
    """
    options = [*([] if to is None else [f"--to={to}"]), *(["--json"] if as_json else []), "--", name]
    become("dashboard.report", options, Experiments(experiments, study_storage, storage_path))


def dashboard(
    host: Annotated[
        str, typer.Option(help="The address to listen on; one that others reach needs a login.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port on this machine.")] = 8501,
    browser: Annotated[bool, typer.Option(help="Open it in a browser.")] = True,
    experiments: Folder = DEFAULT_FOLDER,
    study_storage: StudyStorage = None,
    storage_path: StoragePath = None,
) -> None:
    """Browse the sweeps in a web page, also while they run.

    A login is a password in CONVSWEEP_DASHBOARD_PASSWORD, or accounts as st.login takes them from .streamlit/secrets.toml.
    """
    options = ["--host", host, "--port", str(port), *([] if browser else ["--no-browser"])]
    become("dashboard", options, Experiments(experiments, study_storage, storage_path))
