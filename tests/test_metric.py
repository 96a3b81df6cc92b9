"""What a search optimises: each metric against scikit-learn, and a study by each. `python -m pytest tests/test_metric.py`."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import torch.distributed as dist
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score
from torch import Tensor, nn

from cluster import proposals, single, tables, watchers
from cluster.config import SweepConfig, make_config, read_sweep_file
from cluster.experiments import Experiments
from cluster.export import training_command
from cluster.progress import Progress
from cluster.record import TrialRecord, rank
from cluster.running_trial import RunningTrial
from cluster.search import Trials
from cluster.studies import Studies
from cluster.study import SweepStudy
from trainer.batches import ImageTensors
from trainer.checkpoint import Checkpoint
from trainer.data import DataConfig, ImageData
from trainer.evaluation import epoch_scores
from trainer.hyperparameters import TrialConfig, flatten
from trainer.loop import score
from trainer.measuring import ACCURACY, METRICS, metric_named
from trainer.metrics import EpochMetrics, epochs_of, history
from trainer.objective import build_loss

LOSS, MACRO_F1, BALANCED = METRICS["loss"], METRICS["macro_f1"], METRICS["balanced_accuracy"]


def epoch(
    number: int, loss: float = 0.5, accuracy: float = 0.5, macro: float = 0.5, balanced: float = 0.5
) -> EpochMetrics:
    return EpochMetrics(number, 0.5, loss, accuracy, 0.01, 1000.0, 1.0, 0.1, macro, balanced)


# ---- the arithmetic ----

LABELS = [0, 0, 0, 2, 2, 3, 0, 2, 3, 3]
ABSENT = {
    "every class": ([0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 3, 4, 4, 1, 1], 6),
    "without images, but taken for": (LABELS, [0, 0, 1, 2, 3, 3, 0, 1, 0, 3], 6),
    "without images, and never taken for": (LABELS, [0, 2, 0, 2, 3, 3, 0, 2, 0, 3], 6),
    "never right": ([0, 0, 1], [1, 2, 2], 4),
    "one class": ([1, 1], [1, 1], 3),
}


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@pytest.mark.parametrize(("labels", "predicted", "classes"), ABSENT.values(), ids=ABSENT)
def test_the_scores_are_those_of_scikit_learn(labels: list[int], predicted: list[int], classes: int) -> None:
    found = epoch_scores(0.25, confusion_matrix(labels, predicted, labels=range(classes)))
    assert found.loss == 0.25
    assert found.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0.0))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))


class Told(nn.Module):
    """A network that takes each image for the class that its only pixel says."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(1, classes)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(images[:, 0, 0, 0].long(), self.classifier.out_features).float()


