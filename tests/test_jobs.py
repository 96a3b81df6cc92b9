"""Sweeps as jobs: what is sent to the cluster, and what is found wrong before that. The lab runs them for real."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import cli, job_commands
from cluster.jobs import Jobs

Convsweep = Callable[..., tuple[int, str, str]]


class Server:
    """Stands in for a cluster's job server and for Ray's client of it: a job of each sweep prints two lines and ends as `status`."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, list[str], str | None]] = []
        self.status = "SUCCEEDED"
        self.stopped: list[str] = []

    def submit(self, name: str, words: list[str], sweep_file: str | None = None) -> str:
        self.sent.append((name, words, sweep_file))
        return f"{name}-job"

    def newest(self, name: str) -> str:
        return f"{name}-job"

    def follow(self, job: str, write: Callable[[str], None]) -> str:
        write(f"{job} one\n")
        if self.status == "INTERRUPTED BY THE USER":
            raise KeyboardInterrupt
        write("two\n")
        return self.status

    def stop(self, job: str) -> str:
        self.stopped.append(job)
        return "STOPPED"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(job_commands, "_jobs", lambda address: server)
    return server


@pytest.fixture
def convsweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Convsweep:
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convsweep", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())  # type: ignore[return-value]

    return run


def test_a_sweep_is_sent_as_it_was_said_with_the_cluster_it_is_on(server: Server, convsweep: Convsweep) -> None:
    words = ["sweep", "--data", "mnist", "--name", "digits", "--set", "model.kernel_size=[3, 5]"]
    status, out, err = convsweep("submit", *words)
    assert (status, out) == (0, "digits-job one\ntwo\n")
    assert "convsweep stop digits" in err
    assert server.sent == [("digits", [*words, "--address", "auto"], None)]


def test_a_sweep_file_goes_along_and_may_give_the_name(server: Server, convsweep: Convsweep, tmp_path: Path) -> None:
    (tmp_path / "photos.yaml").write_text("data: mnist\nname: photos\n")
    status, out, _ = convsweep(
        "submit", "--no-follow", "sweep", "./photos.yaml", "--trials", "3", "--address", "other:6379"
    )
    assert (status, out) == (0, "")
    words = ["sweep", "-", "--trials", "3", "--address", "other:6379"]
    assert server.sent == [("photos", words, "data: mnist\nname: photos\n")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "A job runs one of sweep, resume, extend, not 'train'."),
        (["sweep", "--data", "mnist"], "Say --name"),
        (["sweep", "--data", "mnist", "--name", "a", "--trails", "3"], "No such option: --trails"),
        (["sweep", "none.yaml", "--name", "a"], "The sweep file 'none.yaml' cannot be read"),
        (["sweep", "-", "--name", "a"], "Give the sweep file by its path"),
        (["resume"], "Missing argument 'name'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(
    words: list[str], said: str, server: Server, convsweep: Convsweep
) -> None:
    status, _, err = convsweep("submit", *words)
    assert status == 2
    assert said in err
    assert server.sent == []


@pytest.mark.parametrize(
    ("end", "status"), [("SUCCEEDED", 0), ("FAILED", 1), ("STOPPED", 130), ("INTERRUPTED BY THE USER", 130)]
)
def test_who_follows_ends_as_the_job_does(end: str, status: int, server: Server, convsweep: Convsweep) -> None:
    server.status = end
    assert convsweep("follow", "digits")[0] == status


def test_a_stopped_sweep_says_how_it_goes_on(server: Server, convsweep: Convsweep) -> None:
    status, _, err = convsweep("stop", "digits")
    assert (status, server.stopped) == (0, ["digits-job"])
    assert "Job digits-job: STOPPED. convsweep submit resume digits goes on with it." in err


def test_a_cluster_that_does_not_answer_is_named(convsweep: Convsweep) -> None:
    status, _, err = convsweep("follow", "digits", "--address", "http://127.0.0.1:9")
    assert status == 2
    assert "No cluster takes jobs at http://127.0.0.1:9" in err


class Client:
    """Stands in for Ray's client: connections that break, each of which tells the job's output from its start."""

    def __init__(self, *tellings: list[str]) -> None:
        self._tellings = [*tellings]
        self.ended = False

    async def tail_job_logs(self, job: str) -> Any:
        for text in self._tellings.pop(0):
            yield text
        self.ended = not self._tellings

    def get_job_status(self, job: str) -> Any:
        if not self.ended:
            raise ConnectionError
        return type("Status", (str,), {"is_terminal": lambda self: True})("SUCCEEDED")


def test_who_follows_over_a_connection_that_breaks_misses_nothing_and_sees_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.jobs.SECONDS_BETWEEN_TRIES", 0.0)
    jobs = object.__new__(Jobs)
    jobs._client = Client(["one\ntw"], ["one\n", "two\nth"], [], ["one\ntwo\nthree\n"])
    written: list[str] = []
    assert jobs.follow("job", written.append) == "SUCCEEDED"
    assert "".join(written) == "one\ntwo\nthree\n"
