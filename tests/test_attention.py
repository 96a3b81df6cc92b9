"""Grad-CAM and its pictures: `python -m pytest tests/test_attention.py`."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from trainer.attention import grad_cam, overlay
from trainer.convnet import Block
from trainer.hyperparameters import ModelConfig
from trainer.model import Classifier, build_model


def network(channels: int = 1, side: int = 12, **options: Any) -> Classifier:
    torch.manual_seed(0)
    config = ModelConfig(**({"blocks": 2, "filters": (4, 6), "kernel_size": (3, 3), "dense_units": 8} | options))
    model = build_model(config, (channels, side, side), 3, [100.0] * channels, [50.0] * channels).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: neither 0 nor 1
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def picture(channels: int = 1, side: int = 12, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (channels, side, side), dtype=np.uint8)


def spot_finder() -> Classifier:
    """One 1x1 convolution that keeps the image, global maximum; class 0 is for bright images, class 1 against them."""
    config = ModelConfig(
        blocks=1, filters=(1,), kernel_size=(1,), batch_norm=False, pool_last=False, head="max", dense_units=0
    )
    model = build_model(config, (1, 8, 8), 2, [0.0], [255.0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("features.0.convolutions.0.weight").fill_(1.0)
        model.classifier.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    return model.eval()


def spot() -> NDArray[np.uint8]:
    image = np.zeros((1, 8, 8), dtype=np.uint8)
    image[0, 2, 5] = 200
    return image


def by_the_formula(model: Classifier, image: NDArray[np.uint8], label: int) -> NDArray[np.float32]:
    """Grad-CAM as the paper writes it, the network taken apart at its last block's last convolution."""
    parts = list(model.features.children())
    last = max(i for i, part in enumerate(parts) if isinstance(part, Block))
    block = parts[last]
    assert isinstance(block, Block)
    layers = list(block.convolutions)
    end = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)) + 1
    inputs = (torch.tensor(image)[None].float() - model.mean) / model.std
    for part in parts[:last]:
        inputs = part(inputs)
    maps = inputs
    for layer in layers[:end]:
        maps = layer(maps)
    maps = maps.detach().requires_grad_()
    out = maps
    for layer in layers[end:]:
        out = layer(out)
    if block.shortcut is not None:
        out = out + block.shortcut(inputs)
    out = block.activation(out)
    for part in parts[last + 1 :]:
        out = part(out)
    (gradient,) = torch.autograd.grad(model.classifier(out)[0, label], maps)
    heat = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu().detach()
    heat = F.interpolate(heat, image.shape[1:], mode="bilinear", align_corners=False)[0, 0].numpy()
    return heat / heat.max() if heat.max() > 0 else heat


@pytest.mark.parametrize("head", ["flatten", "average", "max"])
@pytest.mark.parametrize("convolutions", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_the_heat_is_that_of_the_papers_formula(head: str, residual: bool, convolutions: int) -> None:
    model = network(channels=3, head=head, residual=residual, convolutions=convolutions)
    hot = 0
    for label in range(3):
        heat = grad_cam(model, picture(3), label)
        assert heat.dtype == np.float32
        np.testing.assert_allclose(heat, by_the_formula(model, picture(3), label), atol=1e-5)
        hot += heat.max() == 1.0
    assert hot  # not all three are the empty map


@pytest.mark.parametrize("options", [{"batch_norm": False}, {"pooling": "average"}, {"padding": "valid"}])
def test_so_it_is_for_the_other_networks_of_the_family(options: dict[str, Any]) -> None:
    model = network(**options)
    np.testing.assert_allclose(grad_cam(model, picture(), 1), by_the_formula(model, picture(), 1), atol=1e-5)


def test_the_heat_is_where_the_class_is_seen() -> None:
    heat = grad_cam(spot_finder(), spot(), 0)
    assert np.unravel_index(heat.argmax(), heat.shape) == (2, 5)
    assert heat[2, 5] == 1.0
    assert np.count_nonzero(heat) == 1


def test_where_nothing_speaks_for_the_class_there_is_no_heat() -> None:
    assert not grad_cam(spot_finder(), spot(), 1).any()
    assert not grad_cam(spot_finder(), np.zeros((1, 8, 8), dtype=np.uint8), 0).any()


def test_the_heat_has_the_size_of_an_image_that_is_not_square() -> None:
    config = ModelConfig(blocks=2, filters=(4, 6), kernel_size=(3, 3))
    model = build_model(config, (1, 9, 14), 3, [100.0], [50.0])
    assert grad_cam(model, picture(side=14)[:, :9], 0).shape == (9, 14)


def test_the_model_stays_as_it_was_but_for_its_mode() -> None:
    model = network(dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = grad_cam(model, picture(), 0)
    assert not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert np.array_equal(grad_cam(model, picture(), 0), first)


def test_a_network_that_judges_by_the_mirror_image_too_is_asked_about_the_image_alone() -> None:
    plain, flipping = network(), network(test_time_flip=True)
    flipping.load_state_dict(plain.state_dict())
    assert np.array_equal(grad_cam(flipping, picture(), 1), grad_cam(plain, picture(), 1))
    assert flipping.test_time_flip


def test_weights_that_are_not_trained_and_images_that_are_not_writable_will_do() -> None:
    model, image = network(), picture()
    expected = grad_cam(model, image, 2)
    image.flags.writeable = False
    assert np.array_equal(grad_cam(model.requires_grad_(False), image, 2), expected)


def test_threads_that_share_a_model_get_their_own_images_heat() -> None:
    model, images = network(), [picture(seed=i) for i in range(8)]
    expected = [grad_cam(model, image, 0) for image in images]
    start = threading.Barrier(4)

    def work(turn: int) -> bool:
        start.wait(30)
        return all(np.array_equal(grad_cam(model, images[i], 0), expected[i]) for i in (turn, turn + 4) * 10)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))


# ---- pictures of heat ----


def test_without_heat_the_picture_is_the_image_in_grey() -> None:
    image = picture(3)
    shown = overlay(image, np.zeros((12, 12), dtype=np.float32))
    assert shown.shape == (12, 12, 3)
    assert shown.dtype == np.uint8
    grey = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L"), dtype=int)
    assert abs(shown - grey[..., None]).max() <= 1
    gray_image = picture(1)
    assert (overlay(gray_image, np.zeros((12, 12), dtype=np.float32)) == gray_image[0][..., None]).all()


@pytest.mark.parametrize("value", [0, 255])
def test_heat_colours_its_own_pixels_and_no_others(value: int) -> None:
    heat = np.zeros((12, 12), dtype=np.float32)
    heat[3, 4], heat[5, 6] = 1.0, 0.5
    shown = overlay(np.full((3, 12, 12), value, dtype=np.uint8), heat)
    # a quarter of the image and three quarters of the hottest colour; then five and three eighths of the middle one
    assert abs(shown[3, 4] - (value / 4 + 0.75 * np.array([252, 255, 164]))).max() <= 0.5
    assert abs(shown[5, 6] - (value * 5 / 8 + 3 / 8 * np.array([188, 55, 84]))).max() <= 0.5
    assert (shown[heat == 0] == value).all()
