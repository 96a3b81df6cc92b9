import io

import pytest
from rich.console import Console

from cluster import progress as progress_module
from cluster.budget import Amounts, Spent
from cluster.config import make_config
from cluster.expected_gain import GainWatch
from cluster.experiments import Experiments
from cluster.plan import Plan
from cluster.progress import Progress
from cluster.studies import Studies
from trainer.metrics import EpochMetrics


@pytest.fixture
def sweep(tmp_path):
    config = make_config({"name": "s", "data": "digits", "trials": 3, "epochs": 2, "preset": "none"})
    study = Studies(Experiments(tmp_path), create=True).create(config, [])
    study.begin_run(config, groups=1)
    return config, study


def display(sweep, terminal, **more):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120, color_system=None)
    return Progress(sweep[0], Plan(1, 1, 2.0, 0.0, at_once=1, most=1), sweep[1], console, **more), text


def epoch(trial, number, accuracy):
    trial.report(EpochMetrics(number, 1.0, 1.0, accuracy, 0.1, 1234.0, 1.0), 1.0)


def play(progress, sweep):
    _config, study = sweep
    for accuracies, state in [((0.5, 0.8), "COMPLETE"), ((0.3, 0.2), "PRUNED"), ((), "FAIL")]:
        trial = study.ask()
        progress.started(trial)
        for number, accuracy in enumerate(accuracies, 1):
            epoch(trial, number, accuracy)
            progress.reported(trial)
        if state == "FAIL":
            trial.fail("ValueError: too small\nTraceback ...")
        progress.ended(trial, state)


def test_without_a_terminal_every_trial_has_a_plain_line(sweep):
    progress, text = display(sweep, terminal=False)
    with progress:
        play(progress, sweep)
    lines = text.getvalue().splitlines()
    assert "1 worker group(s) of 1 rank(s) with 2 CPU each" in lines[0]
    assert lines[1].startswith("[1/3] trial 0 COMPLETE  0.8000 after 2 epochs  best 0.8000 (trial 0)")
    assert lines[2].startswith("[2/3] trial 1 PRUNED  0.2000 after 2 epochs")
    assert lines[3].startswith("[3/3] trial 2 FAIL after 0 epochs  ValueError: too small")
    assert "\x1b" not in text.getvalue()


def test_without_a_terminal_a_long_trial_is_heard_of(sweep, monkeypatch):
    monkeypatch.setattr(progress_module, "SILENT_SECONDS", -1.0)
    progress, text = display(sweep, terminal=False)
    with progress:
        play(progress, sweep)
    assert "trial 0: epoch 1/2  0.5000" in text.getvalue()


def test_on_a_terminal_counts_best_and_running_trials_are_on_the_screen(sweep):
    _config, study = sweep
    progress, text = display(sweep, terminal=True)
    play(progress, sweep)
    running = study.ask()
    progress.started(running)
    epoch(running, 1, 0.6)
    with progress:
        pass
    shown = text.getvalue()
    assert "3/3 trials" in shown
    assert "1 complete" in shown
    assert "1 running" in shown
    assert "1 pruned" in shown
    assert "1 failed" in shown
    assert "best 0.8000 trial 0" in shown
    assert "1,234 images/s" in shown
    assert "epoch 1/2" in shown


def limited(folder):
    """A sweep with a budget of everything, of which some is spent; and what is to be shown of it."""
    budget = {"gpu_hours": 4, "max_cost": 20, "price_per_node_hour": 2, "time_budget": "30m", "min_gain": 0.001}
    config = make_config({"name": "l", "data": "digits", "epochs": 2, "preset": "none"} | budget)
    study = Studies(Experiments(folder), create=True).create(config, [])
    study.begin_run(config, groups=1)
    spent = Spent(config.budget, Amounts(723.0, 1.236, 1.55), gpus_per_group=1)
    return (config, study), {"spent": spent, "gain": GainWatch(study, config.min_gain)}


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_spent_of_each_limit_is_shown_and_what_is_expected(tmp_path, monkeypatch, terminal):
    monkeypatch.setattr(progress_module, "BUDGET_SECONDS", -1.0)
    sweep, more = limited(tmp_path)
    progress, text = display(sweep, terminal, **more)
    with progress:
        play(progress, sweep)
    shown = text.getvalue()
    for words in (
        "1.24 of 4 GPU-hours",
        "3.10 of 20 for nodes",
        " of 30m 00s",
        "expected gain not known yet, ends below",
    ):
        assert words in shown
    assert ("l: spent 12m" in shown) is not terminal


def test_a_plain_line_says_what_is_spent_only_now_and_then(tmp_path):
    sweep, more = limited(tmp_path)
    progress, text = display(sweep, terminal=False, **more)
    with progress:
        play(progress, sweep)
    assert "spent" not in text.getvalue()


def test_without_a_budget_nothing_is_said_of_one(sweep, monkeypatch):
    monkeypatch.setattr(progress_module, "BUDGET_SECONDS", -1.0)
    progress, text = display(sweep, terminal=False)
    with progress:
        play(progress, sweep)
    assert "spent" not in text.getvalue()


def test_what_is_left_goes_by_the_limit_that_is_reached_first(tmp_path, monkeypatch):
    now = 1e9
    monkeypatch.setattr(progress_module.time, "time", lambda: now)
    sweep, more = limited(tmp_path)
    progress, _ = display(sweep, terminal=False, **more)
    more["spent"].hold(groups=4, nodes=1)
    now += 60  # 4 GPU-minutes of 4 GPU-hours, 2 of 30 minutes since
    assert progress._seconds_left() == pytest.approx(30 * 60 - 723 - 60)
    more["spent"].hold(groups=400, nodes=1)
    now += 6  # 40 more: 44 GPU-minutes in 66 s
    assert progress._seconds_left() == pytest.approx(66 * (4 - 1.236 - 44 / 60) / (44 / 60))
