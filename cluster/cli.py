"""The command `convsweep`: which commands there are, and where. Only the one that is given is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable

import typer

from cluster import exit_status

_PLACES = {
    "sweep": "sweep_commands",
    "resume": "sweep_commands",
    "extend": "sweep_commands",
    "list": "record_commands",
    "rank": "record_commands",
    "show": "record_commands",
    "train": "model_commands",
    "confirm": "confirm_command",
    "report": "dashboard_commands",
    "export": "model_commands",
    "predict": "predict_command",
    "doctor": "model_commands",
    "submit": "job_commands",
    "follow": "job_commands",
    "stop": "job_commands",
    "clean": "record_commands",
    "dashboard": "dashboard_commands",
}
"""The module of each command, whose function has the command's name."""


def build(names: Iterable[str] = _PLACES) -> typer.Typer:
    """The program with these commands."""
    app = typer.Typer(
        name="convsweep",
        help="Find, rank and export the best convolutional network for an image data set.",
        epilog="Begin with:  convsweep sweep --data digits",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_program)
    for name in names:
        module = importlib.import_module(f"cluster.{_PLACES[name]}")
        takes_words = {"allow_interspersed_args": False} if name == "submit" else None
        app.command(name, context_settings=takes_words)(vars(module)[name if name != "list" else "list_"])
    return app


def main() -> None:
    """Run the command; a user's mistake is one sentence and exit status 2, a failure exit status 1."""
    # What `submit` sends is parsed by the command that it is; help and a misspelt command name them all.
    alone = [word for word in sys.argv[1:2] if word in _PLACES and word != "submit"]
    with exit_status.told():
        build(alone or _PLACES)(prog_name="convsweep")


def _program() -> None:
    """A program of one command is one of commands too."""


if __name__ == "__main__":
    main()