def told(labels: list[int], predicted: list[int]) -> ImageTensors:
    pixels = torch.tensor(predicted, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageTensors(pixels, torch.tensor(labels), torch.arange(len(labels)), torch.device("cpu"))


def counted(split: ImageTensors, rank: int = 0, world_size: int = 1) -> Any:
    config = TrialConfig()
    return score(Told(6), split, build_loss(config.loss), config.training, rank, world_size)  # type: ignore[arg-type]


def test_an_epoch_is_scored_by_what_was_taken_for_what() -> None:
    labels, predicted, classes = ABSENT["without images, but taken for"]
    found = counted(told(labels, predicted))
    expected = epoch_scores(found.loss, confusion_matrix(labels, predicted, labels=range(classes)))
    assert found == expected


def test_two_ranks_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    split = told(rng.integers(0, 5, 3001).tolist(), rng.integers(1, 6, 3001).tolist())
    others: list[Tensor] = []
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    monkeypatch.setattr(dist, "all_reduce", lambda sums: others.append(sums.clone()))
    half = counted(split, rank=1, world_size=2)
    monkeypatch.setattr(dist, "all_reduce", lambda sums: sums.add_(others[0]))
    both, alone = counted(split, rank=0, world_size=2), counted(split)
    assert dataclasses.replace(both, loss=0.0) == dataclasses.replace(alone, loss=0.0)
    assert both.loss == pytest.approx(alone.loss)
    assert half.loss != pytest.approx(alone.loss)


@pytest.mark.parametrize("goal", METRICS.values(), ids=METRICS)
def test_a_better_value_has_more_merit_and_no_number_has_the_least(goal: Any) -> None:
    better, worse = (0.1, 0.9) if goal is LOSS else (0.9, 0.1)
    assert goal.is_better(better, worse)
    assert not goal.is_better(worse, better)
    assert not goal.is_better(worse, worse)
    for nothing in (None, math.nan):
        assert goal.is_better(worse, nothing)
        assert not goal.is_better(nothing, worse)
    assert goal.best([worse, math.nan, better]) == better
    assert goal.best([]) is None
    assert goal.value_of(dataclasses.replace(epoch(1), **{goal.field: better})) == better


def test_epochs_that_were_recorded_without_the_metrics_can_be_read() -> None:
    old = {name: values for name, values in history([epoch(1), epoch(2)]).items() if name not in METRICS}
    assert [(e.epoch, e.macro_f1, e.balanced_accuracy) for e in epochs_of(old)] == [(1, 0.0, 0.0), (2, 0.0, 0.0)]


# ---- what the user says ----


def config(**settings: Any) -> SweepConfig:
    return make_config({"name": "s", "data": "digits", "trials": 9, "epochs": 3} | settings)


def test_a_sweep_optimises_accuracy_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    assert config().goal == ACCURACY
    file = tmp_path / "sweep.yaml"
    file.write_text("data: digits\nmetric: loss\n")
    assert config(**read_sweep_file(file)).goal == LOSS
    recorded = config().to_json()
    del recorded["metric"]  # by a version before there were others
    assert SweepConfig.from_json(recorded) == config()


def test_an_unknown_metric_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"metric must be one of accuracy, macro_f1.*'macrof1'.*Did you mean 'macro_f1'"
    ):
        config(metric="macrof1")
    with pytest.raises(ValueError, match="metric must be text, but got 1"):
        config(metric=1)
    with pytest.raises(ValueError, match="Did you mean 'loss'"):
        metric_named("los")


def test_the_page_about_searching_says_what_each_metric_is() -> None:
    page = (Path(__file__).parents[1] / "docs/searching.md").read_text()
    for goal in METRICS.values():
        [row] = [line for line in page.splitlines() if line.startswith(f"| `{goal.name}`")]
        most = "the most" if goal.higher_is_better else "the least"
        assert row.endswith(f"| {most} | {goal.meaning} |")


# ---- a study ----


@pytest.fixture
def where(tmp_path: Path) -> Experiments:
    return Experiments(tmp_path / "experiments")


def create(where: Experiments, **settings: Any) -> SweepStudy:
    chosen = config(**{"preset": "none"} | settings)
    study = Studies(where, create=True).create(chosen, ["a", "b"])
    study.begin_run(chosen, groups=1)
    return study


def run_trial(study: SweepStudy, *epochs: EpochMetrics, end: str = "complete") -> RunningTrial:
    trial = study.ask()
    trial.begin(123, "group", 10.0 * trial.number)
    for metrics in epochs:
        trial.report(metrics, 1.0)
    getattr(trial, end)()
    return trial


def one_of_each(study: SweepStudy) -> list[RunningTrial]:
    """Complete trials, each the best by another metric in its second epoch, and one that was pruned after a good first one."""
    return [
        run_trial(study, epoch(1), epoch(2, accuracy=0.9), epoch(3)),
        run_trial(study, epoch(1), epoch(2, macro=0.8), epoch(3)),
        run_trial(study, epoch(1), epoch(2, balanced=0.7), epoch(3)),
        run_trial(study, epoch(1), epoch(2, loss=0.1), epoch(3)),
        run_trial(study, epoch(1, 0.01, 0.99, 0.99, 0.99), epoch(2, 0.4, 0.6, 0.6, 0.6), end="prune"),
    ]


