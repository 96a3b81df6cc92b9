"""Budgets of time, GPU-hours and money: `python -m pytest tests/test_budget.py -q`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import reading, tables, watch
from cluster.budget import RECORD_SECONDS, Amounts, Budget, Ending, Limit, Spent
from cluster.config import SweepConfig, make_config
from cluster.connection import Cluster
from cluster.experiments import Experiments
from cluster.extension import More
from cluster.plan import Plan
from cluster.studies import Studies
from cluster.study import SweepStudy
from cluster.sweep import _ending, _is_done
from trainer.metrics import EpochMetrics

HOUR = 3600.0


@pytest.fixture
def advance(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let so many seconds pass."""
    now = 1e9
    monkeypatch.setattr(time, "time", lambda: now)

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    return pass_by


def config(**settings: object) -> SweepConfig:
    return make_config({"name": "s", "data": "digits", "epochs": 1, "preset": "none"} | settings)


def create(folder: Path, **settings: object) -> SweepStudy:
    """A sweep that is being run."""
    wanted = config(**settings)
    study = Studies(Experiments(folder), create=True).create(wanted, ["a", "b"])
    study.begin_run(wanted, groups=1)
    return study


def run_trial(study: SweepStudy, accuracy: float = 0.5) -> None:
    trial = study.ask()
    trial.report(EpochMetrics(1, 1.0, 1.0, accuracy, 0.1, 10.0, 1.0), 1.0)
    trial.complete()


# ---- what is spent ----


def test_gpus_count_as_long_as_their_groups_are_up_and_nodes_once_however_many_groups_they_have(
    advance: Callable[[float], None],
) -> None:
    spent = Spent(Budget(gpu_hours=100), Amounts(), gpus_per_group=Plan(2, 2, 1.0, 0.5, 2, 2).gpus_per_group)
    advance(HOUR)  # the groups start
    spent.hold(groups=2, nodes=1)
    advance(HOUR)
    spent.hold(groups=3, nodes=2)
    advance(HOUR / 2)
    spent.hold(groups=0, nodes=0)
    advance(HOUR)
    assert spent.amounts() == Amounts(seconds=3.5 * HOUR, gpu_hours=2 + 1.5, node_hours=1 + 1)


def test_what_was_held_last_counts_until_something_else_is_told(advance: Callable[[float], None]) -> None:
    spent = Spent(Budget(gpu_hours=3), Amounts(), gpus_per_group=1)
    spent.hold(groups=1, nodes=1)
    advance(2 * HOUR)
    assert not spent.is_over()
    advance(HOUR)
    assert spent.is_over()


def test_a_clock_that_is_set_back_gives_nothing_back(advance: Callable[[float], None]) -> None:
    spent = Spent(Budget(), Amounts(), gpus_per_group=1)
    spent.hold(groups=1, nodes=1)
    advance(HOUR)
    spent.hold(groups=1, nodes=1)
    advance(-2 * HOUR)
    assert spent.amounts() == Amounts(seconds=0.0, gpu_hours=1.0, node_hours=1.0)


def test_what_is_spent_is_recorded_at_once_and_then_every_half_minute(advance: Callable[[float], None]) -> None:
    recorded: list[Amounts] = []
    spent = Spent(Budget(), Amounts(), gpus_per_group=1, record=recorded.append)
    for _ in range(60):
        spent.hold(groups=1, nodes=1)
        advance(2)
    assert [amounts.seconds for amounts in recorded] == [0, 30, 60, 90]
    assert RECORD_SECONDS == 30
    assert recorded[-1].gpu_hours == pytest.approx(90 / HOUR)


def test_earlier_runs_count(advance: Callable[[float], None]) -> None:
    budget = Budget(time_budget=10 * HOUR, max_cost=30, price_per_node_hour=2.5)
    spent = Spent(budget, Amounts(seconds=HOUR, node_hours=8), gpus_per_group=0)
    spent.hold(groups=4, nodes=2)
    advance(HOUR)
    assert spent.limits() == (Limit("time_budget", 2 * HOUR, 10 * HOUR), Limit("max_cost", 25.0, 30))
    advance(HOUR)
    assert spent.ending(7) == Ending("max_cost", "The sweep has ended: 30.00 of 30 for nodes spent after 7 trials.")


def test_limits_are_told_in_their_own_units() -> None:
    budget = Budget(time_budget=1800, gpu_hours=4, max_cost=20, price_per_node_hour=1.25)
    told = [str(limit) for limit in budget.limits(Amounts(723, 1.239, 2.48))]
    assert told == ["12m 03s of 30m 00s", "1.24 of 4 GPU-hours", "3.10 of 20 for nodes"]


