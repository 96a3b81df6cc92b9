"""Starting the dashboard's server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster.experiments import Experiments
from dashboard import settings

ADDRESS = "127.0.0.1"
"""This machine alone: the pages have no password."""

STOP_SECONDS = 10.0


def run(experiments: Experiments, port: int, open_browser: bool) -> int:
    """Serve the pages until the server ends or is interrupted; returns its exit status, 0 after Ctrl-C or SIGTERM.

    Call it from the main thread. Raises OSError when the port cannot be had.
    """
    _check_port(port)
    server = subprocess.Popen(
        command(port, open_browser),
        env=os.environ | settings.to_environment(experiments),
    )
    with _ended_with_us(server):
        try:
            return server.wait()
        except KeyboardInterrupt:  # the server has had the terminal's Ctrl-C too
            return 0


def command(port: int, open_browser: bool) -> list[str]:
    """The command line that serves the pages."""
    options = {
        "server.address": ADDRESS,
        "server.port": str(port),
        "server.headless": "false" if open_browser else "true",
        "server.showEmailPrompt": "false",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
    }
    app = Path(__file__).with_name("app.py")
    return [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(app),
        *(f"--{name}={value}" for name, value in options.items()),
    ]


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        if os.name == "posix":  # elsewhere this option would let us share a port that is in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((ADDRESS, port))


@contextlib.contextmanager
def _ended_with_us(server: subprocess.Popen[bytes]) -> Iterator[None]:
    """However we leave, the server ends too; SIGTERM is taken as Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if server.poll() is None:
            server.terminate()
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
