"""What the clusters of all providers have in common: what lies on a node, what is run there, how Ray is started."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
"""The checkout. An installed convsweep has no cluster files beside it and writes none."""

PORT = 6379
DASHBOARD_PORT = 8265
TOKEN = "~/.ray/auth_token"
ENVIRONMENT = "~/.convsweep/cluster.env"
"""NAME=value lines, the same file on the laptop and on the nodes; it may hold passwords, which no cluster file does."""

FOLDERS = ("trainer", "cluster", "dashboard")
FILES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE")
"""With the folders what pip needs of the checkout. Ray hashes whatever it is to copy: all of it may be gigabytes."""

LOOPBACK = "--dashboard-host=127.0.0.1"
NO_TRIALS = "--num-cpus=0"


def mounts() -> dict[str, str]:
    """Remote path to local path; `ray up` is run in the checkout."""
    return {TOKEN: TOKEN, ENVIRONMENT: ENVIRONMENT} | {
        f"~/convsweep/{name}": f"./{name}" for name in (*FOLDERS, *FILES)
    }


def setup(extras: str) -> str:
    """The command that installs the checkout on a node, with these extras of pyproject.toml."""
    return f"bash ~/convsweep/cluster/launch/install.sh {extras}"


def head_start(before: str = "") -> str:
    """How Ray is started on the head: it runs no trials, and its dashboard listens to the head itself alone."""
    return (
        f"ulimit -n 65536; RAY_AUTH_MODE=token {before}ray start --head --port={PORT} {NO_TRIALS} {LOOPBACK} "
        "--autoscaling-config=~/ray_bootstrap_config.yaml --disable-usage-stats"
    )


def worker_start() -> str:
    """How Ray is started on a worker."""
    return f"ulimit -n 65536; RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:{PORT}"


def ray_version() -> str:
    """The version of Ray that constraints.txt names."""
    found = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, "constraints.txt names no version of ray"
    return found[1]


def heading(what: str) -> str:
    """How every cluster file begins."""
    return (
        f"# {what}\n"
        "# docs/cluster.md leads from nothing to a running sweep with it. The lines marked EDIT are yours, and no others need be;\n"
        "# all else `make docs` writes from cluster/launch/generate.py.\n"
    )
