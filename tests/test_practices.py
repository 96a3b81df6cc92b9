"""What a training may do beside following the gradient: `python -m pytest tests/test_practices.py`."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cluster.export import rebuild, score_splits
from cluster.single import train_here
from cluster.space import Space
from tests.ranks import on_two_ranks
from trainer import worker
from trainer.averaging import WeightAverage, build_average
from trainer.batches import ImageTensors
from trainer.data import DataConfig, ImageData, load_data
from trainer.early_stopping import is_out_of_patience, is_over
from trainer.gradients import Gradients
from trainer.hyperparameters import LossConfig, ScheduleConfig, TrainingConfig, TrialConfig, unflatten
from trainer.loop import create_model, score, train
from trainer.mailbox import Assignment, Report
from trainer.measuring import ACCURACY
from trainer.metrics import EpochMetrics
from trainer.model import Classifier
from trainer.objective import build_loss, build_optimizers, build_penalty, learning_rate_factor
from trainer.training_state import Position, TrainingState

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "model.blocks": 2,
    "model.filters": 8,
    "model.batch_norm": False,
    "model.dense_units": 16,
    "optimizer.learning_rate": 0.01,
    "training.batch_size": 64,
    "training.epochs": 3,
    "training.precision": "float32",
}
PRACTICES: dict[str, dict[str, Any]] = {
    "class weights": {"loss.class_weights": "inverse"},
    "effective class weights": {"loss.class_weights": "effective", "loss.effective_beta": 0.99},
    "balanced sampling": {"training.sampling": "balanced"},
    "balanced augmentation": {"augmentation.shift": 2, "augmentation.balanced": True},
    "l1": {"loss.l1": 0.001},
    "l2": {"loss.l2": 0.01},
    "clipping": {"optimizer.clip_norm": 0.1, "optimizer.name": "sgd"},
    "warm-up": {"schedule.name": "cosine", "schedule.warmup": 0.5},
    "average": {"training.ema": 0.9},
    "average with batch normalisation": {"training.ema": 0.9, "model.batch_norm": True},
    "mixup": {"augmentation.mixup": 0.4, "loss.label_smoothing": 0.1},
    "cutmix": {"augmentation.cutmix": 1.0, "loss.name": "focal"},
    "both, weighted": {
        "augmentation.mixup": 0.4,
        "augmentation.cutmix": 1.0,
        "augmentation.flip": True,
        "loss.class_weights": "inverse",
        "loss.name": "mean_squared_error",
    },
    "randaugment": {"augmentation.randaugment": 2, "augmentation.magnitude": 12},
}
"""Digits have classes of nearly one size: what balances them changes little here, but something."""

NEW = (
    *("augmentation.randaugment", "augmentation.magnitude", "augmentation.mixup", "augmentation.cutmix"),
    *("augmentation.balanced", "loss.class_weights", "loss.effective_beta", "loss.l1", "loss.l2"),
    *("optimizer.clip_norm", "schedule.warmup", "training.patience", "training.sampling", "training.ema"),
)


def fewer(data: ImageData) -> ImageData:
    """With 448 images to train with: seven batches."""
    return dataclasses.replace(data, train=dataclasses.replace(data.train, rows=data.train.rows[:448]))


@pytest.fixture(scope="module")
def few(digits: ImageData) -> ImageData:
    return fewer(digits)


def tensors(data: ImageData) -> tuple[ImageTensors, ImageTensors]:
    return ImageTensors.of(data.train, CPU), ImageTensors.of(data.validation, CPU)


def run(config: TrialConfig, data: ImageData, **options: Any) -> tuple[list[EpochMetrics], Classifier]:
    model = create_model(config, data, CPU)
    return list(train(model, config, *tensors(data), **options)), model


def without_times(metrics: list[EpochMetrics]) -> list[EpochMetrics]:
    return [dataclasses.replace(m, seconds=0.0, images_per_second=0.0, latency=0.0) for m in metrics]


def after_calls(count: int) -> Callable[[], bool]:
    """A `should_stop` that is true from that call on."""
    calls = itertools.count(1)
    return lambda: next(calls) >= count


# ---- all of them ----


def test_a_sweep_searches_none_of_them_unless_it_is_told_to() -> None:
    assert set(NEW).isdisjoint(Space({}, {}).searched())
    told = Space({"training.ema": [0.0, 0.99], "optimizer.clip_norm": {"low": 0.5, "high": 5.0, "log": True}}, {})
    assert {"training.ema", "optimizer.clip_norm"} <= set(told.searched())


def test_a_trial_that_was_recorded_without_them_is_read_without_them() -> None:
    config = unflatten({"optimizer.name": "sgd", "loss.name": "focal"})
    assert (config.loss.class_weights, config.loss.l1, config.loss.l2) == ("none", 0.0, 0.0)
    assert (config.training.ema, config.training.patience, config.training.sampling) == (0.0, 0, "shuffled")
    assert (config.optimizer.clip_norm, config.schedule.warmup) == (0.0, 0.0)
    augmentation = config.augmentation
    assert (augmentation.mixup, augmentation.cutmix, augmentation.randaugment, augmentation.balanced) == (
        0,
        0,
        0,
        False,
    )


def test_a_number_at_the_end_of_a_name_is_no_block() -> None:
    space = Space({"model.blocks": 1, "loss.l2": [0.0, 0.1]}, {})
    assert set(NEW) < set(space.domains)
    assert "loss.l2" in space.searched()
    assert "model.filters.2" not in space.domains


@pytest.mark.parametrize("practice", PRACTICES)
def test_each_practice_makes_a_difference(few: ImageData, practice: str) -> None:
    words = PRACTICES[practice]
    without = {name: value for name, value in words.items() if name not in NEW}
    plain, _ = run(unflatten(SMALL | without | {"training.epochs": 1}), few)
    changed, _ = run(unflatten(SMALL | words | {"training.epochs": 1}), few)
    assert (plain[0].train_loss, plain[0].val_loss) != (changed[0].train_loss, changed[0].val_loss)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("practice", PRACTICES)
def test_training_that_goes_on_from_a_written_state_is_as_if_nothing_had_happened(
    few: ImageData, practice: str, steps: int
) -> None:
    config, parts = unflatten(SMALL | PRACTICES[practice]), tensors(few)
    model = create_model(config, few, CPU)
    average, position = build_average(config.training, model), Position()
    whole = list(train(model, config, *parts, average=average, position=position))

    begun = create_model(config, few, CPU)
    optimizers, half = build_optimizers(config.optimizer, begun), Position()
    began = build_average(config.training, begun)
    stop = after_calls(7 + steps + 1) if steps else lambda: False
    words = {"optimizers": optimizers, "average": began, "position": half, "should_stop": stop}
    epochs = train(begun, config, *parts, **words)  # type: ignore[arg-type]
    first = list(epochs) if steps else [next(epochs)]
    assert (half.epochs, half.steps) == (1, steps)
    written = TrainingState.of(begun, optimizers, config, first, 1.5, half, began).to_bytes()

    state = TrainingState.from_bytes(written)
    assert state.position == half
    again = create_model(config, few, CPU)
    optimizers, resumed = build_optimizers(config.optimizer, again), build_average(config.training, again)
    state.restore(again, optimizers, resumed)
    rest = list(
        train(again, config, *parts, optimizers=optimizers, average=resumed, position=state.position, history=first)
    )
    assert without_times([*first, *rest]) == without_times(whole)
    assert state.position.gradients == position.gradients
    for mine, theirs in ((again, model), (resumed and resumed.model, average and average.model)):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            for name, weights in mine.state_dict().items():
                assert torch.equal(weights, theirs.state_dict()[name]), name


def test_the_state_of_an_earlier_version_can_be_gone_on_from(few: ImageData) -> None:
    config = unflatten(SMALL)
    model, position = create_model(config, few, CPU), Position()
    optimizers = build_optimizers(config.optimizer, model)
    first = next(train(model, config, *tensors(few), optimizers=optimizers, position=position))
    state = TrainingState.of(model, optimizers, config, [first], 1.5, position)
    facts = json.loads(json.dumps(dataclasses.asdict(position)))
    del facts["gradients"]
    old = dataclasses.replace(state, position=Position(**facts))
    again = TrainingState.from_bytes(old.to_bytes()).position
    rest = list(train(model, config, *tensors(few), optimizers=optimizers, position=again))
    assert [m.epoch for m in rest] == [2, 3]
    assert [bool(norms) for norms in again.gradients] == [False, True, True]


# ---- penalties ----


def kernels(model: Classifier) -> list[Tensor]:
    return [p for p in model.parameters() if p.ndim >= 2]


def test_penalties_are_sums_over_kernels_and_matrices(few: ImageData) -> None:
    model = create_model(unflatten(SMALL), few, CPU)
    penalty = build_penalty(LossConfig(l1=0.3, l2=0.7), model)
    assert penalty is not None
    expected = sum(0.3 * w.double().abs().sum().item() + 0.7 * (w.double() ** 2).sum().item() for w in kernels(model))
    assert penalty().item() == pytest.approx(expected, rel=1e-5)
    assert build_penalty(LossConfig(), model) is None


@pytest.mark.parametrize(("l1", "l2"), [(0.01, 0.0), (0.0, 0.02), (0.01, 0.02)])
def test_a_step_of_sgd_goes_along_the_penalties_gradient_too(few: ImageData, l1: float, l2: float) -> None:
    words = {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "optimizer.learning_rate": 0.1}
    words |= {"schedule.name": "constant", "training.batch_size": 65536, "training.epochs": 1}
    before = [w.detach().clone() for w in kernels(create_model(unflatten(SMALL), few, CPU))]
    [plain], without = run(unflatten(SMALL | words), few)
    [metrics], model = run(unflatten(SMALL | words | {"loss.l1": l1, "loss.l2": l2}), few)
    for w, theirs, ours in zip(before, kernels(without), kernels(model), strict=True):
        torch.testing.assert_close(ours, theirs - 0.1 * (l1 * w.sign() + 2 * l2 * w), atol=1e-6, rtol=1e-5)
    biases = zip(without.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in biases if a.ndim < 2)
    assert metrics.train_loss == plain.train_loss  # what is recorded is the loss of the images


@pytest.mark.parametrize("penalty", ["loss.l1", "loss.l2"])
def test_penalties_keep_the_weights_small(few: ImageData, penalty: str) -> None:
    _, free = run(unflatten(SMALL), few)
    _, held = run(unflatten(SMALL | {penalty: 0.01}), few)
    assert sum(w.norm().item() for w in kernels(held)) < 0.8 * sum(w.norm().item() for w in kernels(free))


# ---- clipping ----


@pytest.mark.parametrize("clip_norm", [0.05, 1000.0])
def test_a_step_is_that_of_the_gradient_that_torch_clips(few: ImageData, clip_norm: float) -> None:
    words = {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "optimizer.learning_rate": 0.1}
    words |= {"schedule.name": "constant", "training.batch_size": 65536, "training.epochs": 1}
    _, got = run(unflatten(SMALL | words | {"optimizer.clip_norm": clip_norm}), few)
    expected = create_model(unflatten(SMALL), few, CPU).train()
    images, labels = tensors(few)[0].select(torch.arange(len(few.train)))
    torch.autograd.backward(build_loss(LossConfig())(expected(images), labels).mean())
    norm = torch.nn.utils.clip_grad_norm_(expected.parameters(), clip_norm)
    assert (norm > clip_norm) == (clip_norm == 0.05)
    for ours, theirs in zip(got.parameters(), expected.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(ours, theirs - 0.1 * theirs.grad, atol=1e-6, rtol=1e-5)


def test_the_gradient_of_all_weights_is_clipped_as_one_also_where_two_optimizers_follow_it(few: ImageData) -> None:
    """With both optimizers replaced by plain descent, the whole step is as long as the clipped gradient."""
    config = unflatten(SMALL | {"optimizer.name": "muon", "optimizer.clip_norm": 0.01, "training.epochs": 1})
    model = create_model(config, few, CPU)
    groups = [[p for g in o.param_groups for p in g["params"]] for o in build_optimizers(config.optimizer, model)]
    optimizers = [torch.optim.SGD(parameters, lr=1.0) for parameters in groups]
    before, lengths = [p.detach().clone() for p in model.parameters()], []

    def watch() -> bool:
        now = [p.detach().clone() for p in model.parameters()]
        rates = {g["lr"] for o in optimizers for g in o.param_groups}
        lengths.append(torch.stack([(a - b).norm() for a, b in zip(now, before, strict=True)]).norm() / max(rates))
        before[:] = now
        return False

    list(train(model, config, *tensors(few), optimizers=optimizers, should_stop=watch))
    assert torch.stack(lengths[2:]).tolist() == pytest.approx([0.01] * (len(lengths) - 2), rel=1e-2)


# ---- warm-up ----


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ScheduleConfig(name="constant", warmup=0.4), [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (
            ScheduleConfig(name="cosine", warmup=0.2),
            [0.0, 0.5, 1.0, 0.96194, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.03806],
        ),
    ],
    ids=repr,
)
def test_the_learning_rate_rises_before_it_does_what_the_schedule_says(
    config: ScheduleConfig, expected: list[float]
) -> None:
    assert [learning_rate_factor(config, step / 10) for step in range(10)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_one_cycle_has_a_rise_of_its_own(warmup: float) -> None:
    plain, other = ScheduleConfig(name="one_cycle"), ScheduleConfig(name="one_cycle", warmup=warmup)
    assert [learning_rate_factor(plain, s / 50) for s in range(50)] == [
        learning_rate_factor(other, s / 50) for s in range(50)
    ]


# ---- the average of the weights ----


def test_the_average_is_that_of_the_weights_after_each_step(few: ImageData) -> None:
    config = unflatten(SMALL | {"training.ema": 0.8, "model.batch_norm": True, "training.epochs": 2})
    model = create_model(config, few, CPU)
    average, seen = build_average(config.training, model), list[dict[str, Tensor]]()

    def watch() -> bool:  # asked before each step
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return False

    list(train(model, config, *tensors(few), average=average, should_stop=watch))
    seen.append(model.state_dict())
    assert len(seen) == 15
    expected = {name: value.double() for name, value in seen[0].items()}
    for step, state in enumerate(seen[1:]):
        decay = min(0.8, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * state[name].double() for name in expected}
    assert average is not None
    got = average.model.state_dict()
    for name in got:
        if got[name].is_floating_point():
            torch.testing.assert_close(got[name], expected[name].float(), atol=1e-5, rtol=1e-4)
        else:
            assert torch.equal(got[name], seen[-1][name])
    assert any(not torch.equal(got[name], seen[-1][name]) for name in got)


def test_the_average_does_not_change_the_training(few: ImageData) -> None:
    plain, model = run(unflatten(SMALL), few)
    averaged, other = run(unflatten(SMALL | {"training.ema": 0.95}), few)
    assert [m.train_loss for m in plain] == [m.train_loss for m in averaged]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_average_is_what_is_judged(few: ImageData) -> None:
    config = unflatten(SMALL | {"training.ema": 0.9, "model.batch_norm": True})
    model = create_model(config, few, CPU)
    average = WeightAverage(model, 0.9)
    *_, last = train(model, config, *tensors(few), average=average)
    plain_loss = build_loss(config.loss)
    scores = score(average.model, tensors(few)[1], plain_loss, config.training)
    assert (last.val_loss, last.val_accuracy) == (scores.loss, scores.accuracy)
    assert last.val_loss != score(model, tensors(few)[1], plain_loss, config.training).loss
    assert not any(p.requires_grad for p in average.model.parameters())


def test_the_average_is_what_is_kept_and_exported(few: ImageData) -> None:
    training = train_here(unflatten(SMALL | {"training.ema": 0.9, "model.batch_norm": True}), few)
    best = max(training.epochs, key=lambda m: m.val_accuracy)
    assert training.checkpoint is not None
    assert training.checkpoint.epoch == best.epoch
    scores = score_splits(rebuild(training.checkpoint, few), few)["validation"]
    assert scores.accuracy == best.val_accuracy
    assert scores.loss == pytest.approx(best.val_loss, rel=1e-4)


# ---- ending early ----


def epochs_with(*accuracies: float) -> list[EpochMetrics]:
    return [EpochMetrics(i, 0.5, 0.5, accuracy, 0.1, 1000.0, 1.0) for i, accuracy in enumerate(accuracies, 1)]


@pytest.mark.parametrize(
    ("patience", "accuracies", "over"),
    [
        (0, [0.5, 0.4, 0.3, 0.2], False),
        (1, [0.5], False),
        (1, [0.5, 0.6], False),
        (1, [0.5, 0.5], True),
        (2, [0.5, 0.4], False),
        (2, [0.5, 0.4, 0.5], True),
        (2, [0.5, 0.4, 0.6, 0.5], False),
        (2, [0.5, 0.4, 0.6, 0.5, 0.6], True),
        (3, [0.1, 0.2, 0.3, 0.3, 0.3], False),
        (3, [0.1, 0.2, 0.3, 0.3, 0.3, 0.2], True),
        (1, [], False),
    ],
)
def test_patience_ends_after_so_many_epochs_that_were_not_better(
    patience: int, accuracies: list[float], over: bool
) -> None:
    config = TrainingConfig(epochs=10, patience=patience)
    epochs = epochs_with(*accuracies)
    assert is_out_of_patience(config, epochs, ACCURACY) == over
    assert is_over(config, epochs, ACCURACY) == over
    assert is_over(TrainingConfig(epochs=len(accuracies) or 1), epochs, ACCURACY) == bool(accuracies)
    assert not is_over(config, epochs, None)  # nothing was scored: only the number of epochs counts


STILL: dict[str, Any] = {"optimizer.learning_rate": 1e-7, "optimizer.name": "sgd", "training.patience": 2}
"""Too slow to get better."""


def test_a_training_ends_early_and_keeps_its_best_epoch(few: ImageData) -> None:
    training = train_here(unflatten(SMALL | STILL | {"training.epochs": 50}), few)
    assert [m.epoch for m in training.epochs] == [1, 2, 3]
    assert training.checkpoint is not None
    assert training.checkpoint.epoch == 1
    without = train_here(unflatten(SMALL | STILL | {"training.epochs": 6, "training.patience": 0}), few)
    assert len(list(without.epochs)) == 6


def test_a_training_that_goes_on_counts_the_epochs_before(few: ImageData) -> None:
    config = unflatten(SMALL | STILL | {"training.epochs": 50})
    model, position = create_model(config, few, CPU), Position()
    optimizers = build_optimizers(config.optimizer, model)
    epochs = train(model, config, *tensors(few), optimizers=optimizers, position=position)
    first = [next(epochs), next(epochs)]
    rest = list(train(model, config, *tensors(few), optimizers=optimizers, position=position, history=first))
    assert [m.epoch for m in rest] == [3]
    over = train(model, config, *tensors(few), optimizers=optimizers, position=position, history=[*first, *rest])
    assert list(over) == []


# ---- two ranks ----


@pytest.fixture(scope="module")
def two_ranks(cache: Path, few: ImageData, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return on_two_ranks(work_of_a_rank, cache, tmp_path_factory.mktemp("ranks"))


def work_of_a_rank(rank: int, cache: str) -> dict[str, Any]:
    """The losses, weights and gradients of every practice."""
    data = fewer(load_data(DataConfig(data="digits", cache=cache)))
    found: dict[str, Any] = {}
    for name, words in [*PRACTICES.items(), ("patience", STILL | {"training.epochs": 50})]:
        config = unflatten(SMALL | words)
        model, position = create_model(config, data, CPU), Position()
        average = build_average(config.training, model)
        options: dict[str, Any] = {"average": average, "position": position, "rank": rank, "world_size": 2}
        metrics = list(train(model, config, *tensors(data), **options))
        kept = average.model if average else model
        found[name] = {
            "metrics": [m.to_json() for m in metrics],
            "weights": [value.double().sum().item() for value in kept.state_dict().values()],
            "gradients": position.gradients,
        }
    return found


# With batch normalisation a rank counts the statistics of its own half of a batch.
@pytest.mark.parametrize("practice", [name for name in PRACTICES if "normalisation" not in name])
def test_two_ranks_have_the_losses_and_gradients_of_one(two_ranks: list[Any], few: ImageData, practice: str) -> None:
    position = Position()
    alone, _ = run(unflatten(SMALL | PRACTICES[practice]), few, position=position)
    for rank in two_ranks:
        together = [EpochMetrics(**m) for m in rank[practice]["metrics"]]
        for ours, theirs in zip(together, alone, strict=True):
            assert ours.train_loss == pytest.approx(theirs.train_loss, abs=2e-4)
            assert ours.val_loss == pytest.approx(theirs.val_loss, abs=2e-4)
            assert ours.learning_rate == theirs.learning_rate
        first, expected = rank[practice]["gradients"][0], position.gradients[0]
        assert first[0] == pytest.approx(expected[0], rel=0.03)
        assert first[1] == pytest.approx(expected[1], rel=0.01)


@pytest.mark.parametrize("practice", PRACTICES)
def test_two_ranks_end_with_the_same_weights_losses_and_gradients(two_ranks: list[Any], practice: str) -> None:
    first, second = (rank[practice] for rank in two_ranks)
    metrics = ([EpochMetrics(**m) for m in rank["metrics"]] for rank in (first, second))
    assert without_times(next(metrics)) == without_times(next(metrics))
    assert first["weights"] == second["weights"]
    assert first["gradients"] == second["gradients"]


def test_two_ranks_lose_patience_together(two_ranks: list[Any]) -> None:
    assert [len(rank["patience"]["metrics"]) for rank in two_ranks] == [3, 3]


# ---- a worker group ----


class Letters:
    """Stands in for the handle of the mailbox's actor: what is sent is kept, and what is asked for is at hand."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []
        self.on_report: Callable[[int], None] = lambda count: None

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *words: self._take(name, words[-1]))

    def _take(self, name: str, words: Any) -> int:
        self.sent.append((name, words))
        if name == "report":
            self.on_report(len(self.reports))
        return 0  # of `begin`: none of its attempts has ended in a death

    @property
    def reports(self) -> list[Report]:
        return [words for name, words in self.sent if name == "report"]


