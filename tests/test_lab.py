"""A real cluster of several hosts, all on this machine: `python -m pytest tests/test_lab.py`, as root.

The commands are those of docs/cluster.md. The sweep is on MNIST, which CONVSWEEP_DATA has to name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.hosts import Host, Lab, quoted
from tests.lab.needs import require_lab
from tests.lab.states import States
from tests.lab.sweeps import SMALL, Sweep
from tests.lab.user import NODE, User, rays, wait

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(2400)]

NODES = {"head", "first", "second"}
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""Addresses as the kernel writes them: 127.0.0.1, ::1, and the first as one of IPv6."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    require_lab()
    data = os.environ.get("CONVSWEEP_DATA")
    hosts = {"head": 10, "first": 11, "second": 12, "laptop": 250}
    with Lab(tmp_path_factory.mktemp("lab"), hosts, [Path(data)] if data else []) as made:
        yield made


@pytest.fixture(scope="module")
def user(lab: Lab) -> User:
    """Somebody who has brought a cluster up: a head and two workers of one CPU each."""
    user = User(lab, "laptop", "head")
    for name in ("first", "second"):
        with (lab[name].root / ".bashrc").open("a") as file:
            file.write("export RAY_OVERRIDE_RESOURCES='{\"CPU\": 1}'\n")
    quick = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "20"}
    data = {"CONVSWEEP_DATA": os.environ["CONVSWEEP_DATA"]} if "CONVSWEEP_DATA" in os.environ else {}
    user.set_up({"CONVSWEEP_STORAGE_PATH": "/mnt/sweeps"} | quick | data)
    workers = f"[{lab['first'].address}, {lab['second'].address}]"
    user.edit("cluster/launch/on_premises.yaml", {"head": lab["head"].address, "workers": workers, "user": "root"})
    user.do("choose on premises")
    user.do("up")
    user.watch()
    user.wait_for(NODES, 240)
    return user


def test_the_checkout_is_on_every_node_and_the_doctor_finds_nothing_wrong(user: User, lab: Lab) -> None:
    said = user.do("doctor")
    assert "WRONG" not in said
    found = json.loads(user.head.run(f"{NODE} convsweep doctor --address auto --json").stdout)
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["nodes"]["text"].startswith("3 answer")
    assert checks["all-reduce (gloo)"]["text"].startswith("2 nodes, ")
    assert checks["storage"]["text"] == "/mnt/sweeps is written and seen by 3 node(s)"
    assert [name for name, check in checks.items() if check["good"] is not True] == ["GPUs"]  # there are none
    for name in NODES:
        where = lab[name].run(f"{NODE} python -c 'import cluster; print(cluster.__file__)'").stdout
        assert where.startswith("/root/convsweep/.venv/"), name
        for secret in (".ray/auth_token", ".convsweep/cluster.env"):
            assert (lab[name].root / secret).stat().st_mode & 0o777 == 0o600


def from_outside(host: Host) -> list[int]:
    """The ports that other hosts can connect to, but for sshd's."""
    return sorted(port for port, addresses in host.listening().items() if addresses - LOOPBACK and port != 22)


def test_nobody_without_the_token_is_served_on_any_port(user: User, lab: Lab) -> None:
    shutil.copy(Path(__file__).parent / "lab/uninvited.py", user.laptop.root / ".lab")
    asked = {lab[name].address: from_outside(lab[name]) for name in sorted(NODES)}
    head = user.head.address
    assert {6379, 10001, 52365} <= set(asked[head])
    assert 8265 not in asked[head]
    assert all(52365 in ports for ports in asked.values())

    def try_all(*token: str) -> dict[str, Any]:
        words = quoted("python", ".lab/uninvited.py", json.dumps(asked), *token)
        document: dict[str, Any] = json.loads(user.laptop.run(words, timeout=600).stdout)
        return document

    without = try_all()
    answers = {(host, port): a for host, ports in without["answers"].items() for port, a in ports.items()}
    # A process may have ended since; figures for Prometheus are for everybody.
    assert {key: a for key, a in answers.items() if a not in ("guarded", "metrics", "closed")} == {}
    assert {answers[head, port] for port in ("6379", "10001", "52365")} == {"guarded"}
    assert set(without["jobs"].values()) == {401}
    assert set(try_all("not-the-token")["jobs"].values()) == {403}
    assert [name for name in NODES if (lab[name].folder / "tmp/uninvited").exists()] == []

    right = try_all((user.laptop.root / ".ray/auth_token").read_text().strip())
    assert {right["answers"][head][port] for port in ("6379", "10001", "52365")} == {"open"}
    assert set(right["jobs"].values()) == {200}

    listens = json.loads(
        user.head.run(
            f"{NODE} python -c 'import json; from cluster.ports import listening as l; print(json.dumps(l()))'"
        ).stdout
    )
    assert {"6379", "10001", "52365"} <= set(listens)