def test_every_look_at_the_cluster_tells_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def answering(answer: tuple[object, ...]) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda: answer)

    monkeypatch.setattr(watch.ray, "get", lambda answer: answer)
    monkeypatch.setattr(watch, "draining_nodes", frozenset)
    mailbox = SimpleNamespace(held=answering((2, 1)), census=answering((2, 2, True)))
    held: list[tuple[int, int]] = []
    plan, cluster = Plan(2, 1, 1.0, 0.0, 2, 2), Cluster(can_change=False)
    looking = watch.ClusterWatch(plan, cluster, mailbox, print, print, lambda *now: held.append(now))
    looking._look()
    assert held == [(2, 1)]


# ---- what a user says ----


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_cost": 20}, "max_cost needs to know what a node costs, but got 20 without price_per_node_hour"),
        ({"gpu_hours": 0}, "gpu_hours must be greater than 0, but got 0."),
        ({"gpu_hours": float("nan")}, "gpu_hours must be greater than 0, but got nan."),
        ({"max_cost": -1, "price_per_node_hour": 1}, "max_cost must be greater than 0, but got -1."),
        ({"max_cost": 1, "price_per_node_hour": float("inf")}, "price_per_node_hour must be greater than 0"),
        ({"gpu_hours": "4h"}, "gpu_hours must be a number, but got '4h'."),
        ({"min_gain": -0.1}, "min_gain must be 0 or more, but got -0.1."),
        ({"tensorboard": "yes"}, "tensorboard must be true or false, but got 'yes'."),
        ({"sampler": "grid", "min_gain": 0.1}, "A grid tries every combination and expects nothing"),
    ],
)
def test_a_budget_that_makes_no_sense_is_answered_with_the_rule(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        config(**settings)
    assert words in str(error.value)


def test_any_limit_leaves_the_number_of_trials_open() -> None:
    assert config(gpu_hours=4).trials is None
    assert config(max_cost=20, price_per_node_hour=1).trials is None
    assert config(gpu_hours=4, trials=3).trials == 3
    assert config(min_gain=0.001).trials == 20
    assert config(price_per_node_hour=1).trials == 20


def test_a_sweep_without_any_end_is_refused() -> None:
    values = config(trials=3).to_json() | {"trials": None}
    with pytest.raises(ValueError, match="give trials, time_budget, gpu_hours or max_cost"):
        SweepConfig.from_json(values)


def test_gpu_hours_are_refused_where_groups_have_no_gpus() -> None:
    config(gpu_hours=4).budget.check_for(gpus_per_group=0.5)
    config(max_cost=1, price_per_node_hour=1).budget.check_for(gpus_per_group=0)
    with pytest.raises(ValueError, match="gpu_hours limits what worker groups have of GPUs, but got 4 where they"):
        config(gpu_hours=4).budget.check_for(gpus_per_group=0)


def test_a_sweep_that_was_recorded_without_a_budget_has_none() -> None:
    new = ("gpu_hours", "max_cost", "price_per_node_hour", "min_gain", "tensorboard")
    old = {name: value for name, value in config(trials=3).to_json().items() if name not in new}
    assert SweepConfig.from_json(json.loads(json.dumps(old))) == config(trials=3)


# ---- the record ----


def test_a_resumed_sweep_goes_on_from_what_was_spent(tmp_path: Path) -> None:
    study = create(tmp_path, gpu_hours=4)
    study.note_spent(Amounts(99.0, 1.5, 0.75))  # and then its process is killed
    again = Studies(Experiments(tmp_path)).open("s")
    again.close_lost_run(ended=again.read().runs[0]["begun"] + 7)
    assert again.spent() == Amounts(7.0, 1.5, 0.75)


def test_the_ranking_says_what_is_spent_and_why_the_sweep_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = create(tmp_path, max_cost=2, price_per_node_hour=4)
    run_trial(study)
    study.note_spent(Amounts(0.0, 1.5, 0.75))
    study.note_ending(Ending("max_cost", "Enough."))
    study.end_run("FINISHED")
    tables.show_ranking(study.read(), None, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["spent"].pop("seconds") == pytest.approx(document["wall_seconds"], abs=1e-3)
    assert document["spent"] == {"trials": 1, "gpu_hours": 1.5, "node_hours": 0.75, "cost": 3.0}
    assert document["reason"] == "Enough."
    (summary,) = reading.summaries(study._reader.engine)
    assert (summary.limits, summary.ending) == ((Limit("max_cost", 3.0, 2),), Ending("max_cost", "Enough."))


def test_of_a_sweep_for_which_nobody_has_counted_nothing_is_said(tmp_path: Path) -> None:
    study = create(tmp_path, trials=3)
    study.end_run("FINISHED")
    told = study.read().spent_to_json()
    assert {name: told[name] for name in ("gpu_hours", "node_hours", "cost")} == {
        "gpu_hours": None,
        "node_hours": None,
        "cost": None,
    }
    assert study.read().ending is None


def test_reading_a_sweep_twice_gives_the_same_record_though_time_has_passed(
    tmp_path: Path, advance: Callable[[float], None]
) -> None:
    study = create(tmp_path, time_budget=60)
    before = study.read()
    advance(10)
    assert study.read() is before
    assert before.spent.seconds == 10


# ---- the end ----


def test_a_sweep_that_has_all_its_trials_ended_for_no_other_reason(
    tmp_path: Path, advance: Callable[[float], None]
) -> None:
    study = create(tmp_path, trials=2, time_budget=60)
    spent = Spent(study.config.budget, study.spent())
    advance(61)
    run_trial(study)
    ending = _ending(study, study.config, spent)
    assert ending == Ending("time_budget", "The sweep has ended: 1m 01s of 1m 00s spent after 1 trial.")
    run_trial(study)
    assert _ending(study, study.config, spent) is None


def test_a_sweep_whose_budget_is_spent_is_done_when_nothing_has_begun(tmp_path: Path) -> None:
    study = create(tmp_path, gpu_hours=4)
    trial = study.ask()
    study.note_spent(Amounts(0.0, 4.5, 1.0))
    assert not _is_done(study, study.config)
    trial.report(EpochMetrics(1, 1.0, 1.0, 0.5, 0.1, 10.0, 1.0), 1.0)
    trial.wait()
    study.end_run("INTERRUPTED")
    assert not _is_done(study, study.config)  # what has begun is trained to its end
    trial.complete()
    assert _is_done(study, study.config)
    assert not _is_done(study, More(gpu_hours=1).of(study))


# ---- more of it ----


def test_extend_gives_more_of_each_on_top_of_what_is_spent(tmp_path: Path) -> None:
    study = create(tmp_path, gpu_hours=4, max_cost=20, price_per_node_hour=2)
    study.note_spent(Amounts(0.0, 4.5, 11.0))
    study.end_run("FINISHED")
    more = More(gpu_hours=2, max_cost=5).of(study)
    assert (more.gpu_hours, more.max_cost, more.trials, more.time_budget) == (6.5, 27.0, None, None)


def test_a_limit_of_money_stays_when_something_else_is_given(tmp_path: Path) -> None:
    study = create(tmp_path, max_cost=20, price_per_node_hour=2)
    study.note_spent(Amounts(0.0, 0.0, 9.0))
    more = More(trials=5).of(study)
    assert (more.trials, more.max_cost) == (5, 20)
    study.note_spent(Amounts(0.0, 0.0, 10.0))
    with pytest.raises(
        ValueError, match=r"max_cost is spent \(20.00 of 20 for nodes\): give it more of that, too, with --max"
    ):
        More(trials=5).of(study)
    assert More(trials=5, max_cost=1).of(study).max_cost == 21


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (More(), "--trials, --time-budget, --gpu-hours or --max-cost"),
        (More(max_cost=3), "max_cost needs to know what a node costs"),
        (More(gpu_hours=-1), "gpu_hours must be greater than 0, but got -1."),
        (More(max_cost=float("nan")), "max_cost must be greater than 0, but got nan."),
    ],
)
def test_what_cannot_be_given_is_refused(tmp_path: Path, more: More, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        more.of(create(tmp_path, trials=3))


def test_a_sweep_that_ended_before_it_had_its_trials_gets_only_those_that_are_given(tmp_path: Path) -> None:
    study = create(tmp_path, trials=100, min_gain=0.001)
    run_trial(study)
    assert More(trials=5).of(study).trials == 105  # it was interrupted
    assert More(trials=5).of(study).min_gain == 0.001
    study.note_ending(Ending("min_gain", "Nothing more is expected."))
    assert More(trials=5).of(study).trials == 6
    assert More(trials=5).of(study).min_gain is None
    assert More(trials=5, min_gain=0.0).of(study).min_gain == 0.0
