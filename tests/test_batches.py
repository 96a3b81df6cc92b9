"""Batches and augmentation: `python -m pytest tests/test_batches.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.batches import Draws, ImageTensors, augment, cutout, flip_and_shift, steps_per_epoch
from trainer.data import ImageData, Split
from trainer.hyperparameters import AugmentationConfig

CPU = torch.device("cpu")
NOTHING = AugmentationConfig()
EVERYTHING = AugmentationConfig(flip=True, shift=3, cutout=4)


@pytest.fixture
def training() -> ImageTensors:
    """Every second one of 100 images of 3x6x7 random pixels; the label of a row is its number."""
    images = np.random.default_rng(0).integers(0, 256, (100, 3, 6, 7), np.uint8)
    return ImageTensors.of(Split(images, np.arange(100), np.arange(1, 100, 2)), CPU)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator())


# ---- which images ----


def test_a_selection_is_of_the_splits_rows(training: ImageTensors) -> None:
    images, labels = training.select(torch.tensor([0, 2, 1]))
    assert labels.tolist() == [1, 5, 3]
    assert torch.equal(images, training.images[[1, 5, 3]])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_in_order_gives_each_image_to_one_rank(training: ImageTensors, world_size: int) -> None:
    seen = [
        label
        for rank in range(world_size)
        for images, labels in training.in_order(8, rank, world_size)
        for label in labels.tolist()
        if len(images) == len(labels) <= 8
    ]
    assert sorted(seen) == list(range(1, 100, 2))


def test_one_rank_has_the_images_in_order(training: ImageTensors) -> None:
    assert torch.cat([labels for _, labels in training.in_order(8)]).tolist() == list(range(1, 100, 2))


@pytest.mark.parametrize(("batch_size", "batches"), [(10, 5), (50, 1), (1, 50), (25, 2)])
def test_an_epoch_has_each_image_once(training: ImageTensors, batch_size: int, batches: int) -> None:
    epoch = list(training.shuffled(batch_size, NOTHING, generator()))
    assert len(epoch) == batches == steps_per_epoch(len(training), batch_size)
    assert [size for *_, size in epoch] == [batch_size] * batches
    labels = torch.cat([labels for _, labels, _ in epoch])
    assert sorted(labels.tolist()) == list(range(1, 100, 2))
    assert labels.tolist() != sorted(labels.tolist())


def test_the_last_incomplete_batch_is_left_out(training: ImageTensors) -> None:
    epoch = list(training.shuffled(12, NOTHING, generator()))
    assert [len(labels) for _, labels, _ in epoch] == [12, 12, 12, 12]
    assert len(set(torch.cat([labels for _, labels, _ in epoch]).tolist())) == 48


def test_an_incomplete_batch_stays_when_it_is_the_only_one(training: ImageTensors) -> None:
    [(images, _, size)] = training.shuffled(64, NOTHING, generator())
    assert len(images) == size == 50


def test_the_generator_decides_the_order(training: ImageTensors) -> None:
    def order(source: torch.Generator) -> list[int]:
        return torch.cat([labels for _, labels, _ in training.shuffled(10, EVERYTHING, source)]).tolist()

    source = generator()
    first, second = order(source), order(source)
    assert first == order(generator())
    assert first != second
    assert first != order(generator(1))


def test_without_augmentation_the_images_are_themselves(training: ImageTensors) -> None:
    for images, labels, _ in training.shuffled(10, NOTHING, generator()):
        assert torch.equal(images, training.images[labels])


@pytest.mark.parametrize("config", [NOTHING, AugmentationConfig(flip=True), AugmentationConfig(shift=2), EVERYTHING])
@pytest.mark.parametrize("batch_size", [10, 11])
@pytest.mark.parametrize("world_size", [2, 3])
def test_several_ranks_have_together_what_one_rank_has(
    training: ImageTensors, config: AugmentationConfig, batch_size: int, world_size: int
) -> None:
    alone = list(training.shuffled(batch_size, config, generator()))
    parts = [list(training.shuffled(batch_size, config, generator(), rank, world_size)) for rank in range(world_size)]
    assert len(alone) > 2
    for step, (images, labels, size) in enumerate(alone):
        mine = [part[step] for part in parts]
        assert torch.equal(torch.cat([m[0] for m in mine]), images)
        assert torch.equal(torch.cat([m[1] for m in mine]), labels)
        assert {m[2] for m in mine} == {size} == {len(labels)}
        assert max(len(m[1]) for m in mine) - min(len(m[1]) for m in mine) <= 1


@pytest.mark.parametrize("world_size", [1, 2])
def test_where_it_is_said_which_images_are_mirrored_chance_is_not_asked(
    training: ImageTensors, world_size: int
) -> None:
    mirrored = torch.rand(50, generator=generator()) < 0.5
    config, seen = AugmentationConfig(flip=True), 0
    for rank in range(world_size):
        for images, labels, _ in training.shuffled(10, config, generator(), rank, world_size, mirrored):
            for image, label in zip(images, labels.tolist(), strict=True):
                original = training.images[label]
                assert torch.equal(image, original.flip(-1) if mirrored[label // 2] else original)
                seen += 1
    assert seen == 50


def test_ranks_go_on_alike_in_the_next_epoch(training: ImageTensors) -> None:
    sources = [generator(), generator(), generator()]
    for _ in range(2):
        alone = [b[1] for b in training.shuffled(10, EVERYTHING, sources[0])]
        halves = [[b[1] for b in training.shuffled(10, EVERYTHING, sources[1 + rank], rank, 2)] for rank in (0, 1)]
        assert [torch.cat(pair).tolist() for pair in zip(*halves, strict=True)] == [b.tolist() for b in alone]


def test_the_tensors_share_the_memory_of_the_mapped_file(digits: ImageData) -> None:
    training, validation = ImageTensors.of(digits.train, CPU), ImageTensors.of(digits.validation, CPU)
    assert training.images.data_ptr() == digits.train.images.ctypes.data == validation.images.data_ptr()


# ---- flip and shift ----


def reference_flip_and_shift(image: np.ndarray, flip: bool, down: int, right: int) -> np.ndarray:
    """Mirror, pad by reflection, crop."""
    _, height, width = image.shape
    image = image[:, :, ::-1] if flip else image
    margin = max(abs(down), abs(right))
    padded = np.pad(image, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    return padded[:, margin - down : margin - down + height, margin - right : margin - right + width]


@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 4, 7), (1, 8, 2), (2, 1, 3)])
@pytest.mark.parametrize("flipped", [False, True])
def test_flip_and_shift_are_mirror_pad_and_crop(shape: tuple[int, int, int], flipped: bool) -> None:
    shifts = [(down, right) for down in range(-20, 21, 3) for right in (-19, -7, -3, -1, 0, 1, 2, 6, 20)]
    images = random_images(len(shifts), *shape)
    got = flip_and_shift(images, torch.full((len(shifts), 1), flipped), torch.tensor(shifts))
    for image, result, (down, right) in zip(images, got, shifts, strict=True):
        np.testing.assert_array_equal(result, reference_flip_and_shift(image.numpy(), flipped, down, right))


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    draws=st.lists(st.tuples(st.booleans(), st.integers(-64, 64), st.integers(-64, 64)), min_size=1, max_size=8),
)
def test_every_image_of_a_batch_has_its_own_draws(height: int, width: int, draws: list[tuple[bool, int, int]]) -> None:
    images = random_images(len(draws), 2, height, width)
    flip = torch.tensor([[flip] for flip, _, _ in draws])
    shift = torch.tensor([[down, right] for _, down, right in draws])
    for image, result, draw in zip(images, flip_and_shift(images, flip, shift), draws, strict=True):
        np.testing.assert_array_equal(result, reference_flip_and_shift(image.numpy(), *draw))


def test_a_shift_of_zero_without_a_flip_changes_nothing() -> None:
    images = random_images(4, 3, 6, 7)
    assert torch.equal(flip_and_shift(images, torch.zeros(4, 1, dtype=torch.bool), torch.zeros(4, 2).long()), images)


# ---- cutout ----


@pytest.mark.parametrize("side", [1, 2, 5, 30])
def test_cutout_sets_at_most_a_square_to_the_mean(side: int) -> None:
    images = random_images(200, 3, 8, 9)
    got = cutout(images, side, torch.rand(200, 2, generator=generator(1)))
    mean = images.double().mean((2, 3)).round()
    sizes = set()
    for before, after, colour in zip(images, got, mean, strict=True):
        changed = (before != after).any(0)
        ys, xs = changed.nonzero(as_tuple=True)
        if len(ys) == 0:
            continue
        top, bottom, left, right = int(ys.min()), int(ys.max()), int(xs.min()), int(xs.max())
        assert bottom - top < side
        assert right - left < side
        sizes.add((bottom - top + 1, right - left + 1))
        square = after[:, top : bottom + 1, left : right + 1]
        assert torch.equal(square, colour.to(torch.uint8)[:, None, None].expand_as(square))
    assert (min(side, 8), min(side, 9)) in sizes


@pytest.mark.parametrize("corner", [(0.0, 0.0), (0.5, 0.5), (0.999999, 0.0), (0.99999994, 0.99999994)])
def test_a_square_may_lie_partly_outside(corner: tuple[float, float]) -> None:
    images = torch.full((1, 1, 6, 6), 10, dtype=torch.uint8)
    images[0, 0, 0, 0] = 100
    got = cutout(images, 4, torch.tensor([corner]))
    assert got.shape == images.shape
    assert torch.equal(got[got != 12], images[got != 12])  # 12 is the mean, rounded


def test_cutout_hides_every_pixel_now_and_then() -> None:
    images = torch.zeros(2000, 1, 4, 4, dtype=torch.uint8)
    images[:, :, 0, 0] = 255  # so that the mean, 16, is no pixel's value
    hidden = (cutout(images, 2, torch.rand(2000, 2, generator=generator())) == 16).sum((0, 1))
    # Drawn uniformly from 6 x 6 places, of which 4 hide a pixel: every pixel is hidden 222 times of 2,000.
    assert (hidden - 2000 * 4 / 36).abs().max() < 75


# ---- draws ----


def test_draws_are_made_as_the_configuration_says() -> None:
    draws = Draws.make(2000, EVERYTHING, generator())
    assert draws.flip.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert draws.shift.unique().tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert draws.shift[:, 0].tolist() != draws.shift[:, 1].tolist()
    assert ((draws.cutout >= 0) & (draws.cutout < 1)).all()
    nothing = Draws.make(2000, NOTHING, generator())
    assert not nothing.flip.any()
    assert not nothing.shift.any()


def test_the_order_of_images_does_not_depend_on_the_augmentation_of_the_first_batch(training: ImageTensors) -> None:
    first_of = [next(iter(training.shuffled(10, config, generator())))[1].tolist() for config in (NOTHING, EVERYTHING)]
    assert first_of[0] == first_of[1]


@pytest.mark.parametrize("config", [AugmentationConfig(flip=True), AugmentationConfig(shift=2), EVERYTHING, NOTHING])
def test_augmentation_leaves_its_input_as_it_was(config: AugmentationConfig) -> None:
    images = random_images(16, 3, 6, 7)
    before = images.clone()
    got = augment(images, config, Draws.make(16, config, generator()))
    assert torch.equal(images, before)
    assert (got.shape, got.dtype) == (images.shape, torch.uint8)
    assert torch.equal(got, before) == (config == NOTHING)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AugmentationConfig(flip=True), lambda i, d: flip_and_shift(i, d.flip, torch.zeros_like(d.shift))),
        (AugmentationConfig(shift=2), lambda i, d: flip_and_shift(i, torch.zeros_like(d.flip), d.shift)),
        (AugmentationConfig(cutout=3), lambda i, d: cutout(i, 3, d.cutout)),
        (EVERYTHING, lambda i, d: cutout(flip_and_shift(i, d.flip, d.shift), 4, d.cutout)),
    ],
)
def test_each_kind_of_augmentation_can_be_had_alone(config: AugmentationConfig, expected: Any) -> None:
    images = random_images(16, 3, 6, 7)
    draws = Draws.make(16, config, generator())
    assert torch.equal(augment(images, config, draws), expected(images, draws))
