import dataclasses
import json
import sqlite3
import subprocess
import sys

import optuna
import pytest
from optuna.trial import TrialState

from cluster import proposals
from cluster.config import make_config
from cluster.experiments import Experiments
from cluster.studies import Studies
from trainer.hyperparameters import flatten, parameters
from trainer.metrics import EpochMetrics
from trainer.presets import PRESETS


@pytest.fixture
def where(tmp_path):
    return Experiments(tmp_path / "experiments")


def config(**settings):
    return make_config({"name": "s", "data": "digits", "trials": 6, "epochs": 3} | settings)


def create(where, **settings):
    chosen = config(**settings)
    study = Studies(where, create=True).create(chosen, ["a", "b"])
    study.begin_run(chosen, groups=1)
    return study, chosen


def epoch(number, accuracy):
    return EpochMetrics(number, 0.5, 0.6, accuracy, 0.01, 1000.0, 1.5)


def run_trial(study, chosen, *accuracies, end="complete"):
    trial = study.ask()
    trial.begin(123, "group", 10.0 * trial.number)
    for number, accuracy in enumerate(accuracies, 1):
        trial.report(epoch(number, accuracy), number * 1.5)
    getattr(trial, end)(*(["it broke"] if end == "fail" else []))
    return trial


def run_judged_by_kernels(study):
    """Kernels of size 5 are good, and others pruned; whether the trial has them."""
    trial = study.ask()
    good = trial.config.model.kernel_size == (5,)
    trial.begin(1, "group", 1.0)
    trial.report(epoch(1, 0.9 if good else 0.1), 1.0)
    trial.complete() if good else trial.prune()
    return good


def plain(where):
    return optuna.load_study(study_name="s", storage=where.database)


def test_plain_optuna_reads_the_same_states_values_and_epochs(where):
    study, chosen = create(where)
    run_trial(study, chosen, 0.5, 0.9, 0.8)
    run_trial(study, chosen, 0.3, end="prune")
    run_trial(study, chosen, end="fail")
    study.end_run("INTERRUPTED")
    theirs, ours = plain(where).trials, study.read().trials
    assert [t.state.name for t in theirs] == ["COMPLETE", "PRUNED", "FAIL"] == [t.state for t in ours]
    assert [t.value for t in theirs] == [0.9, 0.3, None] == [t.value for t in ours]
    assert [t.intermediate_values for t in theirs] == [{1: 0.5, 2: 0.9, 3: 0.8}, {1: 0.3}, {}]
    assert [len(t.epochs) for t in ours] == [3, 1, 0]
    assert plain(where).best_trial.number == study.read().best_or_error().number == 0


def test_the_first_trial_is_the_preset(where):
    study, _chosen = create(where)
    first, second = study.ask(), study.ask()
    expected = flatten(PRESETS["default"]) | {"training.epochs": 3}
    assert flatten(first.config) == expected
    assert flatten(second.config) != expected
    assert [t.preset for t in study.read().trials] == ["default", None]


def test_the_recipe_follows_the_preset_and_is_pruned_like_others(where):
    study, chosen = create(where, data="cifar10", pruner="median")
    first, second, third = study.ask(), study.ask(), study.ask()
    assert second.config == chosen.recipe_trial()
    assert third.config not in (first.config, second.config)
    assert [t.preset for t in study.read().trials] == ["cifar-3conv", None, None]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_proposals_are_the_same_from_the_same_trials(where, tmp_path, sampler):
    def proposed(place):
        study, chosen = create(Experiments(tmp_path / place), sampler=sampler, trials=30)
        return [run_trial(study, chosen, 0.1 * (i % 7)).config for i in range(15)]

    assert proposed("one") == proposed("other")


def test_a_proposal_is_in_the_study_with_all_its_parameters_at_once(where):
    study, chosen = create(where)
    run_trial(study, chosen, 0.5)
    trial = study.ask()
    theirs = plain(where).trials[1]
    assert theirs.state.name == "RUNNING"
    assert theirs.params == chosen.build_space().part_of(flatten(trial.config))
    assert theirs.user_attrs["config"] == flatten(trial.config)
    assert theirs.datetime_start is not None


def test_the_sampler_learns_from_the_trials_of_this_run_and_of_those_before(where, monkeypatch):
    """Trials with kernel size 5 are good, others bad: after some the sampler proposes mostly 5, and so it does when resumed."""
    space = {"model.kernel_size": [3, 5, 7], "model.blocks": 1, "optimizer.name": "adam"}
    study, chosen = create(where, trials=100, space=space, preset="none")
    for _ in range(40):
        run_judged_by_kernels(study)
    assert sum(run_judged_by_kernels(study) for _ in range(10)) >= 7
    again = Studies(where).open("s")
    again.begin_run(chosen, groups=1)
    assert sum(run_judged_by_kernels(again) for _ in range(10)) >= 7


