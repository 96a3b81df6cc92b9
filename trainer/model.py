"""The network family, built from a `ModelConfig`: blocks of convolutions, a head and a linear classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from trainer.hyperparameters import ModelConfig

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class Classifier(nn.Module):
    """A convolutional network that takes raw images and gives logits.

    In: uint8 `(N, C, H, W)`, 0 to 255. Out: float `(N, classes)`. The normalisation by the data's `mean` and `std` (per
    channel, in units of 0 to 255) is part of the network, so that a model cannot be used without it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: nn.Module, classifier: nn.Linear, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.features = features
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, classes)` of uint8 images `(N, C, H, W)`."""
        pixels = images.to(torch.float32, memory_format=torch.channels_last)
        return cast(Tensor, self.classifier(self.features((pixels - self.mean) / self.std)))


class Block(nn.Module):
    """Convolution - pooling - normalisation - activation; with two convolutions, only the last one is pooled.

    Pooling comes before normalisation and activation, which then work on a quarter of the pixels. With a shortcut, the
    block's input is added to its last normalised convolution (through a 1x1 convolution where the filters differ).
    """

    def __init__(self, config: ModelConfig, channels: int, filters: int, kernel_size: int, pool: bool) -> None:
        super().__init__()
        padding = kernel_size // 2 if config.padding == "same" else 0
        activation = _ACTIVATIONS[config.activation]
        pooling = nn.MaxPool2d(2) if config.pooling == "max" else nn.AvgPool2d(2)
        layers: list[nn.Module] = []
        for i in range(config.convolutions):
            last = i == config.convolutions - 1
            layers.append(
                nn.Conv2d(
                    channels if i == 0 else filters, filters, kernel_size, padding=padding, bias=not config.batch_norm
                )
            )
            if last and pool:
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


def build_model(
    config: ModelConfig, image_shape: tuple[int, int, int], classes: int, mean: Sequence[float], std: Sequence[float]
) -> Classifier:
    """The network for images of `image_shape` = (C, H, W) and that many classes, with random weights.

    A block pools while the image has at least two pixels each way. Raises ValueError when a kernel with `valid` padding
    is larger than what is left of the image.
    """
    channels, height, width = image_shape
    layers: list[nn.Module] = []
    for i, (kernel_size, filters) in enumerate(zip(config.kernel_size, config.filters, strict=True)):
        if config.padding == "valid":
            lost = config.convolutions * (kernel_size - 1)
            if min(height, width) <= lost:
                raise ValueError(
                    f"model.kernel_size.{i + 1} = {kernel_size} with model.padding = valid needs an image larger than {lost} "
                    f"pixels at block {i + 1}, but {height}x{width} are left: use padding same, fewer blocks or larger images."
                )
            height, width = height - lost, width - lost
        pool = min(height, width) >= 2 and (config.pool_last or i < config.blocks - 1)
        layers.append(Block(config, channels, filters, kernel_size, pool))
        channels, height, width = filters, height // 2 if pool else height, width // 2 if pool else width
    layers.append(nn.Flatten() if config.head == "flatten" else GlobalPool(config.head))
    size = channels * height * width if config.head == "flatten" else channels
    if config.dense_units:
        layers += [nn.Linear(size, config.dense_units), _ACTIVATIONS[config.activation]()]
        size = config.dense_units
    if config.dropout:
        layers.append(nn.Dropout(config.dropout))
    model = Classifier(nn.Sequential(*layers), nn.Linear(size, classes), mean, std)
    return model.to(memory_format=torch.channels_last)


def parameter_count(model: nn.Module) -> int:
    """How many trained numbers the network has."""
    return sum(p.numel() for p in model.parameters())
