"""The network family: `python -m pytest tests/test_model.py`."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.convnet import Whitening
from trainer.hyperparameters import ModelConfig
from trainer.model import Classifier, build_model, parameter_count
from trainer.presets import preset

ACTIVATIONS = ("relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid")
BOOLEANS = (False, True)


def images_of(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build(shape: tuple[int, int, int] = (3, 8, 8), classes: int = 5, seed: int = 0, **options: Any) -> Classifier:
    """A small network in eval mode."""
    blocks = options.setdefault("blocks", 2)
    options.setdefault("filters", (6, 4, 6, 4, 8)[:blocks])
    options.setdefault("kernel_size", (3, 5, 3, 7, 3)[:blocks])
    options.setdefault("dense_units", 10)
    torch.manual_seed(seed)
    return build_model(ModelConfig(**options), shape, classes, [100.0] * shape[0], [50.0] * shape[0]).eval()


# ---- shapes ----


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("head", ["flatten", "average", "max"])
def test_every_member_of_the_family_gives_finite_logits(activation: str, head: str) -> None:
    images = images_of(3, 3, 8, 8)
    blocks_and_norm = itertools.cycle(itertools.product((1, 2, 3, 4, 5), BOOLEANS))
    for pooling, pool_last, residual, convolutions in itertools.product(("max", "average"), BOOLEANS, BOOLEANS, (1, 2)):
        blocks, batch_norm = next(blocks_and_norm)
        model = build(
            activation=activation,
            head=head,
            pooling=pooling,
            pool_last=pool_last,
            residual=residual,
            convolutions=convolutions,
            batch_norm=batch_norm,
            blocks=blocks,
        )
        logits = model(images)
        assert logits.shape == (3, 5)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (3, 5, 12), (1, 4, 4), (1, 1, 1)])
def test_images_of_any_size_and_channels_go_through_any_number_of_blocks(
    shape: tuple[int, int, int], blocks: int
) -> None:
    assert build(shape, blocks=blocks)(images_of(2, *shape)).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"blocks": 1}, 4),
        ({"blocks": 2}, 2),
        ({"blocks": 3}, 1),
        ({"blocks": 4}, 1),  # there is nothing left to pool
        ({"blocks": 2, "pool_last": False}, 4),
        ({"blocks": 2, "padding": "valid", "kernel_size": (3, 3)}, 1),
        ({"blocks": 2, "padding": "valid", "kernel_size": (3, 3), "pool_last": False}, 1),
        ({"blocks": 1, "padding": "valid", "kernel_size": (3,), "convolutions": 2, "pool_last": False}, 4),
        ({"blocks": 1, "padding": "valid", "kernel_size": (3,), "convolutions": 2, "pool_position": "first"}, 1),
        ({"blocks": 1, "padding": "valid", "kernel_size": (3,), "convolutions": 2, "pool_position": "last"}, 2),
        ({"blocks": 2, "convolutions": 2, "pool_position": "first"}, 2),
        ({"blocks": 1, "convolutions": 1, "pool_position": "first"}, 4),
        ({"blocks": 2, "whitening": True}, 1),
    ],
)
def test_the_maps_have_the_size_that_blocks_and_padding_leave(options: dict[str, Any], size: int) -> None:
    model = build(head="flatten", dense_units=0, **options)
    assert model.classifier.in_features == model.features[-2].convolutions[0].out_channels * size**2


@pytest.mark.parametrize("head", ["average", "max"])
def test_a_pooled_head_has_one_number_per_filter(head: str) -> None:
    assert build(head=head, dense_units=0, filters=(6, 7)).classifier.in_features == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": (9, 3)}, r"kernel_size\.1 = 9 .* not fit into the 8x8 pixels that block 1 gets"),
        ({"kernel_size": (3, 5)}, r"kernel_size\.2 = 5 .* not fit into the 3x3 pixels that block 2 gets"),
        (
            {"kernel_size": (5, 3), "convolutions": 2, "pool_position": "first"},
            r"kernel_size\.1 = 5 .* not fit into the 8x8",
        ),
        (
            {"kernel_size": (5, 3), "convolutions": 2},
            r"kernel_size\.1 = 5 .* not fit into the 8x8 pixels that block 1 gets",
        ),
    ],
)
def test_valid_padding_of_which_nothing_is_left_is_answered_with_the_sizes(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(padding="valid", **options)


def test_the_narrower_side_decides_whether_valid_padding_fits() -> None:
    build((1, 8, 3), blocks=1, kernel_size=(3,), padding="valid")
    with pytest.raises(ValueError, match="the 8x2 pixels"):
        build((1, 8, 2), blocks=1, kernel_size=(3,), padding="valid")


# ---- what it computes ----


@pytest.mark.parametrize(("name", "shape"), [("mnist-3conv", (1, 28, 28)), ("cifar-3conv", (3, 32, 32))])
def test_the_preset_computes_what_the_keras_recipe_computes(name: str, shape: tuple[int, int, int]) -> None:
    """Keras applies the activation before it pools; convsweep after, which for a maximum is the same."""
    channels, size, _ = shape
    torch.manual_seed(0)
    model = build_model(preset(name).model, shape, 10, [127.5] * channels, [127.5] * channels)
    recipe = nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * (((size - 2) // 2 - 2) // 2 - 2) ** 2, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), recipe.parameters(), strict=True):
            theirs.copy_(ours)
        images = images_of(4, *shape)
        torch.testing.assert_close(model(images), recipe(images / 127.5 - 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batch_norm", BOOLEANS)
@pytest.mark.parametrize("filters", [3, 7])
def test_a_residual_block_adds_its_input(filters: int, batch_norm: bool) -> None:
    model = build(blocks=1, filters=(filters,), residual=True, convolutions=2, batch_norm=batch_norm, pool_last=False)
    block = model.features[0]
    weights = [m for m in block.convolutions if isinstance(m, nn.Conv2d)]
    norms = [m for m in block.convolutions if isinstance(m, nn.BatchNorm2d)] or [nn.Identity(), nn.Identity()]
    maps = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    hidden = F.relu(norms[0](F.conv2d(maps, weights[0].weight, weights[0].bias, padding=1)))
    out = norms[1](F.conv2d(hidden, weights[1].weight, weights[1].bias, padding=1))
    matched = maps if filters == 3 else F.conv2d(maps, block.shortcut.weight)
    torch.testing.assert_close(block(maps), F.relu(out + matched))
    assert any(isinstance(m, nn.BatchNorm2d) for m in block.modules()) == batch_norm


@pytest.mark.parametrize(
    ("activation", "reference"),
    [
        ("relu", lambda x: x.clamp(min=0)),
        ("leaky_relu", lambda x: torch.where(x > 0, x, 0.01 * x)),
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
        ("silu", lambda x: x * torch.sigmoid(x)),
        ("tanh", torch.tanh),
        ("sigmoid", torch.sigmoid),
    ],
)
def test_the_activation_is_that_of_the_configuration(activation: str, reference: Any) -> None:
    model = build(blocks=1, activation=activation, batch_norm=False, pool_last=False, head="flatten")
    x = torch.linspace(-4, 4, 50)
    torch.testing.assert_close(model.features[0].activation(x), reference(x))
    torch.testing.assert_close(model.features[-1](x), reference(x))


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_pooling_is_over_2x2_pixels(pooling: str) -> None:
    model = build(blocks=1, pooling=pooling, activation="relu", batch_norm=False)
    maps = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    convolution = model.features[0].convolutions[0]
    windows = convolution(maps).unfold(2, 2, 2).unfold(3, 2, 2)
    expected = windows.amax((4, 5)) if pooling == "max" else windows.mean((4, 5))
    torch.testing.assert_close(model.features[0](maps), expected.relu())


@pytest.mark.parametrize("head", ["average", "max"])
def test_a_pooled_head_is_over_all_pixels(head: str) -> None:
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = maps.mean((2, 3)) if head == "average" else maps.amax((2, 3))
    torch.testing.assert_close(build(head=head, dense_units=0).features[-1](maps), expected)


def test_pooling_after_the_first_convolution_leaves_a_quarter_of_the_pixels_to_the_second() -> None:
    model = build(blocks=1, convolutions=2, pool_position="first", batch_norm=False, residual=True)
    first, pooling, activation, second = model.features[0].convolutions
    maps = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    hidden = activation(F.max_pool2d(first(maps), 2))
    assert isinstance(pooling, nn.MaxPool2d)
    torch.testing.assert_close(model.features[0](maps), F.relu(second(hidden) + model.features[0].shortcut(maps)))


def test_whitened_pixels_are_uncorrelated_and_equally_strong() -> None:
    """Of blurred noise, in which neighbours and colours resemble each other."""
    noise = torch.randn(64, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    colours = torch.randn(64, 3, 17, 17, generator=torch.Generator().manual_seed(1))
    images = (F.avg_pool2d(noise, 4, 1) * 300 + colours * 10 + 128).clamp(0, 255).to(torch.uint8)
    model = build((3, 17, 17), whitening=True)
    model.fit_whitening(images)
    layer = model.features[0]
    assert isinstance(layer, Whitening)
    out = layer.convolution((images - 100.0) / 50.0)
    assert out.shape == (64, 24, 16, 16)
    torch.testing.assert_close(out[:, 12:], -out[:, :12])
    values = out[:, :12].transpose(0, 1).flatten(1)
    torch.testing.assert_close(values @ values.T / values.shape[1], torch.eye(12), atol=0.05, rtol=0)


def test_whitening_is_not_trained_and_not_counted() -> None:
    model = build(whitening=True)
    layer = model.features[0]
    assert not any(p.requires_grad for p in layer.parameters())
    others = [p for part in (*model.features[1:], model.classifier) for p in part.parameters()]
    assert parameter_count(model) == sum(p.numel() for p in others)


def test_images_that_are_too_small_for_whitening_are_answered_with_their_size() -> None:
    with pytest.raises(ValueError, match="at least 2x2 pixels, but they have 1x8"):
        build((1, 1, 8), whitening=True)


def test_test_time_flip_takes_the_mean_with_the_mirror_image_but_not_in_training() -> None:
    images = images_of(4, 3, 8, 8)
    plain, flipping = build(), build(test_time_flip=True)
    torch.testing.assert_close(flipping(images), (plain(images) + plain(images.flip(3))) / 2)
    torch.testing.assert_close(flipping(images), flipping(images.flip(3)))
    assert not torch.allclose(flipping(images), plain(images))
    torch.testing.assert_close(flipping.train()(images), plain.train()(images))


def test_normalisation_is_inside_the_network() -> None:
    images = images_of(4, 3, 8, 8)
    options = ModelConfig(blocks=1, kernel_size=(3,), filters=(4,))
    mean, std = [10.0, 100.0, 200.0], [20.0, 30.0, 40.0]
    torch.manual_seed(0)
    raw = build_model(options, (3, 8, 8), 5, mean, std).eval()
    torch.manual_seed(0)
    plain = build_model(options, (3, 8, 8), 5, [0.0] * 3, [1.0] * 3).eval()
    pixels = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(raw(images), plain(pixels))
    assert not torch.allclose(raw(images), plain(images))


def test_mean_and_deviation_are_saved_with_the_weights_and_not_trained() -> None:
    model = build()
    assert {"mean", "std"} <= set(model.state_dict())
    assert not {"mean", "std"} & {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("options", [{}, {"residual": True, "convolutions": 2}, {"head": "max", "dropout": 0.5}])
def test_an_images_logits_do_not_depend_on_its_batch(options: dict[str, Any]) -> None:
    model = build(batch_norm=True, **options)
    images = images_of(6, 3, 8, 8)
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_dropout_works_in_training_alone() -> None:
    model = build(dropout=0.5, batch_norm=False)
    images = images_of(4, 3, 8, 8)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_without_batch_norm_training_and_evaluation_are_the_same() -> None:
    model = build(batch_norm=False)
    images = images_of(4, 3, 8, 8)
    assert torch.equal(model(images), model.train()(images))


# ---- weights ----


def test_the_seed_decides_the_weights() -> None:
    first, same, other = (list(build(seed=seed).parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # convolution + bias, dense + bias, classifier + bias
        ({"batch_norm": False}, 3 * 6 * 9 + 6 + 6 * 16 * 10 + 10 + 10 * 5 + 5),
        # batch normalisation has a scale and an offset, and takes the place of the bias
        ({"batch_norm": True}, 3 * 6 * 9 + 12 + 6 * 16 * 10 + 10 + 10 * 5 + 5),
        ({"batch_norm": False, "convolutions": 2}, 3 * 6 * 9 + 6 + 6 * 6 * 9 + 6 + 6 * 16 * 10 + 10 + 10 * 5 + 5),
        ({"batch_norm": False, "residual": True}, 3 * 6 * 9 + 6 + 3 * 6 + 6 * 16 * 10 + 10 + 10 * 5 + 5),
        ({"batch_norm": False, "dense_units": 0}, 3 * 6 * 9 + 6 + 6 * 16 * 5 + 5),
        ({"batch_norm": False, "head": "average"}, 3 * 6 * 9 + 6 + 6 * 10 + 10 + 10 * 5 + 5),
    ],
)
def test_the_parameters_are_those_of_the_layers(options: dict[str, Any], expected: int) -> None:
    assert parameter_count(build(blocks=1, **options)) == expected


@pytest.mark.parametrize("options", [{}, {"residual": True, "convolutions": 2}, {"padding": "valid"}])
def test_every_parameter_has_a_gradient(options: dict[str, Any]) -> None:
    model = build((3, 16, 16), activation="gelu", **options).train()
    torch.autograd.backward(model(images_of(8, 3, 16, 16)).square().sum())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
