"""Watching the cluster while a sweep runs: nodes that leave, nodes that come, groups that have no room yet."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

from cluster.autoscaling import at_work
from cluster.connection import Cluster
from cluster.lean_train import draining_nodes
from cluster.plan import Plan

SECONDS_BETWEEN_LOOKS = 2.0
PATIENCE = 30.0
"""Seconds after which it is said that groups are missing: so long an ordinary start may take."""
SAID_AGAIN_AFTER = 300.0


class ClusterWatch:
    """Looks at the cluster every other second, in a thread, as long as it is open.

    Groups on nodes that will be taken away are told to leave. Where nodes have joined the cluster, `start` gets the number of groups
    there is new room for. That groups are missing is told to `say`, with what they wait for, how many are up, and on how many nodes, to
    `hold`.
    """

    def __init__(
        self,
        plan: Plan,
        cluster: Cluster,
        mailbox: Any,
        start: Callable[[int], None],
        say: Callable[[str], None],
        hold: Callable[[int, int], None],
    ) -> None:
        self._plan, self._cluster, self._mailbox = plan, cluster, mailbox
        self._start, self._say, self._hold = start, say, hold
        self.groups = plan.at_once
        """How many groups there are, or soon are: those that are up, and those that there is room for."""
        self._started = plan.groups
        self._leaving = frozenset[str]()
        self._missing = _Missing(plan)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def open(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """No group is started after this."""
        self._over.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            with contextlib.suppress(Exception):  # a head that is busy, or gone; the next look may succeed
                self._look()

    def _look(self) -> None:
        self._hold(*ray.get(self._mailbox.held.remote()))
        if (now := draining_nodes()) != self._leaving:
            ray.get(self._mailbox.leave.remote(now))
            self._leaving = now
        up, expected, has_work = ray.get(self._mailbox.census.remote())
        fit = self._plan.groups
        if self._cluster.can_change:
            fit = self._plan.groups_that_fit(self._cluster.nodes(but=self._leaving))
        self.groups = min(expected, max(up, fit))
        if not self._cluster.can_change or not has_work:
            return
        more = min(fit, self._plan.most) - self._started
        if more > 0:  # of the new room, what no other sweep has taken
            more = min(more, self._plan.groups_that_fit([self._cluster.free()]))
        if more > 0:
            self._started += more
            self._start(more)
        elif line := self._missing.line(time.monotonic(), up, expected, fit, at_work):
            self._say(line)


class _Missing:
    """What there is to say about groups that are not up: after a while, when it changes, and again from time to time."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._since: float | None = None
        self._said: tuple[str, float] | None = None

    def line(self, now: float, up: int, expected: int, fit: int, at_work: Callable[[], str]) -> str | None:
        """What to say now, if anything, of `up` groups of `expected` on nodes that have room for `fit`."""
        if up >= expected:
            is_new, self._since, self._said = self._said is not None, None, None
            return f"all {up} worker group(s) are up" if is_new and up else None
        self._since = now if self._since is None else self._since
        if now - self._since < PATIENCE:
            return None
        line = self._text(up, expected, fit)
        if doing := at_work():
            line += f"; {doing}"
        if self._said and self._said[0] == line and now - self._said[1] < SAID_AGAIN_AFTER:
            return None
        self._said = line, now
        return line

    def _text(self, up: int, expected: int, fit: int) -> str:
        homeless = max(0, expected - max(fit, up))
        starting = expected - up - homeless
        parts = [f"{up} of {expected} worker group(s) are up"]
        if homeless:
            ranks = homeless * self._plan.workers
            parts.append(f"{homeless} wait for nodes with room for {ranks} more rank(s) with {self._plan.device} each")
        if starting:
            parts.append(f"{starting} are starting, or wait for what others use")
        return "; ".join(parts)