@pytest.fixture
def work(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Letters]:
    """Lets a rank work on a trial that was `begun` or not; after so many reports it has to leave, if at all."""
    monkeypatch.setattr(worker.ray, "get", lambda answer: answer)
    data = DataConfig(data="digits", cache=str(cache), validation_fraction=0.6)

    def train_one(config: TrialConfig, *, begun: bool = False, leaves_after: int | None = None) -> Letters:
        letters, news = Letters(), worker._News()

        def leave(reports: int) -> None:
            news.has_to_leave = reports == leaves_after

        letters.on_report = leave
        assignment = Assignment(0, config, data, str(tmp_path / "checkpoints"), begun)
        with contextlib.suppress(worker._LeavingError):
            worker._Trial(letters, "group", 0, assignment, 0, 1).run(worker._Loaded(CPU), news)
        return letters

    return train_one


def test_the_last_report_of_a_trial_that_ends_early_says_so_also_when_it_is_begun_again(
    work: Callable[..., Letters],
) -> None:
    config = unflatten(SMALL | STILL | {"training.epochs": 50})
    first, again = work(config), work(config, begun=True)  # the second finds the whole of it and trains nothing
    for letters in (first, again):
        assert [(report.metrics.epoch, report.done) for report in letters.reports if report.metrics] == [
            (1, False),
            (2, False),
            (3, True),
        ]
        assert [name for name, _ in letters.sent][-1] == "finish"
        assert [len(report.gradients.norms) for report in letters.reports if report.gradients] == [1, 1, 1]
    assert [report.metrics for report in first.reports] == [report.metrics for report in again.reports]
    assert [report.gradients for report in first.reports] == [report.gradients for report in again.reports]


