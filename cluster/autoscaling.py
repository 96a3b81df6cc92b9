"""What a cluster's autoscaler may start, and what it is at: a plan counts on the one, whoever waits is told the other.

Ray does not tell a driver how far a cluster may grow. Its autoscaler knows from the file that it was started with, which lies on the
head, where sweeps run; on Kubernetes, where the autoscaler asks the operator, CONVSWEEP_NODES says it.

What is used here has no public name in Ray 2.60: should another release have changed it, this file is the place to look.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml

from cluster.plan import Nodes

VARIABLE = "CONVSWEEP_NODES"


def possible_nodes() -> list[Nodes]:
    """The nodes that the cluster can be made of, when it has grown as far as it may; nothing when nobody here knows.

    Raises ValueError when CONVSWEEP_NODES, a list such as `[{resources: {CPU: 4, GPU: 1}, count: 8}]`, is no such list.
    """
    if given := os.environ.get(VARIABLE):
        try:
            return [Nodes(dict(kind["resources"]), int(kind["count"])) for kind in yaml.safe_load(given)]
        except (yaml.YAMLError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{VARIABLE} must be a list such as [{{resources: {{CPU: 4, GPU: 1}}, count: 8}}], but is {given!r}."
            ) from error
    try:
        file = _autoscalers_file(ray.get_runtime_context().gcs_address)
        return nodes_of(yaml.safe_load(file.read_text())) if file else []
    except (OSError, yaml.YAMLError):  # another user's
        return []


def nodes_of(config: Mapping[str, Any]) -> list[Nodes]:
    """The nodes that a cluster of this file for `ray up` may have, once Ray has filled in what its types' machines have.

    Where not all types can have as many as they may, those with most GPUs, then CPUs, come first.
    """
    kinds, left = [], int(config.get("max_workers", 0))
    types = [(name, kind, kind.get("resources") or {}) for name, kind in config.get("available_node_types", {}).items()]
    for name, kind, has in sorted(types, key=lambda t: (-t[2].get("GPU", 0), -t[2].get("CPU", 0))):
        is_head = name == config.get("head_node_type")
        workers = min(left, int(kind.get("max_workers", 0 if is_head else left)))
        left -= workers
        kinds.append(Nodes({what: float(much) for what, much in has.items()}, workers + is_head))
    return kinds


def _autoscalers_file(gcs_address: str) -> Path | None:
    """The file that the cluster's autoscaler was started with, if that runs on this machine."""
    for words in _command_lines():
        options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        file = options.get("--autoscaling-config")
        if file and _place(options.get("--gcs-address", "")) == _place(gcs_address):
            path = Path(file).expanduser()
            return path if path.is_file() else None
    return None


def _place(address: str) -> tuple[str, str]:
    """The IP address and the port of host:port."""
    host, _, port = address.rpartition(":")
    try:
        return str(socket.getaddrinfo(host.strip("[]"), None)[0][4][0]), port
    except OSError:
        return host, port


def _command_lines() -> Iterator[list[str]]:
    for process in psutil.process_iter(["cmdline"]):
        yield process.info["cmdline"] or []


def at_work() -> str:
    """What the autoscaler is at, as a clause for whoever waits; empty when it is at nothing, or not known."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
    except Exception:  # not every cluster has one that answers, and nothing depends on it
        return ""
    coming = sum(launch.count for launch in status.pending_launches) + len(status.pending_nodes)
    said = [f"the autoscaler is starting {coming} node(s)"] if coming else []
    if status.failed_launches:
        last = max(status.failed_launches, key=lambda launch: launch.failed_ts_s or 0)
        why = ((last.details or "").strip() or "no reason given").splitlines()[0]
        said.append(f"{last.count} x {last.instance_type_name} could not be started: {why}")
    return "; ".join(said)
