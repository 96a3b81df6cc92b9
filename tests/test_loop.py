"""The training loop, on one rank and on two: `python -m pytest tests/test_loop.py`.

`python tests/test_loop.py > tests/golden/digits_losses.txt` writes the golden losses anew, after a change that is meant
to change them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, recall_score

from tests.ranks import on_two_ranks
from trainer.batches import ImageTensors
from trainer.data import DataConfig, ImageData, load_data
from trainer.hyperparameters import TrialConfig, unflatten
from trainer.loop import NotFiniteError, create_model, predict_split, score, train
from trainer.metrics import EpochMetrics
from trainer.model import Classifier
from trainer.objective import build_loss, build_optimizers
from trainer.training_state import Position, TrainingState

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parent / "golden" / "digits_losses.txt"
GOLDEN_EPOCHS = 4

SMALL: dict[str, Any] = {
    "model.blocks": 2,
    "model.filters": 8,
    "model.batch_norm": False,
    "model.dense_units": 16,
    "optimizer.learning_rate": 0.01,
    "training.batch_size": 64,
    "training.epochs": 2,
    "training.precision": "float32",
}
# Every step multiplies the weights by -99.
DIVERGES: dict[str, Any] = {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 10,
    "optimizer.weight_decay": 10,
    "schedule.name": "constant",
}
EVERY_RANDOM_THING: dict[str, Any] = {
    "model.dropout": 0.3,
    "model.batch_norm": True,
    "augmentation.flip": True,
    "augmentation.shift": 1,
    "augmentation.cutout": 2,
}
ALTERNATING: dict[str, Any] = {"augmentation.alternating_flip": True, "schedule.name": "one_cycle"}


def small(**changes: Any) -> TrialConfig:
    """The small configuration with changes, `optimizer__name="sgd"` for `optimizer.name`."""
    return unflatten(SMALL | {name.replace("__", "."): value for name, value in changes.items()})


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


# ---- replay ----


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "muon"])
def test_same_seed_gives_the_same_metrics_and_weights(digits: ImageData, optimizer: str) -> None:
    config = unflatten(SMALL | EVERY_RANDOM_THING | {"optimizer.name": optimizer})
    first, first_model = run(config, digits)
    torch.rand(17)  # whatever else drew random numbers has no influence, here and below
    second_model = create_model(config, digits, CPU)
    torch.rand(17)
    second = list(train(second_model, config, *tensors(digits)))
    assert without_times(first) == without_times(second)
    weights = zip(first_model.state_dict().values(), second_model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize("steps", [0, 1, 7])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "muon"])
def test_training_that_goes_on_from_a_written_state_is_as_if_nothing_had_happened(
    digits: ImageData, optimizer: str, steps: int
) -> None:
    config = small(**{"optimizer.name": optimizer, "training.epochs": 4, **EVERY_RANDOM_THING, **ALTERNATING})
    whole, model = run(config, digits)

    begun = create_model(config, digits, CPU)
    optimizers = build_optimizers(config.optimizer, begun)
    position, steps_in_epoch = Position(), len(digits.train) // config.training.batch_size
    stop = after_calls(2 * steps_in_epoch + steps + 1) if steps else lambda: False
    epochs = train(begun, config, *tensors(digits), optimizers=optimizers, position=position, should_stop=stop)
    first = list(epochs) if steps else [next(epochs), next(epochs)]
    assert (position.epochs, position.steps, len(first)) == (2, steps, 2)
    written = TrainingState.of(begun, optimizers, config, first, 1.5, position).to_bytes()

    state = TrainingState.from_bytes(written)
    assert (state.config, list(state.history), state.seconds, state.position) == (config, first, 1.5, position)
    again = create_model(config, digits, CPU)
    optimizers = build_optimizers(config.optimizer, again)
    state.restore(again, optimizers)
    rest = list(train(again, config, *tensors(digits), optimizers=optimizers, position=state.position))
    assert without_times([*first, *rest]) == without_times(whole)
    for name, weights in again.state_dict().items():
        assert torch.equal(weights, model.state_dict()[name]), name


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 8])
def test_a_damaged_state_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        TrainingState.from_bytes(content)


def test_every_image_is_mirrored_in_every_other_epoch_when_flips_alternate(
    digits: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[torch.Tensor | None] = []
    real = ImageTensors.shuffled

    def shuffled(self: ImageTensors, *words: Any) -> Any:
        said.append(words[5])
        return real(self, *words)

    monkeypatch.setattr(ImageTensors, "shuffled", shuffled)
    flips: dict[str, Any] = {"augmentation.flip": True, "training.epochs": 3}
    metrics, _ = run(unflatten(SMALL | flips | {"augmentation.alternating_flip": True}), digits)
    first, second, third = said
    assert first is not None
    assert second is not None
    assert third is not None
    assert torch.equal(first, third)
    assert torch.equal(first, ~second)
    assert 0.4 < first.float().mean() < 0.6
    at_random, _ = run(unflatten(SMALL | flips), digits)
    assert said[3:] == [None] * 3
    assert metrics[0].train_loss != at_random[0].train_loss


def test_whitening_kernels_come_from_the_training_images_and_stay(digits: ImageData) -> None:
    config = unflatten(SMALL | {"model.whitening": True, "optimizer.weight_decay": 0.01})
    before = create_model(config, digits, CPU).features[0].convolution.weight
    _, model = run(config, digits)
    assert torch.equal(before, model.features[0].convolution.weight)
    pixels = (digits.train.images[digits.train.rows].astype("float32") - digits.mean[0]) / digits.std[0]
    out = torch.nn.functional.conv2d(torch.from_numpy(pixels), before)[:, :4].transpose(0, 1).flatten(1)
    torch.testing.assert_close(out @ out.T / out.shape[1], torch.eye(4), atol=0.05, rtol=0)


def test_another_seed_gives_other_losses(digits: ImageData) -> None:
    first, _ = run(small(training__seed=0), digits)
    second, _ = run(small(training__seed=1), digits)
    assert [m.train_loss for m in first] != [m.train_loss for m in second]


@pytest.mark.parametrize("random_thing", ["order", "dropout"])
def test_another_seed_gives_another_order_and_other_dropout(digits: ImageData, random_thing: str) -> None:
    """From the same weights. With all images in one batch their order makes no difference."""
    changes = {} if random_thing == "order" else {"model.dropout": 0.5, "training.batch_size": 65536}
    losses = []
    for seed in (0, 1):
        model = create_model(unflatten(SMALL | changes), digits, CPU)
        config = unflatten(SMALL | changes | {"training.seed": seed})
        losses.append(next(train(model, config, *tensors(digits))).train_loss)
    assert abs(losses[0] - losses[1]) > 1e-4


def test_losses_on_digits_are_the_golden_ones(digits: ImageData) -> None:
    expected = [list(map(float, line.split())) for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    metrics, _ = run(golden_config(), digits)
    assert [[m.train_loss, m.val_loss] for m in metrics] == [pytest.approx(row, abs=1e-3) for row in expected]
    assert len(expected) == GOLDEN_EPOCHS


def golden_config() -> TrialConfig:
    return unflatten({"training.epochs": GOLDEN_EPOCHS, "training.precision": "float32"})


def test_the_default_configuration_learns_digits_in_ten_epochs(digits: ImageData) -> None:
    metrics, model = run(TrialConfig(), digits)
    assert metrics[-1].val_accuracy >= 0.95
    test = ImageTensors.of(digits.test, CPU)
    evaluation = predict_split(model, test)
    assert (evaluation.logits.argmax(1) == evaluation.labels).float().mean() >= 0.93


# ---- what is reported ----


def test_there_is_one_report_per_epoch(digits: ImageData) -> None:
    metrics, _ = run(small(training__epochs=3), digits)
    assert [m.epoch for m in metrics] == [1, 2, 3]
    assert all(m.seconds > 0 and m.images_per_second > 0 and m.latency > 0 for m in metrics)
    assert all(isinstance(value, int | float) for m in metrics for value in m.to_json().values())


def test_metrics_survive_json(digits: ImageData) -> None:
    [metrics], _ = run(small(training__epochs=1), digits)
    assert EpochMetrics(**json.loads(json.dumps(metrics.to_json()))) == metrics


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "mean_squared_error"])
def test_the_training_loss_is_the_mean_over_the_images(digits: ImageData, loss: str) -> None:
    """With all images in one batch, the loss of the first epoch is that of the untrained network."""
    config = small(training__batch_size=65536, training__epochs=1, loss__name=loss)
    [metrics], _ = run(config, digits)
    untrained = predict_split(create_model(config, digits, CPU), tensors(digits)[0])
    expected = build_loss(config.loss)(untrained.logits, untrained.labels).mean().item()
    assert metrics.train_loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "mean_squared_error"])
def test_the_validation_scores_are_those_of_the_model_after_the_epoch(digits: ImageData, loss: str) -> None:
    config = unflatten(SMALL | EVERY_RANDOM_THING | {"loss.name": loss})
    metrics, model = run(config, digits)
    evaluation = predict_split(model, tensors(digits)[1])
    expected = build_loss(config.loss)(evaluation.logits, evaluation.labels).mean().item()
    assert metrics[-1].val_loss == pytest.approx(expected, rel=1e-4)
    correct = (evaluation.logits.argmax(1) == evaluation.labels).sum().item()
    assert metrics[-1].val_accuracy == correct / 144
    macro_f1 = f1_score(evaluation.labels, evaluation.logits.argmax(1), average="macro", zero_division=0.0)
    assert metrics[-1].macro_f1 == pytest.approx(macro_f1)
    balanced = recall_score(evaluation.labels, evaluation.logits.argmax(1), average="macro")  # all ten are there
    assert metrics[-1].balanced_accuracy == pytest.approx(balanced)


def test_the_validation_loss_is_without_label_smoothing(digits: ImageData) -> None:
    metrics, model = run(small(loss__label_smoothing=0.3), digits)
    evaluation = predict_split(model, tensors(digits)[1])
    expected = F.cross_entropy(evaluation.logits, evaluation.labels).item()
    assert metrics[-1].val_loss == pytest.approx(expected, rel=1e-4)


def test_the_learning_rate_is_that_of_the_epochs_last_step(digits: ImageData) -> None:
    config = small(schedule__name="cosine", optimizer__learning_rate=0.01, training__epochs=4)
    metrics, _ = run(config, digits)
    last_steps = [19, 39, 59, 79]  # of 1,293 // 64 = 20 per epoch, counted from 0
    expected = [0.01 * 0.5 * (1 + math.cos(math.pi * step / 80)) for step in last_steps]
    assert [m.learning_rate for m in metrics] == pytest.approx(expected)


def test_scoring_leaves_the_model_as_it_was_and_has_no_batches(digits: ImageData) -> None:
    model = create_model(small(model__batch_norm=True), digits, CPU)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training, _ = tensors(digits)  # 1,293 images: more than one batch of the evaluation
    scores = score(model, training, build_loss(small().loss), small().training)
    evaluation = predict_split(model, training)
    assert scores.loss == pytest.approx(F.cross_entropy(evaluation.logits, evaluation.labels).item(), rel=1e-4)
    assert scores.accuracy == (evaluation.logits.argmax(1) == evaluation.labels).sum().item() / 1293
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_predictions_are_float32_in_the_splits_order(digits: ImageData) -> None:
    model = create_model(small(training__precision="bfloat16"), digits, CPU)
    validation = tensors(digits)[1]
    evaluation = predict_split(model, validation)
    assert evaluation.logits.dtype == torch.float32
    assert evaluation.labels.tolist() == digits.validation.labels[digits.validation.rows].tolist()
    one = model(validation.images[digits.validation.rows[7]][None])
    torch.testing.assert_close(evaluation.logits[7], one[0], atol=1e-5, rtol=1e-4)


def test_bfloat16_changes_the_numbers_a_little(digits: ImageData) -> None:
    exact, _ = run(small(training__precision="float32"), digits)
    rounded, _ = run(small(training__precision="bfloat16"), digits)
    assert rounded[-1].train_loss != exact[-1].train_loss
    assert rounded[-1].train_loss == pytest.approx(exact[-1].train_loss, rel=0.1)


# ---- stopping ----


def test_nothing_happens_before_the_first_epoch_is_asked_for(digits: ImageData) -> None:
    config = small()
    model = create_model(config, digits, CPU)
    before = [p.clone() for p in model.parameters()]
    epochs = train(model, config, *tensors(digits))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert next(epochs).epoch == 1
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    epochs.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("call", "epochs"), [(1, 0), (2, 0), (20, 0), (21, 1), (45, 2)])
def test_training_ends_at_the_step_at_which_it_is_told_to_stop(digits: ImageData, call: int, epochs: int) -> None:
    """An epoch has 20 steps, and `should_stop` is asked before each."""
    metrics, _ = run(small(training__epochs=50), digits, should_stop=after_calls(call))
    assert len(metrics) == epochs


def test_training_that_is_stopped_at_once_leaves_the_weights_alone(digits: ImageData) -> None:
    config = small()
    _, stopped = run(config, digits, should_stop=lambda: True)
    untouched = create_model(config, digits, CPU)
    assert all(torch.equal(a, b) for a, b in zip(stopped.parameters(), untouched.parameters(), strict=True))


# ---- what goes wrong ----


def test_a_loss_that_diverges_is_an_error(digits: ImageData) -> None:
    with pytest.raises(NotFiniteError, match=r"The loss is not finite in epoch [12]: train .*, validation .*"):
        run(unflatten(SMALL | DIVERGES), digits)


def test_weights_that_are_not_numbers_are_an_error(digits: ImageData) -> None:
    config = small()
    model = create_model(config, digits, CPU)
    with torch.no_grad():
        model.classifier.weight[0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match="not finite in epoch 1: train nan, validation nan"):
        next(train(model, config, *tensors(digits)))


# ---- two ranks ----

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "augmented": {"augmentation.flip": True, "augmentation.shift": 2, "augmentation.cutout": 3},
    "odd batches": {"training.batch_size": 33, "optimizer.name": "sgd", "optimizer.learning_rate": 0.05},
    "one batch": {"training.batch_size": 5000, "training.epochs": 4},
    "label smoothing": {"loss.label_smoothing": 0.1},
    "sgd": {"optimizer.name": "sgd", "optimizer.learning_rate": 0.05},
    "muon": {"optimizer.name": "muon"},
    "whitening": {"model.whitening": True, "augmentation.flip": True, "augmentation.alternating_flip": True},
    "rnn": {"model.family": "rnn", "model.units": 16, "model.bidirectional": True},
    "transformer": {"model.family": "transformer", "model.patch_size": 2, "model.heads": 2, "model.head_units": 8},
}


@pytest.fixture(scope="module")
def two_ranks(cache: Path, digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two ranks of one process group found: `work` says what."""
    return on_two_ranks(work, cache, tmp_path_factory.mktemp("ranks"))


