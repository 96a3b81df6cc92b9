"""Starting the dashboard's server: `python -m pytest tests/test_dashboard_launch.py -q`."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from cluster.experiments import Experiments
from dashboard import admission, launch, server, settings
from tests.services import free_port

PASSWORD = "correct horse battery"


@pytest.mark.parametrize("storage", [None, "postgresql://me:secret@db/convsweep"])
def test_the_environment_carries_the_experiments(tmp_path: Path, storage: str | None) -> None:
    given = Experiments(tmp_path, storage, "s3://bucket/prefix")
    assert settings.from_environment(settings.to_environment(given)) == given
    assert settings.from_environment({}) == Experiments(Path("experiments"))


def test_the_command_line_has_the_address_and_asks_for_a_browser() -> None:
    assert launch.command("::1", 8501, open_browser=False)[1:] == ["-m", "dashboard.server", "--", "::1", "8501"]
    assert "--open-browser" in launch.command("::1", 8501, open_browser=True)
    assert server.options("::1", 8501, open_browser=True)["server.headless"] is False


@pytest.mark.parametrize(
    ("host", "where"),
    [
        ("127.0.0.1", "http://127.0.0.1:8501"),
        ("::1", "http://[::1]:8501"),
        ("0.0.0.0", f"http://{socket.gethostname()}:8501"),
    ],
)
def test_the_address_that_is_shown_is_one_for_a_browser(host: str, where: str) -> None:
    assert server.url(host, 8501) == where


HOSTILE = """
[server]
address = "0.0.0.0"
enableXsrfProtection = false
enableCORS = false
maxUploadSize = 5000
fileWatcherType = "poll"
allowedHosts = ["*"]
[server.trustedUserHeaders]
X-Anyone = "email"
[browser]
gatherUsageStats = true
[client]
showErrorDetails = "full"
toolbarMode = "developer"
"""


def test_the_safe_options_win_over_the_users_own_configuration(tmp_path: Path) -> None:
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "config.toml").write_text(HOSTILE)
    expected = {
        "server.address": "127.0.0.1",
        "server.enableXsrfProtection": True,
        "server.enableCORS": True,
        "server.maxUploadSize": 20,
        "server.fileWatcherType": "none",
        "server.allowedHosts": [],
        "server.trustedUserHeaders": {},
        "server.showEmailPrompt": False,
        "browser.gatherUsageStats": False,
        "client.showErrorDetails": "none",
        "client.toolbarMode": "minimal",
    }
    code = (
        "import json\nfrom streamlit import config\nfrom streamlit.web import bootstrap\nfrom dashboard import server\n"
        "before = config.get_option('server.address')\n"
        "bootstrap.load_config_options(server.options('127.0.0.1', 8501, open_browser=False))\n"
        f"print(json.dumps([before, {{name: config.get_option(name) for name in {list(expected)}}}]))"
    )
    done = run_python("-c", code, cwd=tmp_path)
    before, options = json.loads(done.stdout)
    assert before == "0.0.0.0"  # it was read
    assert options == expected


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_it_serves_this_machine_until_sigterm_and_says_where(tmp_path: Path) -> None:
    with Running(tmp_path) as running:
        assert running.log == f"The dashboard: http://127.0.0.1:{running.port} (Ctrl-C ends it)\n"
        assert running.get("/_stcore/health") == (200, "ok")
        assert running.get("/")[0] == 200
        assert running.status_of_websocket("localhost") == 101
        # What a page elsewhere can do once its own name has this machine's address.
        assert running.status_of_websocket("elsewhere.example") == 403
        assert running.ended_by(signal.SIGTERM) == 0
    assert_gone(running)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_with_a_password_it_serves_under_any_name_until_ctrl_c(tmp_path: Path) -> None:
    with Running(tmp_path, {admission.PASSWORD: PASSWORD}) as running:
        assert running.status_of_websocket("elsewhere.example") == 101  # a proxy's name
        assert running.ended_by(signal.SIGINT) == 0
    assert_gone(running)
    assert PASSWORD not in running.log


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_python("-m", "dashboard", "--port", str(port), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"Port {port} cannot be used: Address already in use." in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--port", "65536", "a port is 1 to 65535, but got 65536"),
        ("--host", "", "a host is an address of this machine such as 127.0.0.1, but got ''"),
        ("--host", "192.0.2.1", "--host takes an address of this machine, but got '192.0.2.1'"),
    ],
)
def test_a_place_that_cannot_be_had_is_the_users_mistake(tmp_path: Path, option: str, value: str, why: str) -> None:
    done = run_python("-m", "dashboard", option, value, cwd=tmp_path)
    assert done.returncode == 2
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_another_host_than_loopback_is_refused_without_a_login(tmp_path: Path) -> None:
    arguments = ("--host", "0.0.0.0", "--port", str(free_port()), "--no-browser")
    done = run_python("-m", "cluster.cli", "dashboard", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("On 0.0.0.0 others could read the sweeps")
    assert done.stderr.count("\n") == 1


class Running:
    """The dashboard on a free port, with `tmp_path` as the user's home and current folder."""

    def __init__(self, tmp_path: Path, environment: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self._log = tmp_path / "log"
        self._home = tmp_path
        self._environment = environment or {}

    def __enter__(self) -> Running:
        command = [sys.executable, "-m", "dashboard", "--port", str(self.port), "--no-browser"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self._home,
                env=environment(self._home) | self._environment,
                # Whoever runs the tests in the background has Ctrl-C ignored, and processes inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def _wait(self) -> None:
        deadline = time.monotonic() + 120
        while "\n" not in self.log:
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, "the server does not say that it listens"
            time.sleep(0.05)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path, headers=dict(headers or {}))
            response = connection.getresponse()
            return response.status, "" if response.status == 101 else response.read().decode()
        finally:
            connection.close()

    def status_of_websocket(self, name: str) -> int:
        """The answer to a page that was loaded from this server under `name` and asks for a session."""
        headers = {
            "Host": f"{name}:{self.port}",
            "Origin": f"http://{name}:{self.port}",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Protocol": "streamlit",
        }
        return self.get("/_stcore/stream", headers)[0]

    def ended_by(self, number: int) -> int:
        self._process.send_signal(number)
        return self._process.wait(timeout=30)


def assert_gone(running: Running) -> None:
    assert "Traceback" not in running.log
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", running.port)) != 0  # the server itself is gone too


def environment(home: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("CONVSWEEP_", "STREAMLIT_"))}
    return ours | {"HOME": str(home), "USERPROFILE": str(home)}


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, env=environment(cwd))
