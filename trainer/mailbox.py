"""Between a worker group and whoever feeds it: assignments one way, reports the other. Imports no torch.

Assignments wait in a queue, so that a group that has finished one finds the next without waiting for anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trainer.costs import Costing
from trainer.data import DataConfig
from trainer.failures import NO_GROUP, kind_of
from trainer.gradients import Gradients
from trainer.hyperparameters import TrialConfig
from trainer.metrics import EpochMetrics
from trainer.waiting import Waiting


@dataclass(frozen=True)
class Assignment:
    """One trial for a worker group: what to train on which data, and where its checkpoints go.

    `begun` says that it has been trained before: it goes on from the state that is there. After the death of its processes it is
    begun again up to `max_retries` times, by whichever group is free; that a node was taken away with notice does not count. It
    has failed when no epoch ends within `epoch_timeout` seconds. Its best epoch is that by `metric`, and `costing` says what is
    measured of its network before the first one. A `final` one is trained on
    training and validation images together, and keeps the weights of its last epoch, with the value 0: there is nothing to score
    an epoch on. With more than one of `folds` it is trained once for each of them, and keeps the best epoch of the first.
    """

    trial: int
    config: TrialConfig
    data: DataConfig
    checkpoints: str
    begun: bool = False
    max_retries: int = 2
    epoch_timeout: float | None = None
    metric: str = "accuracy"
    final: bool = False
    folds: int = 1
    costing: Costing = field(default_factory=Costing)

    @property
    def fold_numbers(self) -> range:
        """Those of its folds, from 1; 0 alone where the images are divided once."""
        return range(1, self.folds + 1) if self.folds > 1 else range(1)


@dataclass(frozen=True)
class Report:
    """What a group says after an epoch, or instead of one: `error` is why the trial cannot go on, `kind` (OUT_OF_MEMORY, STORAGE,
    NO_GROUP or OVER_LIMIT) says of some errors what they are.

    `begun_at` and `reported_at` are times of day (seconds since 1970) by the clock of the group's first rank: when it took
    the trial and when it said this; `earlier` are the seconds that the trial had been trained before. `done` marks the trial's last
    report, `ends_fold` that of its last epoch or of a fold's. `log` is where more about an error is, host:path, and `after` the number
    of epochs before it. `costs` are those that were to be measured, `gradients` have one epoch.
    """

    group: str
    metrics: EpochMetrics | None
    done: bool
    begun_at: float
    reported_at: float
    parameters: int
    error: str | None = None
    kind: str | None = None
    log: str | None = None
    earlier: float = 0.0
    after: int = 0
    ends_fold: bool = False
    costs: Mapping[str, float] = field(default_factory=dict)
    gradients: Gradients | None = None

    @property
    def seconds(self) -> float:
        """How long the trial has been trained so far."""
        return self.earlier + self.reported_at - self.begun_at


_QUEUE, _GROUPS = "the queue", "the groups"
"""Topics beside the number of each trial and the name of each group."""


class Mailbox:
    """An actor, one per sweep. All waiting is done here: nobody polls, and a group never waits for whoever feeds it.

    `groups` are the names of the groups that there will be, to which others may be added. They take assignments from one queue,
    whichever is free; their reports are kept by trial number. `kill` ends a rank's process, whatever it is at.
    """

    def __init__(self, groups: Sequence[str], kill: Callable[[Any], None]) -> None:
        self._queue: deque[Assignment] = deque()
        self._groups = {name: _Group() for name in groups}
        self._reports: dict[int, list[Report]] = {}
        self._early: dict[int, dict[int, Report]] = defaultdict(dict)
        self._errors: dict[int, Report] = {}
        self._attempts: Counter[int] = Counter()
        self._handed_over: Counter[int] = Counter()
        self._stopped = set[int]()
        self._leaving: frozenset[str] = frozenset()
        self._failure: str | None = None
        self._all: int | None = None
        self._kill = kill
        self._clocks = set[asyncio.Task[None]]()
        self._waiting = Waiting()

    # ---- whoever feeds the groups ----

    async def add(self, groups: Sequence[str]) -> None:
        """More groups that there will be."""
        self._groups.update({name: _Group() for name in groups})

    async def census(self) -> tuple[int, int, bool]:
        """How many groups are up, how many there would be if all were that are not over, and whether there is work for more."""
        going_on = [members for members in self._groups.values() if not members.closed]
        up = sum(bool(members.ranks) for members in going_on)
        return up, len(going_on), bool(self._queue) or not self._has_all

    async def held(self) -> tuple[int, int]:
        """How many groups are up, and on how many nodes their ranks are."""
        up = [members for members in self._groups.values() if members.ranks and not members.closed]
        return len(up), len(set[str]().union(*(members.nodes for members in up)))

    async def no_more(self, posted: int) -> None:
        """After that many, which may still be on their way, no assignment is handed in any more.

        A group that finds none ends, and what it took up is free for others.
        """
        self._all = posted
        self._waiting.tell(_QUEUE)

    @property
    def _has_all(self) -> bool:
        return self._all is not None and len(self._reports) >= self._all

    async def post(self, assignment: Assignment) -> None:
        """Hand in an assignment."""
        self._reports[assignment.trial] = []
        self._queue.append(assignment)
        self._waiting.tell(_QUEUE)

    async def stop(self, trial: int) -> None:
        """End the trial at its next step; nobody reads its reports any more."""
        self._stopped.add(trial)
        self._queue = deque(a for a in self._queue if a.trial != trial)
        for name, members in self._groups.items():
            if any(a.trial == trial for a in members.unfinished()):
                members.stopped.append(trial)
                self._waiting.tell(name)

    async def leave(self, nodes: Collection[str]) -> None:
        """These nodes will be taken away soon: groups with ranks on them hand over the trials that they are at."""
        self._leaving = frozenset(nodes)
        self._waiting.tell(*self._groups)

    async def read(self, trial: int, position: int) -> Report:
        """The trial's report at `position`, waiting until there is one; an error (NO_GROUP) when no group is left."""
        await self._waiting.until(lambda: len(self._reports[trial]) > position or self._failure, trial)
        if len(self._reports[trial]) > position:
            return self._reports[trial][position]
        return _failed("", self._failure or "", None, NO_GROUP)

    async def close(self, group: str) -> bool:
        """End the group, and the trial that it is at; whether there is anybody to end."""
        members = self._groups.get(group)
        if members is None:
            return False
        members.closed = True
        given_up = [a.trial for a in members.unfinished()]
        self._stopped.update(given_up)
        members.stopped += given_up
        self._waiting.tell(group)
        return bool(members.ranks)

    async def died(self, group: str, cause: str) -> None:
        """Processes of the group have died, and those that are left end too; the group is to start again.

        The trial that it was at goes to whichever group is free, unless that has been tried often enough.
        """
        self._take_back(group, cause)
        self._groups[group].forget()
        self._waiting.tell(group)

    async def fail(self, group: str, reason: str) -> None:
        """The group could not be kept alive. The others go on; when none is left, all fails that is waited for."""
        self._take_back(group, reason)
        self._groups.pop(group).forget()
        if all(members.closed for members in self._groups.values()):
            self._failure = reason
            self._waiting.tell_all()
        self._waiting.tell(group, _GROUPS)

    def _take_back(self, group: str, cause: str) -> None:
        members = self._groups[group]
        back: list[Assignment] = []
        for assignment in members.unfinished():
            trial = assignment.trial
            deaths = self._attempts[trial] - self._handed_over[trial]
            if deaths > assignment.max_retries:
                often = f"Its worker processes died {deaths} times, the last time: {cause}"
                self._reports[trial].append(_failed(group, often, members.log, kind_of(cause)))
                self._waiting.tell(trial)
            elif trial not in self._stopped:
                back.append(assignment)
        self._queue.extendleft(reversed(back))
        self._waiting.tell(_QUEUE)

    async def up(self) -> None:
        """Returns when a rank of a group has joined, or no group is left that could be started."""
        await self._waiting.until(
            lambda: self._failure or any(members.joined for members in self._groups.values()), _GROUPS
        )

    # ---- the ranks of the groups ----

    async def join(self, group: str, rank: Any = None, log: str | None = None, node: str = "") -> int:
        """A rank of the group starts, or starts again: the index of the assignment that it has to begin with.

        `rank` is its actor, `log` the file (host:path) of what it prints, `node` the id of the node that it is on.
        """
        members = self._groups[group]
        members.joined = True
        members.ranks.append(rank)
        members.nodes.add(node)
        members.log = log or members.log
        self._waiting.tell(group, _GROUPS)
        return len(members.taken) - len(members.unfinished())

    async def take(self, group: str, index: int) -> Assignment | None:
        """The group's assignment at `index`, waiting until there is one; None when the group is to end.

        Every rank of the group takes each of them: the first that asks takes it from the queue.
        """
        members = self._groups[group]
        await self._waiting.until(
            lambda: members.closed or len(members.taken) > index or self._queue or self._has_all, group, _QUEUE
        )
        if len(members.taken) == index and not self._queue and self._has_all:
            members.closed = True
        if members.closed:
            return None
        if len(members.taken) == index:
            members.taken.append(self._queue.popleft())
        self._waiting.tell(group)
        return members.taken[index]

    async def begin(self, group: str, index: int) -> int:
        """Count an attempt at the group's assignment at `index`; called by its first rank. Gives how many have ended in a death."""
        members = self._groups[group]
        assignment = members.taken[index]
        members.taken[index] = replace(assignment, begun=True)
        self._attempts[assignment.trial] += 1
        if assignment.epoch_timeout is not None:
            clock = asyncio.create_task(self._watch(group, index, assignment, assignment.epoch_timeout))
            self._clocks.add(clock)  # the loop itself does not hold it
            clock.add_done_callback(self._clocks.discard)
        return self._attempts[assignment.trial] - self._handed_over[assignment.trial] - 1

    async def hand_over(self, group: str, index: int) -> None:
        """The group has saved the state of its assignment at `index` and is going to leave: the attempt does not count."""
        members = self._groups[group]
        if not members.is_lost(index):
            self._handed_over[members.taken[index].trial] += 1

    async def _watch(self, group: str, index: int, assignment: Assignment, timeout: float) -> None:
        """Fail the assignment when no epoch ends in time. Its processes may hang anywhere, so they are killed."""
        members, reports, attempt = (
            self._groups[group],
            self._reports[assignment.trial],
            self._attempts[assignment.trial],
        )

        def is_over() -> bool:
            return members.finished > index or self._attempts[assignment.trial] > attempt or members.is_lost(index)

        while not is_over():
            known = len(reports)
            with contextlib.suppress(TimeoutError):
                changed = self._waiting.until(
                    lambda: is_over() or len(reports) > known,  # noqa: B023 -- it ends in this turn
                    group,
                    assignment.trial,
                )
                await asyncio.wait_for(changed, timeout)
            if is_over() or len(reports) > known:
                continue
            reason = f"No epoch ended within {timeout:g} s, which is what --epoch-timeout allows."
            reports.append(_failed(group, reason, members.log))
            members.finished = index + 1
            for rank in members.ranks:
                self._kill(rank)
            self._waiting.tell(group, assignment.trial)

    async def report(self, trial: int, report: Report) -> None:
        """Add a report. An epoch that a restarted group went through again is dropped; one that overtook another waits for it."""
        reports, early = self._reports[trial], self._early[trial]
        if report.metrics is None:
            self._errors[trial] = report
        elif report.metrics.epoch > len(reports):
            early[report.metrics.epoch] = report
        while len(reports) + 1 in early:
            reports.append(early.pop(len(reports) + 1))
        # After a loss there may be more epochs here than the one who fails knows of.
        if trial in self._errors and len(reports) >= self._errors[trial].after:
            reports.append(self._errors.pop(trial))
        self._waiting.tell(trial)

    async def finish(self, group: str, index: int) -> None:
        """The group is through with its assignment at `index`, however that went; called by its first rank."""
        members = self._groups[group]
        if not members.is_lost(index):
            members.finished = index + 1
        self._waiting.tell(group)

    async def news(self, group: str, known: int, is_leaving: bool) -> tuple[list[int], bool]:
        """Those of its trials that were stopped, after the first `known`, and whether the group has to leave a node, once either is new."""
        members = self._groups[group]

        def leaves() -> bool:
            return not members.nodes.isdisjoint(self._leaving)

        await self._waiting.until(lambda: len(members.stopped) > known or leaves() != is_leaving, group)
        return members.stopped[known:], leaves()


