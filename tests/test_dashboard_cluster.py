"""The page of the Ray cluster, on answers of a Ray 2.60 dashboard. `python -m pytest tests/test_dashboard_cluster.py -q`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from cluster.experiments import Experiments
from cluster.studies import Studies
from cluster.study import SweepStudy
from dashboard import cluster_state, sweep_tables
from tests.dashboard_studies import config, dashboard_on, run, run_trial, texts
from tests.services import free_port

GIB = 2**30
TOKEN = "0123456789abcdef"

# What Ray answers, recorded while a sweep ran, and shortened; the GPUs are as its model of them says.
HEAD = {
    "hostname": "vm",
    "ip": "192.0.2.2",
    "cpu": 99.9,
    "mem": [25274793984, 20622225408, 18.4, 4652568576],
    "raylet": {
        "nodeId": "f46ba69c",
        "nodeManagerHostname": "vm",
        "resourcesTotal": {"memory": 14625868186.0, "CPU": 2.0, "node:InternalHead": 1.0},
        "isHeadNode": True,
        "state": "ALIVE",
    },
    "gpus": [],
}
WITH_GPUS = {
    "hostname": "gpu*box",
    "ip": "192.0.2.3",
    "cpu": 12.5,
    "mem": [64 * GIB, 48 * GIB, 25.0, 16 * GIB],
    "raylet": {"nodeId": "0a1b", "resourcesTotal": {"CPU": 16.0, "GPU": 2.0}, "isHeadNode": False, "state": "ALIVE"},
    "gpus": [
        {"index": 0, "name": "NVIDIA H200", "utilizationGpu": 93, "memoryUsed": 20480, "memoryTotal": 143360},
        {"index": 1, "name": "NVIDIA H200", "utilizationGpu": None, "memoryUsed": 0, "memoryTotal": 143360},
    ],
}
DEAD = {
    "hostname": "vm",
    "ip": "192.0.2.4",
    "cpu": 69.7,
    "mem": [25274793984, 19530000000, 22.7, 5744793984],
    "raylet": {"nodeId": "9c9c", "resourcesTotal": {}, "state": "DEAD", "stateMessage": "Unexpected termination"},
    "gpus": [],
}
USAGE = {
    "f46ba69c": "2.0/2.0 CPU (2.0 used of 2.0 reserved in placement groups)\n2B/13.62GiB memory\n3.47KiB/5.84GiB object_store_memory",
    "0a1b": "4.0/16.0 CPU\n1.5/2.0 GPU (1.5 used of 2.0 reserved in placement groups)\n0B/40GiB memory",
}


def answer(*nodes: dict[str, Any], usage: dict[str, str] | None = None) -> bytes:
    data = {"summary": list(nodes), "nodeLogicalResources": USAGE if usage is None else usage}
    return json.dumps({"result": True, "msg": "Node summary fetched.", "data": data}).encode()


@dataclass
class Server:
    """A dashboard of Ray: what it answers, to whom, and what it was asked."""

    body: bytes = b""
    status: int = 200
    token: str | None = None
    hangs: bool = False
    paths: list[str] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        self.paths.append(handler.path)
        if self.hangs:
            self.release.wait(30)
        given = handler.headers.get("Authorization", "")
        if self.token is not None and not given:
            return 401, b"Unauthorized: Missing authentication token"
        if self.token is not None and given != f"Bearer {self.token}":
            return 403, b"Forbidden: Invalid authentication token"
        return self.status, self.body


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server(answer(HEAD, WITH_GPUS, DEAD))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = state.answer(self)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Location", "/nodes?view=summary")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield state
    state.release.set()
    http.shutdown()
    thread.join()
    http.server_close()


# ---- asking the cluster ----


def test_the_nodes_are_those_that_ray_names(server: Server) -> None:
    state = cluster_state.read(server.address, None)
    assert server.paths == ["/nodes?view=summary&nocache=1"]
    head, gpus, dead = state.nodes
    assert (head.name, head.address, head.head, head.cpus, head.cpus_used) == ("vm", "192.0.2.2", True, 2.0, 2.0)
    assert head.memory == 25274793984
    assert head.memory_used == 25274793984 - 20622225408
    assert (gpus.gpus, gpus.gpus_used, gpus.cpus_used) == (2.0, 1.5, 4.0)
    assert gpus.devices[0] == cluster_state.Gpu("NVIDIA H200", 0.93, 20 * GIB, 140 * GIB)
    assert [node.alive for node in state.nodes] == [True, True, False]
    assert dead.busy is None  # what it said before it died says nothing


def test_the_table_has_the_head_first_and_dead_nodes_last(server: Server) -> None:
    server.body = answer(DEAD, WITH_GPUS, HEAD)
    table = cluster_state.nodes_table(cluster_state.read(server.address, None))
    assert list(table["node"]) == ["vm (head)", "gpu*box", "vm"]
    assert list(table["state"]) == ["alive", "alive", "dead"]
    assert table["cpus"].fillna("").tolist() == ["2 of 2", "4 of 16", ""]
    assert table["gpus"].fillna("").tolist() == ["", "1.5 of 2", ""]
    assert table["memory"][1] == 0.25
    assert table["devices"][1] == "NVIDIA H200: 93% busy, 20.0 of 140.0 GiB; NVIDIA H200: 0.0 of 140.0 GiB"


def test_what_is_in_use_is_not_known_before_ray_knows_it(server: Server) -> None:
    server.body = answer(HEAD, usage={})
    (node,) = cluster_state.read(server.address, None).nodes
    assert cluster_state.in_use([node], "cpus") == "? of 2"


def test_the_token_lets_in(server: Server) -> None:
    server.token = TOKEN
    assert len(cluster_state.read(server.address, TOKEN).nodes) == 3
    with pytest.raises(PermissionError, match=r"wants its token.*RAY_AUTH_TOKEN"):
        cluster_state.read(server.address, None)
    with pytest.raises(PermissionError, match="does not take our token"):
        cluster_state.read(server.address, "another")


def test_where_nothing_listens_the_sentence_says_how_to_get_there() -> None:
    with pytest.raises(ConnectionError, match=r"No Ray cluster is reachable .*`ray start --head`.*`ray dashboard"):
        cluster_state.read(f"http://127.0.0.1:{free_port()}", None)


def test_a_server_that_does_not_answer_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_state, "TIMEOUT_SECONDS", 0.2)
    server.hangs = True
    begun = time.monotonic()
    with pytest.raises(ConnectionError, match="timed out"):
        cluster_state.read(server.address, None)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("status", [302, 404, 500])
def test_another_servers_answer_is_no_cluster_and_no_redirect_is_followed(server: Server, status: int) -> None:
    server.status = status
    with pytest.raises(ValueError, match=f"no Ray dashboard .*status {status}"):
        cluster_state.read(server.address, TOKEN)
    assert len(server.paths) == 1


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"data": {"summary": [{}]}}', b'{"data": {}}', b"\xff"])
def test_a_page_that_is_not_rays_is_one_sentence(server: Server, body: bytes) -> None:
    server.body = body
    with pytest.raises(ValueError, match="no Ray dashboard that this version can read"):
        cluster_state.read(server.address, None)


@pytest.mark.parametrize(
    "where", ["", "ftp://a", "http://", "http://a:b", "http://a b", "http://[::1", "http://me:secret@a"]
)
def test_what_is_no_address_is_refused_without_showing_a_password(where: str) -> None:
    with pytest.raises(ValueError, match=r"is such as http://127\.0\.0\.1:8265") as refused:
        cluster_state.read(where, TOKEN)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "http://127.0.0.1:8265"),
        ({"RAY_API_SERVER_ADDRESS": "https://ray.example.org/"}, "https://ray.example.org"),
        ({"RAY_DASHBOARD_ADDRESS": "10.0.0.1:8266"}, "http://10.0.0.1:8266"),
        ({"RAY_API_SERVER_ADDRESS": "http://a:1", "RAY_DASHBOARD_ADDRESS": "http://b:1"}, "http://a:1"),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, "http://127.0.0.1:8265"),
        ({"RAY_ADDRESS": "auto", "RAY_API_SERVER_ADDRESS": " "}, "http://127.0.0.1:8265"),
        ({"RAY_ADDRESS": "http://10.0.0.1:8265"}, "http://10.0.0.1:8265"),
    ],
)
def test_the_address_comes_from_where_rays_commands_have_it(environment: dict[str, str], expected: str) -> None:
    assert cluster_state.address(environment) == expected


def test_the_token_comes_from_where_ray_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cluster_state.token({}) is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-the-user\n")
    (tmp_path / "other").write_text("of-a-file")
    named = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}
    assert cluster_state.token({}) == "of-the-user"
    assert cluster_state.token(named) == "of-a-file"
    assert cluster_state.token(named | {"RAY_AUTH_TOKEN": "given"}) == "given"
    assert cluster_state.token(named | {"RAY_AUTH_MODE": "disabled"}) is None
    with pytest.raises(ValueError, match="there is no such file"):
        cluster_state.token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "gone")})


@pytest.mark.parametrize("given", ["two words", "a\nb", "käse"])
def test_what_is_no_token_is_not_repeated(given: str) -> None:
    with pytest.raises(ValueError, match="is ASCII without spaces") as refused:
        cluster_state.token({"RAY_AUTH_TOKEN": given})
    assert given not in str(refused.value)


# ---- the groups ----


@pytest.fixture
def live(tmp_path: Path) -> Iterator[SweepStudy]:
    """The sweep 'live', which runs, in `<tmp_path>/experiments`."""
    studies = Studies(Experiments(tmp_path / "experiments"), create=True)
    wanted = config("live", preset="none")
    study = studies.create(wanted, ["zero", "one"])
    study.begin_run(wanted, groups=2)
    yield study
    studies.close()


def test_each_group_has_a_row_with_what_it_trains(live: SweepStudy) -> None:
    wanted = config("live", preset="none")
    run_trial(live, wanted, 0.7, 0.8, group="b")
    run_trial(live, wanted, 0.6, end="prune", group="a")
    now = run_trial(live, wanted, 0.5, end="", group="b")
    table = sweep_tables.groups(live.read()).set_index("group")
    assert list(table.index) == ["a", "b"]
    assert table["trial"].fillna(-1).tolist() == [-1, now]
    assert table["epoch"]["b"] == "1 of 2"
    assert table["progress"]["b"] == 0.5
    assert table["value"]["b"] == 0.5
    assert table["speed"]["b"] == 1000.0
    assert table["since"]["b"] == datetime.fromtimestamp(10.0 * now, UTC)
    assert table["configuration"]["b"].startswith("kernels ")
    assert table["ended"].tolist() == [1, 1]


def test_groups_of_an_earlier_run_are_gone(live: SweepStudy) -> None:
    wanted = config("live", preset="none")
    run_trial(live, wanted, 0.7, group="old")
    live.end_run("INTERRUPTED")
    live.begin_run(wanted, groups=1)
    run_trial(live, wanted, 0.7, group="new")
    assert list(sweep_tables.groups(live.read())["group"]) == ["new"]


def test_a_trial_that_no_group_has_yet_is_queued(live: SweepStudy) -> None:
    wanted = config("live", preset="none")
    run_trial(live, wanted, 0.7, end="")
    number = live.ask().number
    sweep = live.read()
    assert sweep_tables.queued(sweep) == [number]
    assert list(sweep_tables.groups(sweep)["group"]) == ["group"]


# ---- the page ----


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> Iterator[AppTest]:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server.address)
    yield dashboard_on(tmp_path / "experiments", "cluster", monkeypatch)
    st.cache_resource.clear()


def test_the_page_shows_the_groups_and_the_nodes(page: AppTest, live: SweepStudy) -> None:
    wanted = config("live", preset="none")
    run_trial(live, wanted, 0.5, end="", group="group-1")
    live.ask()
    groups, nodes = (element.value for element in run(page).dataframe)
    assert list(groups["group"]) == ["group-1"]
    assert "1 group of 2 with a trial so far · next: 1" in texts(page)
    assert list(nodes["node"]) == ["vm (head)", "gpu*box", "vm"]
    assert {m.label: m.value for m in page.metric} == {
        "Nodes": "2",
        "CPUs in use": "6 of 18",
        "GPUs in use": "1.5 of 2",
        "Memory in use": "20.3 of 87.5 GiB",
    }
    assert "runs on a cluster of its own" not in texts(page)


def test_without_gpus_the_page_does_not_speak_of_them(page: AppTest, live: SweepStudy, server: Server) -> None:
    server.body = answer(HEAD)
    run(page)
    assert "GPUs in use" not in [m.label for m in page.metric]
    assert not {"gpus", "devices"} & set(page.dataframe[0].value.columns)


def test_groups_without_a_trial_are_starting(page: AppTest, live: SweepStudy) -> None:
    assert "The worker groups are starting" in run(page).info[0].value


def test_a_sweep_that_does_not_run_has_no_groups_at_work(page: AppTest, live: SweepStudy) -> None:
    run_trial(live, config("live", preset="none"), 0.5, end="fail", error="out of memory")
    live.end_run("FINISHED")
    assert "the sweep does not run now" in run(page).info[0].value
    assert len(page.dataframe) == 1


def test_an_idle_cluster_is_not_the_sweeps(page: AppTest, live: SweepStudy, server: Server) -> None:
    server.body = answer(HEAD, usage={"f46ba69c": "0.0/2.0 CPU"})
    assert "Nothing uses this cluster" in texts(run(page))
    live.end_run("FINISHED")
    assert "Nothing uses this cluster" not in texts(run(page))


def test_an_unreachable_cluster_is_one_sentence_and_the_groups_are_shown(
    page: AppTest, live: SweepStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_trial(live, config("live", preset="none"), 0.5, end="")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"127.0.0.1:{free_port()}")
    run(page)
    assert len(page.dataframe) == 1
    assert "No Ray cluster is reachable" in page.info[0].value
    assert "started without --address" in texts(page)


def test_a_cluster_that_wants_a_token_is_one_sentence(
    page: AppTest, live: SweepStudy, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = TOKEN
    assert "wants its token" in run(page).info[-1].value
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert next(m.label for m in run(page).metric) == "Nodes"