BEST = {"accuracy": (0, 0.9), "macro_f1": (1, 0.8), "balanced_accuracy": (2, 0.7), "loss": (3, 0.1)}


@pytest.mark.parametrize("name", METRICS)
def test_a_study_ranks_by_its_metric_and_any_optuna_tool_shows_it_right(where: Experiments, name: str) -> None:
    study = create(where, metric=name)
    one_of_each(study)
    number, value = BEST[name]
    record, theirs = study.read(), optuna.load_study(study_name="s", storage=where.database)
    assert theirs.direction.name == ("MINIMIZE" if name == "loss" else "MAXIMIZE")
    assert (theirs.best_trial.number, theirs.best_value) == (number, value)
    best = record.best_or_error()
    assert (best.number, best.value) == (number, value)
    assert [t.number for t in record.trials] == [number, *(n for n in range(4) if n != number), 4]
    field = METRICS[name].field
    for trial in record.trials:
        assert theirs.trials[trial.number].intermediate_values == dict(enumerate(trial.history[field], 1))
    assert record.trial(4).value == (0.4 if name == "loss" else 0.6)  # of a pruned one that of the last epoch
    [summary] = Studies(where).summaries()
    assert (summary.best_value, summary.metric) == (value, METRICS[name])
    assert Studies(where).optuna_study("s").direction == theirs.direction


def test_trials_are_ranked_by_accuracy_or_by_loss() -> None:
    trials = [
        TrialRecord(0, "COMPLETE", 0.5, {}),
        TrialRecord(1, "COMPLETE", 0.1, {}),
        TrialRecord(2, "PRUNED", 0.05, {}),
    ]
    assert [t.number for t in rank(trials)] == [0, 1, 2]
    assert [t.number for t in rank(trials, LOSS)] == [1, 0, 2]


@pytest.mark.parametrize("name", METRICS)
def test_the_weights_of_the_best_trials_by_the_metric_are_kept(where: Experiments, name: str) -> None:
    study, store = create(where, metric=name), where.checkpoints("s")
    keeper = watchers.CheckpointKeeper(store, 1, study)
    for trial in one_of_each(study):
        store.save(trial.number, Checkpoint({"w": torch.zeros(1)}, trial.config, 1, 0.0))
        keeper.ended(trial, "PRUNED" if trial.number == 4 else "COMPLETE")
    assert store.trials() == [BEST[name][0]]
    again = watchers.CheckpointKeeper(store, 1, study)  # what it knows after a restart is what the record says
    worse = run_trial(study, epoch(1))
    store.save(worse.number, Checkpoint({"w": torch.zeros(1)}, worse.config, 1, 0.0))
    again.ended(worse, "COMPLETE")
    assert store.trials() == [BEST[name][0]]


@pytest.mark.parametrize("pruner", ["median", "halving"])
@pytest.mark.parametrize("name", METRICS)
def test_what_is_pruned_is_what_is_worse_by_the_metric(where: Experiments, name: str, pruner: str) -> None:
    goal = METRICS[name]
    high, low = (dataclasses.replace(epoch(1), **{goal.field: value}) for value in (0.9, 0.1))
    good, bad = (low, high) if goal is LOSS else (high, low)
    study = create(where, metric=name, pruner=pruner)
    for _ in range(8):
        run_trial(study, *(dataclasses.replace(epoch(number), **{goal.field: 0.5}) for number in (1, 2, 3)))
    is_pruned = []
    for one in (good, bad):
        trial = study.ask()
        for number in (1, 2):
            trial.report(dataclasses.replace(one, epoch=number), 1.0)
        is_pruned.append(trial.should_prune())
    assert is_pruned == [False, True]


SPACE = {"model.blocks": 1, "model.kernel_size": [3, 5, 7], "optimizer.name": "adam"}


def run_judged_by_kernels(study: SweepStudy) -> bool:
    """Kernels of size 5 have a low loss, whatever their accuracy; whether the trial has them."""
    trial = study.ask()
    good = trial.config.model.kernel_size == (5,)
    trial.begin(1, "group", 1.0)
    trial.report(epoch(1, loss=0.1 if good else 0.9, accuracy=0.3 if good else 0.8), 1.0)
    trial.complete()
    return good


