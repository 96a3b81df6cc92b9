"""RandAugment on a batch, against torchvision's on one image: `python -m pytest tests/test_randaugment.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.batches import Draws, ImageTensors, augment
from trainer.data import Split
from trainer.hyperparameters import AugmentationConfig
from trainer.randaugment import DIRECTED, OPERATIONS, draw_operations, operate, randaugment

CPU = torch.device("cpu")
THEIR_NAMES = {
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "autocontrast": "AutoContrast",
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(channels: int = 3, count: int = 6) -> Tensor:
    return torch.randint(0, 256, (count, channels, 12, 14), dtype=torch.uint8, generator=generator())


def theirs(image: Tensor, operation: str, magnitude: int) -> Tensor:
    """One image after torchvision's operation of this magnitude."""
    from torchvision.transforms.v2 import InterpolationMode, RandAugment

    name = THEIR_NAMES.get(operation, operation.capitalize())
    magnitudes, signed = RandAugment._AUGMENTATION_SPACE[name]
    strengths = magnitudes(31, 12, 14)
    strength = 0.0 if strengths is None else float(strengths[abs(magnitude)])
    strength *= -1 if magnitude < 0 else 1
    assert signed == (operation in DIRECTED)
    changed: Tensor = RandAugment()._apply_image_or_video_transform(
        image, name, strength, interpolation=InterpolationMode.BILINEAR, fill={}
    )
    return changed


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0, 9, 17, 30])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_on_a_batch_is_torchvisions_on_each_image(operation: str, magnitude: int, channels: int) -> None:
    for signed in (magnitude, -magnitude) if operation in DIRECTED else (magnitude,):
        got = operate(images(channels), operation, signed)
        assert got.dtype == torch.uint8
        for before, after in zip(images(channels), got, strict=True):
            expected = theirs(before, operation, signed)
            assert (after.int() - expected.int()).abs().max() <= 1  # the order of float additions


def test_there_are_torchvisions_fourteen_operations() -> None:
    from torchvision.transforms.v2 import RandAugment

    names = {THEIR_NAMES.get(operation, operation.capitalize()) for operation in OPERATIONS}
    assert names == set(RandAugment._AUGMENTATION_SPACE)


def test_each_image_has_its_own_operations_one_after_the_other() -> None:
    batch, operations = images(count=40), draw_operations(40, 2, generator())
    got = randaugment(batch, operations, 9)
    for before, after, (first, second) in zip(batch, got, operations.tolist(), strict=True):
        expected = before[None]
        for place in (first, second):
            expected = operate(expected, OPERATIONS[place], -9 if place < 0 else 9)
        assert (after.int() - expected[0].int()).abs().max() <= 1


def test_operations_are_equally_likely_and_go_either_way() -> None:
    drawn = draw_operations(7000, 2, generator()).flatten()
    counts = torch.bincount(drawn % len(OPERATIONS), minlength=len(OPERATIONS))
    assert (counts - 1000).abs().max() < 130
    turned = [OPERATIONS[place] for place in drawn[drawn < 0].tolist()]
    assert set(turned) == set(DIRECTED)
    assert len(turned) == pytest.approx(9 * 500, abs=200)


def test_the_input_is_left_as_it_was() -> None:
    batch = images()
    before = batch.clone()
    assert not torch.equal(randaugment(batch, draw_operations(6, 2, generator()), 20), before)
    assert torch.equal(batch, before)


def test_nothing_is_drawn_without_it() -> None:
    plain, other = generator(), generator()
    assert Draws.make(8, AugmentationConfig(), plain).operations is None
    Draws.make(8, AugmentationConfig(randaugment=1), other)
    assert not torch.equal(plain.get_state(), other.get_state())


def test_it_comes_after_flips_and_shifts_and_before_cutout() -> None:
    config = AugmentationConfig(flip=True, shift=2, cutout=3, randaugment=2, magnitude=15)
    batch = images(count=30)
    draws = Draws.make(30, config, generator())
    assert draws.operations is not None
    moved = augment(batch, AugmentationConfig(flip=True, shift=2), Draws(draws.flip, draws.shift, draws.cutout))
    expected = randaugment(moved, draws.operations, 15)
    expected = augment(expected, AugmentationConfig(cutout=3), Draws(draws.flip, draws.shift, draws.cutout))
    assert torch.equal(augment(batch, config, draws), expected)


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_ranks_have_together_what_one_rank_has(world_size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 9, 9), np.uint8)
    training = ImageTensors.of(Split(pixels, np.arange(40) % 4, np.arange(40)), CPU)
    config = AugmentationConfig(randaugment=2, flip=True)
    parts = [list(training.shuffled(10, config, generator(), rank, world_size)) for rank in range(world_size)]
    for step, (together, _, _) in enumerate(training.shuffled(10, config, generator())):
        got = torch.cat([part[step][0] for part in parts])
        assert (got.int() - together.int()).abs().max() <= 1
