"""The mailbox between a sweep and its worker groups, without Ray: `python -m pytest tests/test_mailbox.py`."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys

from tests.mailbox_ranks import Rank, as_far_as_it_goes, assignment, mailbox_with, report, run, waiting
from trainer.mailbox import Assignment, Report

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


# ---- stopping trials ----


def test_a_stopped_trial_is_told_to_those_who_follow() -> None:
    async def scenario() -> list[list[int]]:
        mailbox = await mailbox_with(0, 1, 2, 3)
        a, b = await Rank.join(mailbox, "a"), await Rank.join(mailbox, "b")
        await a.take()
        await b.take()
        follower = await waiting(mailbox.news("a", 0, False))
        await mailbox.stop(1)  # b's
        await mailbox.stop(0)
        first = await follower
        await a.finish()
        assert await a.take() == 2
        follower = await waiting(mailbox.news("a", 1, False))
        await mailbox.stop(2)
        return [first[0], (await follower)[0], (await mailbox.news("a", 0, False))[0]]

    assert run(scenario()) == [[0], [2], [0, 2]]


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
        await waiting(mailbox.news("b", 0, False))
        await mailbox.close("a")
        return (await mailbox.news("a", 0, False))[0]

    assert run(scenario()) == [1]


# ---- what travels ----


def test_what_the_mailbox_handles_can_be_sent_to_another_process() -> None:
    for thing in (assignment(3), report(1), report(None, error="x")):
        assert pickle.loads(pickle.dumps(thing)) == thing


def test_the_mailbox_imports_no_torch() -> None:
    code = "import sys, trainer.mailbox; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- starting ----


def test_it_is_up_when_a_group_has_joined_or_none_can() -> None:
    async def scenario() -> None:
        mailbox = await mailbox_with(groups="abc")
        up = asyncio.create_task(mailbox.up())
        await mailbox.fail("a", "it cannot start")
        done, _ = await asyncio.wait([up], timeout=0.05)
        assert not done
        assert await mailbox.census() == (0, 2, True)
        await mailbox.join("b")
        await up
        assert await mailbox.census() == (1, 2, True)
        hopeless = await mailbox_with(groups="a")
        await hopeless.fail("a", "it cannot start")
        await hopeless.up()

    run(scenario())


def test_a_group_that_is_added_takes_assignments_as_the_others_do() -> None:
    async def scenario() -> None:
        mailbox = await mailbox_with(groups="a")
        await mailbox.add(["b"])
        await mailbox.post(assignment(0))
        await mailbox.join("b")
        taken = await mailbox.take("b", 0)
        assert taken is not None
        assert taken.trial == 0
        assert await mailbox.census() == (1, 2, True)

    run(scenario())


def test_what_is_held_are_the_groups_that_are_up_and_the_nodes_of_their_ranks() -> None:
    async def scenario() -> None:
        mailbox = await mailbox_with(groups="abc")
        assert await mailbox.held() == (0, 0)
        for node in ("head", "worker"):
            await mailbox.join("a", rank=object(), node=node)
        await mailbox.join("b", rank=object(), node="worker")
        assert await mailbox.held() == (2, 2)
        await mailbox.died("a", "the node is gone")
        assert await mailbox.held() == (1, 1)
        await mailbox.close("b")
        assert await mailbox.held() == (0, 0)

    run(scenario())


def test_an_assignment_that_is_overtaken_by_the_word_that_no_more_will_come_is_waited_for() -> None:
    async def scenario() -> None:
        mailbox = await mailbox_with(groups="a")
        rank = await Rank.join(mailbox, "a")
        await mailbox.no_more(1)
        task = await waiting(rank.take())
        await mailbox.post(assignment(0))
        assert await task == 0

    run(scenario())


def test_a_group_ends_when_no_more_is_to_come_and_what_is_lost_after_that_is_still_taken() -> None:
    async def scenario() -> None:
        mailbox = await mailbox_with(groups="ab")
        for group in "ab":
            await mailbox.join(group)
        await mailbox.post(assignment(0))
        assert await mailbox.take("a", 0) is not None
        idle = asyncio.create_task(mailbox.take("b", 0))
        done, _ = await asyncio.wait([idle], timeout=0.05)
        assert not done
        await mailbox.no_more(1)
        assert await idle is None
        assert await mailbox.census() == (1, 1, False)
        await mailbox.died("a", "the node is gone")
        again = await mailbox.take("a", await mailbox.join("a"))
        assert again is not None
        assert again.trial == 0
        await mailbox.finish("a", 0)
        assert await mailbox.take("a", 1) is None

    run(scenario())