def work(rank: int, cache: str) -> dict[str, Any]:
    data = load_data(DataConfig(data="digits", cache=cache))
    world: dict[str, Any] = {"rank": rank, "world_size": 2}
    found: dict[str, Any] = {}
    for name, changes in CASES.items():
        metrics, model = run(unflatten(SMALL | changes), data, **world)
        found[name] = {"metrics": [m.to_json() for m in metrics], "weights": _sums(model)}
    metrics, model = run(unflatten(SMALL | {"model.batch_norm": True, "augmentation.shift": 1}), data, **world)
    again = score(model, tensors(data)[1], build_loss(small().loss), small().training)
    found["batch norm"] = {
        "buffers": [b.double().sum().item() for b in model.buffers()],
        "reported": [
            getattr(metrics[-1], field) for field in ("val_loss", "val_accuracy", "macro_f1", "balanced_accuracy")
        ],
        "scored again": dataclasses.astuple(again),
    }
    model = create_model(unflatten(SMALL | {"model.dropout": 0.5}), data, CPU)
    list(train(model, small(training__epochs=1), *tensors(data), should_stop=lambda: True, **world))
    model.train()
    found["dropout"] = model(torch.from_numpy(data.train.images[:20])).flatten().tolist()
    try:
        run(unflatten(SMALL | DIVERGES), data, **world)
    except NotFiniteError as error:
        found["diverges"] = str(error)
    should_stop = after_calls(6) if rank == 0 else lambda: False
    metrics, model = run(unflatten(SMALL | {"training.epochs": 50}), data, should_stop=should_stop, **world)
    found["stopped"] = {"epochs": len(metrics), "weights": _sums(model)}
    config, position = unflatten(SMALL | CASES["augmented"]), Position()
    model = create_model(config, data, CPU)
    optimizers = build_optimizers(config.optimizer, model)
    several = {"optimizers": optimizers, "position": position, **world}
    should_stop = after_calls(4) if rank == 0 else lambda: False
    begun = [*train(model, config, *tensors(data), should_stop=should_stop, **several)]
    found["interrupted"] = {"steps": position.steps}
    begun += train(model, config, *tensors(data), **several)
    found["interrupted"] |= {"metrics": [m.to_json() for m in begun], "weights": _sums(model)}
    return found


