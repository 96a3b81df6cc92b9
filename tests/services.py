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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyarrow import fs


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass(frozen=True)
class PostgreSQL:
    """A server of our own, which listens on a socket of this machine alone; `url` is that of an empty database."""

    url: str
    control: Callable[..., None]

    def start(self) -> None:
        """Start it; returns when it answers."""
        self.control("start")

    def stop(self) -> None:
        """Stop it as a machine that dies does: nobody is told."""
        self.control("-m", "immediate", "stop")


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[PostgreSQL]:
    """A running server."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb") or (str(binaries[-1] / "initdb") if binaries else None)
    if found is None:
        pytest.skip("PostgreSQL is not installed: its initdb was not found.")
    data, port = folder / "data", free_port()
    as_user = {"user": "postgres"} if os.geteuid() == 0 else {}  # its server refuses to run as root
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, *folder.parents):
        if as_user and place.is_relative_to(folder.parents[2]):
            place.chmod(place.stat().st_mode | 0o055)  # the other user has to get there
    if as_user:
        shutil.chown(folder, "postgres")
    run = {"check": True, "stdout": subprocess.DEVNULL, **as_user}
    subprocess.run([found, "-D", data, "-A", "trust", "-U", "convsweep", "--no-sync"], **run)  # type: ignore[call-overload]
    program = Path(found).with_name("pg_ctl")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"

    def control(*words: str) -> None:
        subprocess.run([program, "-D", data, "-l", folder / "log", "-w", "-o", options, *words], **run)  # type: ignore[call-overload]

    server = PostgreSQL(f"postgresql://convsweep@127.0.0.1:{port}/postgres", control)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def s3(bucket: str) -> Iterator[str]:
    """The URI of an empty bucket on a server that speaks S3's protocol, moto's; credentials are any."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert server.poll() is None, "moto's server has ended"
            assert time.monotonic() < deadline, "moto's server does not answer"
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
        files = fs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{port}",
            scheme="http",
            region="us-east-1",
            access_key="any",
            secret_key="any",
            allow_bucket_creation=True,
        )
        files.create_dir(bucket)
        yield f"s3://{bucket}/sweeps?endpoint_override=127.0.0.1%3A{port}&scheme=http&region=us-east-1"
    finally:
        server.terminate()
        server.wait(30)


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
