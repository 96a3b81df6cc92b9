"""What some tests need besides Python: a PostgreSQL server, a browser. Each is started for the tests and ends with them."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """The URL of an empty database of a server of our own, which listens on a socket of this machine alone."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb") or (str(binaries[-1] / "initdb") if binaries else None)
    if found is None:
        pytest.skip("PostgreSQL is not installed: its initdb was not found.")
    data, port = folder / "data", free_port()
    as_user = {"user": "postgres"} if os.geteuid() == 0 else {}  # its server refuses to run as root
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, *folder.parents):
        if as_user and place.is_relative_to(folder.parents[2]):
            place.chmod(0o755)  # the other user has to get there
    if as_user:
        shutil.chown(folder, "postgres")
    run = {"check": True, "stdout": subprocess.DEVNULL, **as_user}
    subprocess.run([found, "-D", data, "-A", "trust", "-U", "convsweep", "--no-sync"], **run)  # type: ignore[call-overload]
    control = Path(found).with_name("pg_ctl")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    subprocess.run([control, "-D", data, "-l", folder / "log", "-w", "-o", options, "start"], **run)  # type: ignore[call-overload]
    try:
        yield f"postgresql://convsweep@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([control, "-D", data, "-m", "immediate", "stop"], **run)  # type: ignore[call-overload]


def chromium() -> str:
    """The browser's path; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("Chromium is not installed.")
    return found


@contextlib.contextmanager
def dashboard(experiments: Path, log: Path, *options: str) -> Iterator[str]:
    """The address of a dashboard over these experiments, as `convsweep dashboard` serves it."""
    port = free_port()
    words = [sys.executable, "-m", "dashboard", "--port", str(port), "--experiments", str(experiments), "--no-browser"]
    with log.open("wb") as output:
        server = subprocess.Popen([*words, *options], stdout=output, stderr=output)
        try:
            _wait_until_healthy(server, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


def _wait_until_healthy(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=10) as response:
                if response.read() == b"ok":
                    return
        except OSError:
            time.sleep(0.1)
    pytest.fail("the server does not answer")
