"""What the mailbox does when ranks, groups and nodes are lost, without Ray: `python -m pytest tests/test_mailbox_losses.py`."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.mailbox_ranks import Rank, as_far_as_it_goes, assignment, mailbox_with, report, run, waiting
from trainer.failures import NO_GROUP, OUT_OF_MEMORY
from trainer.mailbox import Mailbox, Report

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
