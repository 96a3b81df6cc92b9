"""Mixup and CutMix: `python -m pytest tests/test_mixing.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.batches import ImageTensors, augment
from trainer.data import Split
from trainer.hyperparameters import AugmentationConfig, LossConfig
from trainer.mixing import Mixture, mix
from trainer.objective import build_loss

CPU = torch.device("cpu")
LOSSES = ("cross_entropy", "focal", "mean_squared_error")
CONFIGS = (
    AugmentationConfig(mixup=0.4),
    AugmentationConfig(cutmix=1.0),
    AugmentationConfig(mixup=0.4, cutmix=1.0, flip=True, shift=2, cutout=3),
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(config: AugmentationConfig, count: int, height: int = 8, width: int = 10) -> list[Mixture]:
    source = generator()
    found = [Mixture.draw(config, height, width, source) for _ in range(count)]
    assert None not in found
    return [mixture for mixture in found if mixture is not None]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """12 images of 3x8x10 random pixels, of seven classes."""
    return torch.randint(0, 256, (12, 3, 8, 10), dtype=torch.uint8, generator=generator()), torch.arange(12) % 7


@pytest.fixture
def training() -> ImageTensors:
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 8, 10), np.uint8)
    return ImageTensors.of(Split(images, np.arange(50) % 7, np.arange(50)), CPU)


def rolled(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The last image before the first: whom it is mixed with."""
    images, labels = batch
    return torch.cat([images[-1:], images]), torch.cat([labels[-1:], labels])


# ---- the arithmetic ----


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9, 1.0])
def test_mixup_blends_as_torchvisions_does(batch: tuple[Tensor, Tensor], share: float) -> None:
    from torchvision.transforms.v2 import MixUp

    images, labels = batch
    theirs, params = MixUp(num_classes=7), {"lam": share, "labels": labels, "batch_size": 12}
    got, targets = mix(*rolled(batch), Mixture(share), 7)
    assert got.dtype == torch.uint8
    assert (got.float() - theirs.transform(images.float(), params)).abs().max() <= 0.5 + 1e-3  # rounded
    torch.testing.assert_close(targets, theirs.transform(labels, params))


def test_cutmix_pastes_as_torchvisions_does(batch: tuple[Tensor, Tensor]) -> None:
    from torchvision.transforms.v2 import CutMix

    images, labels = batch
    for mixture in draws(AugmentationConfig(cutmix=1.0), 30):
        assert mixture.box is not None
        top, left, bottom, right = mixture.box
        params = {
            "box": (left, top, right, bottom),
            "lam_adjusted": 1 - (bottom - top) * (right - left) / 80,
            "labels": labels,
            "batch_size": 12,
        }
        got, targets = mix(*rolled(batch), mixture, 7)
        assert torch.equal(got, CutMix(num_classes=7).transform(images, params))
        torch.testing.assert_close(targets, CutMix(num_classes=7).transform(labels, params))


@pytest.mark.parametrize("config", CONFIGS)
def test_mixing_leaves_its_input_as_it_was_and_probabilities_add_up(
    batch: tuple[Tensor, Tensor], config: AugmentationConfig
) -> None:
    images, labels = rolled(batch)
    before = images.clone()
    for mixture in draws(config, 20):
        mixed, targets = mix(images, labels, mixture, 7)
        torch.testing.assert_close(targets.sum(1), torch.ones(12))
        assert (mixed.shape, mixed.dtype) == ((12, 3, 8, 10), torch.uint8)
    assert torch.equal(images, before)


# ---- the draws ----


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_of_mixup_are_of_a_beta_distribution(alpha: float) -> None:
    shares = torch.tensor([mixture.share for mixture in draws(AugmentationConfig(mixup=alpha), 3000)])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_the_box_of_cutmix_lies_in_the_image_and_has_what_the_share_lacks() -> None:
    found = draws(AugmentationConfig(cutmix=1.0), 2000, height=40, width=60)
    sizes = []
    for mixture in found:
        assert mixture.box is not None
        top, left, bottom, right = mixture.box
        assert 0 <= top <= bottom <= 40
        assert 0 <= left <= right <= 60
        assert mixture.share == pytest.approx(1 - (bottom - top) * (right - left) / 2400)
        sizes.append((bottom - top, right - left))
    assert max(sizes) > (30, 45)
    # The box would have half of the image on average; beyond the edges some of it is lost.
    assert 0.25 < np.mean([1 - mixture.share for mixture in found]) < 0.5


def test_with_both_each_batch_draws_one_of_them() -> None:
    found = draws(AugmentationConfig(mixup=1.0, cutmix=1.0), 1000)
    assert sum(mixture.box is None for mixture in found) == pytest.approx(500, abs=60)


def test_the_generator_decides_and_without_mixing_it_is_left_alone() -> None:
    config = AugmentationConfig(mixup=1.0, cutmix=1.0)
    assert draws(config, 20) == draws(config, 20)
    source = generator()
    assert Mixture.draw(AugmentationConfig(), 8, 8, source) is None
    assert torch.equal(source.get_state(), generator().get_state())


