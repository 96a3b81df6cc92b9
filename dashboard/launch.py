"""Starting the dashboard's server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

from cluster.experiments import Experiments
from dashboard import settings

STOP_SECONDS = 10.0


def run(experiments: Experiments, host: str, port: int, open_browser: bool) -> int:
    """Serve the pages until the server ends or is interrupted; returns its exit status, 0 after Ctrl-C or SIGTERM.

    Call it from the main thread. The status is 2 when the server must not start like this, which it says itself.
    Raises OSError when the address or the port cannot be had.
    """
    _check_port(host, port)
    server = subprocess.Popen(
        command(host, port, open_browser),
        env=os.environ | settings.to_environment(experiments),  # with the password, if there is one
    )
    with _ended_with_us(server):
        try:
            return server.wait()
        except KeyboardInterrupt:  # the server has had the terminal's Ctrl-C too
            return 0


def command(host: str, port: int, open_browser: bool) -> list[str]:
    """The command line that serves the pages."""
    options = ["--open-browser"] if open_browser else []
    return [sys.executable, "-m", "dashboard.server", *options, "--", host, str(port)]


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        if os.name == "posix":  # elsewhere this option would let us share a port that is in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


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
