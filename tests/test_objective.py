"""Losses, optimizers and schedules: `python -m pytest tests/test_objective.py`."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainer.hyperparameters import LossConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from trainer.model import Classifier, build_model
from trainer.muon import Muon, orthogonalize
from trainer.objective import build_loss, build_optimizers, learning_rate_factor, update

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "muon")
LOSSES = ("cross_entropy", "focal", "mean_squared_error")


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(50) % 7


def softmax(logits: Tensor) -> NDArray[np.float64]:
    powers = np.exp(logits.double().numpy())
    return powers / powers.sum(1, keepdims=True)


def small_model(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    config = ModelConfig(blocks=2, kernel_size=(3, 3), filters=(4, 8), dense_units=16, batch_norm=True)
    return build_model(config, (1, 8, 8), 3, [127.0], [70.0])


# ---- losses ----


def test_cross_entropy_is_the_surprise_at_the_label(logits: Tensor, labels: Tensor) -> None:
    got = build_loss(LossConfig())(logits, labels)
    expected = -np.log(softmax(logits)[np.arange(50), labels])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_label_smoothing_spreads_a_share_of_the_label_over_all_classes(
    logits: Tensor, labels: Tensor, smoothing: float
) -> None:
    got = build_loss(LossConfig(label_smoothing=smoothing))(logits, labels)
    target = np.eye(7)[labels] * (1 - smoothing) + smoothing / 7
    np.testing.assert_allclose(got, -(target * np.log(softmax(logits))).sum(1), rtol=1e-4)
    torch.testing.assert_close(got, F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 4.0])
def test_focal_loss_weighs_by_what_is_missing_at_the_label(logits: Tensor, labels: Tensor, gamma: float) -> None:
    got = build_loss(LossConfig(name="focal", gamma=gamma))(logits, labels)
    p = softmax(logits)[np.arange(50), labels]
    np.testing.assert_allclose(got, -((1 - p) ** gamma) * np.log(p), rtol=1e-3, atol=1e-6)


def test_focal_loss_with_gamma_zero_is_cross_entropy(logits: Tensor, labels: Tensor) -> None:
    focal = build_loss(LossConfig(name="focal", gamma=0.0))(logits, labels)
    torch.testing.assert_close(focal, build_loss(LossConfig())(logits, labels))


def test_mean_squared_error_is_that_of_the_probabilities(logits: Tensor, labels: Tensor) -> None:
    got = build_loss(LossConfig(name="mean_squared_error"))(logits, labels)
    np.testing.assert_allclose(got, ((softmax(logits) - np.eye(7)[labels]) ** 2).mean(1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_float32_and_one_number_per_image_whatever_the_logits_are(
    logits: Tensor, labels: Tensor, name: str
) -> None:
    got = build_loss(LossConfig(name=name))(logits.bfloat16(), labels)
    assert got.dtype == torch.float32
    assert got.shape == (50,)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(
    "config",
    [LossConfig(name=name) for name in LOSSES]
    + [LossConfig(name="focal", gamma=0.5), LossConfig(name="focal", gamma=0.0), LossConfig(label_smoothing=0.1)],
    ids=repr,
)
def test_losses_and_gradients_are_finite_where_the_network_is_sure(config: LossConfig, label: int) -> None:
    sure = torch.tensor([[1000.0, 0.0, -1000.0]], requires_grad=True)
    loss = build_loss(config)(sure, torch.tensor([label]))
    torch.autograd.backward(loss.sum())
    assert loss.isfinite().all()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


# ---- optimizers ----


def steps_of(config: OptimizerConfig, gradients: list[Tensor], pick: Any = None) -> tuple[Tensor, Tensor]:
    """One kernel before and after steps with these gradients."""
    model = small_model()
    parameter = pick(model) if pick else model.features[0].convolutions[0].weight
    before = parameter.detach().clone()
    optimizers = build_optimizers(config, model)
    for gradient in gradients:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        parameter.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    return before, parameter.detach()


@pytest.fixture
def gradients() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 1, 3, 3, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_steps_as_written(gradients: list[Tensor], momentum: float, nesterov: bool, weight_decay: float) -> None:
    config = OptimizerConfig(
        name="sgd", learning_rate=0.1, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )
    before, got = steps_of(config, gradients)
    w, velocity = before.double(), torch.zeros_like(before).double()
    for gradient in gradients:
        g = gradient.double() + weight_decay * w
        velocity = momentum * velocity + g
        w = w - 0.1 * (g + momentum * velocity if nesterov else velocity)
    torch.testing.assert_close(got, w.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_and_adamw_step_as_written(gradients: list[Tensor], name: str, weight_decay: float) -> None:
    before, got = steps_of(OptimizerConfig(name=name, learning_rate=0.01, weight_decay=weight_decay), gradients)
    w = before.double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for step, gradient in enumerate(gradients, 1):
        g = gradient.double() + (weight_decay * w if name == "adam" else 0)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        if name == "adamw":
            w = w * (1 - 0.01 * weight_decay)
        w = w - 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(got, w.float(), atol=1e-6, rtol=1e-5)


def test_rmsprop_steps_as_keras_does(gradients: list[Tensor]) -> None:
    before, got = steps_of(OptimizerConfig(name="rmsprop", learning_rate=0.01), gradients)
    w, v = before.double(), torch.zeros_like(before).double()
    for gradient in gradients:
        v = 0.9 * v + 0.1 * gradient.double() ** 2
        w = w - 0.01 * gradient.double() / (v.sqrt() + 1e-7)
    torch.testing.assert_close(got, w.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_steps_along_the_orthogonalised_momentum(
    gradients: list[Tensor], nesterov: bool, weight_decay: float
) -> None:
    config = OptimizerConfig(name="muon", learning_rate=0.1, momentum=0.8, nesterov=nesterov, weight_decay=weight_decay)
    before, got = steps_of(config, gradients)
    w, momentum = before.clone(), torch.zeros_like(before)
    for gradient in gradients:
        momentum = 0.8 * momentum + 0.2 * gradient
        direction = 0.2 * gradient + 0.8 * momentum if nesterov else momentum
        matrix = orthogonalize(direction.reshape(4, 9))
        w = w * (1 - 0.1 * weight_decay) - 0.1 * 0.2 * math.sqrt(9) * matrix.reshape(4, 1, 3, 3)
    torch.testing.assert_close(got, w, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (16, 16), (64, 288), (1, 10)])
def test_orthogonalize_moves_the_singular_values_to_about_one(shape: tuple[int, int]) -> None:
    for seed in range(5):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        values = torch.linalg.svdvals(orthogonalize(1000 * matrix))
        assert values.min() > 0.3
        assert values.max() < 1.7


def test_orthogonalize_keeps_the_singular_vectors() -> None:
    matrix = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.T @ orthogonalize(matrix) @ vh.T
    torch.testing.assert_close(rotated, torch.diag(rotated.diag()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_is_the_optimizers_own_step_and_takes_the_gradients_away(name: str) -> None:
    config = OptimizerConfig(name=name, learning_rate=0.01)
    theirs, ours = small_model(), small_model()
    images = torch.randint(0, 255, (8, 1, 8, 8), dtype=torch.uint8)
    for model in (theirs, ours):
        optimizers = build_optimizers(config, model)
        for _ in range(3):
            torch.autograd.backward(model(images).square().sum())
            for optimizer in optimizers:
                if model is ours:
                    update(optimizer)
                else:
                    optimizer.step()
                    optimizer.zero_grad()
    assert all(p.grad is None for p in ours.parameters())
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))


def test_training_does_not_import_torchs_compiler() -> None:
    program = """
