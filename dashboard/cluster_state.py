"""What a Ray cluster has and uses, asked of its dashboard over HTTP: Ray itself is not imported."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import pandas as pd

from dashboard.tables import Column

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
TIMEOUT_SECONDS = 1.0
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS", "RAY_ADDRESS")
# Otherwise the answer is that of the last request, however long ago it was.
_NODES = "/nodes?view=summary&nocache=1"
_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Gpu:
    """A GPU of a node, as the node sees it: how busy it is (0 to 1) and its memory, bytes. None: the node cannot tell."""

    name: str
    busy: float | None
    memory_used: float
    memory: float


@dataclass(frozen=True)
class Node:
    """A node of the cluster. `cpus` and `gpus` are what Ray may give away, `..._used` what it has given.

    `memory` and `memory_used` are the machine's, bytes; `busy` is how busy its processors are, 0 to 1. None: not known.
    """

    name: str
    address: str
    alive: bool
    head: bool
    cpus: float
    cpus_used: float | None
    gpus: float
    gpus_used: float | None
    memory: float | None
    memory_used: float | None
    busy: float | None
    devices: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class ClusterState:
    """A cluster's nodes at one moment."""

    address: str
    nodes: tuple[Node, ...]

    @property
    def alive(self) -> list[Node]:
        """The nodes that are there."""
        return [node for node in self.nodes if node.alive]

    @property
    def is_idle(self) -> bool:
        """Whether Ray has given away nothing of it."""
        return not any((node.cpus_used or 0) + (node.gpus_used or 0) for node in self.alive)


NODES = (
    Column("node", "node", "The machine's name"),
    Column("address", "address", "Its address in the cluster"),
    Column("state", "state", "alive, or dead: it was lost or has left"),
    Column("cpus", "CPUs in use", "What Ray has given to its processes, of what it may give"),
    Column("gpus", "GPUs in use", "What Ray has given to its processes, of what it may give"),
    Column("busy", "busy", "How busy the machine's processors are", "Float64", "percent"),
    Column("memory", "memory", "The machine's memory in use", "Float64", "percent"),
    Column("gigabytes", "of", "The machine's memory, GiB", "Float64", "%.1f GiB"),
    Column("devices", "GPUs", "Each GPU: how busy it is, and its memory in use"),
)
"""The columns of the list of nodes."""


def address(environment: Mapping[str, str]) -> str:
    """The dashboard's address: what Ray's own commands take from the environment, else this machine's port 8265."""
    for variable in _ADDRESS_VARIABLES:
        given = environment.get(variable, "").strip()
        if given and (variable != "RAY_ADDRESS" or given.startswith(("http://", "https://"))):
            return given.rstrip("/") if "://" in given else f"http://{given.rstrip('/')}"
    return DEFAULT_ADDRESS


def token(environment: Mapping[str, str]) -> str | None:
    """The cluster's token, looked for where Ray looks; None where there is none. Raises ValueError for what is no token."""
    if environment.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    found = environment.get("RAY_AUTH_TOKEN", "").strip() or _token_in_file(environment)
    if found is not None and not re.fullmatch(r"[!-~]+", found):
        raise ValueError(
            "The token of a Ray cluster is ASCII without spaces; that in RAY_AUTH_TOKEN or its file is not."
        )
    return found


def _token_in_file(environment: Mapping[str, str]) -> str | None:
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path("~/.ray/auth_token").expanduser()
    try:
        return file.read_text().strip() or None
    except FileNotFoundError:
        if named is None:
            return None
        raise ValueError(f"RAY_AUTH_TOKEN_PATH names {named!r}, but there is no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The token of the Ray cluster cannot be read from {str(file)!r}: {error}.") from error


def read(where: str, secret: str | None) -> ClusterState:
    """The state of the cluster whose dashboard is at `where`; takes a second or two at most.

    Raises ConnectionError when nothing answers there, PermissionError when the token is missing or wrong, and ValueError
    when `where` is no address or what answers is no Ray dashboard.
    """
    status, body = _get(where, secret)
    if status in (401, 403):
        what = "wants its token" if status == 401 else "does not take our token"
        raise PermissionError(
            f"The Ray cluster at {where} {what}. `ray get-auth-token` prints it on the head node: give it to the dashboard "
            "in RAY_AUTH_TOKEN, or in a file that RAY_AUTH_TOKEN_PATH names, and start the dashboard again."
        )
    try:
        if status != 200:
            raise ValueError(f"it answered with status {status}")
        return ClusterState(where, _nodes(json.loads(body)["data"]))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"What answers at {where} is no Ray dashboard that this version can read: {type(error).__name__}: {error}. "
            "RAY_API_SERVER_ADDRESS names another address."
        ) from error


def nodes_table(state: ClusterState) -> pd.DataFrame:
    """A row per node, those that are alive and the head first; columns are `NODES`."""
    ordered = sorted(state.nodes, key=lambda node: (not node.alive, not node.head, node.name, node.address))
    rows = [
        {
            "node": f"{node.name} (head)" if node.head else node.name,
            "address": node.address,
            "state": "alive" if node.alive else "dead",
            "cpus": in_use([node], "cpus") if node.alive else None,
            "gpus": in_use([node], "gpus") if node.alive and node.gpus else None,
            "busy": node.busy,
            "memory": node.memory_used / node.memory if node.memory and node.memory_used is not None else None,
            "gigabytes": node.memory / 2**30 if node.memory else None,
            "devices": "; ".join(map(_device, node.devices)) or None,
        }
        for node in ordered
    ]
    return pd.DataFrame({c.name: pd.Series([row[c.name] for row in rows], dtype=c.dtype) for c in NODES})