def test_a_sweep_whose_creation_was_killed_half_way_can_be_created_again(where):
    Studies(where, create=True)
    half = optuna.create_study(study_name="s", storage=where.database, direction="maximize")
    half.set_user_attr("classes", ["a", "b"])
    half.enqueue_trial({"x": 1})
    study, _ = create(where)
    assert [t.state for t in study.read().trials] == ["WAITING"]
    assert study.read().trials[0].preset == "default"


def interrupted(where, *accuracies, **settings):
    """A sweep whose process was killed in its first trial, after these epochs, and which is run again."""
    study, chosen = create(where, **settings)
    trial = study.ask()
    trial.begin(123, "group", 5.0)
    for number, accuracy in enumerate(accuracies, 1):
        trial.report(epoch(number, accuracy), number * 1.5)
    again = Studies(where).open("s")
    again.close_lost_run(ended=again.read().runs[0]["begun"] + 7)
    again.begin_run(chosen, groups=1)
    return again, again.ask()


def test_a_trial_that_was_running_goes_on_with_its_number_and_its_epochs(where):
    study, trial = interrupted(where, 0.5, 0.7)
    assert (trial.number, trial.was_begun, study.unfinished) == (0, True, 1)
    assert trial.epochs == [epoch(1, 0.5), epoch(2, 0.7)]
    for number, accuracy in enumerate((0.5, 0.7), 1):  # from the state that it goes on from
        assert not trial.report(epoch(number, accuracy), 3.0)
    assert trial.report(epoch(3, 0.6), 4.5)
    trial.complete()
    record, theirs = study.read().trial(0), plain(where).trials[0]
    assert (record.value, record.epochs_done, record.train_seconds) == (0.7, 3, 4.5)
    assert theirs.intermediate_values == {1: 0.5, 2: 0.7, 3: 0.6}


def test_an_epoch_that_is_trained_again_takes_the_place_of_the_lost_ones(where):
    _, trial = interrupted(where, 0.5, 0.7, 0.8)
    assert trial.report(epoch(2, 0.6), 3.0)
    assert trial.epochs == [epoch(1, 0.5), epoch(2, 0.6)]
    assert plain(where).trials[0].intermediate_values[2] == 0.6


def test_the_time_of_a_killed_run_ends_with_its_last_sign_of_life(where):
    study, _ = interrupted(where, 0.5)
    runs = study.read().runs
    assert runs[0]["ended"] - runs[0]["begun"] == 7
    assert study.seconds_run() == pytest.approx(7, abs=5)


def test_a_space_may_change_between_runs_and_the_sampler_knows_what_still_lies_in_it(where):
    study, chosen = create(where, preset="none", space={"model.blocks": 1, "model.activation": ["relu", "tanh"]})
    for _ in range(4):
        run_trial(study, chosen, 0.5)
    wider = config(preset="none", trials=20, space={"model.blocks": 1, "model.activation": ["relu", "gelu"]})
    study.begin_run(wider, groups=1)
    seen = set()
    for _ in range(10):
        trial = study.ask()
        seen.add(trial.config.model.activation)
        trial.report(epoch(1, 0.5), 1.0)
        trial.complete()
    assert seen == {"relu", "gelu"}
    assert len(plain(where).trials) == 14  # another Optuna reads them
    known = study._proposals._study.get_trials()
    assert {t.params.get("model.activation") for t in known} <= {"relu", "gelu", None}


def test_the_sampler_learns_that_a_configuration_does_not_fit_into_memory(where):
    space = {"model.blocks": 1, "model.kernel_size": [3, 5, 7], "optimizer.name": "adam"}
    study, chosen = create(where, preset="none", trials=100, space=space)

    def run(study):
        trial = study.ask()
        large = trial.config.model.kernel_size == (7,)
        trial.begin(1, "group", 1.0)
        if large:
            trial.fail("OutOfMemoryError", kind="out of memory")
        else:
            trial.report(epoch(1, 0.5), 1.0)
            trial.complete()
        return large

    for _ in range(40):
        run(study)
    assert sum(run(study) for _ in range(10)) <= 3
    failed = [t for t in plain(where).trials if t.state == TrialState.FAIL]
    assert failed
    assert all(t.constraints == {"memory": 1.0} for t in failed)
    again = Studies(where).open("s")
    again.begin_run(chosen, groups=1)
    assert sum(run(again) for _ in range(10)) <= 3


