"""Which ports of a cluster's nodes answer somebody who shows no token. Imports no Ray."""

from __future__ import annotations

import contextlib
import enum
import http.client
import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Any

import psutil

_RAYS = re.compile(r"(^|/)(raylet|gcs_server|ray::)|/ray/|-m ray\.|ray\.util\.client")
_PATH = "/api/job_agent/jobs/"
"""A path that no server of Ray serves without the token; some of their paths, such as healthz, are for everybody."""
# One method of each service that listens on a node: those that read, or do nothing when they are given nothing.
_METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetSystemConfig",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.rpc.ReporterService/HealthCheck",
)


class Answer(enum.StrEnum):
    """How a port answers: CLOSED, nobody is there; GUARDED, it refuses whoever has no token; METRICS, figures for everybody and
    nothing else; OPEN, it serves; UNKNOWN, it takes connections and speaks neither HTTP nor Ray's gRPC.
    """

    CLOSED = "closed"
    GUARDED = "guarded"
    METRICS = "metrics"
    OPEN = "open"
    UNKNOWN = "unknown"


def listening() -> dict[int, str]:
    """The ports on which Ray's processes of this machine take connections from other machines, and whose they are."""
    found = dict[int, str]()
    for connection in psutil.net_connections("tcp"):
        local: Any = connection.laddr
        if connection.status == psutil.CONN_LISTEN and connection.pid and not is_loopback(local.ip):
            with contextlib.suppress(psutil.Error):  # it has ended by now
                process = psutil.Process(connection.pid)
                words = " ".join(process.cmdline()) or process.name()
                if is_rays(words):
                    found[int(local.port)] = short_name(words)
    return dict(sorted(found.items()))


def is_loopback(address: str) -> bool:
    """Whether only processes of the same machine can connect to a listener at this address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def is_rays(command: str) -> bool:
    """Whether a process with this command line is one of Ray's."""
    return bool(_RAYS.search(command))


def short_name(command: str) -> str:
    """What a process of Ray is called: raylet, gcs_server, ray::IDLE, agent.py, ray.util.client.server ..."""
    words = command.split()
    named = next((word for word in words if word.endswith(".py") or word.startswith(("ray::", "ray."))), words[0])
    return named.rpartition("/")[2]


def ask_all(host: str, ports: Iterable[int], token: str | None = None) -> dict[int, Answer]:
    """How each port answers."""
    return {port: ask(host, port, token) for port in ports}


def ask(host: str, port: int, token: str | None = None, timeout: float = 5.0) -> Answer:
    """How a port answers somebody with this token, or with none: first by HTTP, then by gRPC."""
    try:
        socket.create_connection((host, port), timeout).close()
    except OSError:
        return Answer.CLOSED
    return _by_http(host, port, token, timeout) or _by_grpc(host, port, token, timeout)


def _by_http(host: str, port: int, token: str | None, timeout: float) -> Answer | None:
    """None when it does not speak HTTP/1."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", _PATH, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        start = response.read(64)
    except (http.client.HTTPException, OSError):
        return None
    finally:
        connection.close()
    if response.status in (401, 403):
        return Answer.GUARDED
    return Answer.METRICS if start.startswith((b"# HELP", b"# TYPE")) else Answer.OPEN


def _by_grpc(host: str, port: int, token: str | None, timeout: float) -> Answer:
    import grpc

    refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    absent = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL)
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"{host}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        for method in _METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=timeout, metadata=metadata)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                    continue
                if error.code() in absent:
                    return Answer.UNKNOWN
                return Answer.GUARDED if error.code() in refused else Answer.OPEN
            return Answer.OPEN
    return Answer.UNKNOWN