def test_the_sampler_looks_for_a_low_loss(where: Experiments) -> None:
    study = create(where, metric="loss", space=SPACE, trials=100)
    for _ in range(40):
        run_judged_by_kernels(study)
    assert sum(run_judged_by_kernels(study) for _ in range(10)) >= 7


def test_the_sampler_keeps_the_trials_with_the_lowest_loss_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "BEST", 4)
    monkeypatch.setattr(proposals, "MOST", 10)
    mine = proposals.Proposals(config(metric="loss", space={"model.blocks": 1}, trials=1000), 0, [])
    for number in range(60):
        mine.propose()
        mine.note(number)
        mine.ended(number, optuna.trial.TrialState.COMPLETE, (number * 37 % 60) / 60, 1)
    values = sorted(t.value for t in mine._study.get_trials(deepcopy=False) if t.value is not None)
    assert values[:4] == [0, 1 / 60, 2 / 60, 3 / 60]


def test_a_warm_start_values_the_other_sweeps_trials_by_its_own_metric(where: Experiments) -> None:
    study = create(where, space=SPACE, trials=100)  # by accuracy, by which 5 is the worst kernel size
    for _ in range(30):
        run_judged_by_kernels(study)
    chosen = config(name="warm", preset="none", trials=50, space=SPACE, metric="loss", warm_start_from="s")
    warm = Studies(where).create(chosen, ["a", "b"])
    warm.begin_run(chosen, groups=1)
    first = warm.ask()
    assert first.config.model.kernel_size == (5,)
    first.report(epoch(1, loss=0.1), 1.0)
    first.complete()
    assert sum(run_judged_by_kernels(warm) for _ in range(10)) >= 7


def test_a_warm_start_learns_nothing_from_trials_that_were_recorded_without_the_metric(where: Experiments) -> None:
    study = create(where, space=SPACE)
    trial = run_trial(study, epoch(1))
    old = {name: values for name, values in history(trial.epochs).items() if name not in METRICS}
    [frozen] = optuna.load_study(study_name="s", storage=where.database).get_trials()
    frozen.user_attrs["history"] = old
    assert proposals.valued_by(MACRO_F1, [frozen]) == []
    [known] = proposals.valued_by(LOSS, [frozen])
    assert (known.value, known.intermediate_values) == (0.5, {1: 0.5})
    assert frozen.value == 0.5


def test_a_configuration_without_room_in_memory_teaches_whatever_the_metric(where: Experiments) -> None:
    study = create(where, space=SPACE)
    study.ask().fail("OutOfMemoryError", kind="out of memory")
    [frozen] = optuna.load_study(study_name="s", storage=where.database).get_trials()
    assert [t.number for t in proposals.valued_by(LOSS, [frozen])] == [0]


def test_the_groups_are_told_the_metric(where: Experiments) -> None:
    study = create(where, metric="loss")
    posted: list[Any] = []
    mailbox = type("Mailbox", (), {"post": type("Post", (), {"remote": staticmethod(posted.append)})})
    Trials(study, study.config, lambda: 2, mailbox, "checkpoints", lambda: False, []).prepare()
    assert [assignment.metric for assignment in posted] == ["loss", "loss"]