def _sums(model: Classifier) -> list[float]:
    return [p.double().sum().item() for p in model.parameters()]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_have_the_losses_of_one(two_ranks: list[dict[str, Any]], digits: ImageData, case: str) -> None:
    alone, _ = run(unflatten(SMALL | CASES[case]), digits)
    for rank in two_ranks:
        together = [EpochMetrics(**m) for m in rank[case]["metrics"]]
        assert len(together) == len(alone) == CASES[case].get("training.epochs", 2)
        for ours, theirs in zip(together, alone, strict=True):
            assert ours.train_loss == pytest.approx(theirs.train_loss, abs=1e-4)
            assert ours.val_loss == pytest.approx(theirs.val_loss, abs=1e-4)
            assert ours.val_accuracy == pytest.approx(theirs.val_accuracy, abs=1.01 / 144)
            assert ours.macro_f1 == pytest.approx(theirs.macro_f1, abs=0.02)
            assert ours.balanced_accuracy == pytest.approx(theirs.balanced_accuracy, abs=0.02)
            assert ours.learning_rate == theirs.learning_rate


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_end_with_the_same_weights_and_losses(two_ranks: list[dict[str, Any]], case: str) -> None:
    first, second = ([EpochMetrics(**m) for m in rank[case]["metrics"]] for rank in two_ranks)
    assert without_times(first) == without_times(second)
    assert two_ranks[0][case]["weights"] == two_ranks[1][case]["weights"]


