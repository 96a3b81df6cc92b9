"""The family `convnet`: blocks of convolutions, and a head that makes a vector of the last feature maps."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from trainer.model_config import ModelConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class Whitening(nn.Module):
    """A convolution whose fixed kernels make neighbouring pixels and colours uncorrelated and equally strong; activation.

    There are two kernels, w and -w, for each of the 4C principal directions of 2x2 pixels, so that no activation loses a sign. It
    spares the network the first epochs, in which it would find such kernels itself (Page 2019, "How to train your ResNet
    8"; Jordan 2024, arXiv:2404.00498). Until `fit` the kernels are random; they have no gradient.
    """

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, 8 * channels, 2, bias=False).requires_grad_(False)
        self.activation = activation

    def forward(self, maps: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, 8C, H - 1, W - 1)`."""
        return cast(Tensor, self.activation(self.convolution(maps)))

    def fit(self, images: Tensor) -> None:
        """Set the kernels by normalised images `(N, C, H, W)`."""
        patches = nn.functional.unfold(images, 2).transpose(1, 2).flatten(0, 1).double()
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        kernels = (directions / (variances + _LEAST_VARIANCE).sqrt()).T.flip(0).float()
        weight = self.convolution.weight
        with torch.no_grad():
            weight.copy_(torch.cat([kernels, -kernels]).view_as(weight))


_LEAST_VARIANCE = 5e-4
"""Added to the variances of normalised patches, so that directions without any are not blown up. Jordan's value."""


class Block(nn.Module):
    """Convolution - pooling - normalisation - activation; with two convolutions, only one of them is pooled.

    Pooling comes before normalisation and activation, which then work on a quarter of the pixels. With a shortcut, the
    block's input is added to its last normalised convolution (through a 1x1 convolution where the filters differ).
    """

    def __init__(self, config: ModelConfig, channels: int, filters: int, kernel_size: int, pool: bool) -> None:
        super().__init__()
        padding = kernel_size // 2 if config.padding == "same" else 0
        activation = ACTIVATIONS[config.activation]
        pooling = nn.MaxPool2d(2) if config.pooling == "max" else nn.AvgPool2d(2)
        layers: list[nn.Module] = []
        pooled = 0 if config.pool_position == "first" else config.convolutions - 1
        for i in range(config.convolutions):
            last = i == config.convolutions - 1
            inputs = channels if i == 0 else filters
            layers.append(nn.Conv2d(inputs, filters, kernel_size, padding=padding, bias=not config.batch_norm))
            if i == pooled and pool:
                layers.append(pooling)
            if config.batch_norm:
                layers.append(nn.BatchNorm2d(filters))
            if not last:
                layers.append(activation())
        self.convolutions = nn.Sequential(*layers)
        self.shortcut: nn.Module | None = None
        if config.residual and config.padding == "same":
            matched = nn.Identity() if channels == filters else nn.Conv2d(channels, filters, 1, bias=False)
            self.shortcut = nn.Sequential(matched, pooling) if pool else matched
        self.activation = activation()

    def forward(self, maps: Tensor) -> Tensor:
        """`(N, channels, H, W)` to `(N, filters, H', W')`."""
        out = self.convolutions(maps)
        if self.shortcut is not None:
            out = out + self.shortcut(maps)
        return cast(Tensor, self.activation(out))


class GlobalPool(nn.Module):
    """The mean or the maximum over all pixels: `(N, F, H, W)` to `(N, F)`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, maps: Tensor) -> Tensor:
        """`(N, F, H, W)` to `(N, F)`."""
        return maps.mean((2, 3)) if self.kind == "average" else maps.amax((2, 3))


def build(config: ModelConfig, image_shape: tuple[int, int, int]) -> tuple[list[nn.Module], int]:
    """The layers before the classifier for images of `image_shape` = (C, H, W), and the units that they end with.

    A block pools while the image has at least two pixels each way. Raises ValueError when a kernel with `valid` padding
    is larger than what is left of the image.
    """
    channels, height, width = image_shape
    layers: list[nn.Module] = []
    if config.whitening:
        if min(height, width) < 2:
            raise ValueError(f"model.whitening needs images of at least 2x2 pixels, but they have {height}x{width}.")
        layers.append(Whitening(channels, ACTIVATIONS[config.activation]()))
        channels, height, width = 8 * channels, height - 1, width - 1
    for i, (kernel_size, filters) in enumerate(zip(config.kernel_size, config.filters, strict=True)):
        may_pool = config.pool_last or i < config.blocks - 1
        pool, size = _pooled(config, kernel_size, may_pool, (height, width))
        if min(size) < 1:
            raise ValueError(
                f"model.kernel_size.{i + 1} = {kernel_size} with model.padding = valid does not fit into the {height}x{width} "
                f"pixels that block {i + 1} gets: use padding same, fewer blocks or larger images."
            )
        layers.append(Block(config, channels, filters, kernel_size, pool))
        channels, (height, width) = filters, size
    layers.append(nn.Flatten() if config.head == "flatten" else GlobalPool(config.head))
    inputs = channels * height * width if config.head == "flatten" else channels
    if config.dense_units:
        layers += [nn.Linear(inputs, config.dense_units), ACTIVATIONS[config.activation]()]
        inputs = config.dense_units
    return layers, inputs


def _pooled(config: ModelConfig, kernel_size: int, pool: bool, size: tuple[int, int]) -> tuple[bool, tuple[int, int]]:
    """Whether a block pools that may `pool`, and the size (H, W) of its output; below 1 where its kernels do not fit."""
    lost = 0 if config.padding == "same" else kernel_size - 1
    before = 1 if config.pool_position == "first" else config.convolutions
    height, width = (side - before * lost for side in size)
    pool = pool and min(height, width) >= 2
    if pool:
        height, width = height // 2, width // 2
    after = config.convolutions - before
    return pool, (height - after * lost, width - after * lost)
