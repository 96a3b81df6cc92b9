"""Sweeps whose trials are cross-validated: record, pruning, the winner, its bundle. `python -m pytest tests/test_cross_validation.py`"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from ray.tune.schedulers import TrialScheduler

from cluster import tables, winner
from cluster.config import SweepConfig, make_config
from cluster.experiments import Experiments
from cluster.export import export_trial, load_model
from cluster.finals import Final, Trained
from cluster.proposals import valued_by
from cluster.record import SweepRecord
from cluster.studies import Studies
from cluster.study import RunningTrial, SweepStudy
from tests.test_search import Sweep, TuneTrial
from trainer.checkpoint import Checkpoint, CheckpointStore
from trainer.data import ImageData, load_data
from trainer.folds import first_fold
from trainer.hyperparameters import TrialConfig
from trainer.loop import create_model
from trainer.mailbox import Report
from trainer.measuring import METRICS
from trainer.metrics import EpochMetrics


def config(**settings: Any) -> SweepConfig:
    return make_config({"name": "s", "data": "digits", "trials": 6, "epochs": 2, "folds": 3} | settings)


def create(where: Experiments, **settings: Any) -> SweepStudy:
    chosen = config(**settings)
    study = Studies(where, create=True).create(chosen, ["a", "b"])
    study.begin_run(chosen, groups=1)
    return study


def run_folds(study: SweepStudy, *folds: list[float], end: str = "complete") -> RunningTrial:
    """A trial with these accuracies in each of its folds; its loss is the higher the better they are."""
    trial = study.ask()
    trial.begin(123, "group", 10.0 * trial.number)
    number = 0
    for fold, accuracies in enumerate(folds, 1):
        for place, accuracy in enumerate(accuracies, 1):
            number += 1
            metrics = EpochMetrics(number, 0.5, accuracy / 2, accuracy, 0.01, 1000.0, 1.5, fold=fold)
            trial.report(metrics, 1.5 * number, ends_fold=place == len(accuracies))
    if end:
        getattr(trial, end)()
    return trial


@pytest.fixture
def where(tmp_path: Path) -> Experiments:
    return Experiments(tmp_path / "experiments")


def plain(where: Experiments) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=where.database)


# ---- settings ----


@pytest.mark.parametrize("folds", [0, 21])
def test_folds_are_one_to_twenty(folds: int) -> None:
    with pytest.raises(ValueError, match=f"folds must be 1, .* to 20, but got {folds}"):
        config(folds=folds)
    assert [config(folds=n).folds for n in (1, 2, 20)] == [1, 2, 20]
    with pytest.raises(ValueError, match="folds must be a whole number"):
        config(folds=2.5)


def test_a_share_to_hold_out_has_no_meaning_with_folds() -> None:
    with pytest.raises(ValueError, match="leave out validation_fraction"):
        config(validation_fraction=0.2)
    assert config(validation_fraction=0.2, folds=1).data.validation_fraction == 0.2


def test_a_sweep_that_was_recorded_before_there_were_folds_has_none() -> None:
    recorded = config(folds=1).to_json()
    del recorded["folds"]
    assert SweepConfig.from_json(recorded) == config(folds=1)


# ---- the record ----


def test_a_trials_value_is_the_mean_of_its_folds_best_epochs(where: Experiments) -> None:
    study = create(where)
    run_folds(study, [0.5, 0.9], [0.8, 0.7], [0.4])
    theirs, ours = plain(where).trials[0], study.read().trial(0)
    assert ours.fold_values == (0.9, 0.8, 0.4)
    assert theirs.value == ours.value == pytest.approx(0.7)
    assert theirs.intermediate_values == pytest.approx({1: 0.9, 2: 0.85, 3: 0.7})
    assert [e.fold for e in ours.epochs] == [1, 1, 2, 2, 3]
    said = ours.to_json()
    assert said["folds"] == [0.9, 0.8, 0.4]
    assert said["interval"] == pytest.approx((0.7 - 0.65725, 0.7 + 0.65725), abs=1e-5)


def test_by_the_loss_a_folds_best_epoch_is_the_lowest(where: Experiments) -> None:
    study = create(where, metric="loss")
    run_folds(study, [0.5, 0.9], [0.8, 0.6])
    assert study.read().trial(0).fold_values == (0.25, 0.3)


def test_a_trial_without_folds_says_nothing_of_them(where: Experiments) -> None:
    study = create(where, folds=1)
    trial = study.ask()
    trial.begin(1, "group", 0.0)
    trial.report(EpochMetrics(1, 0.5, 0.5, 0.8, 0.01, 1000.0, 1.5), 1.0, ends_fold=True)
    trial.complete()
    assert {"fold_values", "fold"}.isdisjoint(plain(where).trials[0].user_attrs)
    assert "fold" not in plain(where).trials[0].user_attrs["history"]
    assert {"folds", "interval"}.isdisjoint(study.read().trial(0).to_json())
    assert plain(where).trials[0].intermediate_values == {1: 0.8}


def test_a_resumed_trial_keeps_the_folds_that_it_has_and_takes_others_anew(where: Experiments) -> None:
    study = create(where)
    run_folds(study, [0.5, 0.9], [0.8], end="")
    study.end_run("INTERRUPTED")
    study.begin_run(config(), groups=1)
    trial = study.ask()
    assert (trial.number, trial.fold_values, len(trial.epochs)) == (0, [0.9, 0.8], 3)
    trial.begin(1, "group", 0.0)
    again = EpochMetrics(2, 0.5, 0.5, 0.7, 0.01, 1000.0, 1.5, fold=1)  # a state was lost
    assert trial.report(again, 1.0, ends_fold=True)
    assert trial.fold_values == [0.7]
    assert study.read().trial(0).fold_values == (0.7,)
    assert study.read().trial(0).epochs_done == 2


def test_another_sweep_learns_the_folds_means_by_its_own_metric(where: Experiments) -> None:
    run_folds(create(where), [0.5, 0.9], [0.8, 0.6], [0.4])
    (found,) = valued_by(METRICS["loss"], plain(where).trials)
    assert found.value == pytest.approx((0.25 + 0.3 + 0.2) / 3)
    assert found.intermediate_values == pytest.approx({1: 0.25, 2: 0.275, 3: 0.25})


def test_rank_and_show_say_how_sure_the_mean_is(where: Experiments, capsys: pytest.CaptureFixture[str]) -> None:
    study = create(where)
    run_folds(study, [0.5, 0.9], [0.8, 0.7], [0.85])
    run_folds(study, [0.3], end="prune")
    tables.show_ranking(study.read(), None, as_json=False)
    ranking = capsys.readouterr().out
    assert "0.8500 ± 0.1242" in ranking
    assert "0.3000 " in ranking
    tables.show_trial(study.read().trial(0), METRICS["accuracy"], as_json=False)
    shown = capsys.readouterr().out
    assert "of 3 folds: 0.9000  0.8000  0.8500" in shown
    rows = [line.split()[:2] for line in shown.splitlines() if line.split()[:1] in (["1"], ["2"], ["3"])]
    assert rows == [["1", "1"], ["1", "2"], ["2", "1"], ["2", "2"], ["3", "1"]]


# ---- pruning ----


class Folded(Sweep):
    """The harness of tests/test_search.py, whose trials have three folds of two epochs."""

    def say(self, tune_id: str, epoch: int, accuracy: float) -> str:
        metrics = EpochMetrics(epoch, 1.0, 1.0, accuracy, 0.1, 10.0, 1.0, fold=(epoch + 1) // 2)
        ends, done = epoch % 2 == 0, epoch == 6
        result = {"report": Report("group", metrics, done, 100.0, 101.0, 7, ends_fold=ends), "done": done}
        if done:  # as Tune does
            self.scheduler.on_trial_complete(None, TuneTrial(tune_id), result)
            self.searcher.on_trial_complete(tune_id, result)
            return str(TrialScheduler.STOP)
        return str(self.scheduler.on_trial_result(None, TuneTrial(tune_id), result))


@pytest.mark.parametrize("pruner", ["halving", "median"])
def test_trials_are_pruned_between_folds_alone_with_their_mean_so_far(tmp_path: Path, pruner: str) -> None:
    sweep = Folded(tmp_path, preset="none", folds=3, epochs=2, trials=20, pruner=pruner)
    for number in range(6):  # the median asks for five that are complete
        sweep.searcher.suggest(f"good {number}")
        for epoch in range(1, 7):
            sweep.say(f"good {number}", epoch, 0.9 + 0.01 * number)
    assert sweep.study.counts()["COMPLETE"] == 6
    sweep.searcher.suggest("bad")
    assert sweep.say("bad", 1, 0.1) == TrialScheduler.CONTINUE
    assert sweep.say("bad", 2, 0.2) == TrialScheduler.STOP
    pruned = sweep.study.read().trial(6)
    assert (pruned.state, pruned.value, pruned.fold_values) == ("PRUNED", 0.2, (0.2,))
    assert sweep.mailbox.stopped == [6]
    sweep.searcher.suggest("worse and worse")
    goes_on = [sweep.say("worse and worse", epoch, value) for epoch, value in enumerate((0.1, 0.99, 0.1, 0.2), 1)]
    if pruner == "halving":
        assert goes_on == [*[TrialScheduler.CONTINUE] * 3, TrialScheduler.STOP]
        assert sweep.study.read().trial(7).value == pytest.approx((0.99 + 0.2) / 2)


@pytest.mark.parametrize("folds", [3, 5, 10])
def test_halving_leaves_about_half_after_the_first_fold(where: Experiments, folds: int) -> None:
    study, stopped = create(where, preset="none", trials=40, folds=folds), 0
    for place in range(24):
        trial = run_folds(study, [0.5 + 0.01 * (7 * place % 24)], end="")
        is_pruned = trial.should_prune()
        stopped += is_pruned
        trial.prune() if is_pruned else trial.complete()
    assert 8 <= stopped <= 16


def test_the_assignments_have_the_sweeps_folds(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, folds=4)
    sweep.searcher.suggest("a")
    assert [a.folds for a in sweep.mailbox.posted] == [4, 4]
    assert sweep.mailbox.posted[0].fold_numbers == range(1, 5)


# ---- the winner ----

Trainings = list[tuple[int, TrialConfig]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    """What was trained on everything: it is noted, and leaves weights of one number."""
    found: Trainings = []

    def train(
        finals: list[Final],
        config: SweepConfig,
        store: CheckpointStore,
        experiments: Experiments,
        connected: object,
        should_stop: Callable[[], bool],
    ) -> Trained:
        done = set()
        for final in finals:
            if store.configuration(final.key) != final.config and not should_stop():
                found.append((final.key, final.config))
                store.save(final.key, Checkpoint({"x": torch.ones(1)}, final.config, final.epochs, 0.0))
            if store.configuration(final.key) == final.config:
                done.add(final.key)
        return Trained(store, frozenset(done), {})

    monkeypatch.setattr(winner, "train_finals", train)
    return found


def crown(study: SweepStudy, where: Experiments, stop: bool = False) -> str | None:
    nobody: Any = contextlib.nullcontext()
    return winner.train_winner(study.read(), study.config, nobody, where, lambda: stop)


def test_the_winner_is_trained_once_and_makes_place_for_a_better_one(where: Experiments, trained: Trainings) -> None:
    study = create(where)
    assert not winner.lacks_winner(study.read(), where)  # nobody has won yet
    run_folds(study, [0.5, 0.9], [0.8], [0.8])
    best = run_folds(study, [0.9], [0.9], [0.9])
    assert winner.lacks_winner(study.read(), where)
    assert crown(study, where, stop=True) is None
    assert winner.lacks_winner(study.read(), where)
    for _ in range(2):
        assert crown(study, where) is None
        assert not winner.lacks_winner(study.read(), where)
    assert trained == [(1, best.config)]
    better = run_folds(study, [0.95], [0.95], [0.95])
    assert crown(study, where) is None
    assert trained[1:] == [(2, better.config)]
    assert where.winner("s").trials() == [2]


def test_a_sweep_without_folds_trains_no_winner(where: Experiments, trained: Trainings) -> None:
    study = create(where, folds=1)
    run_folds(study, [0.9], [0.9])
    assert crown(study, where) is None
    assert not winner.lacks_winner(study.read(), where)
    assert trained == []


def test_a_training_of_the_winner_that_fails_says_why(where: Experiments, monkeypatch: pytest.MonkeyPatch) -> None:
    study = create(where)
    run_folds(study, [0.9], [0.9], [0.9])
    failed = Trained(where.winner("s"), frozenset(), {0: "NotFiniteError: the loss is nan"})
    monkeypatch.setattr(winner, "train_finals", lambda *arguments: failed)
    assert "trial 0 on all images failed, which `resume` tries again: NotFiniteError" in (crown(study, where) or "")


def with_weights(where: Experiments, digits: ImageData, cache: Path) -> SweepRecord:
    """A finished sweep whose best trial, 1, is trained on everything; both trials have the weights of their first fold."""
    study = create(where, cache=str(cache), space={"model.filters": 4, "model.blocks": 1, "model.dense_units": 0})
    for values in ([0.5], [0.6]), ([0.7], [0.8]):
        trial = run_folds(study, *values)
        model = create_model(trial.config, digits, torch.device("cpu"))
        checkpoint = Checkpoint(dict(model.state_dict()), trial.config, 1, values[0][0])
        where.checkpoints("s").save(trial.number, checkpoint)
    where.winner("s").save(1, replace(checkpoint, epoch=2, value=0.0))
    study.end_run("FINISHED")
    return study.read()


def test_a_trials_model_is_its_first_folds_and_the_winners_the_one_that_has_seen_everything(
    where: Experiments, digits: ImageData, cache: Path
) -> None:
    sweep = with_weights(where, digits, cache)
    assert [(c.epoch, final) for c, final in (load_model(where, sweep, sweep.trial(n)) for n in (0, 1))] == [
        (1, False),
        (2, True),
    ]
    other = replace(sweep.trial(1), config=sweep.trial(0).config)  # weights of another configuration are not this one's
    assert not load_model(where, sweep, other)[1]


def test_the_winners_bundle_has_its_folds_and_no_validation_scores(
    where: Experiments, digits: ImageData, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = with_weights(where, digits, cache)
    exported = export_trial(where, sweep, sweep.best_or_error(), tmp_path / "bundle")
    assert set(exported.written.scores) == {"test"}
    metrics = json.loads((tmp_path / "bundle" / "metrics.json").read_text())
    assert "validation" not in metrics
    assert metrics["folds"]["values"] == [0.7, 0.8]
    assert metrics["folds"]["mean"] == pytest.approx(0.75)
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "by cross-validation: accuracy 0.7500 ± 0.6353, the mean of 2 folds" in card
    assert "whose weights these are not" in card
    tables.show_export(exported, as_json=False)
    assert "cross-validated accuracy 0.7500" in capsys.readouterr().out


def test_another_trials_bundle_is_scored_on_what_its_fold_held_out(
    where: Experiments, digits: ImageData, cache: Path, tmp_path: Path
) -> None:
    sweep = with_weights(where, digits, cache)
    exported = export_trial(where, sweep, sweep.trial(0), tmp_path / "bundle")
    held_out = first_fold(load_data(sweep.config.data), sweep.config.data, 3).validation
    assert exported.written.scores["validation"].images == len(held_out) == 479
    assert "these are the weights" in (tmp_path / "bundle" / "README.md").read_text()


# ---- the command ----


@pytest.mark.slow
def test_a_cross_validated_sweep_ends_with_the_winner_and_resume_makes_up_for_it(tmp_path: Path) -> None:
    def command(*words: object, status: int = 0) -> str:
        environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "CONVSWEEP_EXPERIMENTS")}
        done = subprocess.run(
            [sys.executable, "-m", "cluster.cli", *map(str, words)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout

    narrow = ["--set", "model.filters=[8, 16]", "--set", "model.blocks=2", "--pruner", "none"]
    command("sweep", "--data", "digits", "--trials", 3, "--epochs", 3, "--folds", 3, "--name", "s", *narrow)
    document = json.loads(command("rank", "s", "--json"))
    assert document["state"] == "FINISHED"
    assert [t["epochs"] for t in document["trials"]] == [9, 9, 9]
    for trial in document["trials"]:
        assert trial["value"] == pytest.approx(sum(trial["folds"]) / 3)
        assert trial["interval"][0] < trial["value"] < trial["interval"][1]
    best = document["trials"][0]
    assert best["value"] >= 0.8
    store = Experiments(tmp_path / "experiments").winner("s")
    assert (store.trials(), store.load(best["number"]).epoch) == ([best["number"]], 3)
    exported = json.loads(command("export", "s", "--to", "bundle", "--json"))
    assert exported["test_accuracy"] >= 0.8
    assert "validation_accuracy" not in exported
    assert exported["folds"]["values"] == best["folds"]

    other = document["trials"][1]  # whose weights are those of its first fold
    scored = json.loads(command("export", "s", "--trial", other["number"], "--to", "other", "--json"))
    assert scored["validation_accuracy"] == pytest.approx(other["folds"][0])

    weights = store.load(best["number"]).weights
    shutil.rmtree(tmp_path / "experiments" / "s" / "checkpoints" / "winner")  # as if it had not got so far
    command("resume", "s")
    again = json.loads(command("rank", "s", "--json"))
    assert (again["state"], again["trials"]) == ("FINISHED", document["trials"])
    assert all(torch.equal(store.load(best["number"]).weights[name], weights[name]) for name in weights)
    assert command("resume", "s")
    refused = ["sweep", "--data", "digits", "--folds", 3, "--validation-fraction", 0.2]
    command(*refused, status=2)
