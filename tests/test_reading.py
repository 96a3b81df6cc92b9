"""Reading the study database by plain queries, against what Optuna itself reads. `python -m pytest tests/test_reading.py -q`."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from bench.synthetic import write_study
from cluster.config import SweepConfig, make_config
from cluster.experiments import Experiments
from cluster.record import TrialRecord
from cluster.studies import Studies
from cluster.study import SweepStudy
from trainer.metrics import EpochMetrics


def epoch(number: int, accuracy: float) -> EpochMetrics:
    return EpochMetrics(number, 0.5, 0.4, accuracy, 0.01, 1000.0, 0.5)


def run_trial(study: SweepStudy, config: SweepConfig, *accuracies: float, end: str = "complete") -> None:
    trial = study.ask()
    trial.begin(parameters=123, group="group", group_began=5.0 * trial.number)
    for number, accuracy in enumerate(accuracies, 1):
        trial.report(epoch(number, accuracy), train_seconds=0.5 * number)
    if end == "complete":
        trial.complete()
    elif end == "prune":
        trial.prune()
    elif end == "fail":
        trial.fail("it broke")


@pytest.fixture
def where(tmp_path: Path) -> Experiments:
    return Experiments(tmp_path / "experiments")


@pytest.fixture
def config() -> SweepConfig:
    return make_config({"name": "s", "data": "digits", "trials": 9, "epochs": 3})


@pytest.fixture
def study(where: Experiments, config: SweepConfig) -> SweepStudy:
    study = Studies(where, create=True).create(config, ["zero", "one"], (1, 8, 8))
    study.begin_run(config, groups=1)
    run_trial(study, config, 0.5, 0.9, 0.8)
    run_trial(study, config, 0.3, end="prune")
    run_trial(study, config, end="fail")
    run_trial(study, config, 0.4, end="")
    return study


def plain(where: Experiments) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s", storage=where.database).trials


def assert_same(ours: TrialRecord, theirs: optuna.trial.FrozenTrial) -> None:
    assert (ours.number, ours.state) == (theirs.number, theirs.state.name)
    assert ours.value == (theirs.value if theirs.values else None)
    assert ours.config == theirs.user_attrs["config"]
    assert dict(zip(ours.history.get("epoch", ()), ours.history.get("val_accuracy", ()), strict=True)) == (
        theirs.intermediate_values
    )
    assert ours.parameters == theirs.user_attrs.get("parameters")
    assert ours.error == theirs.user_attrs.get("error")
    for mine, other in ((ours.begun, theirs.datetime_start), (ours.ended, theirs.datetime_complete)):
        assert (mine.astimezone().replace(tzinfo=None) if mine else None) == other


def test_trials_are_what_optuna_reads(where: Experiments, study: SweepStudy) -> None:
    ours = sorted(Studies(where).read("s").trials, key=lambda t: t.number)
    assert [t.state for t in ours] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    for mine, theirs in zip(ours, plain(where), strict=True):
        assert_same(mine, theirs)


def test_a_synthetic_study_is_what_optuna_reads(where: Experiments) -> None:
    write_study(where, "s", trials=30, epochs=4)
    ours = sorted(Studies(where).read("s").trials, key=lambda t: t.number)
    for mine, theirs in zip(ours, plain(where), strict=True):
        assert_same(mine, theirs)


def test_epochs_come_back_as_they_were_reported(where: Experiments, study: SweepStudy) -> None:
    assert Studies(where).read("s").trial(0).epochs == (epoch(1, 0.5), epoch(2, 0.9), epoch(3, 0.8))


def test_what_has_not_changed_is_the_very_same_record(where: Experiments, study: SweepStudy) -> None:
    studies = Studies(where)
    first = studies.read("s")
    assert studies.read("s") is first


def test_only_what_changed_is_read_again(where: Experiments, study: SweepStudy, config: SweepConfig) -> None:
    studies = Studies(where)
    first = studies.read("s")
    run_trial(study, config, 0.95, 0.96, 0.97)
    second = studies.read("s")
    assert second.stamp != first.stamp
    assert [t.number for t in second.trials] == [4, 0, 1, 2, 3]
    assert all(second.trial(number) is first.trial(number) for number in range(3))
    assert second.best is second.trial(4)


def test_a_running_trial_is_read_until_it_ends(where: Experiments, config: SweepConfig) -> None:
    study = Studies(where, create=True).create(config, ["zero"])
    study.begin_run(config, groups=1)
    studies, trial = Studies(where), study.ask()
    assert studies.read("s").trial(0).epochs_done == 0
    trial.report(epoch(1, 0.5), 1.0)
    assert studies.read("s").trial(0).history["val_accuracy"] == [0.5]
    trial.report(epoch(2, 0.6), 2.0)
    trial.complete()
    ended = studies.read("s").trial(0)
    assert (ended.state, ended.value, ended.epochs_done) == ("COMPLETE", 0.6, 2)


def test_more_unfinished_trials_than_a_query_may_name_are_followed(
    where: Experiments, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.reading._AT_MOST_ASKED", 1)
    study = Studies(where, create=True).create(replace(config, preset="none"), ["zero"])
    study.begin_run(config, groups=1)
    studies, first, second = Studies(where), study.ask(), study.ask()
    studies.read("s")
    for trial in (first, second):
        trial.report(epoch(1, 0.5), 1.0)
        trial.complete()
    assert studies.read("s").counts["COMPLETE"] == 2


def test_a_summary_counts_without_reading_the_trials(where: Experiments, study: SweepStudy) -> None:
    (summary,) = Studies(where).summaries()
    assert (summary.name, summary.state, summary.data, summary.trials) == ("s", "RUNNING", "digits", 9)
    assert summary.counts == {"COMPLETE": 1, "PRUNED": 1, "FAIL": 1, "RUNNING": 1, "WAITING": 0}
    assert summary.best_value == 0.9


def test_the_copy_for_optunas_plots_has_the_parameters_of_the_chosen_trials(
    where: Experiments, study: SweepStudy
) -> None:
    copy = Studies(where).optuna_study("s", {0, 1}.__contains__)
    for mine, theirs in zip(copy.trials, plain(where), strict=False):
        assert mine.params == theirs.params
        assert mine.distributions == theirs.distributions
        assert (mine.state, mine.values) == (theirs.state, theirs.values)
        assert (mine.datetime_start, mine.datetime_complete) == (theirs.datetime_start, theirs.datetime_complete)
    assert [t.user_attrs["number"] for t in copy.trials] == [0, 1]


def test_threads_may_share_a_reader(where: Experiments, study: SweepStudy) -> None:
    studies, found = Studies(where), []
    threads = [threading.Thread(target=lambda: found.append(studies.read("s"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(record == found[0] for record in found)


def test_a_number_that_is_no_trial_is_one_sentence(where: Experiments, study: SweepStudy) -> None:
    with pytest.raises(ValueError, match="Sweep 's' has no trial 9: it has trials 0 to 3"):
        Studies(where).read("s").trial(9)


def test_another_programs_study_with_attributes_of_its_own_is_left_alone(where: Experiments, study: SweepStudy) -> None:
    foreign = optuna.create_study(study_name="foreign", storage=where.database)
    foreign.set_user_attr("config", {"lr": 0.1})
    assert [summary.name for summary in Studies(where).summaries()] == ["s"]
    assert Studies(where).foreign() == ["foreign"]
