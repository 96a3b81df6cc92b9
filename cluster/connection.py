"""A connection to Ray: a cluster of this machine's own for the length of a command, or one that is running already."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.lean_ray import without_dashboard_and_autoscaler

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the study is the record; no CSV, JSON and TensorBoard files beside it
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the sweep's own affair
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "1000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_maximum_startup_concurrency": "8",  # with as many as CPUs, two cores start a group's actors two by two
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # so long a group that has ended, or died, is waited for
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process per group; here the driver asks
    "PYTHONWARNINGS": "ignore",  # of Ray's own processes
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # what Ray says of processes that died, on standard output; the sweep says it itself
}


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[list[Mapping[str, float]]]:
    """Connect to the cluster at `address`, or start one on this machine; gives each node's resources.

    Raises ValueError when there is no cluster at the address. A cluster that was started here ends with the context.
    """
    if address:
        _check_somebody_listens(address)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if address and _has_token():
        os.environ.setdefault(
            "RAY_AUTH_MODE", "token"
        )  # Ray asks for a token by default, but shows one only when told to
    import ray

    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is said by the sweep, once
    try:
        with contextlib.nullcontext() if address else without_dashboard_and_autoscaler():
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=None if address else _short_temporary_folder(),
            )
    except ConnectionError as error:
        raise ValueError(
            f"There is no Ray cluster at {address!r} that lets us in: {error}. Start one with `ray start --head` or `ray up`, "
            "leave out --address, or give that cluster's token in RAY_AUTH_TOKEN."
        ) from error
    try:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        yield [node["Resources"] for node in nodes if node["Alive"]]
    finally:
        ray.shutdown()


def _check_somebody_listens(address: str) -> None:
    """Raise ValueError when nobody answers at host:port: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"Nobody answers at {address!r} ({error}). Is the cluster up, and can this machine reach it? `ray status` on its head "
                "says the address; --address auto takes the cluster that this machine belongs to."
            ) from error


def _has_token() -> bool:
    given = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return given or (Path.home() / ".ray" / "auth_token").exists()


def _short_temporary_folder() -> str:
    """Ray's sockets need a path of less than 107 characters: a long TMPDIR is passed over."""
    folder = Path(tempfile.gettempdir()) / "ray"
    return str(folder if len(str(folder)) < 40 else Path("/tmp/ray"))