def in_use(nodes: Sequence[Node], what: str) -> str:
    """How many of the nodes' `cpus` or `gpus` are in use, such as '2 of 16'."""
    used = [getattr(node, f"{what}_used") for node in nodes]
    known = "?" if None in used else f"{sum(used):g}"
    return f"{known} of {sum(getattr(node, what) for node in nodes):g}"


def memory_in_use(nodes: Sequence[Node]) -> str:
    """How much of the machines' memory is in use, such as '3.5 of 24 GiB'; of those that say it."""
    known = [(node.memory_used, node.memory) for node in nodes if node.memory and node.memory_used is not None]
    used, whole = (sum(column) / 2**30 for column in zip(*known, strict=True)) if known else (0.0, 0.0)
    return f"{used:.1f} of {whole:.1f} GiB" if known else "?"


def _get(where: str, secret: str | None) -> tuple[int, bytes]:
    """Status and body; follows no redirect and no proxy, which would get the token."""
    parts = _parsed(where)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    assert parts.hostname is not None
    deadline = time.monotonic() + 2 * TIMEOUT_SECONDS
    connection = kind(parts.hostname, parts.port, timeout=TIMEOUT_SECONDS)  # connects later
    try:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        connection.request("GET", parts.path.rstrip("/") + _NODES, headers=headers)
        response = connection.getresponse()
        body = bytearray()
        while piece := response.read1(2**16):
            body += piece
            if time.monotonic() > deadline or len(body) > _MOST_BYTES:
                raise TimeoutError("it does not come to an end")
        return response.status, bytes(body)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise ConnectionError(
            f"No Ray cluster is reachable at {where} ({str(error) or type(error).__name__}). `ray start --head` starts one on "
            "this machine, `ray dashboard CLUSTER.yaml` forwards the port of one elsewhere, and RAY_API_SERVER_ADDRESS names "
            "another address."
        ) from error
    finally:
        connection.close()


def _parsed(where: str) -> SplitResult:
    try:
        parts = urlsplit(where)
        valid = (
            parts.scheme in ("http", "https") and parts.port != 0 and re.fullmatch(r"[\w.:-]+", parts.hostname or "")
        )
    except ValueError:  # what has brackets or a port that is no number
        valid = None
    if not valid or parts.username is not None:
        got = "another one" if "@" in where else repr(where)  # it may have a password
        raise ValueError(
            f"The address of a Ray dashboard is such as {DEFAULT_ADDRESS}, but got {got}: "
            f"set {' or '.join(_ADDRESS_VARIABLES[:2])}."
        )
    return parts


def _nodes(data: Mapping[str, Any]) -> tuple[Node, ...]:
    usage = data.get("nodeLogicalResources") or {}
    return tuple(_node(summary, usage) for summary in data["summary"])


def _node(summary: Mapping[str, Any], usage: Mapping[str, str]) -> Node:
    raylet = summary["raylet"]
    total = raylet.get("resourcesTotal") or {}
    used = _used(usage.get(raylet["nodeId"]))
    alive = raylet["state"] == "ALIVE"
    now = summary if alive else {}  # of a dead node Ray keeps what it said last
    memory = now.get("mem") or (None, None)  # total, available, percent, used
    percent = now.get("cpu")
    return Node(
        name=summary.get("hostname") or raylet.get("nodeManagerHostname") or raylet.get("nodeName") or "",
        address=summary.get("ip") or raylet.get("nodeManagerAddress") or "",
        alive=alive,
        head=bool(raylet.get("isHeadNode")),
        cpus=float(total.get("CPU", 0.0)),
        cpus_used=used.get("CPU", 0.0) if used is not None else None,
        gpus=float(total.get("GPU", 0.0)),
        gpus_used=used.get("GPU", 0.0) if used is not None else None,
        memory=memory[0],
        memory_used=memory[0] - memory[1] if memory[0] is not None else None,
        busy=percent / 100 if percent is not None else None,
        devices=tuple(map(_gpu, now.get("gpus") or ())),
    )


def _used(text: str | None) -> dict[str, float] | None:
    """What Ray has given away, from lines such as '1.0/2.0 CPU (1.0 used of 1.0 reserved in placement groups)'."""
    if text is None:
        return None
    return {name: float(used) for used, name in re.findall(r"^([\d.]+)/[\d.]+ (CPU|GPU)\b", text, re.MULTILINE)}


def _gpu(values: Mapping[str, Any]) -> Gpu:
    busy = values.get("utilizationGpu")
    mebibyte = 2**20
    return Gpu(
        name=values["name"],
        busy=busy / 100 if busy is not None else None,
        memory_used=values["memoryUsed"] * mebibyte,
        memory=values["memoryTotal"] * mebibyte,
    )


def _device(gpu: Gpu) -> str:
    busy = "" if gpu.busy is None else f" {gpu.busy:.0%} busy,"
    return f"{gpu.name}:{busy} {gpu.memory_used / 2**30:.1f} of {gpu.memory / 2**30:.1f} GiB"
