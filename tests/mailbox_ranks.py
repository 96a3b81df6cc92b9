"""A mailbox without Ray, and ranks that take from it as `trainer.worker` does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from trainer.data import DataConfig
from trainer.hyperparameters import TrialConfig
from trainer.mailbox import Assignment, Mailbox, Report
from trainer.metrics import EpochMetrics

T = TypeVar("T")
LONG = 30.0  # seconds until a wait that should have ended is taken for endless


def run(scenario: Coroutine[Any, Any, T]) -> T:
    async def with_limit() -> T:
        return await asyncio.wait_for(scenario, LONG)

    return asyncio.run(with_limit())


def assignment(trial: int) -> Assignment:
    return Assignment(trial, TrialConfig(), DataConfig(data="digits"), "checkpoints")


def report(epoch: int | None, *, done: bool = False, error: str | None = None, after: int = 0) -> Report:
    metrics = None
    if epoch is not None:
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss=1.0,
            val_loss=1.0,
            val_accuracy=epoch / 100,
            learning_rate=0.1,
            images_per_second=1.0,
            seconds=1.0,
        )
    facts = {"begun_at": 0.0, "reported_at": 1.0, "parameters": 5}
    return Report(group="a", metrics=metrics, done=done, error=error, after=after, **facts)  # type: ignore[arg-type]


async def mailbox_with(*trials: int, groups: str = "abc") -> Mailbox:
    """A mailbox for the groups a, b and c, in which these trials wait."""
    mailbox = Mailbox(list(groups), kill=lambda rank: None)
    for trial in trials:
        await mailbox.post(assignment(trial))
    return mailbox


class Rank:
    """A rank of a group as `trainer.worker` drives it: join, then take one assignment after the other."""

    def __init__(self, mailbox: Mailbox, group: str) -> None:
        self.mailbox, self.group = mailbox, group

    @classmethod
    async def join(cls, mailbox: Mailbox, group: str, node: str = "") -> Rank:
        rank = cls(mailbox, group)
        rank.index = await mailbox.join(group, node=node)
        return rank

    async def take(self) -> int | None:
        """The number of the next trial, or None at the end."""
        taken = await self.mailbox.take(self.group, self.index)
        self.index += 1
        return taken.trial if taken else None

    async def begin(self) -> int:
        return await self.mailbox.begin(self.group, self.index - 1)

    async def finish(self) -> None:
        await self.mailbox.finish(self.group, self.index - 1)


async def as_far_as_it_goes(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """The coroutine as a task that is done or waits for something."""
    task = asyncio.create_task(coroutine)
    for _ in range(20):
        await asyncio.sleep(0)
    return task


async def waiting(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """The coroutine as a task that waits; fails if it is done."""
    task = await as_far_as_it_goes(coroutine)
    assert not task.done()
    return task