def test_a_warm_start_learns_from_another_sweep_and_tries_its_best_trial_early(where):
    space = {"model.blocks": 1, "model.kernel_size": [3, 5, 7], "optimizer.name": "adam"}
    study, _ = create(where, preset="none", trials=100, space=space)
    for _ in range(30):
        run_judged_by_kernels(study)
    best = study.read().best
    warm = config(name="warm", preset="none", epochs=7, trials=50, space=space, warm_start_from="s")
    other = Studies(where).create(warm, ["a", "b"])
    other.begin_run(warm, groups=1)
    first = other.ask()
    assert flatten(first.config) == best.config | {"training.epochs": 7}
    assert sum(run_judged_by_kernels(other) for _ in range(10)) >= 7
    with pytest.raises(ValueError, match="Did you mean 'warm'"):
        Studies(where).create(dataclasses.replace(warm, name="x", warm_start_from="warn"), [])


def test_the_sampler_keeps_the_best_and_an_even_selection_of_many_trials(monkeypatch):
    monkeypatch.setattr(proposals, "BEST", 4)
    monkeypatch.setattr(proposals, "MOST", 10)
    chosen = config(space={"model.blocks": 1}, trials=1000)
    mine = proposals.Proposals(chosen, 0, [])
    for number in range(100):
        mine.propose()
        mine.note(number)
        if number != 97:
            mine.ended(number, TrialState.COMPLETE if number % 2 else TrialState.PRUNED, number / 100, 1)
        known = mine._study.get_trials(deepcopy=False)
        assert len(known) <= 2 * 10 + 2
        values = sorted(t.value for t in known if t.state == TrialState.COMPLETE)
        done = [n / 100 for n in range(number + 1) if n % 2 and n != 97]
        assert values[-4:] == done[-4:]
    mine.ended(97, TrialState.COMPLETE, 0.97, 1)
    assert max(t.value for t in mine._study.get_trials(deepcopy=False) if t.value is not None) == 0.99
    assert not [t for t in mine._study.get_trials(deepcopy=False) if not t.state.is_finished()]
    assert min(t.value for t in mine._study.get_trials(deepcopy=False) if t.value is not None) < 0.5


def test_the_preset_is_never_pruned(where):
    study, chosen = create(where, pruner="median")
    baseline = study.ask()
    for _ in range(6):
        run_trial(study, chosen, 0.8, 0.8, 0.8)
    other = study.ask()
    for trial in (baseline, other):
        trial.report(epoch(1, 0.1), 1.0)
        trial.report(epoch(2, 0.1), 1.0)
    assert other.should_prune()
    assert not baseline.should_prune()


def test_the_ranking_has_complete_trials_first_then_pruned_then_failed(where):
    study, chosen = create(where)
    for accuracies, end in [
        ((0.2,), "prune"),
        ((0.5, 0.6), "complete"),
        ((), "fail"),
        ((0.9,), "prune"),
        ((0.7,), "complete"),
    ]:
        run_trial(study, chosen, *accuracies, end=end)
    assert [t.number for t in study.read().trials] == [4, 1, 3, 0, 2]


def test_a_failed_trial_keeps_its_cause(where):
    study, chosen = create(where)
    run_trial(study, chosen, 0.4, end="fail")
    assert study.read().trial(0).error == "it broke"
    assert plain(where).trials[0].user_attrs["error"] == "it broke"


def test_a_trial_left_running_waits_for_its_turn_with_its_number_and_configuration(where):
    study, chosen = create(where, preset="none")
    left = study.ask()
    left.report(epoch(1, 0.4), 1.0)
    again = Studies(where).open("s")
    again.begin_run(chosen, groups=1)
    assert again.read().trial(0).state == "WAITING"
    taken = again.ask()
    assert (taken.number, taken.config) == (left.number, left.config)
    assert plain(where).trials[0].params == {
        k: v for k, v in flatten(left.config).items() if k in plain(where).trials[0].params
    }


def test_nothing_runs_or_waits_after_a_finished_sweep(where):
    study, _chosen = create(where)
    study.ask()
    study.end_run("FINISHED")
    assert study.counts()["RUNNING"] == study.counts()["WAITING"] == 0


def test_a_name_is_taken_once(where):
    create(where)
    with pytest.raises(ValueError, match=r"convsweep resume s.*convsweep extend s.*another --name"):
        Studies(where, create=True).create(config(), [])


def test_an_unknown_sweep_is_answered_with_the_nearest_name(where):
    create(where, name="digits-1")
    with pytest.raises(ValueError, match="Did you mean 'digits-1'"):
        Studies(where).open("digits1")


def test_reading_creates_nothing(where):
    assert Studies(where).names() == []
    with pytest.raises(ValueError, match="There are no sweeps yet"):
        Studies(where).open("s")
    assert not where.folder.exists()