import sys, torch
from trainer.hyperparameters import ModelConfig, OptimizerConfig
from trainer.model import build_model
from trainer.objective import build_optimizers, update
model = build_model(ModelConfig(), (1, 8, 8), 3, (0.0,), (1.0,))
for name in ("sgd", "adam", "adamw", "rmsprop", "muon"):
    for optimizer in build_optimizers(OptimizerConfig(name=name), model):
        torch.autograd.backward(model(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).sum())
        update(optimizer)
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_orthogonalize_leaves_zero_where_it_is() -> None:
    assert torch.equal(orthogonalize(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_muon_moves_the_kernels_and_matrices_before_the_classifier() -> None:
    model = small_model()
    muon, adamw = build_optimizers(OptimizerConfig(name="muon"), model)
    assert isinstance(muon, Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    moved = {id(p) for group in muon.param_groups for p in group["params"]}
    others = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert moved == {id(p) for p in model.features.parameters() if p.ndim >= 2}
    assert moved.isdisjoint(others)
    assert moved | others == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_parameter_is_in_one_group_with_the_peak_learning_rate(name: str) -> None:
    model = small_model()
    groups = [
        g for o in build_optimizers(OptimizerConfig(name=name, learning_rate=0.02), model) for g in o.param_groups
    ]
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())
    assert {g["lr"] for g in groups} == {0.02}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_shrinks_kernels_and_matrices_alone(name: str) -> None:
    model = small_model()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    optimizers = build_optimizers(OptimizerConfig(name=name, learning_rate=0.01, weight_decay=0.5), model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in optimizers:
        optimizer.step()
    for parameter_name, p in model.named_parameters():
        assert (p < 0.5).all() if p.ndim >= 2 else (p == 0.5).all(), parameter_name


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("loss_name", LOSSES)
def test_every_optimizer_lowers_every_loss(name: str, loss_name: str) -> None:
    model, loss_of = small_model(), build_loss(LossConfig(name=loss_name))
    labels = torch.arange(24) % 3
    images = torch.randint(0, 60, (24, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[torch.arange(24), 0, 2 * labels] = 255  # a bright row says the class
    rate = {"sgd": 0.05, "rmsprop": 0.002}.get(name, 0.01)
    optimizers = build_optimizers(OptimizerConfig(name=name, learning_rate=rate), model)
    losses = []
    for _ in range(30):
        loss = loss_of(model(images), labels).mean()
        torch.autograd.backward(loss)
        losses.append(loss.item())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]


# ---- schedules ----


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ScheduleConfig(name="constant"), [1.0] * 10),
        (
            ScheduleConfig(name="cosine"),
            [1.0, 0.975528, 0.904508, 0.793893, 0.654508, 0.5, 0.345492, 0.206107, 0.095492, 0.024472],
        ),
        (
            ScheduleConfig(name="one_cycle", warmup_fraction=0.2),
            [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125],
        ),
        (
            ScheduleConfig(name="one_cycle", warmup_fraction=0.5),
            [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 0.8, 0.6, 0.4, 0.2],
        ),
        (
            ScheduleConfig(name="one_cycle", warmup_fraction=0.0),
            [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1],
        ),
    ],
    ids=repr,
)
def test_the_learning_rate_goes_as_written(config: ScheduleConfig, expected: list[float]) -> None:
    assert [learning_rate_factor(config, step / 10) for step in range(10)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["constant", "cosine", "one_cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.9])
def test_the_learning_rate_is_never_above_its_peak_nor_below_zero(name: str, warmup: float) -> None:
    config = ScheduleConfig(name=name, warmup_fraction=warmup)
    factors = [learning_rate_factor(config, step / 1000) for step in range(1000)]
    assert min(factors) >= 0
    assert max(factors) == pytest.approx(1, abs=0.01)
    assert max(factors) <= 1
