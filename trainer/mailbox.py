"""Between a worker group and whoever feeds it: assignments one way, reports the other. Imports no torch.

Assignments wait in a queue, so that a group that has finished one finds the next without waiting for anybody.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.data import DataConfig
from trainer.hyperparameters import TrialConfig
from trainer.metrics import EpochMetrics


@dataclass(frozen=True)
class Assignment:
    """One trial for a worker group: what to train on which data, and where its checkpoints go."""

    trial: int
    config: TrialConfig
    data: DataConfig
    checkpoints: str


@dataclass(frozen=True)
class Report:
    """What a group says after an epoch, or instead of one: `error` is why the trial cannot go on.

    `begun_at` and `reported_at` are times of day (seconds since 1970) by the clock of the group's first rank: when it took
    the trial and when it said this. `done` marks the trial's last report. `log` is where more about an error is, host:path.
    """

    group: str
    metrics: EpochMetrics | None
    done: bool
    begun_at: float
    reported_at: float
    parameters: int
    error: str | None = None
    log: str | None = None


class Mailbox:
    """An actor, one per sweep. All waiting is done here: nobody polls, and a group never waits for whoever feeds it.

    `groups` are the names of the groups that there will be. They take assignments from one queue, whichever is free; their
    reports are kept by trial number.
    """

    def __init__(self, groups: Sequence[str]) -> None:
        self._queue: deque[Assignment] = deque()
        self._groups = {name: _Group() for name in groups}
        self._reports: dict[int, list[Report]] = {}
        self._stopped: list[int] = []
        self._failure: str | None = None
        self._changed = asyncio.Condition()

    # ---- whoever feeds the groups ----

    async def post(self, assignment: Assignment) -> None:
        """Hand in an assignment."""
        async with self._changed:
            self._reports[assignment.trial] = []
            self._queue.append(assignment)
            self._changed.notify_all()

    async def stop(self, trial: int) -> None:
        """End the trial at its next step; nobody reads its reports any more."""
        async with self._changed:
            self._stopped.append(trial)
            self._queue = deque(a for a in self._queue if a.trial != trial)
            self._changed.notify_all()

    async def read(self, trial: int, position: int) -> Report:
        """The trial's report at `position`, waiting until there is one. Raises RuntimeError when no group is left."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._reports[trial]) > position or self._failure)
            if len(self._reports[trial]) > position:
                return self._reports[trial][position]
            raise RuntimeError(self._failure)

    async def close(self, group: str) -> None:
        """End the group, and the trial that it is at."""
        async with self._changed:
            if group in self._groups:
                self._groups[group].closed = True
                self._stopped += [a.trial for a in self._groups[group].unfinished()]
            self._changed.notify_all()

    async def fail(self, group: str, reason: str) -> None:
        """The group could not be kept alive. Its trial fails; when no group is left, so do all that are waited for."""
        async with self._changed:
            for assignment in self._groups.pop(group).unfinished():
                self._reports[assignment.trial].append(_failed(group, reason))
            if all(members.closed for members in self._groups.values()):
                self._failure = reason
            self._changed.notify_all()

    async def up(self) -> None:
        """Returns when every group that could be started has a rank that has joined it."""
        async with self._changed:
            await self._changed.wait_for(lambda: all(members.joined for members in self._groups.values()))

    # ---- the ranks of the groups ----

    async def join(self, group: str) -> int:
        """A rank of the group starts, or starts again: the index of the assignment that it has to begin with."""
        members = self._groups[group]
        async with self._changed:
            members.joined = True
            self._changed.notify_all()
        return len(members.taken) - len(members.unfinished())

    async def take(self, group: str, index: int) -> Assignment | None:
        """The group's assignment at `index`, waiting until there is one; None when the group is to end.

        Every rank of the group takes each of them: the first that asks takes it from the queue.
        """
        async with self._changed:
            members = self._groups[group]
            await self._changed.wait_for(lambda: members.closed or len(members.taken) > index or self._queue)
            if members.closed:
                return None
            if len(members.taken) == index:
                members.taken.append(self._queue.popleft())
            return members.taken[index]

    async def begin(self, group: str, index: int) -> int:
        """Count an attempt at the group's assignment at `index`; called by its first rank. Gives the number of attempts."""
        attempts = self._groups[group].attempts
        attempts[index] = attempts.get(index, 0) + 1
        return attempts[index]

    async def report(self, trial: int, report: Report) -> None:
        """Add a report. An epoch that a restarted group went through again is dropped."""
        async with self._changed:
            reports = self._reports[trial]
            if report.metrics is None or len(reports) < report.metrics.epoch:
                reports.append(report)
                self._changed.notify_all()

    async def finish(self, group: str, index: int) -> None:
        """The group is through with its assignment at `index`, however that went; called by its first rank."""
        self._groups[group].finished = index + 1

    async def stopped(self, known: int) -> list[int]:
        """The trials that were stopped after the first `known` ones, once there are any."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._stopped) > known)
            return self._stopped[known:]


@dataclass
class _Group:
    """What a group has taken so far; the first `finished` of those are over."""

    taken: list[Assignment] = field(default_factory=list)
    finished: int = 0
    joined: bool = False
    closed: bool = False
    attempts: dict[int, int] = field(default_factory=dict)

    def unfinished(self) -> list[Assignment]:
        return self.taken[self.finished :]


def _failed(group: str, reason: str) -> Report:
    now = time.time()
    return Report(group=group, metrics=None, done=True, begun_at=now, reported_at=now, parameters=0, error=reason)


def work(config: dict[str, Any]) -> None:
    """The train function of a worker group. Only its ranks import torch: what starts and watches them does not need to.

    `config` has the "mailbox", the "group"'s name in it and the CPU "threads" of a rank.
    """
    from trainer.worker import take_assignments

    take_assignments(config["mailbox"], config["group"], config["threads"])
