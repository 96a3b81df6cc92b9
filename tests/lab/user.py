"""What somebody does at the laptop, by the commands that docs/cluster.md shows."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

from tests.checkout import ROOT
from tests.lab.hosts import Host, Lab
from tests.lab.image import CHECKOUT, copy_checkout

PAGE = ROOT / "docs/cluster.md"
_SHOWN = re.compile(r"<!-- lab: ([a-z ]+) -->\n```console\n(.*?)```", re.DOTALL)
NODE = ". ~/convsweep/cluster/launch/node.sh; "
"""What a command on a node begins with that is not run by Ray."""
# On the head, as long as it is up: the names of the nodes that are alive, a line whenever they change.
_WATCH = """
import json, time, ray
ray.init("auto", log_to_driver=False, logging_level="ERROR")
last = None
while True:
    now = sorted(node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"])
    if now != last:
        print("ALIVE", json.dumps(now), flush=True)
    last = now
    time.sleep(0.25)
"""


def shown(name: str) -> list[str]:
    """The commands of the page under that name."""
    found = dict(_SHOWN.findall(PAGE.read_text()))
    return [line for line in found[name].replace("\\\n", " ").splitlines() if line]


class User:
    """Somebody at the host `laptop`, with a checkout there. `head` is where Ray's head will be."""

    def __init__(self, lab: Lab, laptop: str, head: str) -> None:
        self.laptop, self.head, self._lab = lab[laptop], lab[head], lab
        self._said: list[str] = []  # what was exported in the terminal so far
        copy_checkout(self.laptop.folder)
        with (self.laptop.root / ".bashrc").open("a") as file:
            file.write("export PATH=/root/convsweep/.venv/bin:$PATH\n")
        key = self.laptop.root / ".ssh/convsweep"
        key.write_bytes((lab.folder / "key").read_bytes())
        key.chmod(0o600)

    def set_up(self, environment: Mapping[str, str]) -> None:
        """Step 1 of the page, with these lines in cluster.env."""
        self.do("install")
        self.do("token")
        file = self.laptop.root / ".convsweep/cluster.env"
        file.parent.mkdir()
        own = {"CONVSWEEP_PYTHON": "/root/convsweep/.venv/bin/python"} | dict(environment)
        file.write_text("# of the lab\n\n" + "".join(f"{name}={value}\n" for name, value in own.items()))
        file.chmod(0o644)  # as somebody leaves it who has not read to the end

    def edit(self, path: str, settings: Mapping[str, str]) -> None:
        """Write these values into the lines of a cluster file that say EDIT."""
        file = self.laptop.folder / CHECKOUT / path
        text = file.read_text()
        for name, value in settings.items():
            line = re.compile(rf"^(  {name}: &{name}) .*?( # EDIT.*)$", re.MULTILINE)
            text, count = line.subn(lambda found, value=value: f"{found[1]} {value}{found[2]}", text)
            assert count == 1, f"{path} has no line for {name}"
        file.write_text(text)

    def do(self, name: str, change: Callable[[str], str] = str, check: bool = True, timeout: float = 600) -> str:
        """Run the commands that the page shows under that name; gives what they printed."""
        said = []
        for command in shown(name):
            command = change(command)
            if command.startswith("export "):
                self._said.append(command)
                continue
            done = self.laptop.run(self._in_checkout(command), check, timeout)
            said.append(done.stdout + done.stderr)
        return "\n".join(said)

    def tunnel(self, timeout: float = 60) -> None:
        """Open the tunnel to Ray's dashboard."""
        (command,) = shown("tunnel")
        self.laptop.start(self._in_checkout(command), "tunnel")
        wait(lambda: 8265 in self.laptop.listening(), "the tunnel", timeout)

    def watch(self) -> None:
        """From now on `alive` knows which nodes there are."""
        (self.head.root / ".lab/watch.py").write_text(_WATCH)
        self.head.start(f"{NODE} python -W ignore .lab/watch.py", "alive")

    def alive(self) -> Set[str]:
        """The names of the hosts that Ray's head takes for alive."""
        lines = re.findall(r"^ALIVE (.*)$", (self.head.root / ".lab/alive").read_text(), re.MULTILINE)
        return set(json.loads(lines[-1])) if lines else set()

    def wait_for(self, hosts: Set[str], timeout: float) -> float:
        """Wait until these are the hosts of the cluster; gives the seconds."""
        return wait(lambda: self.alive() == hosts, f"{sorted(hosts)} to be the nodes", timeout, self.alive)

    def rank(self, name: str) -> dict[str, Any]:
        """What `convsweep rank` says of a sweep, on the head."""
        document: dict[str, Any] = json.loads(self.head.run(f"{NODE} convsweep rank {name} --json").stdout)
        return document

    @property
    def experiments(self) -> Path:
        """The experiments folder on the head, as this machine sees it."""
        return self.head.root / "experiments"

    def _in_checkout(self, command: str) -> str:
        return "; ".join(["cd ~/convsweep", *self._said, command])


def wait(
    is_so: Callable[[], object], what: str, timeout: float, seen: Callable[[], object] = lambda: "", pause: float = 0.25
) -> float:
    """Wait until it is so; gives the seconds. An AssertionError says what was waited for and what was seen instead."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < timeout, f"waited {timeout:g} s for {what}; seen: {seen()}"
        time.sleep(pause)
    return time.monotonic() - began


def rays(host: Host) -> list[str]:
    """Ray's processes on a host."""
    return [line for line in host.processes() if re.search(r"raylet|gcs_server|/ray/|ray::|-m ray\.|/bin/ray ", line)]
