"""ray_cluster.yaml against an EC2 that is moto's, whose machines are hosts of the lab: `python -m pytest tests/test_lab_aws.py`, as root.

The commands are those of docs/cluster.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.cloud import Cloud
from tests.lab.hosts import Lab
from tests.lab.needs import require_lab
from tests.lab.sweeps import SMALL, Sweep
from tests.lab.user import User, wait

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(2400)]


def test_spot_machines_come_are_replaced_and_go(tmp_path: Path) -> None:
    require_lab()
    for module in ("boto3", "moto"):
        pytest.importorskip(module)
    hosts = {"head": 4, "first": 5, "second": 6, "third": 7, "laptop": 250}  # as EC2 gives addresses away
    machines = ["head", "first", "second", "third"]
    with Lab(tmp_path / "lab", hosts, off=machines) as lab:
        user = User(lab, "laptop", "head")
        with Cloud(lab, "laptop") as cloud:
            user.set_up({"CONVSWEEP_STORAGE_PATH": cloud.storage} | cloud.environment)
            own = {"user": "root", "private_key": "~/.ssh/convsweep", "most_workers": "2", "idle_minutes": "0.5"}
            user.edit("ray_cluster.yaml", cloud.settings | own | {"internal": "true"})
            file = user.laptop.root / "convsweep/ray_cluster.yaml"
            # This machine has not the workers' cores.
            file.write_text(file.read_text().replace("  worker:\n", "  worker:\n    resources: {CPU: 1, GPU: 1}\n"))
            with Sweep(user, "mnist") as sweep:
                sweep_on_spot_machines(user, cloud, sweep)


def sweep_on_spot_machines(user: User, cloud: Cloud, sweep: Sweep) -> None:
    user.do("choose aws")
    user.do("up")
    user.watch()
    user.wait_for({"head"}, 60)
    state = cloud.state
    assert state["open"] == []
    assert set(state["groups"]) <= {"default", "convsweep"}
    assert state["roles"] == {"convsweep-head": [], "convsweep-worker": []}
    (head,) = cloud.running()
    expected = {"lifecycle": None, "groups": ["convsweep"], "profile": "convsweep-head", "tokens": "required"}
    assert {key: head[key] for key in expected} == expected

    trials, epochs = 6, 80
    asked = f"--data digits --trials {trials} --epochs {epochs} --gpus-per-worker 0 {SMALL} "
    user.tunnel()
    user.do("submit", lambda command: command.replace("--data mnist --trials 40 ", asked))
    wait(lambda: len(user.alive()) == 3, "two workers", 300, user.alive)
    workers = [i for i in cloud.running() if i["id"] != head["id"]]
    expected |= {"lifecycle": "spot", "profile": "convsweep-worker"}
    assert [{key: worker[key] for key in expected} for worker in workers] == [expected] * 2

    wait(lambda: sweep.is_amid_a_trial(1, epochs), "a trial in its middle", 300, sweep.told)
    reclaimed = workers[-1]
    cloud.machine(reclaimed).kill()
    user.wait_for({cloud.machine(i).name for i in (head, workers[0])}, 90)
    wait(lambda: len(user.alive()) == 3, "a replacement", 300, user.alive)
    now = cloud.running()
    assert reclaimed["id"] not in {i["id"] for i in now}
    assert workers[0]["id"] in {i["id"] for i in now}
    wait(sweep.is_finished, "the sweep's end", 900, sweep.told, pause=1)
    document = user.rank("mnist")
    assert {t["number"]: (t["state"], t["epochs"]) for t in document["trials"]} == dict.fromkeys(
        range(trials), ("COMPLETE", epochs)
    )

    said = user.do("follow")
    assert "1 worker group(s) of 2 rank(s) with 1 CPU each, 0 at first and the others as the cluster grows" in said
    wait(lambda: [i["id"] for i in cloud.running()] == [head["id"]], "the workers to go", 300, cloud.running)
    user.do("down aws")
    wait(lambda: cloud.running() == [], "the head to go", 60, cloud.running)
    assert {i["state"] for i in cloud.state["instances"]} == {"terminated"}
