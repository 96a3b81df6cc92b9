"""`python -m dashboard`: what `convsweep dashboard` starts."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.experiments import Experiments
from dashboard import launch, settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the dashboard until it is interrupted; returns the exit status."""
    default = settings.from_environment(os.environ)
    parser = argparse.ArgumentParser(prog="python -m dashboard", description="Browse the sweeps in a web page.")
    parser.add_argument(
        "--host",
        type=_host,
        default="127.0.0.1",
        help="the address to listen on; one that others reach needs a login (default: 127.0.0.1)",
    )
    parser.add_argument("--port", type=_port, default=8501, help="the port on this machine (default: 8501)")
    parser.add_argument("--experiments", type=Path, default=default.folder, help="the experiments folder")
    parser.add_argument("--study-storage", default=default.study_storage, help="the study database's URL")
    parser.add_argument("--storage-path", default=default.storage_path, help="where the checkpoints are")
    parser.add_argument("--no-browser", action="store_true", help="do not open it in a browser")
    given = parser.parse_args(arguments)
    experiments = Experiments(given.experiments, given.study_storage, given.storage_path)
    try:
        return launch.run(experiments, given.host, given.port, open_browser=not given.no_browser)
    except OSError as error:
        why = error.strerror or error
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            print(f"Port {given.port} cannot be used: {why}. Choose another one with --port.", file=sys.stderr)
            return 1
        print(f"--host takes an address of this machine, but got {given.host!r}: {why}.", file=sys.stderr)
        return 2


def _host(text: str) -> str:
    if not text:
        # Streamlit would take it for every address of the machine.
        raise argparse.ArgumentTypeError("a host is an address of this machine such as 127.0.0.1, but got ''")
    return text


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"a port is 1 to 65535, but got {port}")
    return port


if __name__ == "__main__":
    sys.exit(main())