@pytest.mark.parametrize(("leaves_after", "hands_over"), [(1, True), (2, True), (3, False)])
def test_a_group_that_has_to_leave_hands_over_what_is_not_over(
    work: Callable[..., Letters], leaves_after: int, hands_over: bool
) -> None:
    config = unflatten(SMALL | STILL | {"training.epochs": 50})
    letters = work(config, leaves_after=leaves_after)
    assert ("hand_over" in [name for name, _ in letters.sent]) == hands_over
    assert len(letters.reports) == leaves_after
    rest = work(config, begun=True).reports
    assert [(report.metrics.epoch, report.done) for report in rest if report.metrics][-1] == (3, True)


def convsweep(folder: Path, *words: object) -> Any:
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "CONVSWEEP_EXPERIMENTS")}
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", *map(str, words), "--json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def settings(space: dict[str, Any]) -> list[str]:
    """As options of the command line; the number of epochs has an option of its own."""
    given = {name: json.dumps(value).strip('"') for name, value in space.items() if name != "training.epochs"}
    return [word for name, value in given.items() for word in ("--set", f"{name}={value}")]


@pytest.mark.slow
def test_a_worker_group_ends_early_as_one_process_does(tmp_path: Path) -> None:
    words = ["train", "--data", "digits", "--epochs", "50", *settings(SMALL | STILL)]
    here, group = convsweep(tmp_path, *words), convsweep(tmp_path, *words, "--workers", 2)
    assert [here["epochs"], group["epochs"]] == [3, 3]
    assert [here["best_epoch"], group["best_epoch"]] == [1, 1]


@pytest.mark.slow
def test_a_trial_that_ends_early_is_complete_and_has_its_gradients(tmp_path: Path) -> None:
    space = SMALL | STILL | {"training.ema": 0.5, "augmentation.mixup": 0.2}
    words = settings(space)
    words += ["--preset", "none", "--pruner", "none", "--trials", "2", "--epochs", "50", "--name", "s"]
    document = convsweep(tmp_path, "sweep", "--data", "digits", *words)
    assert [(t["state"], t["epochs"]) for t in document["trials"]] == [("COMPLETE", 3)] * 2
    trial = convsweep(tmp_path, "show", "s", 0)
    gradients = Gradients.from_json(trial["gradients"])
    assert "classifier.weight" in gradients.layers
    assert [len(row) for row in gradients.norms] == [len(gradients.layers)] * 3
    exported = convsweep(tmp_path, "export", "s", "--trial", 0, "--to", "bundle")
    assert exported["validation_accuracy"] == trial["value"]