def test_clients_of_ray_are_let_in_by_the_token_alone(user: User) -> None:
    user.tunnel()
    list_jobs = "ray job list --address http://127.0.0.1:8265"
    assert user.laptop.run(f"RAY_AUTH_MODE=token {list_jobs}").returncode == 0
    refused = user.laptop.run(f"RAY_AUTH_MODE=disabled {list_jobs}", check=False)
    assert refused.returncode != 0
    assert "oken authentication is enabled" in refused.stdout + refused.stderr
    connect = f"import ray; ray.init('ray://{user.head.address}:10001'); print('IN', len(ray.nodes()))"
    assert "IN 3" in user.laptop.run(f"RAY_AUTH_MODE=token {quoted('python', '-W', 'ignore', '-c', connect)}").stdout
    status = f"ray status --address {user.head.address}:6379"
    assert user.laptop.run(f"RAY_AUTH_MODE=token {status}").returncode == 0
    assert user.laptop.run(f"RAY_AUTH_MODE=disabled {status}", check=False).returncode != 0


def test_two_hosts_with_a_rank_each_lose_what_one_host_with_two_ranks_does(user: User) -> None:
    words = "convsweep train --data digits --epochs 4 --workers 2 --cpus-per-worker 1 --json --set training.precision=float32"
    one = json.loads(user.laptop.run(f"cd /tmp; RAY_AUTH_MODE=token {words}", timeout=600).stdout)
    two = json.loads(user.head.run(f"{NODE} {words} --address auto", timeout=600).stdout)
    assert len(one["history"]) == 4
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-5)
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=1e-5)


def test_a_submitted_sweep_is_stopped_and_resumed_by_its_name(user: User) -> None:
    trials, epochs = 4, 60

    def named(command: str) -> str:
        return command.replace(
            "--data mnist --trials 40", f"--data digits --trials {trials} --epochs {epochs} {SMALL}"
        ).replace("mnist", "digits")

    if 8265 not in user.laptop.listening():
        user.tunnel()
    with Sweep(user, "digits") as sweep:
        user.do("submit", named)
        wait(lambda: sweep.is_amid_a_trial(0, epochs), "a trial in its middle", 300, sweep.told)
        assert "STOPPED" in user.do("stop", named)
        stopped = sweep.record()
        assert stopped is not None
        assert stopped.state == "INTERRUPTED"
        assert stopped.counts["RUNNING"] == 0
        user.do("resume", named)
        wait(sweep.is_finished, "the sweep's end", 600, sweep.told, pause=1)
        found = sweep.record()
    assert found is not None
    assert found.counts["COMPLETE"] == trials
    assert all([e.epoch for e in t.epochs] == list(range(1, epochs + 1)) for t in found.trials)
    assert "SUCCEEDED" in user.do("follow", named)


def test_a_sweep_outlives_a_host_and_uses_it_when_it_is_back(user: User, lab: Lab) -> None:
    if "CONVSWEEP_DATA" not in os.environ:
        pytest.skip("CONVSWEEP_DATA is not set: it names the folder with MNIST/raw.")
    trials, epochs = 12, 3
    asked = f"--trials {trials} --epochs {epochs} {SMALL} "
    if 8265 not in user.laptop.listening():
        user.tunnel()
    with Sweep(user, "mnist") as sweep, States(lab.shared / "sweeps/mnist/checkpoints") as states:
        user.do("submit", lambda command: command.replace("--trials 40 ", asked))
        wait(lambda: sweep.is_amid_a_trial(2, epochs), "a trial in its middle", 600, sweep.told)
        lab["second"].kill()
        before = {number: list(seen) for number, seen in list(states.epochs.items())}
        user.wait_for({"head", "first"}, 90)
        lab["second"].boot()
        user.wait_for(NODES, 240)
        wait(sweep.is_finished, "the sweep's end", 1500, sweep.told, pause=1)
        found = sweep.record()
    document = user.rank("mnist")
    assert sorted(t["number"] for t in document["trials"]) == list(range(trials))
    assert {(t["state"], t["epochs"]) for t in document["trials"]} == {("COMPLETE", epochs)}
    assert found is not None
    assert all([e.epoch for e in t.epochs] == list(range(1, epochs + 1)) for t in found.trials)
    # The trial that lost a rank went on after its last epoch: no state ever had fewer epochs than one before it.
    lost = max(before)
    assert before[lost]
    assert states.epochs[lost][: len(before[lost])] == before[lost]
    assert all(seen == sorted(seen) for seen in states.epochs.values()), states.epochs

    wait(lambda: "SUCCEEDED" in user.do("follow").upper(), "the job's end", 120, pause=2)
    assert "1 worker group(s) of 2 rank(s)" in user.do("follow")  # of one CPU each, as every host has: they span two
    assert "COMPLETE" in user.do("rank")
    user.do("bundle")
    assert (user.laptop.root / "convsweep/mnist-bundle/model.pt2").exists()


def test_down_leaves_no_process(user: User, lab: Lab) -> None:
    assert all(rays(lab[name]) for name in NODES)
    user.do("down on premises")
    left = {name: rays(lab[name]) for name in NODES}
    assert left == {name: [] for name in NODES}
