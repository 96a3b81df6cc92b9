"""A connection to Ray: a cluster of this machine's own for the length of a command, or one that is running already."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import ports
from cluster.lean_ray import without_dashboard_and_autoscaler
from cluster.plan import GroupShape, Nodes, Plan, make_plan

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the study is the record; no CSV, JSON and TensorBoard files beside it
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the sweep's own affair
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Tune's own record is never read
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "1000",
    "TUNE_MAX_PENDING_TRIALS_PG": "10000",  # how many there are at once is said by the searcher
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_maximum_startup_concurrency": "8",  # with as many as CPUs, two cores start a group's actors two by two
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # so long a group that has ended, or died, is waited for
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process per group; here the driver asks
    "PYTHONWARNINGS": "ignore",  # of Ray's own processes
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # what Ray says of processes that died, on standard output; the sweep says it itself
}


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to. One of this machine's own, which `can_change` says it is not, stays as it is."""

    can_change: bool

    def nodes(self, but: Collection[str] = ()) -> list[Nodes]:
        """The nodes that are there now, `but` for those with these ids."""
        import ray

        there = ray.nodes()  # type: ignore[no-untyped-call]
        return [Nodes(node["Resources"]) for node in there if node["Alive"] and node["NodeID"] not in but]

    def free(self) -> Nodes:
        """What nobody uses now, of all nodes together."""
        import ray

        return Nodes(ray.available_resources())  # type: ignore[no-untyped-call]

    def plan(self, shape: GroupShape, trials: int) -> Plan:
        """What of this shape runs here. Raises ValueError with the arithmetic when that can never fit."""
        from cluster.autoscaling import possible_nodes

        return make_plan(shape, self.nodes(), trials, possible_nodes() if self.can_change else [])


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[Cluster]:
    """Connect to the cluster at `address`, or start one on this machine.

    Raises ValueError when there is no cluster at the address. A cluster that was started here ends with the context.
    """
    if address:
        _check_somebody_listens(address)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if address and _has_token() and "RAY_AUTH_MODE" not in os.environ:
        # Ray shows a token only when told to; a cluster that asks for none starts no actors for whoever shows one.
        os.environ["RAY_AUTH_MODE"] = "token" if _asks_for_token(address) else "disabled"
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
        yield Cluster(can_change=address is not None)
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


_WHERE = "import sys; from ray._private.services import canonicalize_bootstrap_address as at; print(at(sys.argv[1]))"


def _asks_for_token(address: str) -> bool:
    place = address.removeprefix("ray://")
    if ":" not in place:
        # Ray knows where that is, but reads RAY_AUTH_MODE when it is imported: another process asks it.
        done = subprocess.run([sys.executable, "-c", _WHERE, address], capture_output=True, text=True, check=False)
        place = done.stdout.strip() if done.returncode == 0 else ""  # what is wrong is said by who connects
    host, _, port = place.rpartition(":")
    return not host or not port.isdecimal() or ports.ask(host.strip("[]"), int(port)) is ports.Answer.GUARDED


def _has_token() -> bool:
    given = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return given or (Path.home() / ".ray" / "auth_token").exists()


def _short_temporary_folder() -> str:
    """Ray's sockets need a path of less than 107 characters: a long TMPDIR is passed over."""
    folder = Path(tempfile.gettempdir()) / "ray"
    return str(folder if len(str(folder)) < 40 else Path("/tmp/ray"))
