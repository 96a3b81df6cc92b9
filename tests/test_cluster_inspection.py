"""What `convsweep doctor --address` says of a cluster: `python -m pytest tests/test_cluster_inspection.py`."""

from __future__ import annotations

import contextlib
import http.server
import json
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from cluster import ports, verdicts
from cluster.node_facts import NodeFacts, code_digest
from cluster.ports import Answer
from cluster.verdicts import Clock, Reduction
from tests.nodes import LocalNodes
from tests.services import free_port

SAME = NodeFacts({"Python": "3.12.3", "Ray": "2.60.0", "torch": "2.15.0", "convsweep": "0.1.0", "code": "0a1b2c3d"})
FACTS = {"a (10.0.0.1)": SAME, "b (10.0.0.2)": SAME}


# ---- one line for each check ----


def test_equal_versions_are_told_and_those_that_differ_with_their_nodes() -> None:
    assert verdicts.versions(FACTS).good is True
    assert "torch 2.15.0" in verdicts.versions(FACTS).text
    other = replace(SAME, versions={**SAME.versions, "torch": "2.14.0"})
    found = verdicts.versions(FACTS | {"c (10.0.0.3)": other})
    assert found.good is False
    assert found.text == "torch: 2.14.0 on c (10.0.0.3), 2.15.0 on a (10.0.0.1) and b (10.0.0.2)"
    assert found.fix


def test_a_gpu_that_ray_offers_and_torch_does_not_see_is_told_with_torchs_reason() -> None:
    seen = replace(SAME, devices=("A10G",))
    hidden = replace(SAME, device_error="The NVIDIA driver on your system is too old")
    assert verdicts.gpus(FACTS, {"a (10.0.0.1)": 0, "b (10.0.0.2)": 0}).good is None
    found = verdicts.gpus({"a": seen, "b": seen}, {"a": 1, "b": 0})
    assert (found.good, found.text) == (True, "torch sees 2: 2 x A10G; Ray offers not all of those on b")
    found = verdicts.gpus({"a": seen, "b": hidden}, {"a": 1, "b": 1})
    assert found.good is False
    assert found.text == "b offers 1, of which torch sees 0 (The NVIDIA driver on your system is too old)"


def test_a_bandwidth_is_what_a_node_sends_in_a_ring() -> None:
    assert Reduction("gloo", 2, size=10**9, seconds=8).gigabits_per_second == pytest.approx(1.0)
    assert Reduction("gloo", 4, size=10**9, seconds=8).gigabits_per_second == pytest.approx(1.5)


def test_an_all_reduce_that_fails_is_told_with_the_variable_of_its_backend() -> None:
    assert verdicts.all_reduce(Reduction("gloo", 1)).good is None
    assert verdicts.all_reduce(Reduction("gloo", 2, 16_000_000, 0.1)).good is True
    for backend, variable in (("gloo", "GLOO_SOCKET_IFNAME"), ("nccl", "NCCL_SOCKET_IFNAME")):
        found = verdicts.all_reduce(Reduction(backend, 2, error="b: no answer within 60 s"))
        assert found.good is False
        assert variable in str(found.fix)


def test_storage_that_is_not_shared_is_told_with_who_does_not_see_whom() -> None:
    assert verdicts.storage("s3://bucket", {}, {"a": {"a", "b"}, "b": {"a", "b"}}).good is True
    found = verdicts.storage("/home/ann/experiments", {}, {"a": {"a"}, "b": {"a", "b"}})
    assert (found.good, found.text) == (
        False,
        "/home/ann/experiments is not shared: a does not see what b wrote",
    )
    found = verdicts.storage("s3://bucket", {"b": "OSError: access denied"}, {})
    assert found.text == "s3://bucket cannot be written from b: OSError: access denied"


def test_a_clock_is_wrong_when_it_differs_by_more_than_what_is_not_known_about_it() -> None:
    assert verdicts.clocks({"a": Clock(0.2, 0.01), "b": Clock(-3.0, 2.5)}).good is True
    found = verdicts.clocks({"a": Clock(0.2, 0.01), "b": Clock(-3.0, 0.1)})
    assert (found.good, found.text) == (False, "b is 3.0 s behind")


def test_a_port_that_serves_is_told_with_its_process() -> None:
    facts = {"a": replace(SAME, ports={52365: "agent.py", 6379: "gcs_server"})}
    found = verdicts.open_ports(facts, {"a": {52365: Answer.OPEN, 6379: Answer.GUARDED}})
    assert (found.good, found.text) == (False, "these serve without a token: a port 52365 (agent.py)")
    found = verdicts.open_ports(facts, {"a": {52365: Answer.GUARDED, 6379: Answer.GUARDED}})
    assert (found.good, found.text) == (True, "none of 2 serves without a token (2 guarded)")


def test_a_node_that_does_not_answer_is_told_with_why() -> None:
    assert verdicts.nodes({"a", "b"}, {}).text == "2 answer: a, b"
    found = verdicts.nodes({"a"}, {"b": "ModuleNotFoundError: No module named 'cluster'"})
    assert (found.good, found.text) == (
        False,
        "1 of 2 do not answer: b: ModuleNotFoundError: No module named 'cluster'",
    )


