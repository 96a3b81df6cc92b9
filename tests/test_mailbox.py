"""The mailbox between a sweep and its worker groups, without Ray: `python -m pytest tests/test_mailbox.py`."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from trainer.data import DataConfig
from trainer.failures import NO_GROUP, OUT_OF_MEMORY
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


# ---- taking assignments ----


def test_assignments_are_taken_in_the_order_in_which_they_were_posted() -> None:
    async def scenario() -> list[int | None]:
        rank = await Rank.join(await mailbox_with(5, 3, 9), "a")
        taken = []
        for _ in range(3):
            taken.append(await rank.take())
            await rank.begin()
            await rank.finish()
        return taken

    assert run(scenario()) == [5, 3, 9]


def test_an_assignment_arrives_as_it_was_posted() -> None:
    async def scenario() -> Assignment | None:
        mailbox = await mailbox_with(4)
        return await mailbox.take("a", await mailbox.join("a"))

    assert run(scenario()) == assignment(4)


def test_all_ranks_of_a_group_take_the_same_assignments() -> None:
    async def scenario() -> list[list[int | None]]:
        mailbox = await mailbox_with(0, 1)
        ranks = [await Rank.join(mailbox, "a") for _ in range(3)]
        taken = []
        for _ in range(2):
            taken.append([await rank.take() for rank in ranks])
            await ranks[0].begin()
            await ranks[0].finish()
        return taken

    assert run(scenario()) == [[0, 0, 0], [1, 1, 1]]


def test_no_two_groups_take_the_same_assignment() -> None:
    async def scenario() -> list[int | None]:
        mailbox = await mailbox_with(0, 1, 2)
        a, b = await Rank.join(mailbox, "a"), await Rank.join(mailbox, "b")
        return [await a.take(), await b.take(), await a.take()]

    assert run(scenario()) == [0, 1, 2]


def test_a_group_waits_until_there_is_an_assignment() -> None:
    async def scenario() -> int | None:
        mailbox = await mailbox_with()
        rank = await Rank.join(mailbox, "a")
        task = await waiting(rank.take())
        await mailbox.post(assignment(7))
        return await task

    assert run(scenario()) == 7


def test_of_several_groups_that_wait_one_takes_the_assignment_and_the_others_go_on_waiting() -> None:
    async def scenario() -> tuple[int, int]:
        mailbox = await mailbox_with()
        tasks = [await waiting((await Rank.join(mailbox, group)).take()) for group in "abc"]
        await mailbox.post(assignment(1))
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return len(done), len(pending)

    assert run(scenario()) == (1, 2)


# ---- reports ----


def test_reports_are_read_by_their_position() -> None:
    async def scenario() -> list[Report]:
        mailbox = await mailbox_with(0, 1)
        await mailbox.report(0, report(1))
        await mailbox.report(1, report(1, done=True))
        await mailbox.report(0, report(2))
        return [await mailbox.read(0, 0), await mailbox.read(0, 1), await mailbox.read(1, 0), await mailbox.read(0, 0)]

    assert run(scenario()) == [report(1), report(2), report(1, done=True), report(1)]


def test_a_reader_waits_for_the_report() -> None:
    async def scenario() -> Report:
        mailbox = await mailbox_with(0, 1)
        await mailbox.report(0, report(1))
        task = await waiting(mailbox.read(0, 1))
        await mailbox.report(1, report(1))  # another trial's
        await as_far_as_it_goes(asyncio.sleep(0))
        assert not task.done()
        await mailbox.report(0, report(2))
        return await task

    assert run(scenario()) == report(2)


def test_an_error_is_a_report() -> None:
    async def scenario() -> Report:
        mailbox = await mailbox_with(0)
        await mailbox.report(0, report(1))
        await mailbox.report(0, report(None, done=True, error="out of memory", after=1))
        return await mailbox.read(0, 1)

    assert run(scenario()).error == "out of memory"


def test_epochs_that_a_restarted_group_goes_through_again_are_dropped() -> None:
    async def scenario() -> list[int]:
        mailbox = await mailbox_with(0)
        for epoch in (1, 2, 1, 2, 3):
            await mailbox.report(0, report(epoch))
        found = [await mailbox.read(0, position) for position in range(3)]
        await waiting(mailbox.read(0, 3))
        return [r.metrics.epoch for r in found if r.metrics]

    assert run(scenario()) == [1, 2, 3]


def test_reports_that_overtake_each_other_are_read_in_their_order() -> None:
    async def scenario() -> list[Report]:
        mailbox = await mailbox_with(0)
        last = report(None, done=True, error="out of memory", after=4)
        for one in (report(2), last, report(1), report(4), report(2), report(3)):
            await mailbox.report(0, one)
        return [await mailbox.read(0, position) for position in range(5)]

    found = run(scenario())
    assert [r.metrics.epoch for r in found if r.metrics] == [1, 2, 3, 4]
    assert found[4].error == "out of memory"


def test_an_error_in_an_epoch_that_is_trained_again_is_told() -> None:
    """The epoch was reported, but its state not yet written when the processes died."""

    async def scenario() -> list[str | None]:
        mailbox = await mailbox_with(0)
        for one in (report(1), report(2), report(1), report(None, done=True, error="out of memory", after=1)):
            await mailbox.report(0, one)
        return [(await mailbox.read(0, position)).error for position in range(3)]

    assert run(scenario()) == [None, None, "out of memory"]


# ---- groups that start again ----


def test_a_restarted_group_begins_with_the_assignment_that_it_did_not_finish() -> None:
    async def scenario() -> list[int | None]:
        mailbox = await mailbox_with(0, 1, 2)
        rank = await Rank.join(mailbox, "a")
        await rank.take()
        await rank.begin()
        await rank.finish()
        await rank.take()
        await rank.begin()
        again = await Rank.join(mailbox, "a")
        return [await again.take(), await again.take()]

    assert run(scenario()) == [1, 2]


def test_a_restarted_group_that_had_finished_goes_on_with_the_next() -> None:
    async def scenario() -> int | None:
        mailbox = await mailbox_with(0, 1)
        rank = await Rank.join(mailbox, "a")
        await rank.take()
        await rank.begin()
        await rank.finish()
        return await (await Rank.join(mailbox, "a")).take()

    assert run(scenario()) == 1


def test_the_attempts_at_an_assignment_that_ended_in_a_death_are_counted() -> None:
    async def scenario() -> list[int]:
        mailbox = await mailbox_with(0, 1)
        attempts = []
        for _ in range(3):
            rank = await Rank.join(mailbox, "a")
            await rank.take()
            attempts.append(await rank.begin())
        await rank.finish()
        await rank.take()
        return [*attempts, await rank.begin()]

    assert run(scenario()) == [0, 1, 2, 0]


def test_an_assignment_that_a_faster_rank_has_taken_already_is_not_finished_with_the_last() -> None:
    """The first rank still writes a checkpoint and reports when the second asks for the next assignment."""

    async def scenario() -> int | None:
        mailbox = await mailbox_with(0, 1)
        first, second = await Rank.join(mailbox, "a"), await Rank.join(mailbox, "a")
        await first.take()
        await second.take()
        await first.begin()
        await second.take()
        await first.finish()
        again = await as_far_as_it_goes((await Rank.join(mailbox, "a")).take())  # both died
        assert again.done()
        return again.result()

    assert run(scenario()) == 1


def test_an_attempt_counts_for_the_first_ranks_assignment_and_not_for_that_of_a_faster_rank() -> None:
    """A configuration that no network can be built from ends on the second rank before the first has begun."""

    async def scenario() -> list[int]:
        mailbox = await mailbox_with(0, 1)
        first, second = await Rank.join(mailbox, "a"), await Rank.join(mailbox, "a")
        await first.take()
        await second.take()
        await second.take()
        attempts = [await first.begin()]
        await first.finish()
        await first.take()
        return [*attempts, await first.begin()]

    assert run(scenario()) == [0, 0]


# ---- processes that die ----


def test_the_trial_of_a_group_that_died_is_taken_by_whichever_group_is_free() -> None:
    async def scenario() -> list[int | None]:
        mailbox = await mailbox_with(0, 1, 2)
        a, b = await Rank.join(mailbox, "a"), await Rank.join(mailbox, "b")
        taken = [await a.take(), await b.take()]
        await a.begin()
        await b.begin()
        await mailbox.died("a", "killed")
        await b.finish()
        again = await Rank.join(mailbox, "a")
        return [*taken, await b.take(), await again.take()]

    assert run(scenario()) == [0, 1, 0, 2]


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        ("killed", None),
        ("the node was running low on memory", OUT_OF_MEMORY),
        ("CUDA out of memory. Tried to allocate 2 GiB", OUT_OF_MEMORY),
        ("Some common causes include: the process was killed by the OOM killer", None),
    ],
)
def test_a_trial_whose_processes_die_again_and_again_fails_with_the_cause(cause: str, kind: str | None) -> None:
    async def scenario() -> tuple[Report, int | None]:
        mailbox = await mailbox_with(0, 1)
        for _ in range(3):
            rank = await Rank.join(mailbox, "a")
            assert await rank.take() == 0
            await rank.begin()
            await mailbox.died("a", cause)
        return await mailbox.read(0, 0), await (await Rank.join(mailbox, "a")).take()

    lost, following = run(scenario())
    assert (lost.done, lost.kind, following) == (True, kind, 1)
    assert lost.error == f"Its worker processes died 3 times, the last time: {cause}"


def test_a_trial_that_was_stopped_is_not_begun_again_when_its_group_dies() -> None:
    async def scenario() -> int | None:
        mailbox = await mailbox_with(0, 1)
        rank = await Rank.join(mailbox, "a")
        await rank.take()
        await rank.begin()
        await mailbox.stop(0)
        await mailbox.died("a", "killed")
        return await (await Rank.join(mailbox, "a")).take()

    assert run(scenario()) == 1


def test_a_group_that_dies_without_a_trial_loses_nothing() -> None:
    async def scenario() -> list[int | None]:
        mailbox = await mailbox_with(0, 1)
        rank = await Rank.join(mailbox, "a")
        taken = [await rank.take()]
        await rank.begin()
        await rank.finish()
        await mailbox.died("a", "killed")
        return [*taken, await (await Rank.join(mailbox, "a")).take()]

    assert run(scenario()) == [0, 1]


def test_what_a_dead_rank_still_had_to_say_does_not_end_the_trial_of_its_successor() -> None:
    async def scenario() -> int | None:
        mailbox = await mailbox_with(0)
        rank = await Rank.join(mailbox, "a")
        await rank.take()
        await rank.begin()
        await mailbox.died("a", "killed")
        await rank.finish()
        return await (await Rank.join(mailbox, "a")).take()

    assert run(scenario()) == 0


def test_closing_says_whether_a_group_has_anybody_to_end() -> None:
    async def scenario() -> list[bool]:
        mailbox = await mailbox_with(groups="abcd")
        for group in "abc":
            await mailbox.join(group)
        await mailbox.died("b", "killed")
        await mailbox.fail("c", "the node is gone")
        return [await mailbox.close(group) for group in "abcd"]

    assert run(scenario()) == [True, False, False, False]


# ---- epochs that do not end ----


def test_a_trial_without_an_epoch_in_time_fails_and_its_ranks_are_killed() -> None:
    async def scenario() -> tuple[Report, list[str], int | None]:
        killed: list[str] = []
        mailbox = Mailbox(["a"], killed.append)
        await mailbox.post(replace(assignment(0), epoch_timeout=0.05))
        await mailbox.post(assignment(1))
        indices = [await mailbox.join("a", rank, "host:/log") for rank in ("first", "second")]
        await mailbox.take("a", indices[0])
        await mailbox.begin("a", indices[0])
        late = await mailbox.read(0, 0)
        await mailbox.died("a", "killed")
        return late, killed, await (await Rank.join(mailbox, "a")).take()

    late, killed, following = run(scenario())
    assert "No epoch ended within 0.05 s" in (late.error or "")
    assert (late.done, late.log, killed, following) == (True, "host:/log", ["first", "second"], 1)


def test_the_time_for_an_epoch_begins_anew_with_each_and_ends_with_the_trial() -> None:
    async def scenario() -> tuple[list[Report], list[object]]:
        killed: list[object] = []
        mailbox = Mailbox(["a"], killed.append)
        await mailbox.post(replace(assignment(0), epoch_timeout=2.0))
        rank = await Rank.join(mailbox, "a")
        await rank.take()
        await rank.begin()
        for epoch in (1, 2):
            await asyncio.sleep(0)
            await mailbox.report(0, report(epoch))
        await rank.finish()
        (clock,) = mailbox._clocks
        await clock  # ends at once, not after its time
        return mailbox._reports[0], killed

    assert run(scenario()) == ([report(1), report(2)], [])


# ---- nodes that are taken away ----


def test_the_groups_on_a_node_that_will_be_taken_away_are_told_and_no_others() -> None:
    async def scenario() -> list[bool]:
        mailbox = await mailbox_with()
        for group, node in (("a", "here"), ("a", "there"), ("b", "here")):
            await Rank.join(mailbox, group, node)
        a, b = [await waiting(mailbox.news(group, 0, False)) for group in "ab"]
        await mailbox.leave(["there"])
        told = [(await a)[1]]
        await waiting(mailbox.news("a", 0, True))
        assert not b.done()
        await mailbox.leave(["here"])
        return [*told, (await b)[1]]

    assert run(scenario()) == [True, True]


def test_a_group_that_has_left_such_a_node_is_told_nothing_of_it() -> None:
    async def scenario() -> None:
        mailbox = await mailbox_with()
        await mailbox.leave(["here"])
        await Rank.join(mailbox, "a", "here")
        assert await mailbox.news("a", 0, False) == ([], True)
        await mailbox.died("a", "the node is taken away")
        await Rank.join(mailbox, "a", "there")
        await waiting(mailbox.news("a", 0, False))

    run(scenario())


def test_a_trial_that_was_handed_over_is_begun_again_as_often_as_it_takes() -> None:
    async def scenario() -> list[tuple[int, bool]]:
        mailbox, attempts = await mailbox_with(0), []
        for _ in range(4):
            rank = await Rank.join(mailbox, "a")
            taken = await mailbox.take("a", rank.index)
            assert taken is not None
            attempts.append((await mailbox.begin("a", rank.index), taken.begun))
            await mailbox.hand_over("a", rank.index)
            await mailbox.died("a", "the node is taken away")
        return attempts

    assert run(scenario()) == [(0, False), (0, True), (0, True), (0, True)]


# ---- stopping trials ----


def test_a_stopped_trial_is_told_to_those_who_follow() -> None:
    async def scenario() -> list[list[int]]:
        mailbox = await mailbox_with(0, 1, 2)
        follower = await waiting(mailbox.news("a", 0, False))
        await mailbox.stop(1)
        first = await follower
        follower = await waiting(mailbox.news("a", 1, False))
        await mailbox.stop(0)
        return [first[0], (await follower)[0], (await mailbox.news("a", 0, False))[0]]

    assert run(scenario()) == [[1], [0], [1, 0]]


def test_a_stopped_trial_is_not_taken_any_more() -> None:
    async def scenario() -> list[int | None]:
        mailbox = await mailbox_with(0, 1, 2)
        rank = await Rank.join(mailbox, "a")
        await mailbox.stop(0)
        await mailbox.stop(2)
        taken = [await rank.take()]
        await waiting(rank.take())
        return taken

    assert run(scenario()) == [1]


def test_a_trial_that_runs_is_stopped_and_its_group_takes_the_next() -> None:
    async def scenario() -> tuple[list[int], int | None]:
        mailbox = await mailbox_with(0, 1)
        rank = await Rank.join(mailbox, "a")
        await rank.take()
        await rank.begin()
        await mailbox.stop(0)
        stopped, _ = await mailbox.news("a", 0, False)
        await rank.finish()
        return stopped, await rank.take()

    assert run(scenario()) == ([0], 1)


# ---- closing groups ----


def test_a_closed_group_takes_nothing_more() -> None:
    async def scenario() -> list[int | None]:
        mailbox = await mailbox_with(0)
        rank = await Rank.join(mailbox, "a")
        await mailbox.close("a")
        other = await Rank.join(mailbox, "b")
        return [await rank.take(), await other.take()]

    assert run(scenario()) == [None, 0]


def test_a_group_that_waits_is_let_go_when_it_is_closed() -> None:
    async def scenario() -> list[int | None]:
        mailbox = await mailbox_with()
        tasks = [await waiting((await Rank.join(mailbox, "a")).take()) for _ in range(2)]
        await mailbox.close("a")
        return [await task for task in tasks]

    assert run(scenario()) == [None, None]


def test_a_group_that_is_closed_before_it_has_started_ends_at_once() -> None:
    async def scenario() -> int | None:
        mailbox = await mailbox_with(0)
        await mailbox.close("a")
        return await (await Rank.join(mailbox, "a")).take()

    assert run(scenario()) is None


def test_closing_a_group_stops_the_trial_that_it_is_at_and_no_other() -> None:
    async def scenario() -> list[int]:
        mailbox = await mailbox_with(0, 1, 2)
        a, b = await Rank.join(mailbox, "a"), await Rank.join(mailbox, "b")
        await a.take()
        await a.begin()
        await a.finish()
        await a.take()
        await a.begin()
        await b.take()
        await mailbox.close("a")
        return (await mailbox.news("b", 0, False))[0]

    assert run(scenario()) == [1]


# ---- groups that are lost ----


def test_the_trial_of_a_lost_group_is_taken_by_another_before_all_others() -> None:
    async def scenario() -> list[int | None]:
        mailbox = await mailbox_with(0, 1, 2)
        a, b = await Rank.join(mailbox, "a"), await Rank.join(mailbox, "b")
        taken = [await a.take(), await b.take()]
        await a.begin()
        await mailbox.fail("a", "the node is gone")
        await b.finish()
        return [*taken, await b.take(), await b.take()]

    assert run(scenario()) == [0, 1, 0, 2]


def test_whoever_waits_is_told_when_no_group_is_left() -> None:
    async def scenario() -> list[Report]:
        mailbox = await mailbox_with(0, 1, groups="a")
        rank = await Rank.join(mailbox, "a")
        await rank.take()
        task = await waiting(mailbox.read(1, 0))
        await mailbox.fail("a", "the node is gone")
        return [await mailbox.read(0, 0), await task, await mailbox.read(1, 0)]

    for lost in run(scenario()):
        assert (lost.metrics, lost.done, lost.error, lost.kind) == (None, True, "the node is gone", NO_GROUP)


def test_what_was_reported_can_be_read_when_no_group_is_left() -> None:
    async def scenario() -> Report:
        mailbox = await mailbox_with(0, groups="a")
        rank = await Rank.join(mailbox, "a")
        await rank.take()
        await mailbox.report(0, report(1, done=True))
        await rank.finish()
        await mailbox.fail("a", "the node is gone")
        return await mailbox.read(0, 0)

    assert run(scenario()) == report(1, done=True)


def test_a_group_that_never_came_up_is_a_lost_group_too() -> None:
    async def scenario() -> Report:
        mailbox = await mailbox_with(0, groups="a")
        await mailbox.fail("a", "no such GPU")
        return await mailbox.read(0, 0)

    assert run(scenario()).error == "no such GPU"


def test_a_group_that_cannot_start_leaves_the_trials_to_those_that_have_not_started_yet() -> None:
    async def scenario() -> Report:
        mailbox = await mailbox_with(0, groups="ab")
        await mailbox.fail("a", "no such GPU")
        task = await waiting(mailbox.read(0, 0))
        assert await (await Rank.join(mailbox, "b")).take() == 0
        await mailbox.report(0, report(1))
        return await task

    assert run(scenario()) == report(1)


# ---- what travels ----


def test_what_the_mailbox_handles_can_be_sent_to_another_process() -> None:
    for thing in (assignment(3), report(1), report(None, error="x")):
        assert pickle.loads(pickle.dumps(thing)) == thing


def test_the_mailbox_imports_no_torch() -> None:
    code = "import sys, trainer.mailbox; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- starting ----


def test_the_groups_are_up_when_each_that_could_be_started_has_joined() -> None:
    async def scenario() -> None:
        mailbox = await mailbox_with(groups="ab")
        up = asyncio.create_task(mailbox.up())
        await mailbox.join("a")
        done, _ = await asyncio.wait([up], timeout=0.05)
        assert not done
        await mailbox.fail("b", "it cannot start")
        await up

    run(scenario())
