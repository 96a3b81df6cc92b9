"""The family `resnet`: residual networks for small images (He et al. 2016, arXiv:1512.03385), activated after the addition."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from trainer.convnet import ACTIVATIONS, GlobalPool
from trainer.model_config import ModelConfig


class Stem(nn.Sequential):
    """A 3x3 convolution of the image with normalisation and activation: `(N, C, H, W)` to `(N, filters, H, W)`."""

    def __init__(self, channels: int, filters: int, activation: type[nn.Module]) -> None:
        convolution = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(filters), activation())


class Unit(nn.Module):
    """Two normalised convolutions, to which the input is added before the activation.

    The first one, and the 1x1 convolution in the shortcut, have the `stride`. The shortcut is the input itself where the shape stays.
    """

    def __init__(self, channels: int, filters: int, kernel_size: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, filters, kernel_size, stride, padding, bias=False),
            nn.BatchNorm2d(filters),
            activation(),
            nn.Conv2d(filters, filters, kernel_size, padding=padding, bias=False),
            nn.BatchNorm2d(filters),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != filters:
            matched = nn.Conv2d(channels, filters, 1, stride, bias=False)
            self.shortcut = nn.Sequential(matched, nn.BatchNorm2d(filters))
        self.activation = activation()

    def forward(self, maps: Tensor) -> Tensor:
        """`(N, channels, H, W)` to `(N, filters, H', W')`."""
        return cast(Tensor, self.activation(self.convolutions(maps) + self.shortcut(maps)))


class Stage(nn.Sequential):
    """`depth` residual units with as many filters each; the first of them has the `stride`."""

    def __init__(
        self, channels: int, filters: int, kernel_size: int, depth: int, stride: int, activation: type[nn.Module]
    ) -> None:
        first = Unit(channels, filters, kernel_size, stride, activation)
        super().__init__(first, *(Unit(filters, filters, kernel_size, 1, activation) for _ in range(depth - 1)))


def build(config: ModelConfig, image_shape: tuple[int, int, int]) -> tuple[list[nn.Module], int]:
    """The layers before the classifier for images of `image_shape` = (C, H, W), and the units that they end with.

    Each stage but the first halves the image's sides.
    """
    activation = ACTIVATIONS[config.activation]
    channels = config.filters[0]
    layers: list[nn.Module] = [Stem(image_shape[0], channels, activation)]
    for i, (filters, kernel_size, depth) in enumerate(
        zip(config.filters, config.kernel_size, config.depth, strict=True)
    ):
        layers.append(Stage(channels, filters, kernel_size, depth, 2 if i else 1, activation))
        channels = filters
    return [*layers, GlobalPool("average")], channels