def test_two_ranks_stop_together_when_only_the_first_is_told_to(two_ranks: list[dict[str, Any]]) -> None:
    """The sixth time that the ranks agree is before step 40 (every eighth), which is after two epochs of 20 steps."""
    assert [rank["stopped"]["epochs"] for rank in two_ranks] == [2, 2]
    assert two_ranks[0]["stopped"]["weights"] == two_ranks[1]["stopped"]["weights"]


def test_two_ranks_go_on_in_the_middle_of_an_epoch(two_ranks: list[dict[str, Any]]) -> None:
    for rank in two_ranks:
        interrupted, whole = rank["interrupted"], rank["augmented"]
        assert (interrupted["steps"], interrupted["weights"]) == (4, whole["weights"])
        losses = [[m["train_loss"] for m in one["metrics"]] for one in (interrupted, whole)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_dropout_differs_between_the_ranks(two_ranks: list[dict[str, Any]]) -> None:
    assert two_ranks[0]["dropout"] != two_ranks[1]["dropout"]


def test_with_batch_normalisation_all_ranks_score_the_model_that_the_first_one_saves(
    two_ranks: list[dict[str, Any]],
) -> None:
    first, second = (rank["batch norm"] for rank in two_ranks)
    assert first["buffers"] == second["buffers"]
    for rank in (first, second):
        assert rank["reported"] == pytest.approx(rank["scored again"], rel=1e-5)


def test_two_ranks_diverge_together(two_ranks: list[dict[str, Any]]) -> None:
    assert "not finite" in two_ranks[0]["diverges"]
    assert two_ranks[0]["diverges"].split(":")[0] == two_ranks[1]["diverges"].split(":")[0]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        losses, _ = run(golden_config(), load_data(DataConfig(data="digits", cache=folder)))
    print("# The default configuration on digits in float32: training and validation loss of each epoch.")
    print("# Written by `python tests/test_loop.py > tests/golden/digits_losses.txt`.")
    for epoch in losses:
        print(f"{epoch.train_loss:.6f} {epoch.val_loss:.6f}")