@dataclass
class _Group:
    """What a group has taken so far; the first `finished` of those are over. `ranks` are those that are alive."""

    taken: list[Assignment] = field(default_factory=list)
    finished: int = 0
    joined: bool = False
    closed: bool = False
    ranks: list[Any] = field(default_factory=list)
    nodes: set[str] = field(default_factory=set)
    stopped: list[int] = field(default_factory=list)
    log: str | None = None

    def unfinished(self) -> list[Assignment]:
        return self.taken[self.finished :]

    def forget(self) -> None:
        """Its ranks are gone, and what they had taken and not finished is no longer theirs."""
        del self.taken[self.finished :]
        self.ranks.clear()
        self.nodes.clear()

    def is_lost(self, index: int) -> bool:
        """Whether the assignment at `index` was taken from it."""
        return index >= len(self.taken)


def _failed(group: str, reason: str, log: str | None, kind: str | None = None) -> Report:
    now = time.time()
    return Report(group, None, done=True, begun_at=now, reported_at=now, parameters=0, error=reason, kind=kind, log=log)


def work(config: dict[str, Any]) -> None:
    """The train function of a worker group. Only its ranks import torch: what starts and watches them does not need to.

    `config` has the "mailbox", the "group"'s name in it and the CPU "threads" of a rank.
    """
    from trainer.worker import take_assignments

    take_assignments(config["mailbox"], config["group"], config["threads"])
