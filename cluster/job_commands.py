"""The commands about jobs on a cluster: `submit`, `follow` and `stop`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.config import read_sweep_file

if TYPE_CHECKING:
    from cluster.jobs import Jobs

COMMANDS = ("sweep", "resume", "extend")
"""What can be a job: what runs trials."""

_Server = Annotated[
    str, typer.Option("--address", envvar="RAY_API_SERVER_ADDRESS", help="The dashboard of the cluster's head.")
]
_Follow = Annotated[bool, typer.Option(help="Show what it prints until it ends.")]
_DEFAULT = "http://127.0.0.1:8265"
"""Where `ray dashboard` opens the way to a cluster's head."""


def submit(
    context: typer.Context,
    command: Annotated[str, typer.Argument(metavar="sweep|resume|extend", help="What the job runs on the head.")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="ARGUMENTS...", help="As on this machine; SWEEP.yaml is sent along.")
    ] = None,
    address: _Server = _DEFAULT,
    follow: _Follow = True,
) -> None:
    """Run a sweep as a job on a cluster, which goes on when this machine goes.

    Ctrl-C ends the looking on, not the job. The sweep's name is the job's.

    Examples:

      convsweep submit sweep --data mnist --trials 40 --name digits

      convsweep submit --no-follow sweep photos.yaml --name photos

      convsweep submit resume photos
    """
    if command not in COMMANDS:
        raise ValueError(f"A job runs one of {', '.join(COMMANDS)}, not {command!r}.")
    words = list(words or [])
    # Parsed here as it will be there: a mistake is found before anything is sent.
    parent = context.find_root()
    given = parent.command.get_command(parent, command).make_context(command, list(words), parent=parent).params  # type: ignore[attr-defined]
    file: Path | None = given.get("file")
    if str(file) == "-":
        raise ValueError("Give the sweep file by its path: it is sent along.")
    settings = read_sweep_file(file) if file else {}
    name = given.get("name") or settings.get("name")
    if name is None:
        raise ValueError("Say --name: by the sweep's name its job is followed, stopped and resumed.")
    if file is not None:
        words = ["-" if Path(word) == file else word for word in words]
    if not any(word.partition("=")[0] == "--address" for word in words):
        words += ["--address", "auto"]
    jobs = _jobs(address)
    job = jobs.submit(name, [command, *words], file.read_text() if file else None)
    sys.stderr.write(
        f"Job {job} runs on the cluster. convsweep follow {name} shows it, convsweep stop {name} stops it.\n"
    )
    if follow:
        _show(jobs, job, name)


def follow(
    name: Annotated[str, typer.Argument(help="The sweep's.")],
    address: _Server = _DEFAULT,
) -> None:
    """Show what a submitted sweep prints, from its beginning to its end. Ctrl-C ends the looking on, not the job."""
    jobs = _jobs(address)
    _show(jobs, jobs.newest(name), name)


def stop(
    name: Annotated[str, typer.Argument(help="The sweep's.")],
    address: _Server = _DEFAULT,
) -> None:
    """Stop a submitted sweep: what is finished is kept, and `convsweep submit resume NAME` goes on with the rest."""
    jobs = _jobs(address)
    job = jobs.newest(name)
    status = jobs.stop(job)
    sys.stderr.write(f"Job {job}: {status}. convsweep submit resume {name} goes on with it.\n")


def _jobs(address: str) -> Jobs:
    from cluster.jobs import Jobs

    return Jobs(address)


def _show(jobs: Jobs, job: str, name: str) -> None:
    """Exit status 0 when the job succeeded, 130 when it was stopped, else 1."""
    try:
        status = jobs.follow(job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        sys.stderr.write(
            f"\nThe job goes on. convsweep follow {name} shows it again, convsweep stop {name} stops it.\n"
        )
        raise
    sys.stderr.write(f"Job {job}: {status}\n")
    if status != "SUCCEEDED":
        raise typer.Exit(130 if status == "STOPPED" else 1)