# ---- batches ----


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("batch_size", [10, 11, 50])
def test_several_ranks_have_together_what_one_rank_has(
    training: ImageTensors, config: AugmentationConfig, world_size: int, batch_size: int
) -> None:
    def epoch(rank: int = 0, world_size: int = 1) -> list[tuple[Tensor, Tensor, int]]:
        return list(training.shuffled(batch_size, config, generator(), rank, world_size, None, 0, "shuffled", 7))

    parts = [epoch(rank, world_size) for rank in range(world_size)]
    for step, (images, targets, size) in enumerate(epoch()):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), targets)
        assert size == len(targets) == batch_size


def test_an_image_is_mixed_with_the_augmented_one_before_it(training: ImageTensors) -> None:
    plain = AugmentationConfig(shift=2)
    mixing = AugmentationConfig(shift=2, mixup=1.0)
    images, labels, _ = next(training.shuffled(10, plain, generator()))
    mixed, targets, _ = next(training.shuffled(10, mixing, generator(), 0, 1, None, 0, "shuffled", 7))
    share = targets[1, labels[1]].item() if labels[0] != labels[1] else None
    assert share is not None
    blended = images[0].float() * (1 - share) + images[1].float() * share
    assert (mixed[1].float() - blended).abs().max() <= 0.51
    first = images[9].float() * (1 - share) + images[0].float() * share
    assert (mixed[0].float() - first).abs().max() <= 0.51


def test_going_on_in_the_middle_of_an_epoch_mixes_alike(training: ImageTensors) -> None:
    config = CONFIGS[2]
    whole = list(training.shuffled(10, config, generator(), 0, 1, None, 0, "shuffled", 7))
    rest = list(training.shuffled(10, config, generator(), 0, 1, None, 3, "shuffled", 7))
    for (images, targets, _), (again, targets_again, _) in zip(whole[3:], rest, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(targets, targets_again)


@pytest.mark.parametrize("words", [{}, {"flip": True}, {"flip": True, "shift": 2, "cutout": 3}])
def test_without_mixing_a_batch_has_the_numbers_that_it_always_had(
    training: ImageTensors, words: dict[str, Any]
) -> None:
    """Order, then flips, shifts and corners of one batch after the other: what a training of an earlier version drew."""
    from trainer.batches import Draws

    config, source = AugmentationConfig(**words), generator()
    order = torch.randperm(50, generator=source)
    for step, (images, labels, _) in enumerate(training.shuffled(10, config, generator())):
        positions = order[10 * step : 10 * step + 10]
        flip = torch.rand(10, 1, generator=source) < (0.5 if config.flip else 0.0)
        shift = torch.randint(-config.shift, config.shift + 1, (10, 2), generator=source)
        corner = torch.rand(10, 2, generator=source)
        assert torch.equal(images, augment(training.images[positions], config, Draws(flip, shift, corner)))
        assert torch.equal(labels, training.labels[positions])


# ---- losses of mixed targets ----


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", LOSSES)
def test_probabilities_of_one_class_have_the_loss_of_its_label(name: str, smoothing: float) -> None:
    smoothing = smoothing if name == "cross_entropy" else 0.0
    logits, labels = torch.randn(50, 7, generator=generator()), torch.arange(50) % 7
    loss_of = build_loss(LossConfig(name=name, label_smoothing=smoothing))
    torch.testing.assert_close(loss_of(logits, F.one_hot(labels, 7).float()), loss_of(logits, labels))


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_the_loss_of_mixed_labels_is_the_mean_of_the_losses_of_each(name: str) -> None:
    logits, first = torch.randn(50, 7, generator=generator()), torch.arange(50) % 7
    second = (first + 3) % 7
    loss_of = build_loss(LossConfig(name=name, gamma=1.5, label_smoothing=0.1 if name == "cross_entropy" else 0.0))
    targets = 0.3 * F.one_hot(first, 7) + 0.7 * F.one_hot(second, 7)
    torch.testing.assert_close(loss_of(logits, targets), 0.3 * loss_of(logits, first) + 0.7 * loss_of(logits, second))


def test_the_squared_error_of_mixed_labels_is_that_of_the_probabilities() -> None:
    logits = torch.randn(50, 7, generator=generator())
    targets = torch.rand(50, 7, generator=generator(1)).softmax(1)
    got = build_loss(LossConfig(name="mean_squared_error"))(logits, targets)
    np.testing.assert_allclose(got, ((logits.softmax(1) - targets) ** 2).numpy().mean(1), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_mixed_targets_are_float32_and_finite_where_the_network_is_sure(name: str) -> None:
    sure = torch.tensor([[1000.0, 0.0, -1000.0]], requires_grad=True)
    loss = build_loss(LossConfig(name=name))(sure, torch.tensor([[0.5, 0.0, 0.5]]))
    torch.autograd.backward(loss.sum())
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()