def test_a_grid_waits_in_the_study(where):
    fixed = {p.name: p.default[0] if p.per_block else p.default for p in parameters() if p.section != "training"}
    study, _chosen = create(where, sampler="grid", trials=3, space=fixed | {"training.batch_size": [32, 64, 128, 256]})
    assert study.counts()["WAITING"] == 3
    sizes = [study.ask().config.training.batch_size for _ in range(3)]
    assert sizes == [32, 64, 128]


def test_a_grid_that_is_extended_goes_on_where_it_ended(where):
    fixed = {p.name: p.default[0] if p.per_block else p.default for p in parameters() if p.section != "training"}
    space = fixed | {"training.batch_size": [32, 64, 128, 256]}
    study, chosen = create(where, sampler="grid", trials=3, space=space, preset="default")
    more = dataclasses.replace(chosen, trials=5)
    study.enqueue_grid(more)
    study.enqueue_grid(more)
    study.begin_run(more, groups=1)
    assert [study.ask().config.training.batch_size for _ in range(5)] == [128, 32, 64, 128, 256]
    assert study.counts()["WAITING"] == 0


@pytest.mark.parametrize("damage", ['"{}"', '"{"', '"null"', "3", "newer"])
def test_a_damaged_record_is_said_to_be_one_and_hides_no_other(where, damage):
    study, _ = create(where)
    other = config(name="whole")
    Studies(where, create=True).create(other, [])
    if damage == "newer":
        damage = json.dumps(json.dumps(study.config.to_json() | {"budget": 3}))
    with sqlite3.connect(where.folder / "studies.db") as connection:
        connection.execute(
            "update study_user_attributes set value_json = ? where key = 'convsweep' and study_id = "
            "(select study_id from studies where study_name = 's')",
            (damage,),
        )
    assert [(s.name, s.state) for s in Studies(where).summaries()] == [("s", "UNREADABLE"), ("whole", "NEW")]
    with pytest.raises(ValueError, match=r"The record of a sweep cannot be read .* damaged, or was written by another"):
        Studies(where).read("s")


def test_several_processes_may_open_a_new_database_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from cluster.experiments import Experiments; from cluster.studies import Studies;"
        "print(flush=True); sys.stdin.readline(); print(Studies(Experiments(Path(sys.argv[1])), create=True).names())"
    )
    for turn in range(3):
        command = [sys.executable, "-c", code, str(tmp_path / str(turn))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        openers = [subprocess.Popen(command, **pipes) for _ in range(4)]
        for opener in openers:
            opener.stdout.readline()  # it has imported everything
        for opener in openers:
            opener.stdin.write("\n")
            opener.stdin.flush()
        answers = [opener.communicate(timeout=60) for opener in openers]
        assert [out for out, _ in answers] == ["[]\n"] * 4, answers


def test_the_database_lets_readers_in_while_it_is_written(where):
    create(where)
    with sqlite3.connect(where.folder / "studies.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_study_of_somebody_else_is_left_alone(where):
    create(where)
    optuna.create_study(study_name="foreign", storage=where.database)
    assert Studies(where).names() == ["s"]
    with pytest.raises(ValueError, match="There is no sweep 'foreign'"):
        Studies(where).open("foreign")
    with pytest.raises(ValueError, match="another --name"):
        Studies(where, create=True).create(config(name="foreign"), [])


def test_a_database_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "studies.db").write_bytes(b"this is no database, but text that is long enough for its header" * 20)
    with pytest.raises(ValueError, match="cannot be opened"):
        Studies(Experiments(tmp_path))


def test_timing_adds_up_the_runs_of_a_resumed_sweep(where):
    study, chosen = create(where)
    study.note_startup(2.0)
    run_trial(study, chosen, 0.5)
    study.end_run("INTERRUPTED")
    study.begin_run(chosen, groups=2)
    study.note_startup(3.0)
    run_trial(study, chosen, 0.5, 0.6)
    timing = study.read().timing
    assert timing.startup_seconds == 5.0
    assert timing.train_seconds == 1.5 + 3.0
    assert timing.overhead_seconds == 10.0 - 1.5
    assert timing.groups == 2


def test_the_first_configurations_follow_the_preset_and_are_pruned_like_others(where):
    study, chosen = create(where, first=[{"model.kernel_size": 5}, {"model.filters": [8, 9, 10]}])
    trials = [run_trial(study, chosen, 0.5) for _ in range(4)]
    assert [t.config.model.kernel_size for t in trials[:3]] == [(3, 3, 3), (5, 5, 5), (3, 3, 3)]
    assert trials[2].config.model.filters == (8, 9, 10)
    study.end_run("INTERRUPTED")
    assert [t.preset for t in sorted(study.read().trials, key=lambda t: t.number)] == ["default", None, None, None]
    assert plain(where).trials[1].params["model.kernel_size.2"] == 5
    assert "model.filters.1" not in plain(where).trials[2].params  # 8 is not in the space