def test_the_progress_says_the_best_by_the_metric(where: Experiments, capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.plan import Plan

    study = create(where, metric="loss")
    progress = Progress(study.config, Plan(1, 1, 2.0, 0.0, at_once=1, most=1), study)
    for number, losses in enumerate(((0.4, 0.2), (0.9, 0.8))):
        trial = run_trial(study, *(epoch(place, loss=loss) for place, loss in enumerate(losses, 1)))
        progress.ended(trial, "COMPLETE")
        assert trial.number == number
    lines = capsys.readouterr().err.splitlines()
    assert "trial 0 COMPLETE  0.2000" in lines[0]
    assert "trial 1 COMPLETE  0.8000 after 2 epochs  best 0.2000 (trial 0)" in lines[1]


# ---- what is printed ----


@pytest.mark.parametrize("name", METRICS)
def test_the_tables_name_the_metric(where: Experiments, capsys: pytest.CaptureFixture[str], name: str) -> None:
    study, goal = create(where, metric=name), METRICS[name]
    one_of_each(study)
    record = study.read()
    tables.show_ranking(record, None, as_json=False)
    head, first = capsys.readouterr().out.splitlines()[:2]
    assert f" {goal.label} " in head
    assert f" {BEST[name][1]:.4f} " in first
    tables.show_ranking(record, None, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["metric"] == goal.field
    assert document["trials"][0]["value"] == BEST[name][1]
    tables.show_trial(record.best_or_error(), goal, as_json=True)
    epochs = json.loads(capsys.readouterr().out)["epochs"]
    assert max((e[goal.field] for e in epochs), key=goal.merit) == BEST[name][1]
    assert {"macro_f1", "balanced_accuracy"} <= set(epochs[0])
    tables.show_trial(record.best_or_error(), goal, as_json=False)
    text = capsys.readouterr().out
    assert f"COMPLETE, {goal.label} {BEST[name][1]:.4f}" in text
    assert f"val {goal.label}" in text
    tables.show_list(Studies(where).summaries(), as_json=False)
    assert (f"{BEST[name][1]:.4f} ({goal.label})" in capsys.readouterr().out) == (name != "accuracy")


def test_the_end_of_a_sweep_says_what_was_gained(where: Experiments, capsys: pytest.CaptureFixture[str]) -> None:
    study = create(where, metric="loss", preset="default")
    run_trial(study, epoch(1, loss=0.4))
    run_trial(study, epoch(1, loss=0.1))
    study.end_run("FINISHED")
    tables.show_outcome(study.read(), "FINISHED", None, "experiments", as_json=False)
    assert "Validation loss: preset default 0.4000, best trial 0.1000." in capsys.readouterr().out


# ---- one training ----


def test_a_training_keeps_its_best_epoch_by_the_metric(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = [epoch(1, loss=0.2, accuracy=0.8), epoch(2, loss=0.4, accuracy=0.9), epoch(3, loss=0.3, accuracy=0.85)]
    monkeypatch.setattr(single, "train", lambda *_, **__: iter(epochs))
    for goal, expected in ((ACCURACY, (2, 0.9)), (LOSS, (1, 0.2))):
        training = single.train_here(TrialConfig(), digits, goal)
        assert len(list(training.epochs)) == 3
        assert training.checkpoint is not None
        assert (training.checkpoint.epoch, training.checkpoint.value) == expected


def test_the_command_that_trains_again_has_the_metric() -> None:
    command = training_command(TrialConfig(), DataConfig(data="digits"), "loss")
    assert "--metric loss" in command
    assert "--metric" not in training_command(TrialConfig(), DataConfig(data="digits"))


@pytest.mark.slow
def test_a_sweep_by_macro_f1_keeps_the_weights_of_each_trials_best_epoch_by_it(tmp_path: Path) -> None:
    words = ["sweep", "--data", "digits", "--metric", "macro_f1", "--trials", "2", "--epochs", "3", "--pruner", "none"]
    words += ["--name", "s", "--json", "--set", "model.filters=8", "--set", "model.blocks=2"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "CONVSWEEP_EXPERIMENTS")}
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document, where = json.loads(done.stdout), Experiments(tmp_path / "experiments")
    assert document["metric"] == "macro_f1"
    record = Studies(where).read("s")
    assert [t.number for t in record.trials] == [t["number"] for t in document["trials"]]
    for trial in record.trials:
        best = max(trial.epochs, key=lambda e: e.macro_f1)
        checkpoint = where.checkpoints("s").load(trial.number)
        assert trial.value == checkpoint.value == best.macro_f1 > 0
        assert checkpoint.epoch == best.epoch
        assert flatten(checkpoint.config) == trial.config
