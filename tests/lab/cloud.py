"""AWS for the lab: moto on the laptop, whose machines are the lab's hosts.

A host is switched on when an instance with its address starts, and off when that is terminated.
"""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab.hosts import NETWORK, Host, Lab
from tests.lab.user import wait

PORT, REGION, BUCKET = 5555, "us-west-2", "sweeps"


class Cloud:
    """An account of AWS. A context: instances become hosts in it. `settings` are for the lines of ray_cluster.yaml that say EDIT."""

    def __init__(self, lab: Lab, laptop: str) -> None:
        self._laptop = lab[laptop]
        self._machines = {host.address: host for host in lab.hosts.values() if host.name != laptop}
        self._owners = dict[str, str]()  # of an address, the instance
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="cloud")
        self.settings: dict[str, str] = {}
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{self._laptop.address}:{PORT}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        store = f"{self._laptop.address}%3A{PORT}"
        self.storage = f"s3://{BUCKET}/lab?endpoint_override={store}&scheme=http&region={REGION}"

    def __enter__(self) -> Cloud:
        with (self._laptop.root / ".bashrc").open("a") as file:
            file.writelines(f"export {name}={value}\n" for name, value in self.environment.items())
        for script in ("aws_world.py", "aws_state.py"):
            shutil.copy(Path(__file__).with_name(script), self._laptop.root / ".lab")
        self._laptop.start(f"python -W ignore -m moto.server -H 0.0.0.0 -p {PORT}", "moto")
        wait(lambda: PORT in self._laptop.listening(), "moto", 60)
        made = self._laptop.run(f"python -W ignore .lab/aws_world.py {NETWORK} {REGION} {BUCKET}")
        self.settings = json.loads(made.stdout)
        self._laptop.start("python -W ignore .lab/aws_state.py", "aws")
        wait(lambda: self.state, "the state of the account", 60)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def state(self) -> dict[str, Any]:
        """What there is now; empty as long as nobody knows."""
        text = (self._laptop.root / ".lab/aws").read_text()
        lines = [line for line in text[: text.rfind("\n") + 1].splitlines() if line.startswith("{")]
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return found

    def running(self) -> list[dict[str, Any]]:
        """The instances that are not terminated."""
        return [i for i in self.state["instances"] if i["state"] in ("pending", "running")]

    def machine(self, instance: dict[str, Any]) -> Host:
        """The host that the instance is."""
        return self._machines[instance["address"]]

    def _follow(self) -> None:
        while not self._over.wait(0.3):
            for instance in self.state["instances"]:
                address, identity = instance["address"], instance["id"]
                if instance["state"] in ("pending", "running") and self._owners.get(address) != identity:
                    self._owners[address] = identity
                    if not self._machines[address].is_on:
                        self._machines[address].boot()
            live = {i["id"] for i in self.running()}
            for address, identity in self._owners.items():
                if identity not in live and self._machines[address].is_on:
                    self._machines[address].kill()