def test_every_check_that_fails_says_what_mends_it() -> None:
    failed = [
        verdicts.nodes({"a"}, {"b": "x"}),
        verdicts.all_reduce(Reduction("gloo", 2, error="x")),
        verdicts.storage("/x", {"a": "x"}, {}),
        verdicts.storage("/x", {}, {"a": {"a"}, "b": {"b"}}),
        verdicts.clocks({"a": Clock(9, 0)}),
        verdicts.gpus(FACTS, dict.fromkeys(FACTS, 1.0)),
        verdicts.open_ports(FACTS, {"a (10.0.0.1)": {1: Answer.OPEN}}),
    ]
    assert [verdict for verdict in failed if verdict.good is not False or not verdict.fix] == []


def test_the_digest_of_the_code_is_the_same_each_time() -> None:
    assert code_digest() == code_digest()
    assert len(code_digest()) == 8


# ---- ports ----


@contextlib.contextmanager
def http_server(status: int, body: bytes) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = self.headers.get("Authorization")
            self.send_response(200 if status == 401 and said == "Bearer right" else status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "answer"),
    [
        (401, b"Unauthorized", Answer.GUARDED),
        (403, b"Forbidden", Answer.GUARDED),
        (405, b"Method Not Allowed", Answer.OPEN),
        (200, b"# HELP ray_tasks Current number of tasks\n", Answer.METRICS),
        (200, b"{}", Answer.OPEN),
    ],
)
def test_a_server_that_speaks_http_is_judged_by_its_answer(status: int, body: bytes, answer: Answer) -> None:
    with http_server(status, body) as port:
        assert ports.ask("127.0.0.1", port) is answer


def test_the_right_token_is_shown() -> None:
    with http_server(401, b"") as port:
        assert ports.ask("127.0.0.1", port, token="wrong") is Answer.GUARDED
        assert ports.ask("127.0.0.1", port, token="right") is Answer.OPEN


@contextlib.contextmanager
def grpc_server(method: str | None) -> Iterator[int]:
    """A server with that one method, which wants the token "right"."""
    import grpc

    def serve(request: bytes, context: Any) -> bytes:
        if ("authorization", "Bearer right") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid or missing authentication token")
        return b""

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(serve) if details.method == method else None

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[Handlers()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(None).wait()


@pytest.mark.parametrize("method", ["/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", "/ray.rpc.RayletDriver/ClusterInfo"])
def test_a_server_that_speaks_rays_grpc_is_judged_by_its_answer(method: str) -> None:
    with grpc_server(method) as port:
        assert ports.ask("127.0.0.1", port) is Answer.GUARDED
        assert ports.ask("127.0.0.1", port, token="right") is Answer.OPEN


def test_what_speaks_neither_is_not_called_guarded() -> None:
    with grpc_server(None) as port:
        assert ports.ask("127.0.0.1", port) is Answer.UNKNOWN
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert ports.ask("127.0.0.1", silent.getsockname()[1], timeout=0.5) is Answer.UNKNOWN
    assert ports.ask("127.0.0.1", free_port()) is Answer.CLOSED


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/venv/lib/python3.12/site-packages/ray/core/src/ray/raylet/raylet --raylet_socket_name=x", "raylet"),
        ("/venv/lib/python3.12/site-packages/ray/core/src/ray/gcs/gcs_server --log_dir=x", "gcs_server"),
        ("/venv/bin/python -u /venv/lib/python3.12/site-packages/ray/dashboard/agent.py --node-ip=x", "agent.py"),
        ("/venv/bin/python -m ray.util.client.server --address=x", "ray.util.client.server"),
        ("ray::IDLE", "ray::IDLE"),
    ],
)
def test_rays_processes_are_known_by_their_command(command: str, name: str) -> None:
    assert ports.is_rays(command)
    assert ports.short_name(command) == name


@pytest.mark.parametrize("command", ["sshd: /usr/sbin/sshd -D", "nginx: master process", "python -m array.server"])
def test_other_processes_are_not_rays(command: str) -> None:
    assert not ports.is_rays(command)


# ---- a cluster ----


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_cluster_is_well_but_for_its_ports_when_it_wants_no_token(
    mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.chdir(tmp_path)
    with LocalNodes(2) as nodes:
        words = [sys.executable, "-m", "cluster.cli", "doctor", "--address", nodes.address, "--json"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert list(checks) == ["nodes", "versions", "GPUs", "all-reduce (gloo)", "storage", "clocks", "ports"], done.stderr
    assert checks["nodes"]["text"].startswith("3 answer")
    assert checks["all-reduce (gloo)"]["text"].startswith("2 nodes, ")
    wrong = [name for name, check in checks.items() if check["good"] is False]
    assert wrong == ([] if mode == "token" else ["ports"]), checks
    assert done.returncode == len(wrong)
    assert [*tmp_path.rglob("*")] == [tmp_path / "experiments"]  # nothing is left in it
