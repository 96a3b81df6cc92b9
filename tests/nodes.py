"""A cluster of several nodes, all on this machine, in a process of its own: a head that trains nothing, workers with one CPU each."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType

_SCRIPT = """
import sys
from ray.cluster_utils import Cluster
small = {"object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False} | small)
for line in sys.stdin:
    cluster.add_node(num_cpus=1, **small)
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
cluster.shutdown()
"""


class LocalNodes:
    """A context: `count` workers are there in it. Whether a token is asked for says RAY_AUTH_MODE."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.address = ""

    def __enter__(self) -> LocalNodes:
        command = [sys.executable, "-W", "ignore", "-c", _SCRIPT]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        for _ in range(self._count):
            self.add()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=60)

    def add(self) -> None:
        """One more worker, which has joined when this returns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("add\n")
        self._process.stdin.flush()
        self.address = self._process.stdout.readline().strip()
        assert self.address, "the cluster could not be started"
