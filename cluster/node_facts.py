"""What one node of a cluster says of itself: versions, GPUs, ports. Imports neither Ray nor torch before it is asked."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster import ports

# In a process of its own: Ray hides the GPUs from processes that have not asked for one, and a context would hold memory.
_DEVICES = """
import json, torch
error = None
try:
    torch.cuda.init()
except Exception as e:
    error = str(e).splitlines()[0]
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if error is None else []
print(json.dumps([names, error]))
"""


@dataclass(frozen=True)
class NodeFacts:
    """A node. `versions` are those of Python, Ray, torch and convsweep, and of the latter its code's digest.

    `devices` are the GPUs that torch sees, or why it sees none in `device_error`; `ports` those on which Ray listens to other
    machines, with its processes' names.
    """

    versions: Mapping[str, str]
    devices: tuple[str, ...] = ()
    device_error: str | None = None
    ports: Mapping[int, str] = field(default_factory=dict)


def look() -> NodeFacts:
    """This node."""
    versions = {"Python": platform.python_version()}
    versions |= {name: _version(package) for name, package in (("Ray", "ray"), ("torch", "torch"))}
    versions |= {"convsweep": _version("convsweep"), "code": code_digest()}
    names, error = _devices()
    return NodeFacts(versions, names, error, ports.listening())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def code_digest() -> str:
    """Eight digits that differ where the code of convsweep that trains does: checkouts share a version number."""
    digest = hashlib.sha256()
    here = Path(__file__).resolve().parent
    for folder in (here, here.parent / "trainer"):
        for file in sorted(folder.glob("*.py")):
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def _devices() -> tuple[tuple[str, ...], str | None]:
    """The names of the GPUs that torch sees, or why there are none."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-W", "ignore", "-c", _DEVICES]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    if done.returncode:
        return (), (done.stderr.strip().splitlines() or ["torch cannot be imported"])[-1]
    names, error = json.loads(done.stdout.splitlines()[-1])
    return tuple(names), error
